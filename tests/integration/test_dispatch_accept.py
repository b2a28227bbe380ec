"""Accept and dispatch together: what is answered is durable, claimed at birth once, and nobody's fault is another's."""

import asyncio
import email
import email.policy
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest
from dispatch_kit import dispatching, hop, until
from queue_kit import HOP, blocked_backend, check_accounts, fresh_id, payload, row, rows, shift_clock, status
from smtp_servers import Act, Drip, scripted_peer

from mailkeep.core.address import Mailbox
from mailkeep.core.command import (
    EPOCH_MS_MAX,
    CommandError,
    CommandRules,
    DeliveryRequest,
    Limits,
    LoginCodeRequest,
    Payload,
    parse_login_code,
    parse_request,
)
from mailkeep.core.delivery import DeliveryClass, DeliveryStatus
from mailkeep.core.suppression import NewSuppression, SuppressionReason
from mailkeep.dispatch.right_of_way import ROWS_AMONG_CODES, RightOfWay
from mailkeep.dispatch.worker import HELD_PER_WORKER
from mailkeep.intake.accept import Accept, Accepted, AcceptPolicy
from mailkeep.smtp.routes import Routes
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.group_commit import MAX_PENDING, OverloadedError
from mailkeep.store.suppressions import Suppressions
from mailkeep.templates.catalog import SHIPPED_CATALOG, Catalog

RULES = CommandRules()
CATALOG = Catalog.load(SHIPPED_CATALOG)


def command(**payload_fields):
    """Build a command with ready content."""
    fields = payload_fields.pop("fields", {})
    content = {"to": ("ann@example.org",), "subject": "Hello", "text": "Hi"} | payload_fields
    return parse_request(
        DeliveryRequest(payload=Payload(**content), payload_mode="rendered", **fields), RULES
    )


def login_code(code="123456", **fields):
    """Build a command with a login code."""
    request = LoginCodeRequest(email="ann@example.org", code=code, locale="en", **fields)
    return parse_login_code(request, RULES, 900)


@asynccontextmanager
async def accepting(store, port, *, stub=False, concurrency=10, limits=None, schedule=False, **hop_changes):
    """Run a replica that accepts and sends."""
    async with dispatching(
        store, hop(HOP, port, **hop_changes), concurrency=concurrency, schedule=schedule
    ) as dispatch:
        dispatch.accept = Accept(
            store=store,
            replica=dispatch.replica,
            pool=dispatch.pool,
            catalog=CATALOG,
            routes=Routes(dispatch.pool._hops),
            policy=AcceptPolicy(
                sender=Mailbox("mail", "example.org", "Mailkeep"),
                rules=CommandRules(limits=limits or Limits()),
                stub=stub,
                auth_expiry_s=900,
            ),
            on_waiting=dispatch.scheduler.wake,
            right_of_way=RightOfWay(),
        )
        yield dispatch
        await dispatch.accept.drain()


def _free(dispatch):
    return dispatch.pool._places.room(DeliveryClass.TRANSACTIONAL, HOP)


async def test_what_is_accepted_is_claimed_at_birth_and_sent(store):
    """With room in memory a delivery is born claimed and sent without any claim from the table."""
    async with scripted_peer() as peer, accepting(store, peer.port) as dispatch:
        answer = await dispatch.accept.accept(command(), key="k")
        assert (answer.status, answer.replayed) == (DeliveryStatus.SENDING, False)
        await until(lambda: not dispatch.pool.held)
        kept = await row(store, answer.delivery_id)
        assert (kept["status"], kept["claim_token"]) == ("sent", 1)
    assert len(peer.bodies) == 1


async def test_without_room_it_waits_in_the_table(store):
    """A full pool lets new mail wait as `rendered`, and the scheduler sends it when there is room again."""
    slow = Drip(b"220 peer.test\r\n", 0.05)
    async with (
        scripted_peer(greeting=slow) as peer,
        accepting(store, peer.port, concurrency=1, max_connections=1, schedule=True) as dispatch,
    ):
        answers = [await dispatch.accept.accept(command(), key=f"k{n}") for n in range(HELD_PER_WORKER + 4)]
        assert {answer.status for answer in answers} == {DeliveryStatus.SENDING, DeliveryStatus.RENDERED}

        async def all_sent():
            return {found["status"] for found in await rows(store, "SELECT status FROM mail.deliveries")} == {
                "sent"
            }

        await until(all_sent)
    assert len(peer.bodies) == len(answers)


