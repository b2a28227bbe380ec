"""The mail that the peers get: one recipient whose address carries the message's number, and a text of 2 KB.

The number (token) is how the sink tells messages apart. Texts are random words, so that neither PostgreSQL's
compression nor a cache makes them smaller than real mail. Everything is built to the last byte before a clock starts; only
mail of 10 MB is put together from two pieces when its turn comes. The domain has no mail server behind it here: every peer
has the sink as its one next hop.
"""

import base64
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from string import ascii_lowercase
from typing import Any, Final, NamedTuple

import msgspec

from bench.peer import Intake
from mailkeep.core.address import parse_mailbox
from mailkeep.core.command import Limits
from mailkeep.core.ids import new_id
from mailkeep.templates.catalog import SHIPPED_CATALOG, Catalog
from mailkeep.templates.message import MessageParts, build_message

DISTINCT_TEXTS: Final = 64  # few enough to build at once; nothing in between compresses across messages
DOMAIN: Final = "bench.example.org"
STALLED_DOMAIN: Final = "stalled.example.org"
"""Its next hop never answers."""
SENDER: Final = f"bench@{DOMAIN}"
BIG_BYTES: Final = 10_000_000  # of the attachment of a big mail
TOKEN: Final = re.compile(rb"<tok-(\d+)@")
STREAM: Final = "mail:delivery_commands"
ORDER_CONFIRMATION: Final[dict[str, Any]] = {
    "template_id": "order-confirmation",
    "locale": "en",
    "variables": {
        "order_number": "A-10042",
        "ordered_at": "2026-03-14T15:09:26+01:00",
        "items": [{"name": "Coffee beans, 1 kg", "quantity": 2, "amount": 37.80}],
        "currency": "EUR",
        "total": 37.80,
    },
}
"""A mail of the catalog that Mailkeep ships, with subject, text and html: 4.5 KB. Each of a run has an order of its own."""


class Exchange(NamedTuple):
    """One write and the number of answers it earns."""

    data: bytes
    answers: int = 1


Message = tuple[Exchange, ...]
"""All exchanges that hand one message over, in order."""


def build(intake: Intake, tokens: range, domain: str = DOMAIN) -> Iterable[Message]:
    """Return one message for each token, to recipients of `domain`, ready for `intake`."""
    if intake is Intake.HTTP_BIG:
        return _big_deliveries(tokens, domain)
    texts = _texts()
    make: Callable[[str, int, str], Message] = {
        Intake.HTTP_RENDERED: _http_delivery,
        Intake.HTTP_TEMPLATE: _http_template,
        Intake.LOGIN_CODE: _http_login_code,
        Intake.STREAM: _stream_entry,
        Intake.SQL: _sql_command,
        Intake.SMTP: _smtp_transaction,
        Intake.SMTP_FINISHED: _FinishedMail() if intake is Intake.SMTP_FINISHED else _smtp_transaction,
    }[intake]
    return [make(f"tok-{token:06d}@{domain}", token, texts[token % DISTINCT_TEXTS]) for token in tokens]


def _http_delivery(to: str, token: int, text: str) -> Message:
    return _http_request("deliveries", _command(to, token, text))


def _http_template(to: str, token: int, _text: str) -> Message:
    price = 5 + token % 49_999 / 100
    order = {
        "order_number": f"A-{token:06d}",
        "ordered_at": datetime.fromtimestamp(1_773_500_000 + token, UTC).isoformat(),
        "items": [{"name": "Coffee beans, 1 kg", "quantity": 2, "amount": price}],
        "total": price + 4.9,
    }
    payload = {"to": [to], **ORDER_CONFIRMATION, "variables": ORDER_CONFIRMATION["variables"] | order}
    return _http_request("deliveries", {"source": "api", "payload_mode": "template", "payload": payload})


def _http_login_code(to: str, _token: int, _text: str) -> Message:
    return _http_request("login-code-deliveries", {"email": to, "code": "492817", "locale": "en"})


