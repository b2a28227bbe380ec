"""Bounces: what a sender is told when relayed mail is not delivered to some of its recipients (RFC 5321 section 6.1).

Pure: from the facts of one outcome to the command of one bounce, equal for equal facts, so that whoever composes it twice
composes the same. The report is RFC 3464's, in the form of RFC 6522; its words are those of the next hop, and none of our own
network: an outage of a next hop or of its login is not the sender's to know. Never answers a bounce: there is nobody to tell.
"""

import re
import textwrap
from collections.abc import Iterator
from datetime import datetime
from email.utils import format_datetime
from typing import Final
from uuid import UUID

import msgspec

from mailkeep.core.address import parse_mailbox
from mailkeep.core.command import BounceContent, Command
from mailkeep.core.delivery import DeliveryClass, Guarantee, RecipientState, Source
from mailkeep.core.header import named_in
from mailkeep.core.outcome import RecipientOutcome, Scope

MAX_HEAD_BYTES: Final = 16 * 1024
"""Of the header that goes back; signatures and addresses of 100 recipients fit."""
SUBJECT: Final = "Your mail could not be delivered"
GIVEN_UP: Final = "4.4.7"  # RFC 3463 section 3.5: delivery time expired
REFUSED: Final = "5.0.0"  # RFC 3463 section 3.1: no word of why
NOT_WANTED: Final = "5.7.1"  # RFC 3463 section 3.8: delivery not authorized, message refused

_TELLABLE: Final = frozenset({Scope.MESSAGE, Scope.RECIPIENT, Scope.SENDER, Scope.REPUTATION})
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]+")
_LINE_CHARS: Final = 76


class Said(msgspec.Struct, frozen=True):
    """What came last of one recipient, and when."""

    finished_at: datetime
    outcome: RecipientOutcome


class OwedBounce(msgspec.Struct, frozen=True):
    """One outcome of which a sender is to be told.

    `failed` has a letter for each recipient in order: f refused, x on the suppression list, o given up, else a dot. `head` is the
    beginning of the message. Without content (`sender` is None) there is nobody to tell any more.
    """

    id: UUID
    delivery_id: UUID
    failed: str
    status: str
    accepted_at: datetime | None
    sender: str | None
    recipients: tuple[str, ...]
    head: bytes
    said: tuple[Said, ...]
    traceparent: str | None

    @property
    def can_be_told(self) -> bool:
        """Whether there is a sender to tell."""
        return bool(self.sender)


class _Failure(msgspec.Struct, frozen=True):
    """One recipient who will not get it: its address, enhanced status code, the reply about it, when, and why in words."""

    address: str
    status: str
    reply: str
    tried_at: datetime | None
    why: str


def compose(owed: OwedBounce, reporter: str, guarantee: Guarantee) -> Command:
    """Return the command of the bounce for `owed`, which must be one that can be told. `reporter` is our domain."""
    assert owed.sender
    failures = tuple(_failures(owed))
    content = BounceContent(
        original_id=owed.delivery_id,
        subject=SUBJECT,
        text=_text(failures, reporter),
        status=_status(owed, failures, reporter),
        head=header_of(owed.head),
        about=tuple(dict.fromkeys((*owed.recipients, *named_in(owed.head)))),
    )
    return Command(
        source=Source.BOUNCE,
        delivery_class=DeliveryClass.RELAY,
        guarantee=guarantee,
        content=content,
        to=(parse_mailbox(owed.sender),),
    )


def header_of(head: bytes) -> bytes:
    """Return the header at the beginning of a message, whole lines of at most `MAX_HEAD_BYTES`."""
    header, end, _ = head.partition(b"\r\n\r\n")
    if end and len(header) <= MAX_HEAD_BYTES - 2:
        return header + b"\r\n"
    cut = header[:MAX_HEAD_BYTES]
    return cut[: cut.rfind(b"\r\n") + 2]


def _failures(owed: OwedBounce) -> Iterator[_Failure]:
    said = {entry.outcome.ordinal: entry for entry in owed.said}
    for ordinal, (address, letter) in enumerate(zip(owed.recipients, owed.failed, strict=True)):
        last = said.get(ordinal)
        outcome = last.outcome if last else None
        reply = _reply(outcome) if outcome else ""
        enhanced = (outcome.enhanced if outcome else None) or ""
        match letter:
            case RecipientState.FAILED:
                status = enhanced if enhanced.startswith("5.") else REFUSED
                why = "the mail server refused it"
            case RecipientState.SUPPRESSED:
                status, why = NOT_WANTED, "the address gets no mail from here"
            case RecipientState.OPEN:
                status, why = GIVEN_UP, "given up, after the last of all attempts"
            case _:
                continue
        yield _Failure(address, status, reply, last.finished_at if last else None, why)


def _reply(outcome: RecipientOutcome) -> str:
    told = outcome.code is not None and outcome.scope in _TELLABLE
    return _UNPRINTABLE.sub("?", outcome.reason) if told else ""


def _text(failures: tuple[_Failure, ...], reporter: str) -> str:
    told = "\n".join(
        f"  {failure.address}\n    {failure.why}{f': {failure.reply}' if failure.reply else ''}\n"
        for failure in failures
    )
    return f"""This is the mail service of {reporter}.

Your mail could not be delivered to:

{told}
It is not tried again for them. What follows is a report for programs, and the
header of your mail.
"""


def _status(owed: OwedBounce, failures: tuple[_Failure, ...], reporter: str) -> str:
    groups = [
        list(_about_message(owed, reporter)),
        *(list(_about_recipient(failure)) for failure in failures),
    ]
    return "\n".join("".join(_folded(name, value) for name, value in group) for group in groups)


def _about_message(owed: OwedBounce, reporter: str) -> Iterator[tuple[str, str]]:
    yield "Reporting-MTA", f"dns; {reporter}"
    if owed.accepted_at is not None:
        yield "Arrival-Date", format_datetime(owed.accepted_at.replace(microsecond=0))
    yield "X-Mailkeep-Delivery-Id", str(owed.delivery_id)


def _about_recipient(failure: _Failure) -> Iterator[tuple[str, str]]:
    yield "Final-Recipient", _typed(failure.address)
    yield "Action", "failed"
    yield "Status", failure.status
    if failure.reply:
        yield "Diagnostic-Code", f"smtp; {failure.reply}"
    if failure.tried_at is not None:
        yield "Last-Attempt-Date", format_datetime(failure.tried_at.replace(microsecond=0))


def _typed(address: str) -> str:
    """Return an address with its type; one that is not ASCII as utf-8-addr-xtext (RFC 6533 section 3)."""
    if address.isascii():
        return f"rfc822; {address}"
    kept = (
        letter if letter.isascii() and letter not in "\\+=" else f"\\x{{{ord(letter):X}}}"
        for letter in address
    )
    return f"utf-8; {''.join(kept)}"


def _folded(name: str, value: str) -> str:
    lines = textwrap.wrap(
        f"{name}: {value}", _LINE_CHARS, subsequent_indent=" ", break_long_words=False, break_on_hyphens=False
    )
    return "".join(f"{line}\n" for line in lines)
