"""The webhook dispatcher: tells each webhook what became of deliveries, in the order of events, until it says 2xx.

The events are the outbox. A round reads what comes after the webhook's cursor and what is due again, posts that, and commits
cursor and failures together; whoever dies before that commit leaves all of it to another, and the receiver knows copies by
their `webhook-id`. An event that fails while others are taken goes its own ladder, about three days, and is then given up,
in the log and in the table. A webhook that takes nothing at all is out: its cursor waits, one event at a time probes it,
and goes on the ladder if it fails, so that no single event can stop those behind it. Nothing here is on the way of mail.
"""

import asyncio
import random
import time
import traceback
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import msgspec
import structlog

from mailkeep.core.event import Cursor, parse_types
from mailkeep.core.webhook import next_try_s
from mailkeep.dispatch.replica import Replica
from mailkeep.dispatch.webhook_post import Posted, WebhookPost
from mailkeep.faults import FaultPoint, reach
from mailkeep.settings.webhooks import WebhookSettings
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.events import Events, StoredEvent
from mailkeep.store.postgres import Store
from mailkeep.store.webhooks import Failure, Retry, WebhookCursors
from mailkeep.telemetry import metrics

BATCH: Final = 256
"""Events of a round: what may be told once more when its replica dies."""
LOOK_S: Final = 1.0
"""Between two looks at what is new. Commits of mail wake nobody: commits that notify wait for each other."""
FIRST_PAUSE_S: Final = 5.0
MAX_PAUSE_S: Final = 300.0
"""Between two probes of a webhook that is out: doubled from the first to the last."""
MAX_WAITING: Final = 10_000
"""Events of a webhook that wait for another try; with more, no new ones are told until some of them are taken."""

_ENCODER: Final = msgspec.json.Encoder()


class _Round(msgspec.Struct):
    """What is to be told: what failed before, and what is new, up to the cursor `after`."""

    retries: Sequence[Retry]
    new: Sequence[StoredEvent]
    after: Cursor

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not self.retries and not self.new

    @property
    def stored(self) -> list[StoredEvent]:
        """All that is to be told, what failed before first."""
        return [*(retry.stored for retry in self.retries), *self.new]


class _Webhook:
    """One webhook as this replica tells it."""

    def __init__(self, settings: WebhookSettings, post: WebhookPost) -> None:
        self.name = settings.name
        self.statuses = parse_types(settings.events)
        self.concurrency = settings.concurrency
        self.post = post
        self.failures = 0  # rounds in a row that told nothing
        self.next_s = 0.0  # when the next round may begin, monotonic
        self.telling: asyncio.Task[None] | None = None

    @property
    def is_free(self) -> bool:
        """Whether a round may begin."""
        return time.monotonic() >= self.next_s and (self.telling is None or self.telling.done())

    def pause(self) -> float:
        """Wait before the next round, longer each time; answers the seconds."""
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(self.failures, 10), MAX_PAUSE_S)
        pause_s *= random.uniform(0.9, 1.1)  # noqa: S311 - jitter, not a secret
        self.failures += 1
        self.next_s = time.monotonic() + pause_s
        return pause_s