async def test_while_login_codes_are_about_commits_are_small(store):
    """A code that meets a commit of the rest waits for a short one; without codes all that waits goes together."""
    async with scripted_peer() as peer, accepting(store, peer.port, schedule=False) as dispatch:

        async def commits(name, count):
            await asyncio.gather(
                *(dispatch.accept.accept(command(), key=f"{name}{number}") for number in range(count))
            )
            found = await rows(
                store,
                f"SELECT count(*) FROM mail.idempotency_keys WHERE key LIKE '{name}%' GROUP BY xmin::text",
            )
            return max(one["count"] for one in found)

        with dispatch.accept.right_of_way.passing():
            pass
        assert await commits("among", 3 * ROWS_AMONG_CODES) == ROWS_AMONG_CODES
        dispatch.accept.right_of_way._about_until = 0.0
        assert await commits("alone", 3 * ROWS_AMONG_CODES) > ROWS_AMONG_CODES


async def test_the_same_key_and_command_get_the_first_answer(store):
    """A repeated call is answered as the first was, and nothing is sent twice; at once or later, by any caller."""
    async with scripted_peer() as peer, accepting(store, peer.port) as dispatch:
        answers = await asyncio.gather(*(dispatch.accept.accept(command(), key="k") for _ in range(50)))
        assert len({answer.delivery_id for answer in answers}) == 1
        assert {answer.status for answer in answers} == {DeliveryStatus.SENDING}
        assert [answer.replayed for answer in answers].count(False) == 1
        await until(lambda: not dispatch.pool.held)
        again = await dispatch.accept.accept(command(), key="k")
        assert again == Accepted(answers[0].delivery_id, DeliveryStatus.SENDING, replayed=True)
        assert _free(dispatch) == 10 * HELD_PER_WORKER - 8 - 4
    assert len(peer.bodies) == 1


async def test_the_same_key_for_another_command_is_refused(store):
    """A key is bound to its command: another one under it is a conflict, at once and later."""
    async with scripted_peer() as peer, accepting(store, peer.port) as dispatch:
        results = await asyncio.gather(
            dispatch.accept.accept(command(), key="k"),
            dispatch.accept.accept(command(text="Other"), key="k"),
            return_exceptions=True,
        )
        (refused,) = [result for result in results if isinstance(result, CommandError)]
        assert refused.code == "idempotency_conflict"
        with pytest.raises(CommandError):
            await dispatch.accept.accept(command(text="Third"), key="k")
    assert len(peer.bodies) == 1


async def test_without_a_key_each_call_is_a_delivery(store, unused_tcp_port):
    """Where the caller gave no key nothing is taken for a repetition."""
    async with accepting(store, unused_tcp_port, stub=True) as dispatch:
        answers = [await dispatch.accept.accept(command(), key=None) for _ in range(2)]
    assert len({answer.delivery_id for answer in answers}) == 2


async def test_what_is_suppressed_gives_its_place_back(store):
    """A delivery that ends at birth holds no worker and no place; one to somebody else too is sent to that one alone."""
    ann = NewSuppression("ann@example.org", SuppressionReason.MANUAL, "why")
    await Suppressions(store).add([ann], actor="eve")
    async with scripted_peer() as peer, accepting(store, peer.port) as dispatch:
        free = _free(dispatch)
        answer = await dispatch.accept.accept(command(), key="k")
        assert answer.status is DeliveryStatus.SUPPRESSED
        assert (_free(dispatch), dispatch.pool.held) == (free, {})
        mixed = await dispatch.accept.accept(command(to=("ann@example.org", "bo@example.org")), key="l")
        assert mixed.status is DeliveryStatus.SENDING
        await until(lambda: not dispatch.pool.held)
        assert (await row(store, mixed.delivery_id))["recipient_states"] == "xs"
    assert len(peer.bodies) == 1


