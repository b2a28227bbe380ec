"""The named statements: each fits the schema, and the hot ones reach rows of full tables by their index."""

import json
import re
from collections import Counter
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import pytest
from queue_kit import HOP, fresh_id, rows

from mailkeep.core.ids import days_of
from mailkeep.store.queries import names, query, query_between

FILL = f"""
WITH numbered AS (
    SELECT n,
           (to_hex((extract(epoch FROM mail.now()) * 1000)::bigint - n) || '7' || lpad(to_hex(n), 19, '0')) AS hex
    FROM generate_series(1, 50000) n
), ided AS (
    SELECT n, lpad(hex, 32, '0')::uuid AS id, CASE WHEN n % 5 = 0 THEN 'rendered' WHEN n % 50 = 1 THEN 'sending'
           ELSE 'sent' END AS status
    FROM numbered
), delivered AS (
    INSERT INTO mail.deliveries (id, source, class, guarantee, status, next_hop, accepted_at, due_at, expires_at,
        finished_at, attempts, claimed_by, claimed_at, recipient_states, recipient_domain, size_bytes, sensitive)
    SELECT id, 'api', (ARRAY['auth', 'transactional', 'relay'])[1 + n % 3], 'at_least_once', status,
           CASE WHEN n % 7 = 0 THEN 'other' ELSE '{HOP}' END, mail.now(),
           CASE WHEN status = 'rendered' THEN mail.now() - n * interval '1 millisecond' END,
           CASE WHEN n % 2 = 0 THEN mail.now() + interval '1 hour' END,
           CASE WHEN status = 'sent' THEN mail.now() END, CASE WHEN status = 'sent' THEN 1 ELSE 0 END,
           CASE WHEN status = 'sending' THEN '0197f3c2-0000-7000-8000-000000000001'::uuid END,
           CASE WHEN status = 'sending' THEN mail.now() END,
           CASE WHEN status = 'sent' THEN 's' ELSE 'o' END, 'example.org', 100, false
    FROM ided
), kept AS (
    INSERT INTO mail.payloads (delivery_id, sender, recipients, message)
    SELECT id, 'a@example.org', '{{b@example.org}}', 'm' FROM ided
), tried AS (
    INSERT INTO mail.attempts (delivery_id, number, status, certainty, next_hop, replica_id, claim_token, started_at,
        finished_at)
    SELECT id, 1, 'provider_accepted', 'delivered', '{HOP}', id, 1, mail.now(), mail.now() FROM ided
    WHERE status = 'sent'
)
INSERT INTO mail.idempotency_keys (source, key, fingerprint, delivery_id, first_status)
SELECT 'api', id::text, '\\x00', id, 'sending' FROM ided
"""

SHARES = "n % 5 = 0 THEN 'rendered' WHEN n % 50 = 1 THEN 'sending'"
ENDED = FILL.replace(SHARES, "false THEN ''")

LIST = """
INSERT INTO mail.suppressions (address_hash, address, reason, evidence, actor, expires_at)
SELECT substr(decode(md5(n::text), 'hex'), 1, 12), n || '@example.org', 'manual', 'imported', 'ann',
       CASE WHEN n % 2 = 0 THEN mail.now() + interval '1 hour' END
FROM generate_series(1, 50000) n
"""

FREE_WORKERS = """
SET LOCAL parallel_setup_cost = 0;
SET LOCAL parallel_tuple_cost = 0;
SET LOCAL min_parallel_table_scan_size = 0;
SET LOCAL min_parallel_index_scan_size = 0
"""

# statement -> (table, end of the name of the index by which it must be reached: partitions name theirs by columns)
HOT = {
    "claim_due": ("deliveries", "next_hop_class_due_at_idx"),
    "claim_suspect": ("deliveries", "idx"),
    "next_due": ("deliveries", "next_hop_class_due_at_idx"),
    "expire_due": ("deliveries", "expires_at_idx"),
    "own_claims": ("deliveries", "claimed_by_idx"),
    "take_over": ("deliveries", "claimed_by_idx"),
    "finish": ("deliveries", "pkey"),
    "hand_back": ("deliveries", "pkey"),
    "mark_dot": ("deliveries", "pkey"),
    "find_keys": ("idempotency_keys", "idempotency_keys_pkey"),
    "beat": ("replicas", "replicas_pkey"),
    "accept": ("suppressions", "suppressions_pkey"),
    "suppress": ("suppressions", "suppressions_pkey"),
    "read_suppressions": ("suppressions", "suppressions_id_once"),
    "remove_suppression": ("suppressions", "suppressions_pkey"),
    "delete_old_suppressions": ("suppressions", "suppressions_expiring"),
    "diagnose_lanes": ("deliveries", "next_hop_class_due_at_idx"),
    "diagnose_attempts": ("attempts", "pkey"),
    "diagnose_dead_letters": ("dead_letters", "dead_letters_buried_at"),
}
GROWING = re.compile(
    r"(deliveries|payloads|attempts|recipients|events)(_p\d{8})?|idempotency_keys|dead_letters|suppressions"
)


