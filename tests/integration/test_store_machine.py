"""The queue as a state machine on real PostgreSQL: replicas, crashes, lost claims and time in any order.

After every step: nothing accepted is lost (I1), a lost claim changes nothing (I4), one key is one delivery (I5), the
accounts agree (I6), dead letters are the deliveries in `dead_letter` (I7), an ended delivery never changes again, each
move is one of `core.delivery.TRANSITIONS`, each rest has its event and nothing else has one, and under `at_most_once` no second claim follows a committed mark (I2).
"""

import asyncio
from collections import Counter, defaultdict
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from queue_kit import ANY, HOP, MESSAGE, delivery, ending, finished, fresh_id, lose, now, rows, shift_clock

from mailkeep.core.delivery import (
    BIRTH,
    TERMINAL,
    TRANSITIONS,
    WAITING,
    DeliveryClass,
    DeliveryStatus,
    Guarantee,
)
from mailkeep.core.event import EVENT_STATUSES
from mailkeep.core.outcome import Scope, Severity
from mailkeep.core.queue import Claim, KeyHolder, Suppressed
from mailkeep.core.suppression import NewSuppression, SuppressionReason
from mailkeep.store.changes import OperatorChanges, Verb
from mailkeep.store.postgres import Store
from mailkeep.store.suppressions import Suppressions

S = DeliveryStatus
TABLES = (
    "events",
    "suppressions",
    "operator_changes",
    "deliveries",
    "recipients",
    "payloads",
    "attempts",
    "dead_letters",
    "idempotency_keys",
    "replicas",
)
ADDRESSES = ("ann@example.org", "bob@example.org")
WAITS_S = [1, 20, 60, 600, 7200]
LADDER_S = (20.0, 60.0, 600.0)
ENDINGS = st.one_of(
    st.fixed_dictionaries(
        {
            "severity": st.sampled_from(Severity),
            "scope": st.sampled_from(Scope),
            "suppress": st.booleans(),
            "rungs": st.integers(0, len(LADDER_S)),
        }
    ),
    st.just({"severity": Severity.PERMANENT, "scope": Scope.REPUTATION, "suppress": True, "rungs": 0}),
)
MOVES_SEEN = 6  # of the 12 that dispatch makes


class Seen(msgspec.Struct):
    """What the table said of a delivery after the last step."""

    status: DeliveryStatus
    row: asyncpg.Record
    message: bytes | None