async def test_stub_mode_ends_at_birth(store, unused_tcp_port):
    """In stub mode a login code is taken, ends `suppressed` and leaves no secret."""
    async with accepting(store, unused_tcp_port, stub=True) as dispatch:
        answer = await dispatch.accept.accept(login_code(), key="k")
        assert answer.suppressed
        assert dispatch.pool.held == {}
    assert await status(store, answer.delivery_id) == "suppressed"
    assert await payload(store, answer.delivery_id) is None


async def test_a_login_code_expires_and_hides(store):
    """A login code is sensitive, of its class, has its expiry, and is erased once it is sent."""
    async with scripted_peer(greeting=Act.STALL) as peer, accepting(store, peer.port) as dispatch:
        answer = await dispatch.accept.accept(login_code("987654"), key="k")
        kept = await row(store, answer.delivery_id)
        assert (kept["class"], kept["sensitive"]) == ("auth", True)
        assert timedelta(seconds=890) < kept["expires_at"] - kept["accepted_at"] < timedelta(seconds=910)
        content = await payload(store, answer.delivery_id)
        assert content is not None
        assert b"987654" in content["message"]
    async with scripted_peer() as peer, accepting(store, peer.port, schedule=True):
        await until(lambda: peer.bodies)

        async def erased():
            return await payload(store, answer.delivery_id) is None

        await until(erased)


async def test_a_repeated_call_is_answered_after_its_time(store, unused_tcp_port):
    """A call that comes again after its own `expires_at` still gets the first answer."""
    async with accepting(store, unused_tcp_port, stub=True) as dispatch:
        expires_at_ms = int((dispatch.replica.now_s() + 60) * 1000)
        timely = command(fields={"expires_at_ms": expires_at_ms})
        first = await dispatch.accept.accept(timely, key="k")
        await shift_clock(store, timedelta(minutes=5))
        await until(lambda: dispatch.replica.now_s() * 1000 > expires_at_ms)
        assert (await dispatch.accept.accept(timely, key="k")).delivery_id == first.delivery_id
        with pytest.raises(CommandError, match="past"):
            await dispatch.accept.accept(timely, key="other")


@pytest.mark.parametrize("delivery_class", DeliveryClass)
async def test_the_furthest_instant_is_taken_or_refused(store, unused_tcp_port, delivery_class):
    """A send time at the end of the year 9999 is a delivery or a fault of the command, never a crash."""
    async with accepting(store, unused_tcp_port) as dispatch:
        furthest = command(fields={"send_at_ms": EPOCH_MS_MAX, "delivery_class": delivery_class})
        try:
            answer = await dispatch.accept.accept(furthest, key="k")
        except CommandError as fault:
            assert fault.code == "invalid_field"
        else:
            assert answer.status is DeliveryStatus.RENDERED


async def test_an_encoded_word_in_a_subject_begins_no_header(store, unused_tcp_port):
    """M2: a line break hidden in an encoded-word stays text in the stored message: no header comes of it."""
    hidden = "=?utf-8?q?hello=0ABcc:_evil=40example.org?="
    async with accepting(store, unused_tcp_port, stub=True) as dispatch:
        named = command(subject=hidden, to=(f"{hidden} <ann@example.org>",))
        answer = await dispatch.accept.accept(named, key="k")
    content = await payload(store, answer.delivery_id)
    assert content is not None
    message = email.message_from_bytes(content["message"], policy=email.policy.SMTP)
    assert "Bcc" not in message
    assert message["Subject"] == hidden
    assert b"\nBcc:" not in content["message"]


# -- faults -----------------------------------------------------------------------------------------------------


async def test_a_refused_command_does_not_take_its_neighbours(store):
    """One command that can't be stored is told so; those committed with it are accepted and sent."""
    async with scripted_peer() as peer, accepting(store, peer.port) as dispatch:
        first = await dispatch.accept.accept(command(), key="first")
        await until(lambda: not dispatch.pool.held)
        results = await asyncio.gather(
            dispatch.accept.accept(command(), key="a"),
            dispatch.accept.accept(command(), key="b", delivery_id=first.delivery_id),
            dispatch.accept.accept(command(), key="c"),
            return_exceptions=True,
        )
        assert isinstance(results[0], Accepted)
        assert isinstance(results[1], CommandError)
        assert isinstance(results[2], Accepted)
        await until(lambda: not dispatch.pool.held)
        assert _free(dispatch) == 10 * HELD_PER_WORKER - 8 - 4
    assert len(peer.bodies) == 3
    await check_accounts(store, [first.delivery_id, results[0].delivery_id, results[2].delivery_id])


