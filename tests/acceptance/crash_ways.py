"""The ways whose every step the crash matrix breaks: from each intake to the final record, and what happens beside.

A way lists only what makes it differ; which statements, commands and phases lie on it is found by walking it. The order
counts: an exchange has its rows on the first way that meets it, and on later ones that name it in `again`.
"""

import json
import signal
import time
from typing import Any, Final
from uuid import uuid4

from crash_cell import TTL_S, Cell, Replica, Way, rendered_mail, until
from fault_gate import Point, Step
from harness import LOGIN_CODES
from holding_hop import ALL

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.ids import new_id
from mailkeep.drill.ledger import SENT, Answer, Submission
from mailkeep.intake.stream import STREAM

LARGE: Final = "A line of a body that leaves in several blocks.\n" * 4_000
SOON_S: Final = 2.0
DAYS_LATER: Final = 40
DAY_MS: Final = 86_400_000
BOTH: Final = ("at_least_once", "at_most_once")


def nothing(_cell: Cell) -> None:
    """Nothing is to be done."""


def in_ms(wait_s: float, days: int = 0) -> int:
    """Return an instant to come, in Unix milliseconds."""
    return int((time.time() + wait_s) * 1000) + days * DAY_MS


# -- by HTTP -------------------------------------------------------------------------------------------------------


def one_large(cell: Cell) -> None:
    """Hand in one mail that takes several blocks to send."""
    cell.victim.gate.open()
    cell.produce(rendered_mail("large", text=LARGE))


def one(cell: Cell) -> None:
    """Hand in one mail."""
    cell.victim.gate.open()
    cell.produce(rendered_mail("one"))


def one_code(cell: Cell) -> None:
    """Hand in one login code."""
    recipient = f"code-{uuid4().hex[:10]}@mail.acceptance.org"
    body = {"email": recipient, "code": "493817", "locale": "en"}
    cell.victim.gate.open()
    cell.produce(Submission(uuid4().hex, LOGIN_CODES, body, (recipient,)))


def one_twice(cell: Cell) -> None:
    """Hand in one mail, and again under the same key."""
    first = rendered_mail("twice")
    cell.seed(first, cell.victim)
    until(lambda: set(cell.database.statuses().values()) == SENT, "the first is sent")
    cell.victim.gate.open()
    cell.produce(Submission(first.key, first.path, first.body, first.recipients))


def deferred_once(cell: Cell) -> None:
    """Hand in one mail that the next hop takes at the second attempt."""
    cell.hop.deferrals = 1
    one(cell)


def deferred_always(cell: Cell) -> None:
    """Hand in one mail that the next hop never takes."""
    cell.hop.deferrals = ALL
    one(cell)


def stopped_at_work(cell: Cell) -> None:
    """Tell the replica to stop while it has one mail in a dialog and others in its hands."""
    cell.hop.rcpt_delay_s = 1.0
    for number in range(3):
        cell.seed(rendered_mail(f"stop{number}"), cell.victim)
    cell.victim.gate.open()
    cell.victim.signal(signal.SIGTERM)


# -- what the victim finds when it starts --------------------------------------------------------------------------


def leave_one_waiting(cell: Cell) -> None:
    """Leave a mail that is due in the table, accepted by a replica that is gone."""
    seeder = cell.replica("seeder").start()
    cell.seed(rendered_mail("waiting", send_at_ms=in_ms(SOON_S)), seeder)
    seeder.kill9()
    time.sleep(SOON_S)


def leave_one_expired(cell: Cell) -> None:
    """Leave a mail in the table whose time is over."""
    seeder = cell.replica("seeder").start()
    due_at_ms = in_ms(SOON_S)
    cell.seed(rendered_mail("late", send_at_ms=due_at_ms, expires_at_ms=due_at_ms + 1), seeder)
    seeder.kill9()
    time.sleep(SOON_S)


def leave_one_claimed(cell: Cell) -> None:
    """Leave a mail that is claimed by a replica that died over it."""
    seeder: Replica = cell.replica("seeder", wanted=Point("smtp", "RCPT", 1, Step.BEFORE)).start()
    seeder.gate.open()
    cell.seed(rendered_mail("claimed"), seeder)
    assert seeder.gate.hit.wait(30), "the seeder has its dialog"
    seeder.kill9()
    seeder.gate.let_go(cut=True)
    time.sleep(TTL_S + 0.3)


