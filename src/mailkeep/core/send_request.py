"""What the public send intake takes: one mail of a person or of a person's program (contract section 4.2).

The shape is flat, the meaning that of any other command: `parse_send` turns it into the one `Command`, of source `send` and
class `relay`, with the sender it asks for. Whether that sender may be used is not judged here.
"""

import msgspec

from mailkeep.core.address import AddressError, is_reserved, is_sinkhole, parse_mailbox
from mailkeep.core.command import (
    Attachment,
    Command,
    CommandError,
    CommandRules,
    DeliveryRequest,
    FailureCode,
    Payload,
    PayloadMode,
    command_of,
)
from mailkeep.core.delivery import Source


class SendRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"sender": "from"}):
    """One mail. `body` is another name for `text`; text or html is required."""

    sender: str
    to: tuple[str, ...]
    subject: str
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    body: str | None = None
    text: str | None = None
    html: str | None = None
    attachments: tuple[Attachment, ...] = ()
    reply_to: str | tuple[str, ...] = ()


def parse_send(request: SendRequest, rules: CommandRules) -> Command:
    """Validate `request` and return its canonical command. Raises `CommandError`, with fields as the request has them."""
    if request.body is not None and request.text is not None:
        raise CommandError(FailureCode.INVALID_FIELD, "body", "is another name for text; give one of them")
    try:
        sender = parse_mailbox(request.sender)
    except AddressError as fault:
        raise CommandError(FailureCode.INVALID_ADDRESS, "from", str(fault)) from None
    if is_reserved(sender.domain) and not (rules.sinkhole_enabled and is_sinkhole(sender.domain)):
        raise CommandError(
            FailureCode.RESERVED_DOMAIN, "from", f"the domain {sender.domain} is reserved (RFC 2606)"
        )
    reply_to = (request.reply_to,) if isinstance(request.reply_to, str) else request.reply_to
    payload = Payload(
        to=request.to,
        cc=request.cc,
        bcc=request.bcc,
        reply_to=reply_to,
        attachments=request.attachments,
        subject=request.subject,
        text=request.body if request.text is None else request.text,
        html=request.html,
    )
    try:
        command = command_of(DeliveryRequest(payload, PayloadMode.RENDERED), Source.SEND, rules)
    except CommandError as fault:
        raise CommandError(fault.code, fault.field.removeprefix("payload."), fault.message) from None
    return msgspec.structs.replace(command, sender=sender)