class QueueMachine(RuleBasedStateMachine):
    """Drives one store. The test gives it, the loop it lives on, and a count of the moves that were seen."""

    loop: asyncio.Runner
    store: Store
    observed: Counter[tuple[DeliveryStatus, DeliveryStatus]]

    replicas = Bundle("replicas")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[UUID, Seen] = {}
        self.holders: dict[str, UUID] = {}
        self.current: dict[UUID, tuple[UUID, int]] = {}
        self.marked: dict[UUID, int] = {}
        self.gone: set[UUID] = set()
        self.rests: defaultdict[UUID, set[str]] = defaultdict(set)

    def run(self, coroutine: Any) -> Any:
        return self.loop.run(coroutine)

    def teardown(self) -> None:
        async def clear() -> None:
            async with self.store.connection() as connection:
                name = await connection.fetchval("SELECT current_database()")
                await connection.execute(f"ALTER DATABASE {name} RESET mail.clock_offset")
                await connection.execute(";".join(f"DELETE FROM mail.{table}" for table in TABLES))
            await self.store._pool.expire_connections()

        self.run(clear())

    # -- replicas ----------------------------------------------------------------------------------------------

    async def _register(self) -> UUID:
        replica_id = await fresh_id(self.store)
        await self.store.register_replica(replica_id, "host", 1, "1.0")
        return replica_id

    @initialize(target=replicas)
    def two_replicas_start(self) -> Any:
        return multiple(self.run(self._register()), self.run(self._register()))

    @rule(target=replicas, replica=replicas, lost=st.booleans())
    def replica_goes_and_another_comes(self, replica: UUID, lost: bool) -> UUID:
        if replica not in self.gone:
            self.run(lose(self.store, replica) if lost else self.store.stop_replica(replica))
            self.gone.add(replica)
        assert self.run(self.store.beat(replica, 1)) is None
        return self.run(self._register())

    @rule()
    def takeover(self) -> None:
        held = {key for key, (replica, _) in self.current.items() if replica in self.gone}
        assert set(self.run(self.store.take_over())) == held
        for key in held:
            del self.current[key]

    # -- intake ------------------------------------------------------------------------------------------------

    @rule(
        target=claims,
        replica=replicas,
        wishes=st.lists(
            st.fixed_dictionaries(
                {
                    "idempotency_key": st.integers(0, 60).map("key {}".format),
                    "fingerprint": st.sampled_from([b"1" * 16, b"2" * 16]),
                    "status": st.sampled_from(sorted(BIRTH)),
                    "guarantee": st.sampled_from(Guarantee),
                    "delivery_class": st.sampled_from(DeliveryClass),
                    "recipients": st.sampled_from([ADDRESSES[:1], ADDRESSES]),
                    "sensitive": st.booleans(),
                }
            ),
            min_size=2,
            max_size=6,
        ),
        expires_in_s=st.sampled_from([30, None, 3600]),
    )
    def accept(self, replica: UUID, wishes: list[dict[str, Any]], expires_in_s: int | None) -> Any:
        return multiple(*self.run(self._accept(replica, wishes, expires_in_s)))

    async def _accept(
        self, replica: UUID, wishes: list[dict[str, Any]], expires_in_s: int | None
    ) -> list[Claim]:
        expires_at = expires_in_s and await now(self.store) + timedelta(seconds=expires_in_s)
        batch = []
        for wish in wishes:
            content = {"message": None, "command": b"{}"} if wish["status"] is S.QUEUED else {}
            batch.append(await delivery(self.store, expires_at=expires_at, **wish, **content))
        born = []
        for new, answer in zip(batch, await self.store.accept(replica, batch), strict=True):
            if isinstance(answer, KeyHolder):
                assert self.holders[new.idempotency_key] == answer.delivery_id
                continue
            assert new.idempotency_key not in self.holders
            self.holders[new.idempotency_key] = new.id
            if (answer.status if isinstance(answer, Suppressed) else new.status) is S.SENDING:
                born.append(new.id)
                self.current[new.id] = (replica, 1)
        return [await self._claim_at_birth(replica, delivery_id) for delivery_id in born]

    async def _claim_at_birth(self, replica: UUID, delivery_id: UUID) -> Claim:
        (found,) = await rows(self.store, "SELECT * FROM mail.deliveries WHERE id = $1", delivery_id)
        names = (
            "source",
            "guarantee",
            "next_hop",
            "attempts",
            "rungs_used",
            "recipient_states",
            "size_bytes",
            "sensitive",
        )
        values = {name: found[name] for name in names} | {"guarantee": Guarantee(found["guarantee"])}
        return Claim(
            replica,
            delivery_id,
            1,
            delivery_class=DeliveryClass(found["class"]),
            recipients=ADDRESSES[: len(found["recipient_states"])],
            message=MESSAGE,
            **values,
        )

    # -- dispatch ----------------------------------------------------------------------------------------------

    @rule(target=claims, replica=replicas, bound=st.integers(1, 5))
    def claim(self, replica: UUID, bound: int) -> Any:
        wanted = [(hop, delivery_class, bound) for hop, delivery_class, _ in ANY]
        return multiple(*self._claimed(self.run(self.store.claim_due(replica, wanted, 1000))))

    @rule(target=claims, replica=replicas)
    def claim_suspect(self, replica: UUID) -> Any:
        found = self.run(self.store.claim_suspect(replica, [HOP]))
        return multiple(*self._claimed([found] if found else []))

    def _claimed(self, claims: list[Claim]) -> list[Claim]:
        for claim in claims:
            assert claim.id not in self.current, "a claimed delivery was claimed again"
            assert claim.id not in self.marked or claim.guarantee is not Guarantee.AT_MOST_ONCE, (
                "a delivery whose dot may have left is sent again"
            )
            self.current[claim.id] = (claim.replica_id, claim.token)
        return claims

    def _holds(self, claim: Claim) -> bool:
        return self.current.get(claim.id) == (claim.replica_id, claim.token)

    @rule(replica=replicas, data=st.data())
    def work(self, replica: UUID, data: st.DataObject) -> None:
        claims = self._claimed(self.run(self.store.claim_due(replica, ANY, 1000)))
        self.check()
        for claim in claims:
            self._finish(claim, data.draw(ENDINGS))

    @rule(claim=claims, how=ENDINGS)
    def finish(self, claim: Claim, how: dict[str, Any]) -> None:
        self._finish(claim, how)

    def _finish(self, claim: Claim, how: dict[str, Any]) -> None:
        verdict = {name: how[name] for name in ("severity", "scope", "suppress")}
        attempt = finished(claim, ending(claim, **verdict), ladder_s=LADDER_S[: how["rungs"]])
        if claim.command is not None and attempt.decision.status is S.RENDERED:
            attempt = msgspec.structs.replace(attempt, message=b"fixed by an attempt\r\n")
        holds = self._holds(claim)
        assert set(self.run(self.store.finish([attempt]))) == ({claim.id} if holds else set())
        if holds:
            del self.current[claim.id]
            if how["severity"] is not Severity.UNKNOWN:
                self.marked.pop(claim.id, None)
        else:
            self.check_nothing_changed()

    @rule(address=st.sampled_from(ADDRESSES), ttl_s=st.sampled_from([30, None]), remove=st.booleans())
    def change_suppressions(self, address: str, ttl_s: int | None, remove: bool) -> None:
        listed = Suppressions(self.store)
        if remove:
            self.run(listed.remove(address, actor="ann", note="why"))
        else:
            new = NewSuppression(address, SuppressionReason.MANUAL, "why")
            self.run(listed.add([new], actor="ann", expires_in_s=ttl_s))
        self.check_nothing_changed()

    @rule(claim=claims)
    def suppress(self, claim: Claim) -> None:
        holds = self._holds(claim)
        answers = self.run(self.store.suppress([claim]))
        if not holds:
            assert answers == []
            self.check_nothing_changed()
        for left in answers:
            assert left.recipient_states != claim.recipient_states
            claim.recipient_states = left.recipient_states
            if left.status is not S.SENDING:
                del self.current[claim.id]
                self.marked.pop(claim.id, None)

    @rule(claim=claims)
    def mark_dot(self, claim: Claim) -> None:
        holds = self._holds(claim)
        assert self.run(self.store.mark_dot([claim])) == ({claim.id} if holds else set())
        if holds:
            self.marked[claim.id] = claim.token
        else:
            self.check_nothing_changed()

    @rule(claim=claims)
    def hand_back(self, claim: Claim) -> None:
        holds = self._holds(claim)
        assert self.run(self.store.hand_back([claim])) == ({claim.id} if holds else set())
        if holds:
            del self.current[claim.id]
            self.marked.pop(claim.id, None)
        else:
            self.check_nothing_changed()

    @rule(wait_s=st.sampled_from(WAITS_S))
    def time_passes(self, wait_s: int) -> None:
        self.run(shift_clock(self.store, timedelta(seconds=wait_s)))

    @rule()
    def expire(self) -> None:
        self.run(self.store.expire_due())

    @rule(verb=st.sampled_from(Verb), data=st.data())
    def change_by_hand(self, verb: Verb, data: st.DataObject) -> None:
        if not self.seen:
            return
        delivery_id = data.draw(st.sampled_from(sorted(self.seen)))
        before = self.seen[delivery_id].status
        changes = OperatorChanges(self.store)
        after = self.run(changes.change(verb, delivery_id, actor="ann", reason="why"))
        if after is None:
            self.check_nothing_changed()
        else:
            assert before in WAITING | {S.HELD} or (
                verb is Verb.DELETE and before in TERMINAL and after is before
            ), "what is being sent or has ended was changed by hand"

    # -- what always holds -------------------------------------------------------------------------------------

    async def _look(self) -> dict[UUID, Seen]:
        found = await rows(
            self.store,
            "SELECT d.*, p.message, l.cause, (SELECT count(*) FROM mail.attempts a WHERE a.delivery_id = d.id) AS recorded,"
            " ARRAY(SELECT DISTINCT e.status FROM mail.events e WHERE e.delivery_id = d.id) AS told"
            " FROM mail.deliveries d LEFT JOIN mail.payloads p ON p.delivery_id = d.id"
            " FULL JOIN mail.dead_letters l ON l.delivery_id = d.id",
        )
        return {record["id"]: Seen(S(record["status"]), record, record["message"]) for record in found}

    def check_nothing_changed(self) -> None:
        """I4: the table is what it was after the last step."""
        after = self.run(self._look())
        assert {key: seen.row for key, seen in after.items()} == {
            key: seen.row for key, seen in self.seen.items()
        }

    @invariant()
    def every_rule_of_the_contract_holds(self) -> None:
        self.check()

    def check(self) -> None:
        """Look at the whole table and hold it against what it was, and against what was answered."""
        before, self.seen = self.seen, self.run(self._look())
        assert self.seen.keys() == set(self.holders.values()), "what was accepted is not what is there"
        assert set(self.current) == {key for key, seen in self.seen.items() if seen.status is S.SENDING}
        for key, seen in self.seen.items():
            self._check_row(seen)
            if seen.status in EVENT_STATUSES:
                self.rests[key].add(seen.status)
            assert set(seen.row["told"]) == self.rests[key], "what became of it was told otherwise"
            if key in before:
                self._check_move(before[key], seen)
            else:
                assert seen.status in BIRTH

    def _check_row(self, seen: Seen) -> None:
        assert (seen.row["cause"] is not None) == (seen.status is S.DEAD_LETTER)
        assert seen.row["recorded"] == seen.row["attempts"]
        assert seen.status is not S.SENT or set(seen.row["recipient_states"]) == {"s"}
        assert seen.status is not S.RENDERED or seen.message is not None, "waits for an attempt without bytes"
        if seen.row["sensitive"] and seen.status in TERMINAL:
            assert seen.message is None, "a secret is at rest"

    def _check_move(self, before: Seen, after: Seen) -> None:
        if before.status in TERMINAL:
            assert _without_content(after.row) == _without_content(before.row), "an ended delivery changed"
        if before.status is not after.status:
            assert (before.status, after.status) in TRANSITIONS
            self.observed[before.status, after.status] += 1
        assert after.row["claim_token"] >= before.row["claim_token"]
        assert after.row["attempts"] >= before.row["attempts"]
        if before.message is not None and after.message is not None:
            assert after.message == before.message, "the bytes of a delivery changed"