def leave_one_old(cell: Cell) -> None:
    """Leave a mail that ended long ago."""
    seeder = cell.replica("seeder").start()
    cell.seed(rendered_mail("old"), seeder)
    until(lambda: set(cell.database.statuses().values()) == SENT, "it is sent")
    seeder.kill9()
    cell.old = cell.submissions.pop()
    cell.database.fetch(f"ALTER DATABASE {cell.database.name} SET mail.clock_offset = '{DAYS_LATER} days'")


def leave_one_old_and_one_live(cell: Cell) -> None:
    """Leave a mail that ended long ago, and one of the same day that is due only now."""
    seeder = cell.replica("seeder").start()
    live = rendered_mail("live", send_at_ms=in_ms(10, DAYS_LATER))
    cell.seed(live, seeder)
    cell.seed(rendered_mail("old"), seeder)
    until(lambda: "sent" in cell.database.statuses().values(), "it is sent")
    seeder.kill9()
    cell.old = cell.submissions.pop()
    cell.database.fetch(f"ALTER DATABASE {cell.database.name} SET mail.clock_offset = '{DAYS_LATER} days'")


OLD_IS_LEFT: Final = """
SELECT (SELECT count(*) FROM mail.deliveries WHERE id = $1::text::uuid)
     + (SELECT count(*) FROM mail.payloads WHERE delivery_id = $1::text::uuid)
     + (SELECT count(*) FROM mail.attempts WHERE delivery_id = $1::text::uuid)
     + (SELECT count(*) FROM mail.recipients WHERE delivery_id = $1::text::uuid)
     + (SELECT count(*) FROM mail.idempotency_keys WHERE delivery_id = $1::text::uuid)
"""


def old_is_gone(cell: Cell) -> bool:
    """Whether nothing is left of the old mail; its copy is then none of the ledger's business."""
    (old_id,) = cell.old.ids
    if cell.database.value(OLD_IS_LEFT, old_id):
        return False
    cell.hop.copies[:] = [copy for copy in cell.hop.copies if copy.delivery_id != old_id]
    return True


# -- by stream and by SQL ------------------------------------------------------------------------------------------


def entry(submission: Submission, **fields: str) -> dict[str, str]:
    """Return the fields of a stream entry."""
    return {
        "delivery_id": str(new_id(time.time())),
        "source": "notification",
        "payload_mode": "rendered",
        "idempotency_key": submission.key,
        "requested_at_ms": str(int(time.time() * 1000)),
        "payload_json": json.dumps(submission.body["payload"]),
        **fields,
    }


def leave_one_in_stream(cell: Cell) -> None:
    """Leave a command in the stream: what Redis answers is the promise."""
    submission = rendered_mail("stream")
    fields = entry(submission)
    cell.redis.xadd(STREAM, fields)
    submission.answers.append(Answer(202, fields["delivery_id"]))
    cell.submissions.append(submission)


def leave_one_malformed(cell: Cell) -> None:
    """Leave a command that can't be taken, before one that can."""
    cell.redis.xadd(STREAM, entry(rendered_mail("malformed"), payload_mode="unheard of"))
    leave_one_in_stream(cell)


def leave_one_in_inbox(cell: Cell) -> None:
    """Leave a command of `mail.enqueue`: the commit is the promise."""
    submission = rendered_mail("sql")
    command = {**submission.body, "idempotency_key": submission.key}
    delivery_id = cell.database.value("SELECT mail.enqueue($1::text::jsonb)", json.dumps(command))
    submission.answers.append(Answer(202, str(delivery_id)))
    cell.submissions.append(submission)


def stream_is_taken(cell: Cell) -> bool:
    """Whether every entry was read and acknowledged."""
    groups: Any = cell.redis.xinfo_groups(STREAM)
    return bool(groups) and (groups[0]["lag"], groups[0]["pending"]) == (0, 0)


def inbox_is_taken(cell: Cell) -> bool:
    """Whether no row is left in the inbox."""
    return not cell.database.fetch("SELECT FROM mail.enqueued")


def records(count: int) -> Any:
    """Return a check for exactly `count` malformed commands."""

    def check(cell: Cell) -> list[str]:
        found = cell.database.value("SELECT count(*) FROM mail.malformed_commands")
        return [] if found == count else [f"{found} malformed commands, not {count}"]

    return check


