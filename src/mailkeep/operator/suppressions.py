"""The suppression list as operators use it, over HTTP and on the command line alike: listed, added to, taken from.

It is a list of addresses, so they come in clear here, unlike anywhere else. Changes are recorded with who made them.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

import msgspec

from mailkeep.core.address import AddressError, parse_mailbox
from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.suppression import NewSuppression, SuppressionReason
from mailkeep.store.postgres import Store
from mailkeep.store.suppressions import ERASED, Suppression, Suppressions

MAX_PAGE: Final = 200
"""Suppressions of one page: an answer stays below a quarter of a megabyte."""
EXPORT_PAGE: Final = 2000
ADD_BATCH: Final = 1000
"""Addresses of one commit: some 20 ms, so that an import stands in no attempt's way."""


class SuppressionPage(msgspec.Struct, frozen=True):
    """Suppressions in force, newest first; the end is where `cursor` is None."""

    suppressions: tuple[Suppression, ...]
    cursor: UUID | None


class OperatorSuppressions:
    """Verbs raise `CommandError` for what is wrong with their arguments, and `StoreUnavailableError`."""

    def __init__(self, store: Store) -> None:
        self._list = Suppressions(store)

    async def page(
        self,
        limit: int,
        cursor: UUID | None = None,
        *,
        recipient: str | None = None,
        reason: str | None = None,
    ) -> SuppressionPage:
        """Return up to `limit` (at most `MAX_PAGE`) suppressions older than `cursor`."""
        found = await self._list.page(
            limit,
            before=cursor,
            address=None if recipient is None else parse_address(recipient, "recipient"),
            reason=None if reason is None else parse_reason(reason),
        )
        return SuppressionPage(tuple(found), found[-1].suppression_id if len(found) == limit else None)

    async def everything(self, reason: str | None = None) -> AsyncIterator[Suppression]:
        """Yield every suppression in force whose address is known, newest first; the list may change meanwhile."""
        wanted = None if reason is None else parse_reason(reason)
        before = None
        while found := await self._list.page(EXPORT_PAGE, before=before, reason=wanted):
            for suppression in found:
                if suppression.address != ERASED:
                    yield suppression
            before = found[-1].suppression_id

    async def add(
        self, batch: Sequence[NewSuppression], *, actor: str, expires_in_s: float | None = None
    ) -> int:
        """Suppress up to `ADD_BATCH` addresses in one commit; answers how many are new or last longer now.

        One without an `expires_at` lasts `expires_in_s`, None: for ever. One that lasts as long already stays as it is.
        """
        return await self._list.add(batch, actor=actor, expires_in_s=expires_in_s)

    async def remove(self, which: UUID | str, *, actor: str, note: str) -> Suppression | None:
        """Let an address get mail again, named by the suppression's id or by itself; None if it is not suppressed."""
        named = which if isinstance(which, UUID) else parse_address(which, "address")
        return await self._list.remove(named, actor=actor, note=note)


def parse_address(text: str, field: str) -> str:
    """Return the address in `text` as it is stored. Raises `CommandError`."""
    try:
        return parse_mailbox(text).address
    except AddressError as fault:
        raise CommandError(FailureCode.INVALID_ADDRESS, field, str(fault)) from None


def parse_reason(word: str) -> SuppressionReason:
    """Return the reason that `word` names. Raises `CommandError`."""
    try:
        return SuppressionReason(word)
    except ValueError:
        known = ", ".join(SuppressionReason)
        raise CommandError(FailureCode.INVALID_FIELD, "reason", f"must be one of: {known}") from None
