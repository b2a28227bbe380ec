"""The doctor's judgement: pure, so that what can't be provoked at will (a starved machine, a slow disk) is shown as values."""

import typing
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from typer.testing import CliRunner

from mailkeep.cli import app
from mailkeep.cli.doctor import COLOURS, Name
from mailkeep.core.command import FailureCode
from mailkeep.core.delivery import AttemptStatus
from mailkeep.core.outcome import Phase, Step
from mailkeep.core.outcome import Severity as ReplySeverity
from mailkeep.core.queue import HopOut
from mailkeep.doctor.causes import BY_RULE, CAUSES, SYMPTOMS, Cause, Incident, Severity, of_attempt
from mailkeep.doctor.examine import EXAMINATIONS, EXIT_CODES, Report, examine
from mailkeep.doctor.findings import Check, Finding, diagnosis
from mailkeep.doctor.hop_history import HopHistory
from mailkeep.doctor.look import configured
from mailkeep.doctor.malformed import BY_CODE
from mailkeep.doctor.report import changes, readable
from mailkeep.doctor.symptoms import (
    Configured,
    Database,
    DueLook,
    LocalProcess,
    Machine,
    Probed,
    Stream,
    Symptoms,
    Unread,
)
from mailkeep.smtp.classify import RULES
from mailkeep.smtp.next_hop import HopAddress, NextHop, TlsMode
from mailkeep.smtp.probe import Probe
from mailkeep.store.diagnosis import (
    AttemptGroup,
    Dialog,
    EndedGroup,
    Inbox,
    Lane,
    LockHolder,
    Server,
    SnapshotHolder,
)
from mailkeep.store.reads import StoredReplica

ID = UUID(int=7)
NOW = datetime(2026, 11, 22, tzinfo=UTC)
HOP = NextHop("default", (HopAddress("127.0.0.1", 25),), tls=TlsMode.NONE)
OLD = SnapshotHolder("backend", "9", "report", "idle in transaction", 1000.0, 12)
LATE = Lane("default", "transactional", 100, 100, 60.0, 0, 0.0)
OTHER_RULES = {"no_token", "shutdown", "replica_lost", "internal_fault", "no_content", "suppression_list"}


def replica(**changes):
    """Return a replica that beats."""
    values = {"id": ID, "host": "here", "pid": 4, "version": "1", "started_at": NOW, "last_seen_at": NOW}
    values |= {
        "in_flight": 0,
        "stopped_at": None,
        "lost_at": None,
        "silent_s": 0.5,
        "totals": {},
        "hops_out": {},
    }
    return StoredReplica(**(values | changes))


def attempts(**changes):
    """Return attempts that delivered."""
    values = {"next_hop": "default", "status": "provider_accepted", "phase": "dot", "severity": "success"}
    values |= {"scope": "message", "rule": "delivered", "count": 10, "last_s": 5.0, "mean_s": 0.1}
    return AttemptGroup(**(values | {"reply": "250 ok", "example": ID} | changes))


def timed_out(**changes):
    """Return attempts that timed out at RCPT."""
    values = {"status": "timed_out", "phase": "rcpt", "severity": "transient", "rule": "lost_before_dot"}
    return attempts(**(values | {"count": 3, "last_s": 1.0, "reply": "no reply in time"} | changes))


def well(**changes):
    """Return the symptoms of a system that is well, with `changes` to its sections."""
    database = Database(
        server=Server(False, 5, 100, has_schema=True, has_due_index=True, version=6, wanted=6),
        locks=(),
        snapshots=(),
        due_look=DueLook(0.001, 0.002),
        replicas=(replica(),),
        lanes=(),
        inbox=Inbox(0, 0.0),
        ended=(
            EndedGroup("sent", "default", "api", "transactional", "delivered", None, True, 10, ID, None, 10),
        ),
        attempts=(attempts(),),
        dialogs=(),
        dead_letters=(),
        malformed=(),
    )
    sections = {name: changes.pop(name) for name in list(changes) if name in Database.__struct_fields__}
    symptoms = Symptoms(
        since_s=3600.0,
        configured=Configured(False, 50, 10.0, has_redis=False, hops={"default": HOP}),
        database=msgspec.structs.replace(database, **sections),
        probes=(Probed(Probe(hop="default", address="127.0.0.1:25", capabilities=("SIZE",)), 3.0),),
        stream=Unread("no Redis is configured", missing=False),
        machine=Machine("here", 2, 0.5, 0.0, 1.0, (LocalProcess(4, "sleeping"),)),
    )
    return msgspec.structs.replace(symptoms, **changes)


