"""Erasure on a person's request (GDPR article 17): all that Mailkeep stores of one recipient address.

What happened stays (that a delivery was made, when, and how it ended), without anything that says to whom. Live mail is
never dropped in silence: it is cancelled only if that is asked for. The record of the erasure has no address. What is
outside of Mailkeep's reach is told: see `ELSEWHERE`.
"""

from typing import Final

import msgspec

from mailkeep.core.command import CommandError, FailureCode
from mailkeep.operator.changes import Why, check_why
from mailkeep.operator.suppressions import parse_address
from mailkeep.store.erasure import Counts, Erasure, Live
from mailkeep.store.postgres import Store

ELSEWHERE: Final = (
    "the Redis Stream mail:delivery_commands: entries stay until their producers trim it",
    "backups and archived logs of PostgreSQL: until they expire; payloads there can't be read once their key is destroyed",
    "PostgreSQL's own files: erased rows are overwritten after the next vacuum",
    "the mail servers that took the mail, and the mailbox",
)
"""What Mailkeep can't erase. Its own logs, spans and metrics have no addresses."""


class LiveMailError(Exception):
    """Mail to this recipient waits; nothing was erased."""


class ErasureReport(msgspec.Struct, frozen=True):
    """What was erased, or with `dry_run` would be; `left` is what was not at rest, to be erased by another run."""

    dry_run: bool
    erased: Counts
    left: Live
    elsewhere: tuple[str, ...] = ELSEWHERE

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left."""
        return self.left == Live(0, 0, 0)


class OperatorErasure:
    """Erasure by recipient."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def erase(
        self,
        recipient: str,
        why: Why,
        *,
        dry_run: bool = False,
        cancel: bool = False,
        keep_suppression: bool = True,
    ) -> ErasureReport:
        """Erase what is stored of `recipient`; `cancel` ends what waits first.

        A suppression is kept as a hash, so that the address still gets no mail, unless `keep_suppression` is false. May be
        interrupted and run again. Raises `CommandError` of the arguments, `LiveMailError`, `StoreUnavailableError`.
        """
        address = parse_address(recipient, "recipient")
        check_why(why)
        if address.lower() in f"{why.reason} {why.actor}".lower():
            raise CommandError(FailureCode.INVALID_FIELD, "reason", "must not hold the address: it is kept")
        erasure = Erasure(self._store, address)
        found, live = await erasure.look()
        if dry_run:
            return ErasureReport(dry_run=True, erased=found, left=live)
        if live.waiting and not cancel:
            raise LiveMailError(f"{live.waiting} deliveries to this address still wait; nothing was erased")
        erasure_id = await erasure.begin(why.actor, why.reason)
        counts = Counts()
        if cancel:
            await erasure.cancel(counts, why.actor)
        await erasure.erase(counts, keep_suppression=keep_suppression)
        await erasure.end(erasure_id, counts)
        _, left = await erasure.look()
        return ErasureReport(dry_run=False, erased=counts, left=left)
