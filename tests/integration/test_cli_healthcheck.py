"""`mailkeep healthcheck`: 0 only if Mailkeep answers, 1 for everything else, and never longer than its timeout."""

import os
import socket
import threading
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from mailkeep.cli import app

TOKEN = "a-token-long-enough"
PROBLEM = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Run without the MAIL_* of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("MAIL_")]:
        monkeypatch.delenv(name)


@contextmanager
def answering(answer, *, drips=False):
    """Serve one connection with `answer`, one byte and a pause at a time if it drips; yield port and request."""
    done, request = threading.Event(), bytearray()

    def serve():
        connection, _ = server.accept()
        with connection:
            request.extend(connection.recv(65536))
            for part in [bytes([byte]) for byte in answer] if drips else [answer]:
                connection.sendall(part)
                if drips and done.wait(0.05):
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], request
        finally:
            done.set()
            thread.join()


def check(port, *options, host="127.0.0.1", **environ):
    """Run the check against `port`."""
    environ = {"MAIL_INTERNAL_HTTP_ADDR": f"{host}:{port}", **environ}
    return CliRunner().invoke(app, ["healthcheck", *options], env=environ)


def test_the_404_of_an_unknown_delivery_is_health():
    """A problem document with 404 for the delivery that can't exist: exit code 0."""
    with answering(PROBLEM) as (port, request):
        done = check(port)
    assert (done.exit_code, done.output) == (0, f"127.0.0.1:{port} answers\n")
    assert request.startswith(
        b"GET /api/v1/internal/deliveries/00000000-0000-0000-0000-000000000000 HTTP/1.1\r\n"
    )
    assert b"Authorization" not in request


def test_a_token_is_shown_where_tokens_are_demanded():
    """The first of the configured tokens goes with the request, and never into the output."""
    with answering(PROBLEM) as (port, request):
        done = check(port, MAIL_INTERNAL_HTTP_TOKENS=f"{TOKEN}, {TOKEN}-2")
    assert done.exit_code == 0
    assert f"Authorization: Bearer {TOKEN}\r\n".encode() in request
    assert TOKEN not in done.output


def test_a_listener_on_all_addresses_is_found_on_loopback():
    """0.0.0.0 is where to listen, not where to connect."""
    with answering(PROBLEM) as (port, _):
        assert check(port, host="0.0.0.0", MAIL_INTERNAL_HTTP_AUTH="none").exit_code == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (PROBLEM.replace(b"404", b"401"), "HTTP 401"),
        (PROBLEM.replace(b"404", b"503"), "HTTP 503"),
        (PROBLEM.replace(b"problem+json", b"json"), "is it Mailkeep?"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "HTTP 200"),
        (b"220 mx.example.org ESMTP\r\n", "does not speak HTTP"),
        (b"\r\n\r\n", "HTTP none"),
        (b"x" * 100_000, "does not speak HTTP"),
        (b"", "does not speak HTTP"),
    ],
)
def test_any_other_answer_is_no_health(answer, said):
    """Refusals, other programs, floods and silence are exit code 1 with the reason."""
    with answering(answer) as (port, _):
        done = check(port)
    assert done.exit_code == 1
    assert said in done.stderr


def test_a_dripping_listener_does_not_hold_the_probe():
    """The timeout is one deadline for everything, not one a read."""
    with answering(PROBLEM, drips=True) as (port, _):
        done = check(port, "--timeout", "0.2")
    assert done.exit_code == 1
    assert "did not answer within 0.2 s" in done.stderr


def test_nobody_there_is_exit_code_1():
    """A refused connection is said to be one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = check(port)
    assert done.exit_code == 1
    assert "refuses connections" in done.stderr


def test_a_bad_configuration_is_exit_code_1_too():
    """Container runtimes know 0 and 1 only."""
    done = check("nowhere")
    assert done.exit_code == 1
    assert "MAIL_INTERNAL_HTTP_ADDR" in done.stderr