def named(symptoms):
    """Return every cause that is named."""
    return {cause for diagnosis in examine(symptoms).diagnoses for cause in diagnosis.causes}


# -- the tables --------------------------------------------------------------------------------------------------------


def test_every_rule_speaks_of_a_cause_or_of_none():
    """No rule of an attempt is left out, and none is there that is not a rule."""
    assert BY_RULE.keys() == {rule.name for rule in RULES.rows} | OTHER_RULES
    silent = {name for name, cause in BY_RULE.items() if cause is None}
    successes = {rule.name for rule in RULES.rows if rule.severity is ReplySeverity.SUCCESS}
    assert silent == successes | {"claim_lost", "shutdown", "replica_lost"}


def test_each_table_is_whole():
    """Each cause, incident, failure code and severity has its row; the command knows the same incidents."""
    assert set(CAUSES) == set(Cause)
    assert set(SYMPTOMS) == set(EXAMINATIONS) == set(Incident) == set(typing.get_args(Name))
    assert set(BY_CODE) == set(FailureCode)
    assert set(COLOURS) == set(EXIT_CODES) == set(Severity)
    assert all(about.incidents for about in CAUSES.values())


@pytest.mark.parametrize("cause", Cause)
def test_each_next_step_has_a_command(cause):
    """What to do next ends in a command of Mailkeep, or of its database where that is at fault."""
    assert "mailkeep " in CAUSES[cause].step or "0001_queue.sql" in CAUSES[cause].step


# -- backlog -----------------------------------------------------------------------------------------------------------


def test_nothing_is_wrong():
    """A system that is well has no cause, and every incident has a check that was run."""
    report = examine(well())
    assert (report.severity, named(well())) == (Severity.OK, set())
    assert all(any(check.seen for check in diagnosis.checks) for diagnosis in report.diagnoses)