class WebhookDispatcher:
    """Tells `webhooks`. `run` until cancelled."""

    def __init__(
        self,
        webhooks: Sequence[WebhookSettings],
        store: Store,
        replica: Replica,
        *,
        look_s: float = LOOK_S,
    ) -> None:
        self._webhooks = {settings.name: _Webhook(settings, WebhookPost(settings)) for settings in webhooks}
        self._cursors = WebhookCursors(store)
        self._events = Events(store)
        self._replica = replica
        self._look_s = look_s
        self._added = False
        self._log = structlog.get_logger("webhook_dispatcher")

    async def run(self) -> None:
        """Tell until cancelled."""
        self._log.info("webhook dispatcher started", webhooks=len(self._webhooks))
        away = False
        try:
            while True:
                try:
                    await self._look()
                    if away:
                        self._log.info("webhooks are told again")
                    away = False
                except StoreUnavailableError as fault:
                    if not away:
                        self._log.warning("webhooks wait for PostgreSQL", error=str(fault))
                    away = True
                await asyncio.sleep(self._look_s * random.uniform(0.8, 1.2))  # noqa: S311 - likewise
        finally:
            await self._stop()
            self._log.info("webhook dispatcher stopped")

    async def _stop(self) -> None:
        telling = [webhook.telling for webhook in self._webhooks.values() if webhook.telling]
        for task in telling:
            task.cancel()
        await asyncio.gather(*telling, return_exceptions=True)
        for webhook in self._webhooks.values():
            await webhook.post.close()

    async def _look(self) -> None:
        if not self._added:
            await self._cursors.add(sorted(self._webhooks))
            self._added = True
        replica_id = self._replica.id
        held = await self._cursors.hold(sorted(self._webhooks), replica_id)
        for name, cursor in held.items():
            webhook = self._webhooks[name]
            if webhook.is_free:
                telling = self._tell(webhook, cursor, replica_id)
                webhook.telling = asyncio.create_task(telling, name=f"webhook {name}")

    async def _tell(self, webhook: _Webhook, cursor: Cursor, replica_id: UUID) -> None:
        """Do rounds while there is something to tell."""
        try:
            at: Cursor | None = cursor
            while at is not None:
                at = await self._do_round(webhook, at, replica_id)
        except StoreUnavailableError:
            pass  # the next look says so
        except Exception as fault:  # noqa: BLE001 - a boundary: the trouble of one webhook is not the others'
            place = traceback.extract_tb(fault.__traceback__)[-1]
            webhook.pause()
            self._log.error(
                "webhook dispatcher met a fault; trying again",
                webhook=webhook.name,
                error=type(fault).__name__,
                at=f"{place.filename}:{place.lineno}",
            )

    async def _do_round(self, webhook: _Webhook, cursor: Cursor, replica_id: UUID) -> Cursor | None:
        """Do one round; answers where the next one begins at once, None if it need not."""
        wanted = await self._read(webhook, cursor)
        if wanted.is_empty:
            if wanted.after != cursor:  # all that is new is of types that it does not want
                await self._cursors.settle(webhook.name, replica_id, wanted.after)
            return None
        posted = await self._post(webhook, wanted.stored[:1] if webhook.failures else wanted.stored)
        reach(FaultPoint.WEBHOOK_BEFORE_COMMIT)
        outcome = _judge(wanted, posted, cursor)
        if not await self._cursors.settle(
            webhook.name,
            replica_id,
            outcome.cursor,
            told=outcome.told,
            retried=outcome.retried,
            failures=outcome.failures,
            problem=outcome.problem,
            disabled=outcome.gone,
        ):
            return None  # another replica tells it by now
        self._say(webhook, outcome)
        return outcome.cursor if outcome.told and not outcome.gone else None

    async def _read(self, webhook: _Webhook, cursor: Cursor) -> "_Round":
        retries = await self._cursors.due_retries(webhook.name, BATCH)
        if await self._cursors.count_waiting(webhook.name, MAX_WAITING) >= MAX_WAITING:
            return _Round(retries, (), cursor)
        page = await self._events.page(cursor, BATCH, webhook.statuses)
        return _Round(retries, page.events, page.after)

    async def _post(self, webhook: _Webhook, stored: Sequence[StoredEvent]) -> list[Posted]:
        """Post in order, some at a time; ends when nothing of the first was taken."""
        posted: list[Posted] = []
        for begin in range(0, len(stored), webhook.concurrency):
            bodies = [
                (one.event.event_id, _ENCODER.encode(one.event))
                for one in stored[begin : begin + webhook.concurrency]
            ]
            posted += await asyncio.gather(*(webhook.post.post(*body) for body in bodies))
            if not any(answer.problem is None for answer in posted) or any(answer.gone for answer in posted):
                break
        return posted

    def _say(self, webhook: _Webhook, outcome: "_Outcome") -> None:
        given_up = [failure for failure in outcome.failures if failure.wait_s is None]
        metrics.count(
            metrics.WEBHOOK_EVENTS,
            [(webhook.name, "told")] * outcome.told
            + [(webhook.name, "failed")] * outcome.failed
            + [(webhook.name, "given_up")] * len(given_up),
        )
        for failure in given_up:
            self._log.error(
                "webhook was not told of an event, which is given up",
                webhook=webhook.name,
                event_id=failure.stored.event.event_id,
                problem=failure.problem,
            )
        if outcome.gone:
            self._log.error("webhook is gone for good and disabled", webhook=webhook.name)
        elif outcome.told:
            if webhook.failures:
                self._log.info("webhook takes events again", webhook=webhook.name)
            webhook.failures = 0
        else:
            first = not webhook.failures
            pause_s = webhook.pause()
            if first:
                self._log.warning(
                    "webhook takes no events",
                    webhook=webhook.name,
                    problem=outcome.problem,
                    pause_s=round(pause_s),
                )


class _Outcome(msgspec.Struct):
    """What a round came to, as it is recorded. `failed` counts posts, `failures` are what goes on the ladder."""

    cursor: Cursor
    told: int
    failed: int
    retried: list[StoredEvent]
    failures: list[Failure]
    problem: str | None
    gone: bool


def _judge(wanted: _Round, posted: Sequence[Posted], cursor: Cursor) -> _Outcome:
    """Decide what becomes of what was `posted`, the first of what was wanted."""
    count = len(wanted.retries)
    again = list(zip(wanted.retries, posted, strict=False))
    new = list(zip(wanted.new, posted[count:], strict=False))
    told = sum(answer.problem is None for answer in posted)
    problem = next((answer.problem for answer in posted if answer.problem), None)
    gone = any(answer.gone for answer in posted)
    # Who is gone goes on from here if it is enabled again. Of what nothing was taken of, one event leaves the line, so that
    # it can't stop the others.
    passed = [] if gone else new if told else new[:1]
    if len(passed) == len(wanted.new):
        cursor = wanted.after
    elif passed:
        cursor = passed[-1][0].cursor
    failures = [
        _failure(retry.stored, retry.tries + 1, answer.problem) for retry, answer in again if answer.problem
    ]
    failures += [_failure(stored, 1, answer.problem) for stored, answer in passed if answer.problem]
    return _Outcome(
        cursor,
        told,
        len(posted) - told,
        [retry.stored for retry, answer in again if answer.problem is None],
        failures,
        problem,
        gone,
    )


def _failure(stored: StoredEvent, tries: int, problem: str) -> Failure:
    wait_s = next_try_s(tries, random.random())  # noqa: S311 - jitter, not a secret
    return Failure(stored, tries, wait_s, problem)
