"""Operators' reads over full tables: by index, and never more rows than their bound."""

import json
import re

import pytest

from mailkeep.core.delivery import WAITING, DeliveryStatus
from mailkeep.store import reads
from mailkeep.store.queries import query
from mailkeep.store.reads import DeliveryFilter, QueueFilter, QueueReads

ENDED, LIVE, DEAD = 20_000, 600, 50
GROWING = re.compile(r"(deliveries|payloads|attempts|recipients)(_p\d{8})?|dead_letters")

FILL = f"""
WITH numbered AS (
    SELECT n, ((extract(epoch FROM mail.now()) * 1000)::bigint - n) AS at_ms,
           CASE WHEN n <= {ENDED} THEN 'sent' WHEN n <= {ENDED + DEAD} THEN 'dead_letter'
                ELSE (ARRAY['rendered', 'sending', 'held'])[1 + n % 3] END AS status
    FROM generate_series(1, {LIVE + DEAD + ENDED}) n
), ided AS (
    SELECT *, (lpad(to_hex(at_ms), 12, '0') || '7' || lpad(to_hex(n), 19, '0'))::uuid AS id FROM numbered
), delivered AS (
    INSERT INTO mail.deliveries (id, source, class, guarantee, status, next_hop, accepted_at, due_at, finished_at,
        claimed_by, claimed_at, attempts, recipient_states, recipient_domain, size_bytes, sensitive)
    SELECT id, 'api', (ARRAY['auth', 'transactional', 'relay'])[1 + n % 3], 'at_least_once', status,
           'hop' || n % 2, to_timestamp(at_ms / 1000.0),
           CASE WHEN status = 'rendered' THEN mail.now() + (60 + n * 7919 % 10007) * interval '1 second' END,
           CASE WHEN status IN ('sent', 'dead_letter') THEN mail.now() END,
           CASE WHEN status = 'sending' THEN id END,
           CASE WHEN status = 'sending' THEN mail.now() - (n * 7919 % 97) * interval '1 second' END,
           1, CASE WHEN status = 'sent' THEN 's' ELSE 'o' END, 'd' || n % 5 || '.org', 100, false
    FROM ided
), addressed AS (
    INSERT INTO mail.recipients (address_hash, delivery_id) SELECT '\\x01', id FROM ided WHERE n % 100 = 0
), kept AS (
    INSERT INTO mail.payloads (delivery_id, sender, recipients, message)
    SELECT id, 'a@example.org', '{{b@example.org}}', 'm' FROM ided
), buried AS (
    INSERT INTO mail.dead_letters (delivery_id, cause, reason)
    SELECT id, 'ladder_exhausted', 'r' FROM ided WHERE status = 'dead_letter'
)
INSERT INTO mail.attempts (delivery_id, number, status, certainty, next_hop, replica_id, claim_token, started_at,
    finished_at)
SELECT id, 1, 'provider_accepted', 'delivered', 'hop', id, 1, mail.now(), mail.now() FROM ided
"""

NOBODY = "'00000000-0000-0000-0000-000000000000'"
ALL_IDS = f"{NOBODY}, 'ffffffff-ffff-ffff-ffff-ffffffffffff'"


def page_arguments(way, scanned, status="NULL"):
    """Return the arguments of read_deliveries for a page of 20."""
    return f"'{way}', {ALL_IDS}, '\\x01', {scanned}, {status}, NULL, NULL, NULL, NULL, 20"


# statement and arguments -> the most rows of deliveries that it may look at
BOUNDS = [
    ("read_deliveries", page_arguments("id", 20), 60),
    ("read_deliveries", page_arguments("id", 500, "'{failed}'"), 1000),
    ("read_deliveries", page_arguments("recipient", 20), 60),
    ("read_deliveries", page_arguments("waiting", 20), 300),
    ("read_deliveries", page_arguments("sending", 20), 300),
    ("read_deliveries", page_arguments("held", 20), 60),
    ("read_deliveries", page_arguments("dead_letter", 20), 60),
    ("read_queue", "20, NULL, NULL, NULL, NULL, NULL", 700),
    ("read_waiting_hops", "", 20),
    ("read_attempts", f"{NOBODY}, 200", 0),
    ("read_replicas", "500", 0),
    ("flush", f"'hop0', 'auth', 'epoch', {NOBODY}, NULL, 20, 'ann', 'back'", 60),
    ("flush_one", f"{NOBODY}, 'ann', 'back'", 0),
]


