"""Erasure on a person's request (GDPR article 17): all that Mailkeep stores of one address, a recipient's or a sender's.

What happened stays (that a delivery was made, when, and how it ended), without anything that says to whom. Live mail is
never dropped in silence: it is cancelled only if that is asked for, as is a key in force that owns the address. The record of the erasure has no address. What is
outside of Mailkeep's reach is told: see `ELSEWHERE`.
"""

from enum import StrEnum
from typing import Annotated, Final

import msgspec

from mailkeep.core.command import CommandError, FailureCode
from mailkeep.operator.changes import MAX_ACTOR_CHARS, MAX_REASON_CHARS, Why, check_why
from mailkeep.operator.suppressions import parse_address
from mailkeep.store.erasure import Counts, Erasure, Live
from mailkeep.store.postgres import Store

ELSEWHERE: Final = (
    "the Redis Stream mail:delivery_commands: entries stay until their producers trim it",
    "content of other people's mail that speaks of the address: until MAIL_PAYLOAD_RETENTION",
    "who changed something by hand, where that is the address: until that record's retention",
    "backups and archived logs of PostgreSQL: until they expire; payloads there can't be read once their key is destroyed",
    "PostgreSQL's own files: erased rows are overwritten after the next vacuum",
    "the mail servers that took the mail, and the mailbox",
)
"""What Mailkeep can't erase. Its own logs, spans and metrics have no addresses."""


class SuppressionFate(StrEnum):
    """What becomes of a suppression of the address: it is kept as a hash, so that no mail goes there, or erased wholly."""

    KEEP = "keep"
    ERASE = "erase"


class ErasureRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose data to erase, who does it and why; `reason` and `actor` are recorded and must not hold the address.

    With `dry_run` it is only counted. `cancel` ends what still waits first, and API keys in force.
    """

    recipient: str
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REASON_CHARS)]
    actor: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ACTOR_CHARS)] = "api"
    dry_run: bool = False
    cancel: bool = False
    suppression: SuppressionFate = SuppressionFate.KEEP


class LiveMailError(Exception):
    """Mail of this address waits, or a key in force owns it; nothing was erased."""


class ErasureReport(msgspec.Struct, frozen=True):
    """What was erased, or with `dry_run` would be; `left` is what was not at rest, to be erased by another run."""

    dry_run: bool
    erased: Counts
    left: Live
    elsewhere: tuple[str, ...] = ELSEWHERE

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left."""
        return self.left == Live()


class OperatorErasure:
    """Erasure by recipient."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def erase(self, wanted: ErasureRequest) -> ErasureReport:
        """Erase what is stored of an address. May be interrupted and run again.

        Raises `CommandError` of the request, `LiveMailError` unless it may cancel, `StoreUnavailableError`.
        """
        address = parse_address(wanted.recipient, "recipient")
        why = Why(wanted.reason, wanted.actor)
        check_why(why)
        if address.lower() in f"{why.reason} {why.actor}".lower():
            raise CommandError(FailureCode.INVALID_FIELD, "reason", "must not hold the address: it is kept")
        erasure = Erasure(self._store, address)
        found, live = await erasure.look()
        if wanted.dry_run:
            return ErasureReport(dry_run=True, erased=found, left=live)
        if live.stops and not wanted.cancel:
            raise LiveMailError(
                f"{live.waiting} deliveries of this address still wait and {live.api_keys} API keys in force own it; "
                "nothing was erased"
            )
        erasure_id = await erasure.begin(why.actor, why.reason)
        counts = Counts()
        if wanted.cancel:
            await erasure.cancel(counts, why.actor)
        await erasure.erase(counts, why.actor, keep_suppression=wanted.suppression is SuppressionFate.KEEP)
        await erasure.end(erasure_id, counts)
        _, left = await erasure.look()
        return ErasureReport(dry_run=False, erased=counts, left=left)
