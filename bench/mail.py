"""The mail that the peers get: one recipient whose address carries the message's number, and a text of 2 KB.

The number (token) is how the sink tells messages apart. Texts are random words, so that neither PostgreSQL's
compression nor a cache makes them smaller than real mail. Everything is built to the last byte before a clock starts.
"""

import random
import re
import time
import uuid
from string import ascii_lowercase
from typing import Any, Final, NamedTuple

import msgspec

from bench.peer import Intake
from mailkeep.core.ids import new_id

DISTINCT_TEXTS: Final = 64  # few enough to build at once; nothing in between compresses across messages
SENDER: Final = "bench@bench.sinkhole.test"
TOKEN: Final = re.compile(rb"<tok-(\d+)@")
STREAM: Final = "mail:delivery_commands"
ORDER_CONFIRMATION: Final = {
    "template_id": "order-confirmation",
    "locale": "en",
    "variables": {
        "order_number": "A-10042",
        "ordered_at": "2026-03-14T15:09:26+01:00",
        "items": [
            {"name": "Coffee beans, 1 kg", "quantity": 2, "amount": 37.80},
            {"name": "Paper filters", "quantity": 1, "amount": 4.95},
        ],
        "currency": "EUR",
        "total": 42.75,
    },
}
"""A mail of the catalog that Mailkeep ships, with subject, text and html."""


class Exchange(NamedTuple):
    """One write and the number of answers it earns."""

    data: bytes
    answers: int = 1


Message = tuple[Exchange, ...]
"""All exchanges that hand one message over, in order."""


def build(intake: Intake, tokens: range) -> list[Message]:
    """Return one message for each token, ready for `intake`."""
    texts = _texts()
    make = {
        Intake.HTTP_RENDERED: _http_delivery,
        Intake.HTTP_TEMPLATE: _http_template,
        Intake.LOGIN_CODE: _http_login_code,
        Intake.STREAM: _stream_entry,
        Intake.SQL: _sql_command,
        Intake.SMTP: _smtp_transaction,
    }[intake]
    return [make(token, texts[token % DISTINCT_TEXTS]) for token in tokens]


def _http_delivery(token: int, text: str) -> Message:
    return _http_request("deliveries", _command(token, text))


def _http_template(token: int, _: str) -> Message:
    payload = {"to": [_recipient(token)], **ORDER_CONFIRMATION}
    return _http_request("deliveries", {"source": "api", "payload_mode": "template", "payload": payload})


def _http_login_code(token: int, _: str) -> Message:
    return _http_request(
        "login-code-deliveries", {"email": _recipient(token), "code": "492817", "locale": "en"}
    )


def _http_request(call: str, content: dict[str, Any]) -> Message:
    """One POST with a key of its own."""
    body = msgspec.json.encode(content)
    head = (
        f"POST /api/v1/internal/{call} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {uuid.uuid4()}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return (Exchange(head.encode() + body),)


def _stream_entry(token: int, text: str) -> Message:
    """One XADD in Redis's protocol (RESP)."""
    command = _command(token, text)
    fields = {
        "delivery_id": str(new_id(time.time())),
        "source": "notification",
        "payload_mode": command["payload_mode"],
        "idempotency_key": str(uuid.uuid4()),
        "requested_at_ms": str(time.time_ns() // 1_000_000),
        "payload_json": msgspec.json.encode(command["payload"]).decode(),
    }
    words = ["XADD", STREAM, "*", *(word for field in fields.items() for word in field)]
    bulks = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)  # all of it is ASCII
    return (Exchange(f"*{len(words)}\r\n{bulks}".encode("ascii")),)


def _sql_command(token: int, text: str) -> Message:
    """One argument of `mail.enqueue`, with a key of its own."""
    command = _command(token, text) | {"source": "sql", "idempotency_key": str(uuid.uuid4())}
    return (Exchange(msgspec.json.encode(command)),)


def _command(token: int, text: str) -> dict[str, Any]:
    payload = {"to": [_recipient(token)], "subject": _subject(token), "text": text}
    return {"source": "api", "payload_mode": "rendered", "payload": payload}


def _smtp_transaction(token: int, text: str) -> Message:
    """One mail transaction: all commands in one write (RFC 2920), then the message and its dot."""
    to = _recipient(token)
    envelope = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{to}>\r\nDATA\r\n"
    content = (
        f"From: {SENDER}\r\nTo: {to}\r\nSubject: {_subject(token)}\r\nDate: Mon, 05 Jan 2026 09:00:00 +0000\r\n"
        f"Message-ID: <{uuid.uuid4()}@bench.sinkhole.test>\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n\r\n" + text.replace("\n", "\r\n") + ".\r\n"
    )
    return Exchange(envelope.encode(), answers=3), Exchange(content.encode())


def _recipient(token: int) -> str:
    return f"tok-{token:06d}@bench.sinkhole.test"


def _subject(token: int) -> str:
    return f"Bench message {token:06d}"


def _texts() -> list[str]:
    """Return the texts: 32 lines of 8 random words of 7 letters, 2,048 bytes; the same in every run."""
    rng = random.Random(2048)
    return ["".join(_line(rng) for _ in range(32)) for _ in range(DISTINCT_TEXTS)]


def _line(rng: random.Random) -> str:
    return " ".join("".join(rng.choices(ascii_lowercase, k=7)) for _ in range(8)) + "\n"
