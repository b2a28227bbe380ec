"""`mailkeep healthcheck`: the probe of containers: TCP and one smoke request to the internal listener.

The listener has no `/healthz`: a delivery that can't exist is asked for, and the right answer is its 404. One deadline
covers it all, so that a listener that drips bytes does not hold the probe.
"""

from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    import ssl

    from mailkeep.settings import Endpoint

MAX_HEAD_BYTES: Final = 16 * 1024  # of the answer's head; ours has a few hundred
SMOKE_PATH: Final = "/api/v1/internal/deliveries/00000000-0000-0000-0000-000000000000"


def healthcheck(
    *,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, max=300, help="Seconds for the whole check.")
    ] = 3.0,
) -> None:
    """Ask the service at MAIL_INTERNAL_HTTP_ADDR whether it answers: exit code 0 if it does, else 1.

    With tokens configured the first of MAIL_INTERNAL_HTTP_TOKENS is shown; with TLS the service must have the certificate
    that is configured here, and MAIL_INTERNAL_HTTP_CLIENT_CERT is shown to it.
    """
    import asyncio

    from mailkeep.cli._listener import client_tls
    from mailkeep.cli.output import EXIT_FAILED, fail, load_settings

    settings = load_settings(EXIT_FAILED)  # 78 would be no answer that a container runtime knows
    tokens = settings.internal_http_tokens
    token, tls = tokens[0].reveal() if tokens else None, client_tls(settings)
    problem = asyncio.run(_problem(settings.internal_http_addr, token, tls, timeout_s))
    if problem:
        fail(f"{settings.internal_http_addr} {problem}")
    print(f"{settings.internal_http_addr} answers")


async def _problem(
    endpoint: "Endpoint", token: str | None, tls: "ssl.SSLContext | None", timeout_s: float
) -> str | None:
    """Return what is wrong with the service at `endpoint`, None if nothing is."""
    import asyncio

    try:
        async with asyncio.timeout(timeout_s):
            head = await _answer_head(endpoint, token, tls)
    except TimeoutError:
        return f"did not answer within {timeout_s:g} s"
    except ConnectionRefusedError:
        return "refuses connections; is `mailkeep serve` running?"
    except OSError as fault:
        return f"can't be reached: {fault.strerror or fault}"
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return "does not speak HTTP"
    status, *headers = head.lower().splitlines()
    code = status.split(" ")[1:2]
    if code == ["404"] and "content-type: application/problem+json" in headers:
        return None
    return f"gave the smoke request an unexpected answer (HTTP {' '.join(code) or 'none'}); is it Mailkeep?"


async def _answer_head(endpoint: "Endpoint", token: str | None, tls: "ssl.SSLContext | None") -> str:
    import asyncio

    reader, writer = await asyncio.open_connection(
        endpoint.connect_host, endpoint.port, limit=MAX_HEAD_BYTES, ssl=tls
    )
    try:
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        writer.write(
            f"GET {SMOKE_PATH} HTTP/1.1\r\nHost: {endpoint}\r\n{authorization}Connection: close\r\n\r\n".encode()
        )
        return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    finally:
        writer.transport.abort()  # a farewell by TLS would outlive this process
        await asyncio.sleep(0)
