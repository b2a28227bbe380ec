"""`mailkeep send`: hand one mail in over the internal HTTP listener, and follow it if asked to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from mailkeep.settings import Settings

DELIVERIES: Final = "/api/v1/internal/deliveries"
CALL_TIMEOUT_S: Final = 60.0  # of one HTTP call; accepting takes milliseconds
POLL_S: Final = 0.5


def send(
    *,
    to: Annotated[list[str], typer.Option(help="Recipient; may be repeated.")],
    subject: Annotated[str | None, typer.Option(help="Subject of a mail that comes ready.")] = None,
    text: Annotated[str | None, typer.Option(help="Its text.")] = None,
    html_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File with its HTML.")
    ] = None,
    attach: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="File to attach; may be repeated.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="Template to render instead.")] = None,
    locale: Annotated[str, typer.Option(help="Its locale.")] = "en",
    var: Annotated[
        list[str] | None,
        typer.Option(
            help="A variable of the template: name=text, or name:=JSON for numbers and lists; may be repeated."
        ),
    ] = None,
    delivery_class: Annotated[
        str | None, typer.Option("--class", help="auth, transactional or relay.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the delivery until it ends.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds to follow it at most.")
    ] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send a mail through the service at MAIL_INTERNAL_HTTP_ADDR and print the delivery's id.

    Exit code 0: it is durable; with --wait: it was sent. 1 otherwise.

    For example `mailkeep send --to ann@example.org --subject Hello --text "It works." --wait`.
    """
    from mailkeep.cli.output import load_settings, print_json

    if template is None:
        payload: dict[str, Any] = {"subject": subject, "text": text}
        if html_file:
            payload["html"] = html_file.read_text(encoding="utf-8")
    else:
        payload = {"template_id": template, "locale": locale, "variables": dict(map(_variable, var or ()))}
    payload |= {"to": to, "attachments": [_attachment(path) for path in attach or ()]}
    command = {"payload_mode": "template" if template else "rendered", "payload": payload}
    if delivery_class:
        command["class"] = delivery_class
    client = _Client(load_settings(find_dev=True))
    accepted = client.call("POST", DELIVERIES, command, {"Idempotency-Key": key} if key else {})
    if as_json and not wait:
        print_json(accepted)
    elif not as_json:
        print(accepted["delivery_id"])
    if wait:
        raise typer.Exit(0 if _follow(client, accepted["delivery_id"], timeout_s, as_json=as_json) else 1)


class _Client:
    """Calls the internal listener; leaves with one clear line when it refuses or can't be reached."""

    def __init__(self, settings: "Settings") -> None:
        from mailkeep.cli._listener import client_tls, listener_host

        self._endpoint, self._host = settings.internal_http_addr, listener_host(settings)
        self._tls = client_tls(settings)
        tokens = settings.internal_http_tokens
        self._headers = {"Authorization": f"Bearer {tokens[0].reveal()}"} if tokens else {}

    def call(
        self,
        method: str,
        path: str,
        command: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return the answer's JSON."""
        import http.client
        import json

        from mailkeep.cli.output import EXIT_UNAVAILABLE, fail

        host, port = self._host, self._endpoint.port
        connection = (
            http.client.HTTPConnection(host, port, timeout=CALL_TIMEOUT_S)
            if self._tls is None
            else http.client.HTTPSConnection(host, port, timeout=CALL_TIMEOUT_S, context=self._tls)
        )
        body = None if command is None else json.dumps(command).encode()
        try:
            connection.request(
                method, path, body, {"Content-Type": "application/json", **self._headers, **(headers or {})}
            )
            answer = connection.getresponse()
            said: dict[str, Any] = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as fault:
            fail(f"{self._endpoint} can't be used: {fault}; is `mailkeep serve` running?", EXIT_UNAVAILABLE)
        finally:
            connection.close()
        if answer.status == 503:
            fail(f"{said['title']}: {said['detail']}", EXIT_UNAVAILABLE)
        if answer.status >= 400:
            fail(f"{said['title']}: {said['detail']}")
        return said


def _follow(client: _Client, delivery_id: str, timeout_s: float, *, as_json: bool) -> bool:
    """Say each attempt as it ends; answers whether the delivery was sent."""
    import time

    import msgspec

    from mailkeep.cli.output import print_json, printable
    from mailkeep.cli.queue import describe_attempt
    from mailkeep.core.delivery import TERMINAL, AttemptStatus, DeliveryStatus
    from mailkeep.operator.queue import AttemptView, DeliveryView

    path, said, ends_at = f"{DELIVERIES}/{delivery_id}", 0, time.monotonic() + timeout_s
    while True:
        delivery = msgspec.convert(client.call("GET", path), DeliveryView)
        attempts = msgspec.convert(
            client.call("GET", f"{path}/attempts")["attempts"], tuple[AttemptView, ...]
        )
        ended = [attempt for attempt in attempts if attempt.status is not AttemptStatus.IN_PROGRESS]
        for attempt in ended[said:]:
            if not as_json:
                print("\n".join(map(printable, describe_attempt(attempt))), flush=True)
        said = len(ended)
        settled = delivery.status in TERMINAL or delivery.status is DeliveryStatus.HELD
        if settled or time.monotonic() > ends_at:
            break
        time.sleep(POLL_S)
    if as_json:
        print_json({"delivery": delivery, "attempts": attempts})
    else:
        for recipient in delivery.recipients:
            if recipient.reason:
                print(printable(f"{recipient.address or 'erased'}: {recipient.state} ({recipient.reason})"))
        print(delivery.status if settled else f"still {delivery.status} after {timeout_s:g} s")
    return delivery.status is DeliveryStatus.SENT


def _variable(text: str) -> tuple[str, object]:
    import json

    name, separator, value = text.partition("=")
    if not separator or not name.rstrip(":"):
        raise typer.BadParameter(f"{name!r} is not like name=text or name:=JSON")
    if not name.endswith(":"):
        return name, value
    try:
        return name[:-1], json.loads(value)
    except ValueError:
        raise typer.BadParameter(f"{name[:-1]}: what follows := must be JSON, such as 10 or true") from None


def _attachment(path: Path) -> dict[str, str]:
    import base64
    import mimetypes

    kind, coding = mimetypes.guess_type(path.name)
    return {
        "filename": path.name,
        "content": base64.b64encode(path.read_bytes()).decode(),
        "content_type": kind if kind and not coding else "application/octet-stream",
    }
