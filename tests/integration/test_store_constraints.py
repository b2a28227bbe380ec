"""The schema defends itself: no statement, ours or a person's, can leave a row that the rules do not know."""

from itertools import product

import asyncpg
import pytest
from queue_kit import accepted, claim_one, ending, finished, rows

from mailkeep.core.delivery import TERMINAL, WAITING, AttemptStatus, Certainty, DeliveryStatus, RecipientState
from mailkeep.core.outcome import Severity

S = DeliveryStatus
STATES = {
    S.SENT: "s",
    S.FAILED: "sf",
    S.SUPPRESSED: "sx",
}
INSTANT = "mail.now()"


async def _try(connection, statement, *arguments):
    """Run a statement and undo it; answers the name of the constraint that refused it, None where none did."""
    trial = connection.transaction()
    await trial.start()
    try:
        await connection.execute(statement, *arguments)
    except asyncpg.IntegrityConstraintViolationError as fault:
        return fault.constraint_name or "not null"
    else:
        return None
    finally:
        await trial.rollback()


def _legal(status, due, claimed_by, claimed, finished_):
    return (
        (due == (status in WAITING) or status is S.HELD)
        and claimed_by == (status is S.SENDING)
        and claimed == (status is S.SENDING)
        and finished_ == (status in TERMINAL)
    )


@pytest.mark.parametrize("status", S)
async def test_a_status_has_exactly_its_columns(store, status):
    """Waiting has a due time (held may), sending a claim, an end its instant: every other combination is refused."""
    delivery_id = await accepted(store)
    faults = []
    async with store.connection() as connection:
        for columns in product((False, True), repeat=4):
            values = [
                f"{INSTANT}" if columns[0] else "NULL",
                "id" if columns[1] else "NULL",
                f"{INSTANT}" if columns[2] else "NULL",
                f"{INSTANT}" if columns[3] else "NULL",
            ]
            refused = await _try(
                connection,
                "UPDATE mail.deliveries SET status = $2, recipient_states = $3, due_at = {}, claimed_by = {},"
                " claimed_at = {}, finished_at = {} WHERE id = $1".format(*values),
                delivery_id,
                status,
                STATES.get(status, "o"),
            )
            if (refused is None) != _legal(status, *columns):
                faults.append((status, columns, refused))
    assert faults == []


@pytest.mark.parametrize(
    ("status", "states"),
    [
        (S.SENT, "so"),
        (S.SENT, "sf"),
        (S.SENT, "sx"),
        (S.FAILED, "fo"),
        (S.SUPPRESSED, "xo"),
        (S.SUPPRESSED, "xf"),
        (S.RENDERED, "s"),
        (S.QUEUED, "sx"),
        (S.SENDING, "sf"),
        (S.DEAD_LETTER, "s"),
        (S.RENDERED, ""),
        (S.RENDERED, "oq"),
    ],
)
async def test_a_status_agrees_with_its_recipients(store, status, states):
    """Nothing is `sent` that somebody did not get, nothing settled is tried again, nothing open is called settled."""
    delivery_id = await accepted(store)
    columns = "due_at = NULL, finished_at = mail.now()" if status in TERMINAL else "due_at = mail.now()"
    if status is S.SENDING:
        columns = "due_at = NULL, claimed_by = id, claimed_at = mail.now()"
    async with store.connection() as connection:
        update = f"UPDATE mail.deliveries SET status = $2, recipient_states = $3, {columns} WHERE id = $1"
        assert await _try(connection, update, delivery_id, status, states) is not None


@pytest.mark.parametrize(
    "change",
    [
        "status = 'in_progress'",
        "source = 'imap'",
        "class = 'bulk'",
        "guarantee = 'exactly_once'",
        "attempts = -1",
        "rungs_used = -1",
        "next_hop = NULL",
        "claim_token = NULL",
        "size_bytes = NULL",
        "sensitive = NULL",
    ],
)
async def test_a_delivery_has_only_known_values(store, change):
    """Words outside the contract, negative counts and missing facts are refused."""
    await accepted(store)
    async with store.connection() as connection:
        assert await _try(connection, f"UPDATE mail.deliveries SET {change}") is not None


async def test_the_words_of_the_schema_are_those_of_the_core(store):
    """Each status and guarantee the core knows is one the schema takes, and the letters of recipients, too."""
    async with store.connection() as connection:
        text = " ".join(
            found["clause"]
            for found in await connection.fetch(
                "SELECT pg_get_constraintdef(oid) AS clause FROM pg_constraint"
            )
        )
    known = {*S, *(set(AttemptStatus) - {AttemptStatus.IN_PROGRESS}), *Certainty}
    assert [word for word in known if f"'{word}'" not in text] == []
    assert f"'{''.join(RecipientState)}'" in text


@pytest.mark.parametrize(
    "change",
    [
        "status = 'in_progress'",
        "certainty = 'maybe'",
        "number = 0",
        "certainty = 'unknown'",
        "status = 'timed_out'",
        "finished_at = NULL",
    ],
)
async def test_an_attempt_has_only_known_values(store, change):
    """An attempt that was accepted is delivered and no other is; numbers count from 1."""
    claim = await claim_one(store)
    await store.finish([finished(claim)])
    async with store.connection() as connection:
        assert await _try(connection, f"UPDATE mail.attempts SET {change}") is not None


@pytest.mark.parametrize("change", ["recipients = '{}'", "message = NULL", "sender = NULL"])
async def test_a_payload_is_never_empty(store, change):
    """A payload has recipients, a sender, and a message or a command."""
    await accepted(store)
    async with store.connection() as connection:
        assert await _try(connection, f"UPDATE mail.payloads SET {change}") is not None


async def test_a_dead_letter_has_a_known_cause_and_is_one(store):
    """A delivery has one dead letter at most, for a cause of the contract."""
    claim = await claim_one(store)
    await store.finish([finished(claim, ending(claim, Severity.TRANSIENT), ladder_s=())])
    async with store.connection() as connection:
        assert await _try(connection, "UPDATE mail.dead_letters SET cause = 'boredom'") is not None
        assert (
            await _try(
                connection,
                "INSERT INTO mail.dead_letters (delivery_id, cause, reason) SELECT delivery_id, cause, reason"
                " FROM mail.dead_letters",
            )
            is not None
        )


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_key_is_bounded(store, key):
    """An idempotency key has 1 to 255 characters also for a caller that came past the intake."""
    async with store.connection() as connection:
        insert = (
            "INSERT INTO mail.idempotency_keys (source, key, fingerprint, delivery_id, first_status)"
            " VALUES ('api', $1, '', gen_random_uuid(), 'rendered')"
        )
        assert await _try(connection, insert, key) is not None


async def test_a_deployment_has_one_key(store):
    """The key of the hashes is made once, random and whole."""
    async with store.connection() as connection:
        second = "INSERT INTO mail.deployment (hash_key) VALUES (decode(repeat('00', 32), 'hex'))"
        assert await _try(connection, second) is not None
        assert await _try(connection, "UPDATE mail.deployment SET hash_key = '\\x00'") is not None
    assert len(store.hash_key) == 32
    assert len(set(store.hash_key)) > 8


async def test_every_constraint_has_a_name_of_its_own(store):
    """An error names the rule it broke: no CHECK bears a name PostgreSQL made up."""
    found = await rows(
        store,
        "SELECT DISTINCT conname FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid"
        " WHERE contype = 'c' AND NOT t.relispartition AND connamespace = 'mail'::regnamespace",
    )
    assert [record["conname"] for record in found if record["conname"].endswith("_check")] == []
