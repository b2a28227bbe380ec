"""From Django's `EmailMessage` to a `Mail`.

What Mailkeep can't do as it was asked is an error that names it, never left out in silence: a sender of the message's own,
alternatives other than one text and one HTML, headers with a meaning. Headers that Mailkeep sets itself, or that only
say which program wrote the mail, are left out.
"""

import mimetypes
from collections.abc import Iterable
from email.message import Message
from email.utils import getaddresses, parseaddr
from typing import Any, Final

from django.conf import settings
from django.core.mail import EmailMessage

from mailkeep.client import Attachment, Mail
from mailkeep.django.options import Options

KEY_HEADER: Final = "idempotency-key"
LEFT_OUT: Final = frozenset(
    {
        "auto-submitted",  # Mailkeep says auto-generated
        "content-transfer-encoding",
        "content-type",
        "date",  # Mailkeep's own, and the same on every attempt, as Message-ID is
        "message-id",
        "mime-version",
        "precedence",
        "user-agent",
        "x-auto-response-suppress",
        "x-mailer",
    }
)
_QUOTED: Final = str.maketrans({"\\": r"\\", '"': r"\""})
_BODIES: Final = {"text/plain": "text", "text/html": "html"}


class UnsupportedMessageError(ValueError):
    """The message asks for something that Mailkeep does not do; the text says what, and holds no address."""


def mail_of(message: EmailMessage, options: Options) -> Mail:
    """Return `message` as a `Mail`. Raises `UnsupportedMessageError`."""
    headers = {name.lower(): str(value) for name, value in message.extra_headers.items()}
    _check_sender(headers.pop("from", message.from_email), options)
    reply_to = headers.pop("reply-to", None)
    header_key = headers.pop(KEY_HEADER, None)
    _check_headers(headers, options)
    if not any(message.to):
        raise UnsupportedMessageError("a message without an address in `to`")
    try:
        return Mail(
            to=_texts(message.to),
            cc=_texts(message.cc),
            bcc=_texts(message.bcc),
            reply_to=_texts(message.reply_to) if reply_to is None else _mailboxes(reply_to),
            subject=str(message.subject),
            **_bodies(message),
            attachments=[_attachment(*entry) for entry in enumerate(message.attachments, start=1)],
            idempotency_key=getattr(message, "idempotency_key", None) or header_key,
            delivery_class=options.delivery_class,
            source=options.source,
        )
    except ValueError as fault:
        raise UnsupportedMessageError(str(fault)) from None


def _check_sender(from_email: object, options: Options) -> None:
    """Mailkeep has one sender: whoever says nothing gets it, whoever wants another is told."""
    if options.ignore_from_email:
        return
    usual = {_address(settings.DEFAULT_FROM_EMAIL), _address(settings.SERVER_EMAIL)}
    if _address(from_email) not in usual:
        raise UnsupportedMessageError(
            "a sender other than DEFAULT_FROM_EMAIL and SERVER_EMAIL; set ignore_from_email to send it as Mailkeep's"
        )


def _check_headers(headers: dict[str, str], options: Options) -> None:
    left_out = LEFT_OUT.union(name.lower() for name in options.ignore_headers)
    for name in headers:
        if name not in left_out:
            raise UnsupportedMessageError(f"the header {name!r}; add it to ignore_headers to leave it out")


def _bodies(message: EmailMessage) -> dict[str, Any]:
    alternatives = [(content, mimetype) for content, mimetype in getattr(message, "alternatives", ())]
    if message.body or not alternatives:
        alternatives.insert(0, (message.body, f"text/{message.content_subtype}"))
    bodies: dict[str, str] = {}
    for content, mimetype in alternatives:
        name = _BODIES.get(mimetype)
        if name is None or name in bodies:
            raise UnsupportedMessageError(
                f"an alternative of type {mimetype}; there is one text and one HTML"
            )
        bodies[name] = content.decode() if isinstance(content, bytes) else str(content)
    return bodies


# -- attachments -------------------------------------------------------------------------------------------------


def _attachment(number: int, attachment: Any) -> Attachment:  # noqa: ANN401 - a MIME part or a tuple of three
    if isinstance(attachment, Message):
        return _part_attachment(number, attachment)
    filename, content, mimetype = attachment
    return _named_attachment(number, filename, _octets(content), mimetype)


def _part_attachment(number: int, part: "Message[Any, Any]") -> Attachment:
    content: object
    if part.get_content_type() == "message/rfc822":
        content = part.get_payload(0)
    elif part.is_multipart():
        raise UnsupportedMessageError("an attachment that is multipart")
    else:
        content = part.get_payload(decode=True)
    content_id = str(part.get("Content-ID", "")).strip().strip("<>") or None
    return _named_attachment(
        number, part.get_filename(), _octets(content), part.get_content_type(), content_id
    )


def _named_attachment(
    number: int, filename: str | None, content: bytes, content_type: str, content_id: str | None = None
) -> Attachment:
    if ";" in content_type:
        raise UnsupportedMessageError("an attachment whose type has parameters")
    name = filename or f"attachment-{number}{mimetypes.guess_extension(content_type) or '.bin'}"
    return Attachment(filename=name, content=content, content_type=content_type, content_id=content_id)


def _octets(content: object) -> bytes:
    match content:
        case bytes() | bytearray() | memoryview():
            return bytes(content)
        case EmailMessage():
            return content.message().as_bytes()
        case Message():
            return content.as_bytes()
        case _:
            return str(content).encode()


# -- addresses ---------------------------------------------------------------------------------------------------


def _texts(addresses: Iterable[object]) -> list[str]:
    return [str(address) for address in addresses if address]


def _address(mailbox: object) -> str:
    return parseaddr(str(mailbox))[1].lower()


def _mailboxes(header: str) -> list[str]:
    return [
        f'"{name.translate(_QUOTED)}" <{address}>' if name else address
        for name, address in getaddresses([header])
    ]