WAYS: Final = (
    Way(
        name="from the table",
        what="A mail waits in the table, due; a replica starts and sends it. What every replica does beside has its rows here.",
        prepare=leave_one_waiting,
        submit=nothing,
        from_start=True,
        may_end=True,
    ),
    Way(
        name="by HTTP",
        what="A mail is handed in and claimed at birth; STARTTLS, a login, a body of several blocks.",
        prepare=nothing,
        submit=one_large,
        again={"finish": 1, "message": 1, "final dot": 1}
        | dict.fromkeys(("connection", "EHLO", "MAIL", "RCPT", "DATA"), 1),
        with_tls=True,
        guarantees=BOTH,
    ),
    Way(
        name="by HTTP, a login code",
        what="The same for a login code, whose content is erased with its end.",
        prepare=nothing,
        submit=one_code,
        again={"accept": 1, "finish": 1},
    ),
    Way(
        name="by HTTP, twice",
        what="A mail is handed in again under its key.",
        prepare=nothing,
        submit=one_twice,
        again={"accept": 1},
    ),
    Way(
        name="by stream",
        what="A command waits in the Redis Stream; a replica starts and takes it.",
        prepare=leave_one_in_stream,
        submit=nothing,
        is_over=stream_is_taken,
        check=records(0),
        again={"accept": 1},
        from_start=True,
        may_end=True,
        with_redis=True,
    ),
    Way(
        name="by stream, malformed",
        what="A command that can't be taken waits before one that can.",
        prepare=leave_one_malformed,
        submit=nothing,
        is_over=stream_is_taken,
        check=records(1),
        again={"XREADGROUP": 1, "XACK": 1},
        from_start=True,
        may_end=True,
        with_redis=True,
    ),
    Way(
        name="by SQL",
        what="A command of `mail.enqueue` waits in the inbox; a replica starts and takes it.",
        prepare=leave_one_in_inbox,
        submit=nothing,
        is_over=inbox_is_taken,
        check=records(0),
        again={"take_enqueued": 1, "accept": 1},
        from_start=True,
        may_end=True,
    ),
    Way(
        name="retry",
        what="The next hop defers the first attempt.",
        prepare=nothing,
        submit=deferred_once,
        again={"finish": 2},
    ),
    Way(
        name="dead letter",
        what="The next hop defers for ever, and the ladder ends.",
        prepare=nothing,
        submit=deferred_always,
        again={"finish": 2},
        ends=frozenset({DeliveryStatus.DEAD_LETTER}),
        environ={"MAIL_RETRY_LADDER_TRANSACTIONAL": "100ms"},
    ),
    Way(
        name="takeover",
        what="A replica died in its dialog; another starts and takes its claim over.",
        prepare=leave_one_claimed,
        submit=nothing,
        again={"mark_lost": 1, "take_over": 2, "claim_due": 2},
        from_start=True,
        may_end=True,
        guarantees=BOTH,
    ),
    Way(
        name="expiry",
        what="The time of a mail in the table is over; a replica starts and ends it.",
        prepare=leave_one_expired,
        submit=nothing,
        again={"expire_due": 2},
        ends=frozenset({DeliveryStatus.EXPIRED}),
        from_start=True,
        may_end=True,
    ),
    Way(
        name="orderly stop",
        what="SIGTERM while one mail is in its dialog and others are in the replica's hands.",
        prepare=nothing,
        submit=stopped_at_work,
        again={"finish": 1},
        environ={"MAIL_ATTEMPT_WORKER_CONCURRENCY": "1"},
        may_end=True,
    ),
    Way(
        name="retention beside live mail",
        what="A mail that ended 40 days ago shares its day with one that is still to be sent.",
        prepare=leave_one_old_and_one_live,
        submit=nothing,
        is_over=old_is_gone,
        again={"ensure_partitions": 2},
        environ={"MAIL_CLEANUP_INTERVAL": "1s"},
        from_start=True,
        may_end=True,
    ),
    Way(
        name="retention of a day",
        what="All mail of a day ended 40 days ago; the day before it is empty.",
        prepare=leave_one_old,
        submit=nothing,
        is_over=old_is_gone,
        again={"drop_day": 2},
        environ={"MAIL_CLEANUP_INTERVAL": "1s"},
        from_start=True,
        may_end=True,
    ),
    Way(
        name="first start",
        what="An empty database; the first replica makes the schema.",
        prepare=nothing,
        submit=nothing,
        from_start=True,
        may_end=True,
        is_empty=True,
    ),
)
