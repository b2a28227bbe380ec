"""Redrive: dead letters that fit a filter are sent once more, at a rate, over HTTP and on the command line alike.

Each becomes a delivery of source `operator_resend` that names its parent, by the statement that a resend by hand uses, and
so with its record of who and why. What was resent already, by a redrive or by hand, is left out unless that is forced; the
key is made of the parent's id, so that a redrive that is repeated, or goes on where another one died, doubles nothing.
"""

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec

from mailkeep.core.command import CommandError, FailureCode, check_line
from mailkeep.core.delivery import DEAD_LETTER_CAUSES, DeliveryClass, Source
from mailkeep.core.ids import FIRST_ID
from mailkeep.operator.changes import MAX_ACTOR_CHARS, MAX_REASON_CHARS
from mailkeep.operator.queue import check_domain, member_of
from mailkeep.store.changes import OperatorChanges, Redrivable, RedriveFilter, Resent
from mailkeep.store.postgres import Store

PAGE: Final = 200
"""Dead letters read at a time: their recipients stand in memory."""
MAX_REDRIVEN: Final = 1000
"""Deliveries that one call makes: some seconds of PostgreSQL. Another call goes on."""
MAX_SHOWN: Final = 100
"""Pairs of ids in an answer."""
USUAL_RATE_PER_S: Final = 10.0
MAX_RATE_PER_S: Final = 10_000.0
WAKE_AFTER_S: Final = 1.0
"""What is due sooner than this wakes the schedulers."""

Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class RedriveRequest(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"delivery_class": "class"}
):
    """Which dead letters to send once more, how fast, who does it and why; what is null lets all through.

    With `dry_run` nothing is made: it answers what would be. `force` takes what was resent before, too.
    """

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REASON_CHARS)]
    actor: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ACTOR_CHARS)] = "api"
    cause: str | None = None
    rule: str | None = None
    domain: str | None = None
    delivery_class: str | None = None
    source: str | None = None
    since: Instant | None = None
    until: Instant | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_REDRIVEN)] = 100
    rate_per_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_RATE_PER_S)] = USUAL_RATE_PER_S
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0
    dry_run: bool = False
    force: bool = False
    cursor: UUID | None = None


class Redriven(msgspec.Struct, frozen=True):
    """A dead letter, and the delivery that was made of it; null in a dry run."""

    parent_id: UUID
    delivery_id: UUID | None


class RedriveAnswer(msgspec.Struct, frozen=True):
    """What a redrive came to. `deliveries` are the first of the `redriven`; the last of those is due in `last_due_in_s`.

    Left out: `resent_before`, and `erased`, whose content is gone. Where `cursor` is null all that fits was looked at.
    """

    redriven: int
    resent_before: int
    erased: int
    last_due_in_s: float
    deliveries: tuple[Redriven, ...]
    cursor: UUID | None


class OperatorRedrive:
    """Redrives. Raises `CommandError` for a bad request and `StoreUnavailableError`: what was made before that stays."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changes = OperatorChanges(store)

    async def redrive(self, request: RedriveRequest) -> RedriveAnswer:
        """Redrive up to `limit` dead letters, the oldest first; the answer's `cursor` goes on with the others."""
        check_line(request.reason, "reason")
        check_line(request.actor, "actor")
        wanted = _filter(request)
        made: list[Redriven] = []
        resent_before = erased = 0
        after: UUID | None = request.cursor or FIRST_ID
        while after is not None and len(made) < request.limit:
            page = await self._changes.redrivable(wanted, min(PAGE, request.limit - len(made)), after)
            after = page.after
            for letter in page.letters:
                if letter.resent and not request.force:
                    resent_before += 1
                elif letter.recipients is None:
                    erased += 1
                elif request.dry_run:
                    made.append(Redriven(letter.id, None))
                elif (resent := await self._resent(letter, request, len(made))) is None:
                    erased += 1  # since it was read
                elif resent.replayed:
                    resent_before += 1  # by another redrive, at this moment
                else:
                    made.append(Redriven(letter.id, resent.delivery_id))
        last_due_in_s = request.wait_s + max(len(made) - 1, 0) / request.rate_per_s
        return RedriveAnswer(len(made), resent_before, erased, last_due_in_s, tuple(made[:MAX_SHOWN]), after)

    async def _resent(self, letter: Redrivable, request: RedriveRequest, nth: int) -> Resent | None:
        wait_s = request.wait_s + nth / request.rate_per_s
        resent = await self._changes.resend(
            letter.id,
            letter.recipients or (),
            key=None if request.force else redrive_key(letter.id),
            actor=request.actor,
            reason=request.reason,
            wait_s=wait_s,
        )
        if nth == 0 and wait_s < WAKE_AFTER_S:
            await self._store.notify_due()
        return resent


def redrive_key(parent_id: UUID) -> str:
    """Return the idempotency key of every redrive of one dead letter."""
    return f"redrive:{parent_id}"


def _filter(request: RedriveRequest) -> RedriveFilter:
    if request.cause not in {None, *DEAD_LETTER_CAUSES}:
        causes = ", ".join(DEAD_LETTER_CAUSES)
        raise CommandError(FailureCode.INVALID_FIELD, "cause", f"must be one of: {causes}")
    return RedriveFilter(
        request.cause,
        request.rule,
        check_domain(request.domain),
        member_of(DeliveryClass, request.delivery_class, "class"),
        member_of(Source, request.source, "source"),
        request.since,
        request.until,
    )