def _http_request(call: str, content: dict[str, Any]) -> Message:
    """One POST with a key of its own."""
    body = msgspec.json.encode(content)
    return (Exchange(_http_head(call, len(body)) + body),)


def _http_head(call: str, length: int) -> bytes:
    return (
        f"POST /api/v1/internal/{call} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {uuid.uuid4()}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def _stream_entry(to: str, token: int, text: str) -> Message:
    """One XADD in Redis's protocol (RESP)."""
    command = _command(to, token, text)
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


def _sql_command(to: str, token: int, text: str) -> Message:
    """One argument of `mail.enqueue`, with a key of its own."""
    command = _command(to, token, text) | {"source": "sql", "idempotency_key": str(uuid.uuid4())}
    return (Exchange(msgspec.json.encode(command)),)


def _command(to: str, token: int, text: str) -> dict[str, Any]:
    payload = {"to": [to], "subject": _subject(token), "text": text}
    return {"source": "api", "payload_mode": "rendered", "payload": payload}


def _smtp_transaction(to: str, token: int, text: str) -> Message:
    """One mail transaction: all commands in one write (RFC 2920), then the message and its dot."""
    content = (
        f"From: {SENDER}\r\nTo: {to}\r\nSubject: {_subject(token)}\r\nDate: Mon, 05 Jan 2026 09:00:00 +0000\r\n"
        f"Message-ID: <{uuid.uuid4()}@{DOMAIN}>\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n\r\n" + text.replace("\n", "\r\n") + ".\r\n"
    )
    return Exchange(_envelope(to), answers=3), Exchange(content.encode())


def _envelope(to: str) -> bytes:
    return f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{to}>\r\nDATA\r\n".encode()


class _FinishedMail:
    """The mail of the template as Mailkeep itself would make it, for a peer that renders nothing."""

    _PLACE: Final = f"tok-000000@{DOMAIN}"

    def __init__(self) -> None:
        rendered = Catalog.load(SHIPPED_CATALOG).render(**ORDER_CONFIRMATION, limits=Limits())
        parts = MessageParts(
            message_id=f"{uuid.uuid4()}@{DOMAIN}",
            date=datetime.now(UTC),
            sender=parse_mailbox(SENDER),
            to=(parse_mailbox(self._PLACE),),
            subject=rendered.subject,
            text=rendered.text,
            html=rendered.html,
        )
        self._content = build_message(parts, str(uuid.uuid4())).replace(b"\r\n.", b"\r\n..") + b".\r\n"

    def __call__(self, to: str, _token: int, _text: str) -> Message:
        """Return the transaction of one recipient."""
        content = self._content.replace(self._PLACE.encode(), to.encode())
        return Exchange(_envelope(to), answers=3), Exchange(content)


def _big_deliveries(tokens: range, domain: str) -> Iterable[Message]:
    """Yield mail with an attachment of 10 MB that nothing can compress, the same in each."""
    content = base64.b64encode(random.Random(10).randbytes(BIG_BYTES)).decode()
    payload: dict[str, Any] = {"subject": "Big", "text": "See the attachment."}
    payload["attachments"] = [
        {"filename": "big.bin", "content": content, "content_type": "application/octet-stream"}
    ]
    begin, end = msgspec.json.encode({"payload_mode": "rendered", "payload": {"to": ["*"], **payload}}).split(
        b"*", 1
    )
    for token in tokens:
        to = f"tok-{token:06d}@{domain}".encode()
        length = len(begin) + len(to) + len(end)
        yield (Exchange(b"".join((_http_head("deliveries", length), begin, to, end))),)


def _subject(token: int) -> str:
    return f"Bench message {token:06d}"


def _texts() -> list[str]:
    """Return the texts: 32 lines of 8 random words of 7 letters, 2,048 bytes; the same in every run."""
    rng = random.Random(2048)
    return ["".join(_line(rng) for _ in range(32)) for _ in range(DISTINCT_TEXTS)]


def _line(rng: random.Random) -> str:
    return " ".join("".join(rng.choices(ascii_lowercase, k=7)) for _ in range(8)) + "\n"