@pytest.mark.parametrize("apart", [False, True], ids=["in one batch", "one after the other"])
async def test_an_id_and_key_given_twice_are_one_delivery(store, apart):
    """A producer that hands in the same id and key twice has one delivery, sent once; its place in memory is free again."""
    delivery_id = await fresh_id(store)
    async with (
        scripted_peer(greeting=Drip(b"220 peer.test\r\n", 0.1)) as peer,
        accepting(store, peer.port) as dispatch,
    ):
        calls = [dispatch.accept.accept(command(), key="k", delivery_id=delivery_id) for _ in range(2)]
        if apart:
            answers = [await call for call in calls]
        else:
            answers = await asyncio.gather(*calls)
        assert {answer.delivery_id for answer in answers} == {delivery_id}
        assert sorted(answer.replayed for answer in answers) == [False, True]
        assert dispatch.pool.held.get(delivery_id) is not None, "its attempt is under way, so it is held"
        await until(lambda: not dispatch.pool.held)
        assert _free(dispatch) == 10 * HELD_PER_WORKER - 8 - 4
    assert len(peer.bodies) == 1
    await check_accounts(store, [delivery_id])


async def test_a_store_that_is_away_takes_nothing(store, dsn):
    """When the commit fails the caller is told, no place stays taken, and the same call succeeds afterwards."""
    async with scripted_peer() as peer, accepting(store, peer.port) as dispatch:
        other = await asyncpg.connect(dsn)
        async with other.transaction():
            await other.execute("LOCK TABLE mail.idempotency_keys IN ACCESS EXCLUSIVE MODE")
            accepting_ = asyncio.create_task(dispatch.accept.accept(command(), key="k"))
            await other.execute("SELECT pg_terminate_backend($1)", await blocked_backend(dsn))
            with pytest.raises(StoreUnavailableError):
                await accepting_
        await other.close()
        assert dispatch.pool.held == {}
        assert _free(dispatch) == 10 * HELD_PER_WORKER - 8 - 4
        answer = await dispatch.accept.accept(command(), key="k")
        await until(lambda: not dispatch.pool.held)
    assert len(peer.bodies) == 1
    await check_accounts(store, [answer.delivery_id])


async def test_more_than_can_wait_is_refused_and_holds_nothing(store, dsn, unused_tcp_port):
    """Past the bound a caller is told to come back, and what it had reserved is free again."""
    async with accepting(store, unused_tcp_port, stub=True) as dispatch:
        other = await asyncpg.connect(dsn)
        async with other.transaction():
            await other.execute("LOCK TABLE mail.idempotency_keys IN ACCESS EXCLUSIVE MODE")
            one = command()
            calls = [
                asyncio.create_task(dispatch.accept.accept(one, key=None)) for _ in range(MAX_PENDING + 300)
            ]
            done, waiting = await asyncio.wait(calls, timeout=5)
            assert done
            assert {type(call.exception()) for call in done} == {OverloadedError}
        await other.close()
        answers = await asyncio.gather(*waiting)
    assert all(isinstance(answer.delivery_id, UUID) for answer in answers)
    assert (await rows(store, "SELECT count(*) FROM mail.deliveries"))[0][0] == len(answers)


async def test_a_caller_that_goes_away_loses_nothing(store):
    """A request that is cancelled while its commit is under way is stored and sent all the same."""
    async with scripted_peer() as peer, accepting(store, peer.port) as dispatch:
        call = asyncio.create_task(dispatch.accept.accept(command(), key="k"))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await dispatch.accept.drain()
        await until(lambda: not dispatch.pool.held)
        again = await dispatch.accept.accept(command(), key="k")
        assert again.replayed
    assert len(peer.bodies) == 1