def _nodes(plan):
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


@pytest.fixture
async def full(store):
    """A store whose tables hold 50,000 deliveries, a fifth of them due."""
    await rows(store, FILL)
    await rows(store, LIST)
    await rows(
        store,
        "ANALYZE mail.suppressions, mail.deliveries, mail.payloads, mail.attempts, mail.idempotency_keys",
    )
    return store


async def _explained(connection, name):
    """Return the nodes of the plan that a long-lived connection keeps for a statement."""
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE {name} AS {query(name)}")
    (count,) = await connection.fetchrow(
        "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = $1", name
    )
    arguments = f"({', '.join(['NULL'] * count)})" if count else ""
    plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE {name}{arguments}"))
    return list(_nodes(plan[0]["Plan"]))


async def test_each_statement_fits_the_schema(store):
    """PostgreSQL accepts every named statement against the migrated schema."""
    faults = []
    async with store.connection() as connection:
        for name in names():
            try:
                await connection.execute(f"PREPARE {name} AS {query(name)}")
            except asyncpg.PostgresError as fault:
                faults.append(f"{name}: {fault}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", names())
def test_each_statement_says_what_it_does(name):
    """A statement begins with a sentence for its reader."""
    assert re.match(r"-- [A-Za-z].{20,}", query(name))


async def test_hot_statements_reach_rows_by_their_index(full):
    """With 50,000 rows no hot statement scans a growing table, and each names the index it is meant to use."""
    faults = []
    async with full.connection() as connection:
        for name, (table, index) in HOT.items():
            nodes = await _explained(connection, name)
            scanned = [node for node in nodes if node["Node Type"] == "Seq Scan"]
            faults += [
                f"{name} scans {node['Relation Name']}"
                for node in scanned
                if GROWING.fullmatch(node["Relation Name"])
            ]
            used = {
                node["Index Name"]
                for node in nodes
                if "Index Name" in node
                and str(node.get("Relation Name", node["Index Name"])).startswith(table)
            }
            if not any(found.endswith(index) for found in used):
                faults.append(f"{name} uses {sorted(used) or 'no index'}, not {index}")
    assert faults == []


async def test_statements_take_no_workers(full):
    """Where workers would cost nothing, PostgreSQL still runs each statement in one process."""
    faults = []
    async with full.connection() as connection, connection.transaction():
        await connection.execute(FREE_WORKERS)
        for name in names():
            kinds = {node["Node Type"] for node in await _explained(connection, name)}
            faults += [f"{name}: {kind}" for kind in kinds & {"Gather", "Gather Merge"}]
    assert faults == []


async def _rows_read(connection, name, arguments):
    """Run a statement and return how many rows its scans of deliveries looked at."""
    await connection.execute(f"PREPARE {name} AS {query(name)}")
    explained = await connection.fetchval(
        f"EXPLAIN (ANALYZE, TIMING OFF, SUMMARY OFF, FORMAT JSON) EXECUTE {name}({arguments})"
    )
    return sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for node in _nodes(json.loads(explained)[0]["Plan"])
        if str(node.get("Relation Name", "")).startswith("deliveries") and "Scan" in node["Node Type"]
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "claim_due",
            f"gen_random_uuid(), '{{{HOP},{HOP}}}', '{{auth,transactional}}', '{{10,10}}', 2, 262144, 20",
        ),
        ("claim_suspect", f"gen_random_uuid(), '{{{HOP},other}}', 262144"),
        ("next_due", f"'{{{HOP},{HOP}}}', 2, '{{auth,relay}}'"),
        ("expire_due", "1000"),
        ("diagnose_lanes", "15"),
        ("diagnose_ended", "3600, 150"),
        ("diagnose_attempts", "3600, 150"),
    ],
)
async def test_looking_for_work_reads_few_rows_of_a_long_queue(full, name, arguments):
    """What is read grows with what is taken, not with the 10,000 deliveries that wait."""
    async with full.connection() as connection, connection.transaction():
        assert await _rows_read(connection, name, arguments) <= 200