def _without_content(row: asyncpg.Record) -> dict[str, Any]:
    """Return a row without its bytes, which may be erased at any time after the end."""
    return {name: value for name, value in row.items() if name != "message"}


async def _stop_clock(store: Store) -> None:
    """Let time pass only where a rule says so: on a slow machine, a rung would come due in the middle of a run."""
    instant = (await now(store)).isoformat()
    (found,) = await rows(store, "SELECT prosrc FROM pg_proc WHERE oid = 'mail.now'::regproc")
    stopped = found["prosrc"].replace("now()", f"timestamptz '{instant}'", 1)
    await rows(
        store,
        f"CREATE OR REPLACE FUNCTION mail.now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS $${stopped}$$",
    )


@pytest.mark.timeout(600)
def test_the_queue_keeps_its_promises(dsn):
    """Whatever order replicas, crashes, lost claims and time come in, every invariant holds after every step.

    The runs together make most moves that dispatch can make; far fewer would mean that the machine stands still.
    """
    machine = QueueMachine
    machine.observed = Counter()
    with asyncio.Runner() as machine.loop:
        machine.store = machine.loop.run(Store.open(dsn, pool_size=1))
        machine.loop.run(_stop_clock(machine.store))
        run_state_machine_as_test(
            machine,
            settings=settings(max_examples=20, stateful_step_count=40, deadline=None, print_blob=True),
        )
        machine.loop.run(machine.store.close())

    assert len(machine.observed) >= MOVES_SEEN