STARVED = Machine("here", 2, 9.0, 0.0, 1.0, ())
BACKLOGS = {
    "starved": (Cause.CPU_STARVED, {"lanes": (LATE,), "machine": STARVED}),
    "stolen": (
        Cause.CPU_STARVED,
        {"lanes": (LATE,), "machine": Machine("here", 2, 0.1, 40.0, None, ())},
    ),
    "slow": (Cause.DATABASE_SLOW, {"lanes": (LATE,), "due_look": DueLook(0.5, 0.9)}),
    "unexplained": (Cause.BACKLOG_UNEXPLAINED, {"lanes": (LATE,)}),
    "inbox": (Cause.BACKLOG_UNEXPLAINED, {"inbox": Inbox(3, 60.0)}),
    "elsewhere": (
        Cause.BACKLOG_UNEXPLAINED,
        {"lanes": (LATE,), "machine": msgspec.structs.replace(STARVED, host="there")},
    ),
    "frozen": (
        Cause.REPLICA_FROZEN,
        {"replicas": (replica(silent_s=60.0),), "lanes": (LATE,), "machine": STARVED}
        | {"machine": Machine("here", 2, 9.0, 0.0, 1.0, (LocalProcess(4, "stopped"),))},
    ),
    "gone": (Cause.NO_REPLICA, {"replicas": (replica(silent_s=60.0),), "machine": STARVED}),
    "lost": (Cause.NO_REPLICA, {"replicas": (replica(lost_at=NOW),)}),
    "standby": (
        Cause.DATABASE_READ_ONLY,
        {"server": Server(True, 5, 100, has_schema=True, has_due_index=True, version=6, wanted=6)},
    ),
    "locked": (
        Cause.DATABASE_LOCKED,
        {"locks": (LockHolder(9, "psql", "active", 2.0, True, ("deliveries",), 4),), "lanes": Unread("lock")},
    ),
    "rows locked": (
        Cause.DATABASE_LOCKED,
        {"locks": (LockHolder(9, "psql", "idle in transaction", 90.0, False, ("deliveries",), 0),)},
    ),
    "old snapshot": (Cause.VACUUM_HELD_BACK, {"snapshots": (OLD,)}),
    "old snapshot, mail waits": (
        Cause.VACUUM_HELD_BACK,
        {"snapshots": (OLD,), "due_look": DueLook(0.5, 0.9), "lanes": (LATE,), "machine": STARVED},
    ),
    "forgotten slot": (
        Cause.VACUUM_HELD_BACK,
        {"snapshots": (SnapshotHolder("replication slot", "gone", "", "nobody reads it", None, 300_000),)},
    ),
    "old snapshot with locks": (
        Cause.DATABASE_LOCKED,
        {
            "locks": (LockHolder(9, "report", "idle in transaction", 1000.0, False, ("deliveries",), 0),),
            "snapshots": (OLD,),
        },
    ),
    "out": (
        Cause.NEXT_HOP_REFUSES,
        {
            "replicas": (replica(hops_out={"default": HopOut("421 closing", NOW)}),),
            "attempts": (
                attempts(last_s=60.0),
                attempts(
                    status="provider_rejected",
                    phase="greeting",
                    severity="transient",
                    scope="next_hop",
                    rule="next_hop_closing",
                    last_s=1.0,
                ),
            ),
            "lanes": (LATE,),
            "machine": STARVED,
        },
    ),
    "places": (
        Cause.CONCURRENCY_TOO_SMALL,
        {
            "lanes": (Lane("default", "transactional", 900, 900, 60.0, 16, 9.0),),
            "attempts": (attempts(mean_s=4.0),),
            "machine": STARVED,
        },
    ),
    "claimed and not begun": (
        Cause.CONCURRENCY_TOO_SMALL,
        {
            "lanes": (Lane("default", "transactional", 0, 0, 0.0, 400, 60.0),),
            "attempts": (attempts(mean_s=40.0),),
        },
    ),
    "places held by silence": (
        Cause.HOP_STALLS,
        {
            "lanes": (Lane("default", "transactional", 900, 900, 60.0, 16, 9.0),),
            "attempts": (attempts(last_s=99.0), timed_out(mean_s=60.0)),
        },
    ),
    "nothing ended": (
        Cause.HOP_STALLS,
        {"lanes": (Lane("default", "auth", 900, 900, 60.0, 16, 30.0),), "attempts": ()},
    ),
    "stream": (Cause.STREAM_NOT_READ, {"stream": Stream(1.0, 5, 0, 1, 60.0)}),
}


def test_an_outage_explains_the_mail_of_its_own_next_hop_only():
    """Beside a next hop that is out, one that is slow is still asked about its places."""
    refused = attempts(
        next_hop="other", status="provider_rejected", phase="greeting", severity="transient", scope="next_hop"
    )
    symptoms = well(
        replicas=(replica(hops_out={"other": HopOut("421 closing", NOW)}),),
        attempts=(attempts(mean_s=4.0), msgspec.structs.replace(refused, rule="next_hop_closing")),
        lanes=(
            Lane("default", "transactional", 900, 900, 60.0, 50, 9.0),
            Lane("other", "transactional", 900, 900, 60.0, 0, 0.0),
        ),
    )
    assert named(symptoms) == {Cause.NEXT_HOP_REFUSES, Cause.CONCURRENCY_TOO_SMALL}