async def test_a_day_is_judged_without_reading_it(store):
    """Of 20,000 deliveries that ended none is looked at: an event tells of the last of them."""
    await rows(store, ENDED.replace("(1, 50000)", "(1, 20000)"))
    await rows(
        store,
        "INSERT INTO mail.events (delivery_id, position, status, attempts, occurred_at)"
        " SELECT id, 1, 'sent', 1, mail.now() FROM mail.deliveries",
    )
    day = (await rows(store, "SELECT to_char(mail.now() AT TIME ZONE 'UTC', 'YYYYMMDD') AS day"))[0]["day"]
    bound = query_between("judge_day", *days_of([await fresh_id(store)]))
    async with store.connection() as connection, connection.transaction():
        await connection.execute(f"PREPARE judge AS {bound}")
        asked = f"EXECUTE judge('{day}', -172800, 86400)"
        assert (await connection.fetchrow(asked))["has_ended"]
        explained = await connection.fetchval(
            f"EXPLAIN (ANALYZE, TIMING OFF, SUMMARY OFF, FORMAT JSON) {asked}"
        )
    assert _read(explained).keys() <= {f"deliveries_p{day}", f"events_p{day}"}
    assert _read(explained).total() <= 2


def _read(explained):
    """Return how many rows of each growing table the scans of an explained statement looked at."""
    read = Counter()
    for node in _nodes(json.loads(explained)[0]["Plan"]):
        if GROWING.fullmatch(str(node.get("Relation Name"))) and "Scan" in node["Node Type"]:
            looked_at = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
            read[node["Relation Name"]] += node["Actual Loops"] * sum(node.get(kind, 0) for kind in looked_at)
    return read


OF_A_NEW_DAY = (
    "accept",
    "finish",
    "mark_dot",
    "hand_back",
    "suppress",
    "claim_due",
    "claim_suspect",
    "take_over",
    "expire_due",
    "own_claims",
    "next_due",
    "load_message",
    "change",
)


@pytest.mark.parametrize("before", [0, 1000])
@pytest.mark.parametrize("name", OF_A_NEW_DAY)
async def test_a_plan_of_a_new_day_still_serves_when_it_is_full(store, name, before):
    """Connections keep the plan that they made while a day held little; what it reads must not grow with the day all the same."""
    fill = FILL.replace(SHARES, "true THEN 'sending'")
    await rows(store, fill.replace("(1, 50000)", f"(1, {before})"))
    await rows(store, "ANALYZE mail.deliveries, mail.payloads, mail.attempts")
    today = await fresh_id(store)
    async with store.connection() as connection, connection.transaction():
        await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE {name} AS {query_between(name, *days_of([today]))}")
        count = await connection.fetchval(
            "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = $1", name
        )
        nothing = f"EXPLAIN (ANALYZE, TIMING OFF, SUMMARY OFF, FORMAT JSON) EXECUTE {name}({', '.join(['NULL'] * count)})"
        await connection.execute(nothing)
        await rows(store, fill.replace("(1, 50000)", "(2000, 20000)"))
        read = _read(await connection.fetchval(nothing))
        assert read.total() <= 10, read


async def _tables(connection, statement):
    """Return the tables that the plan of a statement opens."""
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE bound AS {statement}")
    count = await connection.fetchval(
        "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'bound'"
    )
    plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE bound({', '.join(['NULL'] * count)})")
    return {node["Relation Name"] for node in _nodes(json.loads(plan)[0]["Plan"]) if "Relation Name" in node}


@pytest.mark.parametrize("name", ["finish", "mark_dot", "hand_back", "suppress"])
@pytest.mark.parametrize("days", [0, 1])
async def test_a_bound_statement_opens_the_days_of_its_ids_alone(store, name, days):
    """Other days' partitions, of which retention keeps many, cost such a statement nothing."""
    today = await fresh_id(store)
    ids = [today, UUID(int=today.int + (days * 86_400_000 << 80))]
    async with store.connection() as connection:
        opened = await _tables(connection, query_between(name, *days_of(ids)))
    dated = {name for name in opened if re.search(r"_p\d{8}$", name)}
    assert {name[-8:] for name in dated} == {
        datetime.fromtimestamp((delivery_id.int >> 80) / 1000, UTC).strftime("%Y%m%d") for delivery_id in ids
    }


async def test_accepting_opens_no_day_that_it_does_not_write_to(store):
    """Also where a login code may supersede an older one: that is looked up by a function."""
    async with store.connection() as connection:
        opened = await _tables(connection, query("accept"))
    assert "suppressions" in opened
    assert not any(re.search(r"_p\d{8}$", name) for name in opened)