def nodes(plan):
    """Yield every node of a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


@pytest.fixture
async def full(store):
    """Yield a store with 600 live deliveries, and 20,000 newer ones that have ended."""
    async with store.connection() as connection:
        await connection.execute(FILL)
        await connection.execute("ANALYZE mail.deliveries, mail.payloads, mail.attempts, mail.recipients")
    return store


async def test_reads_take_an_index_and_few_rows(full):
    """Under the plan a long-lived connection keeps, no statement scans a growing table or reads beyond its bound."""
    faults = []
    async with full.connection() as connection, connection.transaction():
        await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        for number, (name, arguments, bound) in enumerate(BOUNDS):
            await connection.execute(f"PREPARE s{number} AS {query(name)}")
            call = f"s{number}({arguments})" if arguments else f"s{number}"
            explained = await connection.fetchval(
                f"EXPLAIN (ANALYZE, TIMING OFF, SUMMARY OFF, FORMAT JSON) EXECUTE {call}"
            )
            found = list(nodes(json.loads(explained)[0]["Plan"]))
            faults += [
                f"{name}: {node['Node Type']} on {node['Relation Name']}"
                for node in found
                if node["Node Type"] == "Seq Scan" and GROWING.fullmatch(node["Relation Name"])
            ]
            looked_at = sum(
                node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
                for node in found
                if node.get("Relation Name", "").startswith("deliveries") and "Scan" in node["Node Type"]
            )
            if looked_at > bound:
                faults.append(f"{name}({arguments}): {looked_at} rows for at most {bound}")
    assert faults == []


async def all_pages(queue_reads, wanted, limit):
    """Return the ids of all pages."""
    ids, after = [], None
    while True:
        page = await queue_reads.page(wanted, limit, after)
        ids += [delivery.id for delivery in page.deliveries]
        after = page.after
        if after is None:
            return ids


async def test_every_way_in_finds_all_of_its_own(full):
    """Whatever index a filter goes by, its pages hold exactly the rows that the filter describes, newest first."""
    queue_reads = QueueReads(full)
    for wanted, condition in (
        (DeliveryFilter(statuses=WAITING), "status IN ('queued', 'rendered')"),
        (DeliveryFilter(statuses=frozenset({DeliveryStatus.RENDERED})), "status = 'rendered'"),
        (DeliveryFilter(statuses=frozenset({DeliveryStatus.SENDING})), "status = 'sending'"),
        (DeliveryFilter(statuses=frozenset({DeliveryStatus.HELD})), "status = 'held'"),
        (DeliveryFilter(statuses=frozenset({DeliveryStatus.DEAD_LETTER})), "status = 'dead_letter'"),
        (
            DeliveryFilter(statuses=frozenset({DeliveryStatus.HELD, DeliveryStatus.SENDING})),
            "status IN ('held', 'sending')",
        ),
        (DeliveryFilter(recipient_hash=b"\x01"), "id IN (SELECT delivery_id FROM mail.recipients)"),
        (DeliveryFilter(source="api", statuses=frozenset({DeliveryStatus.SENT})), "status = 'sent'"),
        (DeliveryFilter(source="sql"), "false"),
    ):
        async with full.connection() as connection:
            rows = await connection.fetch(
                f"SELECT id FROM mail.deliveries WHERE {condition} ORDER BY id DESC"
            )
        assert await all_pages(queue_reads, wanted, 200) == [row["id"] for row in rows], condition


async def test_the_queue_lists_the_longest_due_first(full):
    """The queue is in the order in which its deliveries became or become due, across next hops, classes and statuses."""
    queue_reads = QueueReads(full)
    found = await queue_reads.queue(QueueFilter(), 10_000)
    assert len(found) == LIVE
    since = [row.due_at or row.claimed_at or row.accepted_at for row in found]
    assert since == sorted(since)
    assert (await queue_reads.queue(QueueFilter(), 7)) == found[:7]
    for wanted, fits in (
        (QueueFilter(statuses=WAITING), lambda row: row.status is DeliveryStatus.RENDERED),
        (QueueFilter(delivery_class="relay"), lambda row: row.delivery_class == "relay"),
        (QueueFilter(next_hop="hop1"), lambda row: row.next_hop == "hop1"),
        (QueueFilter(domain="d3.org"), lambda row: row.recipient_domain == "d3.org"),
        (QueueFilter(rule="x"), lambda _row: False),
    ):
        assert await queue_reads.queue(wanted, 10_000) == tuple(filter(fits, found))


async def test_a_flush_meets_each_waiting_row_once(full, monkeypatch):
    """A flush in small batches moves every later row of all next hops and classes once, although some share an instant."""
    monkeypatch.setattr(reads, "FLUSH_BATCH", 7)
    async with full.connection() as connection:
        await connection.execute(
            "UPDATE mail.deliveries SET due_at = date_trunc('minute', due_at) + interval '5 minutes' WHERE due_at IS NOT NULL"
        )
        waiting = await connection.fetchval("SELECT count(*) FROM mail.deliveries WHERE status = 'rendered'")
        in_d1 = await connection.fetchval(
            "SELECT count(*) FROM mail.deliveries WHERE status = 'rendered' AND recipient_domain = 'd1.org'"
        )
    queue_reads = QueueReads(full)
    by = {"actor": "ann", "reason": "back"}
    assert await queue_reads.flush(domain="d1.org", **by) == in_d1
    assert await queue_reads.flush(**by) == waiting - in_d1
    assert await queue_reads.flush(**by) == 0
    async with full.connection() as connection:
        assert (
            await connection.fetchval("SELECT count(*) FROM mail.deliveries WHERE due_at > mail.now()") == 0
        )
        recorded = "SELECT count(DISTINCT delivery_id) FROM mail.operator_changes WHERE (verb, actor, reason) = ('flush', 'ann', 'back')"
        assert await connection.fetchval(recorded) == waiting