@pytest.mark.parametrize("case", BACKLOGS)
def test_a_backlog_has_one_cause(case):
    """Each cause is named alone; a busy machine is never named beside what explains the backlog already."""
    cause, changes = BACKLOGS[case]
    assert named(well(**changes)) == {cause}


HARMLESS = {
    "young": {"lanes": (Lane("default", "auth", 500, 500, 2.0, 400, 1.0),), "machine": STARVED},
    "on its ladder": {"lanes": (Lane("default", "relay", 500, 0, 0.0, 0, 0.0),)},
    "busy": {"machine": STARVED, "due_look": DueLook(0.5, 0.9)},
    "own locks": {"locks": (LockHolder(9, "mailkeep", "active", 0.2, False, ("deliveries",), 0),)},
    "young snapshot": {"snapshots": (SnapshotHolder("backend", "9", "report", "active", 60.0, 50_000),)},
    "one of two silent": {"replicas": (replica(), replica(silent_s=8.0))},
    "out for one of two": {
        "replicas": (replica(), replica(hops_out={"default": HopOut("421 closing", NOW)})),
    },
    "stream in use": {"stream": Stream(1.0, 5000, 256, 2, 0.1)},
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_no_incident_is_not_named(case):
    """Mail that is due for a moment, waits for its ladder, or a machine that is merely busy: nothing is wrong."""
    assert named(well(**HARMLESS[case])) == set()


def test_what_could_not_be_read_is_told_and_is_a_warning():
    """A section that is missing is no finding and no silence: the check says why it was not run."""
    report = examine(well(attempts=Unread("no time was left")), [Incident.AUTH])
    (diagnosis,) = report.diagnoses
    assert (report.severity, diagnosis.causes) == (Severity.WARNING, ())
    assert [check.not_run for check in diagnosis.checks if check.failed] == ["no time was left"]
    lines = list(readable(report, str, lambda word, _: word))
    assert any(line.startswith("  NOT CHECKED attempts") for line in lines)


# -- time --------------------------------------------------------------------------------------------------------------


def dialog(phase, took_ms):
    """Return a dialog in which one phase took so long."""
    steps = (Step(Phase.CONNECT, "", "connected", 1.0), Step(phase, "x", "250 ok", 1.0 + took_ms))
    return Dialog("default", "provider_accepted", "dot", steps)


@pytest.mark.parametrize(
    ("took_ms", "reply", "cause"),
    [
        (20.0, "no reply in time", Cause.HOP_STALLS),
        (45_000.0, "no reply in time", Cause.TIMEOUT_TOO_SHORT),
        (20.0, "no reply in time: the whole session has lasted too long", Cause.TARPIT),
    ],
)
def test_timeouts_are_told_apart_by_the_answers_that_came(took_ms, reply, cause):
    """Of 60 s: where answers take milliseconds the server is dead, where they take 45 s the limit is short."""
    history = HopHistory("default", HOP, [timed_out(reply=reply)], [dialog(Phase.RCPT, took_ms)])
    assert [found for found, _ in history.failing()] == [cause]


@pytest.mark.parametrize(
    ("failed", "delivered_s", "lasts"),
    [
        (timed_out(count=1, last_s=1.0), 5.0, True),
        (timed_out(count=1, last_s=9.0), 5.0, False),
        (timed_out(count=3, last_s=9.0), 5.0, True),
        (timed_out(count=3, last_s=9.0, scope="next_hop"), 5.0, False),
    ],
)
def test_an_incident_is_over_when_mail_goes_through_again(failed, delivered_s, lasts):
    """One failure before the last success is over, one that keeps coming back is not; an outage is over with a success."""
    history = HopHistory("default", HOP, [attempts(last_s=delivered_s), failed], [])
    assert bool(list(history.failing())) is lasts


def test_a_timeout_speaks_of_time_whatever_its_rule():
    """The phase decides between a network that drops and a server that stalls."""
    assert of_attempt(AttemptStatus.TIMED_OUT, Phase.CONNECT, "no_connection") is Cause.CONNECT_TIMED_OUT
    assert of_attempt(AttemptStatus.TIMED_OUT, Phase.EHLO, "lost_before_mail") is Cause.HOP_STALLS
    assert (
        of_attempt(AttemptStatus.TRANSPORT_FAILED, Phase.CONNECT, "no_connection")
        is Cause.NEXT_HOP_UNREACHABLE
    )


# -- settings and words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, []),
        ({"MAIL_SMTP_USERNAME": "ann"}, ["MAIL_SMTP_USERNAME"]),
        ({"MAIL_SMTP_TIMEOUT": "soon", "MAIL_NO_SUCH": "x"}, ["MAIL_SMTP_TIMEOUT", "MAIL_NO_SUCH"]),
        ({"MAIL_SMTP_MODE": "smtp"}, ["MAIL_SMTP_ADDR", "MAIL_SMTP_FROM_EMAIL"]),
    ],
)
def test_settings_that_are_refused_do_not_hide_the_rest(environ, names):
    """What a start would refuse is told, and the doctor still knows where PostgreSQL is."""
    settings, problems = configured({"MAIL_POSTGRES_DSN": "postgresql://db/mail"} | environ)
    assert [problem.name for problem in problems] == names
    assert settings.postgres_dsn is not None


