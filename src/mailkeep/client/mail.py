"""What is sent: a `Mail` with its content, or a `TemplateMail` that Mailkeep's catalog renders.

One value for every way in: HTTP, stream and SQL carry the same command (`command`). What a mail may hold is judged by
Mailkeep, in one place; here is only what must be right for the command to be written at all. A mail's repr shows nothing
of it, since reprs end in logs.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from mailkeep.client.keys import check_key

Addresses: TypeAlias = str | Sequence[str]
"""One address or several, each like `ann@example.org` or `Ann Lee <ann@example.org>`."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Attachment:
    """A file that goes with the mail. With a `content_id` it is inline, for `<img src="cid:…">` in the HTML."""

    filename: str
    content: bytes
    content_type: str = "application/octet-stream"
    content_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Envelope:
    """What mails of both kinds have.

    `idempotency_key` names what the mail is about (`order-1042`): mails with one key and content are one delivery,
    also from another process. `delivery_class` is `transactional` (the default), `auth` or `relay`; `guarantee` is
    `at_least_once` or `at_most_once`; a newer mail with the same `supersede_key` and recipients cancels an older one that
    is not sent yet; `list_unsubscribe` is an https URL that ends a subscription when it is posted to (RFC 8058); `source` is
    `api`, `notification`, `sql` or `authsession` and has a default for each way in. Instants are aware.
    """

    to: Addresses
    cc: Addresses = ()
    bcc: Addresses = ()
    reply_to: Addresses = ()
    attachments: Sequence[Attachment] = ()
    idempotency_key: str | None = None
    delivery_class: str | None = None
    guarantee: str | None = None
    send_at: datetime | None = None
    expires_at: datetime | None = None
    supersede_key: str | None = None
    list_unsubscribe: str | None = None
    source: str | None = None
    traceparent: str | None = None

    def __post_init__(self) -> None:
        if self.idempotency_key is not None:
            check_key(self.idempotency_key)
        for name in ("send_at", "expires_at"):
            instant: datetime | None = getattr(self, name)
            if instant is not None and instant.tzinfo is None:
                raise ValueError(f"{name} needs a time zone, such as datetime.now(UTC) has")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Mail(_Envelope):
    """A mail whose content is ready: `text`, `html` or both. Only `html`: the text is made from it."""

    subject: str
    text: str | None = None
    html: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TemplateMail(_Envelope):
    """A mail that the catalog renders. `locale` is a BCP 47 tag such as `pt-BR`; `variables` is plain JSON data."""

    template_id: str
    locale: str
    variables: Mapping[str, Any]


AnyMail: TypeAlias = Mail | TemplateMail


def command(mail: AnyMail) -> dict[str, Any]:
    """Return the command for `mail`, as every way in takes it."""
    members = {
        "payload_mode": "rendered" if isinstance(mail, Mail) else "template",
        "payload": _payload(mail),
        "source": mail.source,
        "idempotency_key": mail.idempotency_key,
        "class": mail.delivery_class,
        "guarantee": mail.guarantee,
        "send_at_ms": _epoch_ms(mail.send_at),
        "expires_at_ms": _epoch_ms(mail.expires_at),
        "supersede_key": mail.supersede_key,
        "traceparent": mail.traceparent,
    }
    return _given(members)


def to_json(value: object) -> str:
    """Return `value` as JSON. Raises TypeError or ValueError for what JSON can't say."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _payload(mail: AnyMail) -> dict[str, Any]:
    content: dict[str, Any]
    match mail:
        case Mail():
            content = {"subject": mail.subject, "text": mail.text, "html": mail.html}
        case TemplateMail():
            content = {
                "template_id": mail.template_id,
                "locale": mail.locale,
                "variables": dict(mail.variables),
            }
    people = {name: _addresses(getattr(mail, name)) or None for name in ("cc", "bcc", "reply_to")}
    files = [_file(attachment) for attachment in mail.attachments]
    more = {"attachments": files or None, "list_unsubscribe": mail.list_unsubscribe}
    return _given({"to": _addresses(mail.to), **people, **content, **more})


def _addresses(addresses: Addresses) -> list[str]:
    return [addresses] if isinstance(addresses, str) else list(addresses)


def _file(attachment: Attachment) -> dict[str, Any]:
    return _given(
        {
            "filename": attachment.filename,
            "content": base64.b64encode(attachment.content).decode(),
            "content_type": attachment.content_type,
            "content_id": attachment.content_id,
        }
    )


def _epoch_ms(instant: datetime | None) -> int | None:
    return None if instant is None else round(instant.timestamp() * 1000)


def _given(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