@pytest.mark.parametrize("arguments", [["--since", "soon"], ["backlogs"], ["--watch", "--every", "0"]])
def test_wrong_usage_is_exit_code_2(arguments):
    """What can't be asked is refused before anything is looked at."""
    assert CliRunner().invoke(app, ["doctor", *arguments]).exit_code == 2


def test_a_watch_tells_what_came_and_went():
    """Two reports differ by their findings; a third that is equal says nothing."""
    before, after = examine(well()), examine(well(replicas=()))
    (came,) = changes(before, after)
    assert came == "+ backlog no_replica critical; next: mailkeep serve"
    assert list(changes(after, before)) == ["- backlog no_replica is over"]
    assert list(changes(after, after)) == []


def test_a_cause_is_explained_once():
    """Where PostgreSQL is away six incidents have one cause; the report says it once."""
    report = examine(well(database=Unread("db: refused")))
    lines = list(readable(report, str, lambda word, _: word))
    assert sum("db: refused" in line for line in lines if line.startswith("  evidence")) == 1
    assert sum("the same as above" in line for line in lines) == len(Incident) - 1


def test_two_checks_of_one_incident_that_see_the_same_are_one_cause_with_all_evidence():
    """A probe that was refused and attempts that were: named once, as bad as the worse, and neither's evidence is lost."""
    login = Cause.LOGIN_REFUSED
    seen = [
        Check(name, name, (Finding(login, severity, "default", (name,), "mend it"),))
        for name, severity in (("the probe", Severity.WARNING), ("three attempts", Severity.CRITICAL))
    ]
    report = Report(Severity.CRITICAL, 3600.0, (diagnosis(Incident.AUTH, seen),))
    lines = list(readable(report, str, lambda word, severity: f"{word} {severity}"))
    assert [line for line in lines if line.startswith("  cause")] == [f"  cause       {login} critical"]
    assert [line.split()[1:] for line in lines if "evidence" in line] == [
        ["three", "attempts"],
        ["the", "probe"],
    ]
    assert sum("mend it" in line for line in lines) == 1


def test_a_terminal_gets_no_longer_lines_than_it_has_room_for():
    """On 80 columns lines are folded below their own words and lose none; for programs they stay whole."""
    report = examine(well(replicas=()))
    plain = [line.split() for line in readable(report, str, lambda word, _: word)]
    folded = list(readable(report, str, lambda word, _: word, 80))
    assert max(map(len, folded)) <= 80 < max(map(len, readable(report, str, lambda word, _: word)))
    assert [word for line in folded for word in line.split()] == [word for words in plain for word in words]
