"""Why mail or commands wait. Pure.

First what holds everything up by itself (PostgreSQL, replicas, a next hop that is out); only what that leaves unexplained is
asked of what merely slows down: places (Little's law), pace, CPU. So a busy machine is never named beside an outage.
"""

from collections.abc import Iterator
from typing import Final

from mailkeep.doctor.causes import AUTH_CAUSES, TIME_CAUSES, Cause, Severity
from mailkeep.doctor.findings import Check, Finding, ago, finding, skipped, times
from mailkeep.doctor.hop_history import history_of, probe_cause, slowness, told_of_probe
from mailkeep.doctor.symptoms import Database, Machine, Probed, Stream, Symptoms, Unread
from mailkeep.store.diagnosis import COUNTED_ROWS, Lane, LockHolder, SnapshotHolder
from mailkeep.store.reads import StoredReplica

WAITING_S: Final = 15.0
"""A scheduler looks every two seconds: what has been due for so long is a backlog."""
CRITICAL_S: Final = 120.0
STRONG_LOCK_S: Final = 1.0
ROW_LOCK_S: Final = 30.0
OLD_SNAPSHOT_S: Final = 900.0
OLD_SNAPSHOT_TRANSACTIONS: Final = 200_000
"""Since a snapshot that holds vacuum back: what a busy service makes in a quarter of an hour, and all there is to judge a slot by."""
SLOW_LOOK_S: Final = 0.1
"""A look at the due index, the best of three; milliseconds where all is well."""
CATCH_UP_S: Final = 60.0
"""Places are enough if what is due can be sent within so long, beside what comes."""
BUSY_SHARE: Final = 0.8
"""From here on places count as taken: some are always between two mails."""
STEAL_PERCENT: Final = 20.0
STALL_PERCENT: Final = 60.0
LOAD_PER_CPU: Final = 3.0
STREAM_IDLE_S: Final = 10.0
"""A consumer asks every two seconds."""


def backlog(symptoms: Symptoms) -> list[Check]:
    """Run the checks of the backlog."""
    database = symptoms.database
    if isinstance(database, Unread):
        down = finding(Cause.DATABASE_UNREACHABLE, Severity.CRITICAL, database.why)
        return [
            Check("PostgreSQL", database.why, (down,)),
            configuration(symptoms, running=False),
            skipped("replicas, queue, next hops", "PostgreSQL can't be asked"),
            stream(symptoms.stream, explained=True),
        ]
    for_all = [*postgres(database, symptoms), replicas(database, symptoms)]
    hops = next_hops(database, symptoms)
    explained = any(check.severity is Severity.CRITICAL for check in for_all)
    out = {found.about for found in hops.findings if found.severity is Severity.CRITICAL}
    late = [] if explained else [lane for lane in _late(database, symptoms) if lane.next_hop not in out]
    return [
        *for_all,
        hops,
        configuration(symptoms, running=bool(_alive(database, symptoms.configured.ttl_s))),
        stream(symptoms.stream, explained=explained),
        *_slowed(database, symptoms, late, [] if explained else _inbox_late(database)),
    ]


# -- PostgreSQL ------------------------------------------------------------------------------------------------------


def postgres(database: Database, symptoms: Symptoms) -> Iterator[Check]:
    """Whether PostgreSQL takes writes, has the schema and its index, and nobody locks it or holds its vacuum back."""
    server = database.server
    if server.version is None or server.version < server.wanted:
        why = f"migration {server.version or 'none'} there, {server.wanted} in this build"
        yield Check("schema", why, (finding(Cause.SCHEMA_MISSING, Severity.CRITICAL, why),))
        return
    standby: tuple[Finding, ...] = ()
    if server.standby:
        standby = (finding(Cause.DATABASE_READ_ONLY, Severity.CRITICAL, "pg_is_in_recovery() is true"),)
    yield Check(
        "PostgreSQL",
        f"answers, {server.connections} of {server.max_connections} connections in use, migration {server.version}",
        standby,
    )
    missing: tuple[Finding, ...] = ()
    if not server.has_due_index:
        missing = (finding(Cause.DUE_INDEX_MISSING, Severity.CRITICAL, "no valid index mail.deliveries_due"),)
    yield Check("due index", "missing" if missing else "there and valid", missing)
    yield locks(database)
    yield snapshots(database, symptoms)


def locks(database: Database) -> Check:
    """Whether a transaction holds the queue's tables."""
    if isinstance(database.locks, Unread):
        return skipped("locks", database.locks.why, failed=database.locks.missing)
    holders = [holder for holder in database.locks if _obstructs(holder)]
    found = tuple(
        finding(
            Cause.DATABASE_LOCKED,
            Severity.CRITICAL,
            f"backend {holder.pid} ({holder.application_name or 'no name'}, {holder.state or 'state unknown'}) has held"
            f" {', '.join(holder.tables[:5])} for {holder.held_s:.0f} s; {times(holder.waiting, 'statement')} waiting",
            about=str(holder.pid),
        )
        for holder in holders[:1]  # the oldest: others may be waiting behind it
    )
    return Check("locks", f"{times(len(holders), 'transaction')} in the way", found)


def _obstructs(holder: LockHolder) -> bool:
    if holder.strong:
        return holder.held_s >= STRONG_LOCK_S or holder.waiting > 0
    return holder.held_s >= ROW_LOCK_S


def snapshots(database: Database, symptoms: Symptoms) -> Check:
    """Whether an old snapshot keeps dead rows; critical once claims are slow by them and mail waits."""
    if isinstance(database.snapshots, Unread):
        return skipped(
            "snapshots",
            database.snapshots.why,
            failed=database.snapshots.missing and not _is_locked(database),
        )
    blamed = {found.about for found in locks(database).findings}  # to end that one ends its snapshot too
    holders = [holder for holder in database.snapshots if _is_old(holder) and holder.name not in blamed]
    severity = Severity.CRITICAL if _is_slow(database) and _late(database, symptoms) else Severity.WARNING
    found = tuple(
        finding(
            Cause.VACUUM_HELD_BACK, severity, _snapshot_told(holder), about=f"{holder.kind} {holder.name}"
        )
        for holder in holders[:1]  # the oldest: while it is there the others add nothing
    )
    return Check("snapshots", f"{times(len(holders), 'old one')} open", found)


def _is_old(holder: SnapshotHolder) -> bool:
    return (holder.held_s or 0.0) >= OLD_SNAPSHOT_S or holder.transactions >= OLD_SNAPSHOT_TRANSACTIONS


def _snapshot_told(holder: SnapshotHolder) -> str:
    who = ", ".join(filter(None, (holder.application_name, holder.state)))
    age = "" if holder.held_s is None else f"{holder.held_s:.0f} s, "
    return f"{holder.kind} {holder.name} ({who or 'no name'}) has kept what died for {age}{holder.transactions:,} transactions"


def _is_slow(database: Database) -> bool:
    return not isinstance(database.due_look, Unread) and database.due_look.best_s >= SLOW_LOOK_S


def _is_locked(database: Database) -> bool:
    return any(found.severity is Severity.CRITICAL for found in locks(database).findings)


# -- replicas --------------------------------------------------------------------------------------------------------


def replicas(database: Database, symptoms: Symptoms) -> Check:
    """Whether a replica beats."""
    known = database.replicas
    if isinstance(known, Unread):
        return skipped("replicas", known.why, failed=known.missing and not _is_locked(database))
    alive = _alive(database, symptoms.configured.ttl_s)
    silent = [replica for replica in _not_ended(known) if replica not in alive]
    if alive:
        seen = (
            f"{times(len(alive), 'replica')} alive, heard of {min(one.silent_s for one in alive):.1f} s ago"
        )
        return Check("replicas", seen + (f"; {len(silent)} silent" if silent else ""))
    waits = tuple(_told(lane) for lane in _late(database, symptoms))
    frozen = [(replica, state) for replica in silent if (state := _local_state(replica, symptoms))]
    if frozen:
        replica, state = frozen[0]
        words = f"process {replica.pid} on {replica.host} is {state} and has been silent for {replica.silent_s:.0f} s"
        found = finding(Cause.REPLICA_FROZEN, Severity.CRITICAL, words, *waits, about=str(replica.pid))
    else:
        last = (
            f"the last, process {known[0].pid} on {known[0].host}, was heard of {ago(known[0].silent_s)}"
            if known
            else ""
        )
        found = finding(Cause.NO_REPLICA, Severity.CRITICAL, "no replica is alive", last, *waits)
    return Check("replicas", "none is alive", (found,))


def _not_ended(known: tuple[StoredReplica, ...]) -> list[StoredReplica]:
    return [replica for replica in known if not replica.stopped_at and not replica.lost_at]


def _alive(database: Database, ttl_s: float) -> list[StoredReplica]:
    if isinstance(database.replicas, Unread):
        return []
    return [replica for replica in _not_ended(database.replicas) if replica.silent_s <= ttl_s]


def _local_state(replica: StoredReplica, symptoms: Symptoms) -> str | None:
    machine = symptoms.machine
    if isinstance(machine, Unread) or replica.host != machine.host:
        return None
    return next((process.state for process in machine.processes if process.pid == replica.pid), None)


def configuration(symptoms: Symptoms, *, running: bool) -> Check:
    """Whether a service would start with these settings; logins are the incident `auth`."""
    problems = [
        problem
        for problem in symptoms.configured.problems
        if not is_about_login(problem.name, problem.message)
    ]
    severity = Severity.WARNING if running else Severity.CRITICAL
    found = (
        (finding(Cause.CONFIGURATION_REFUSED, severity, *(str(problem) for problem in problems[:5])),)
        if problems
        else ()
    )
    return Check("settings of this environment", f"{times(len(problems), 'problem')}", found)


def is_about_login(name: str, message: str) -> bool:
    """Whether a problem of the settings is that a login is not whole."""
    return name in ("MAIL_SMTP_USERNAME", "MAIL_SMTP_PASSWORD") or (
        name == "MAIL_ROUTES_FILE" and ("password_file" in message or "is not in the environment" in message)
    )


# -- the queue and its next hops -------------------------------------------------------------------------------------


def next_hops(database: Database, symptoms: Symptoms) -> Check:
    """Whether a next hop is out for every replica, refuses a probe, or is not configured."""
    lanes = database.lanes
    if isinstance(lanes, Unread):
        return skipped("next hops", lanes.why, failed=lanes.missing and not _is_locked(database))
    found = [*_out(database, symptoms), *_orphans(database, symptoms)]
    named = {(one.cause, one.about) for one in found}
    found += [one for one in _refused_probes(symptoms, lanes) if (one.cause, one.about) not in named]
    waiting = sum(lane.waiting for lane in lanes)
    seen = f"{times(waiting, 'delivery')} waiting, {sum(lane.due for lane in lanes):,} due"
    return Check("next hops", f"{seen}; {_probes_told(symptoms)}", tuple(found))


def _out(database: Database, symptoms: Symptoms) -> Iterator[Finding]:
    """Next hops whose breaker is open at every replica that lives, by the outage that opened it."""
    alive = _alive(database, symptoms.configured.ttl_s)
    for name in sorted({hop for replica in alive for hop in replica.hops_out}):
        out = [replica.hops_out[name] for replica in alive if name in replica.hops_out]
        if len(out) < len(alive):
            continue
        history = history_of(name, database, symptoms)
        outage = history.out_because()
        cause = outage[0] if outage else Cause.NEXT_HOP_UNREACHABLE
        first = min(out, key=lambda one: one.since)
        parked = sum(lane.waiting for lane in _lanes(database) if lane.next_hop == name)
        yield finding(
            cause,
            Severity.CRITICAL,
            f"{name} is out for all of {times(len(alive), 'replica')} since {first.since:%H:%M:%S} UTC: {first.cause}",
            f"{parked:,} of its deliveries are parked",
            about=name,
        )


def _orphans(database: Database, symptoms: Symptoms) -> Iterator[Finding]:
    """Next hops with mail that is due, that nobody tries, and that this environment does not know."""
    configured = symptoms.configured
    if not configured.hops or not _alive(database, configured.ttl_s):
        return
    for name in sorted({lane.next_hop for lane in _late(database, symptoms)} - configured.hops.keys()):
        lanes = [lane for lane in _lanes(database) if lane.next_hop == name]
        if history_of(name, database, symptoms).attempts or any(lane.sending for lane in lanes):
            continue
        yield finding(
            Cause.NEXT_HOP_NOT_CONFIGURED, Severity.CRITICAL, *(_told(lane) for lane in lanes), about=name
        )


def _refused_probes(symptoms: Symptoms, lanes: tuple[Lane, ...]) -> Iterator[Finding]:
    """Next hops that can't be used at this moment, whatever the attempts say; logins and silence are other incidents."""
    if isinstance(symptoms.probes, Unread):
        return
    by_hop: dict[str, list[Probed]] = {}
    for probed in symptoms.probes:
        by_hop.setdefault(probed.probe.hop, []).append(probed)
    for name, probes in by_hop.items():
        causes = [probe_cause(probed) for probed in probes]
        cause = causes[0]
        if cause is None or None in causes:  # one address is enough for mail
            continue
        if cause in AUTH_CAUSES or cause in TIME_CAUSES:
            continue
        waits = any(lane.next_hop == name and lane.waiting for lane in lanes)
        severity = Severity.CRITICAL if waits else Severity.WARNING
        yield finding(cause, severity, *(told_of_probe(probed) for probed in probes), about=name)


def _probes_told(symptoms: Symptoms) -> str:
    if isinstance(symptoms.probes, Unread):
        return symptoms.probes.why
    return "; ".join(told_of_probe(probed) for probed in symptoms.probes)


# -- what merely slows down ------------------------------------------------------------------------------------------


def _slowed(
    database: Database, symptoms: Symptoms, late: list[Lane], inbox_late: list[str]
) -> Iterator[Check]:
    """Ask what merely slows down, about `late` lanes and commands: those that nothing explains so far."""
    if not (late or inbox_late):
        why = (
            "the backlog is explained already"
            if _late(database, symptoms)
            else "nothing has been due for long"
        )
        yield Check("PostgreSQL's pace", _look_told(database))
        yield skipped("places by Little's law, CPU", why)
        return
    severity = (
        Severity.CRITICAL
        if any(max(lane.oldest_s, lane.claimed_s) >= CRITICAL_S for lane in late)
        else Severity.WARNING
    )
    evidence = [_told(lane) for lane in late] + inbox_late
    checks = [
        _pace_of_postgres(database, severity, evidence),
        *(_places(name, database, symptoms, severity) for name in sorted({lane.next_hop for lane in late})),
    ]
    if not any(check.findings for check in checks):
        checks.append(_cpu(symptoms, database, severity, evidence))
    yield from checks
    if not any(check.findings for check in checks):
        yield Check("explanation", "none found", (finding(Cause.BACKLOG_UNEXPLAINED, severity, *evidence),))


def _look_told(database: Database) -> str:
    look = database.due_look
    return (
        look.why if isinstance(look, Unread) else f"a look at the due index took {look.best_s * 1000:.0f} ms"
    )


def _pace_of_postgres(database: Database, severity: Severity, evidence: list[str]) -> Check:
    look = database.due_look
    if isinstance(look, Unread):
        return skipped("PostgreSQL's pace", look.why, failed=look.missing)
    found: tuple[Finding, ...] = ()
    if _is_slow(database):
        words = f"a look at the due index takes {look.best_s * 1000:.0f} ms at best"
        found = (finding(Cause.DATABASE_SLOW, severity, words, *evidence),)
    return Check("PostgreSQL's pace", _look_told(database), found)


def _places(name: str, database: Database, symptoms: Symptoms, severity: Severity) -> Check:
    """Little's law: the places that a next hop needs are the rate at which mail comes times the seconds a send takes."""
    title = f"places by Little's law, {name}"
    configured, hop = symptoms.configured, symptoms.configured.hops.get(name)
    alive = _alive(database, configured.ttl_s)
    history = history_of(name, database, symptoms)
    mean_s = history.mean_s
    lanes = [lane for lane in _lanes(database) if lane.next_hop == name]
    sending, places = sum(lane.sending for lane in lanes), _place_count(name, database, symptoms)
    due = sum(lane.due for lane in lanes) + _claimed_ahead(name, database, symptoms)
    if mean_s is None:
        return _nothing_ended(title, name, lanes, places, severity)
    rate = _accepted_per_s(database, name)
    if rate is None:
        return skipped(title, "how much mail comes is not known", failed=True)
    load = rate + due / CATCH_UP_S
    needed = load * mean_s
    seen = (
        f"{rate:.2f} mails/s come and {due:,} are due; a send takes {mean_s:.2f} s: {needed:.1f} places would do it"
        f" within a minute, {places} are there, {min(sending, places)} taken"
    )
    if hop is not None and hop.messages_per_s is not None and load > hop.messages_per_s * len(alive):
        words = (
            f"{name} has messages_per_s = {hop.messages_per_s:g} in each of {times(len(alive), 'replica')}"
        )
        return Check(title, seen, (finding(Cause.PACE_TOO_LOW, severity, words, seen, about=name),))
    if needed > places and sending >= BUSY_SHARE * places:
        # Places are short because the next hop holds them: that is its fault, not theirs.
        cause = next((cause for cause, _ in slowness(history)), Cause.CONCURRENCY_TOO_SMALL)
        return Check(title, seen, (finding(cause, severity, seen, about=name),))
    return Check(title, seen)


def _nothing_ended(title: str, name: str, lanes: list[Lane], places: int, severity: Severity) -> Check:
    sending = sum(lane.sending for lane in lanes)
    claimed_s = max((lane.claimed_s for lane in lanes), default=0.0)
    seen = f"no attempt ended in the window; {sending} of {places} places taken, the longest for {claimed_s:.0f} s"
    if sending >= BUSY_SHARE * places and claimed_s >= WAITING_S:
        return Check(title, seen, (finding(Cause.HOP_STALLS, severity, f"{name}: {seen}", about=name),))
    return Check(title, seen)


def _accepted_per_s(database: Database, name: str) -> float | None:
    if isinstance(database.ended, Unread):
        return None
    return sum(group.last_minute for group in database.ended if group.next_hop == name) / 60


def _cpu(symptoms: Symptoms, database: Database, severity: Severity, evidence: list[str]) -> Check:
    machine = symptoms.machine
    if isinstance(machine, Unread):
        return skipped("CPU", machine.why, failed=machine.missing)
    if not any(replica.host == machine.host for replica in _alive(database, symptoms.configured.ttl_s)):
        return skipped("CPU", f"no replica that lives runs on this machine, {machine.host}")
    seen = _cpu_told(machine)
    starved = (
        machine.steal_percent >= STEAL_PERCENT
        or (machine.stall_percent or 0.0) >= STALL_PERCENT
        or machine.load_1m >= LOAD_PER_CPU * machine.cpus
    )
    return Check("CPU", seen, (finding(Cause.CPU_STARVED, severity, seen, *evidence),) if starved else ())


def _cpu_told(machine: Machine) -> str:
    stalled = (
        ""
        if machine.stall_percent is None
        else f", work waited for a CPU {machine.stall_percent:.0f} % of the time"
    )
    return f"load {machine.load_1m:.1f} on {machine.cpus} CPUs, {machine.steal_percent:.0f} % stolen by the host{stalled}"


def _lanes(database: Database) -> tuple[Lane, ...]:
    return () if isinstance(database.lanes, Unread) else database.lanes


def _late(database: Database, symptoms: Symptoms) -> list[Lane]:
    """Return the lanes with a backlog: in the table, or claimed by replicas for later than places are free."""
    return [
        lane
        for lane in _lanes(database)
        if (lane.due and lane.oldest_s >= WAITING_S)
        or (lane.claimed_s >= WAITING_S and _claimed_ahead(lane.next_hop, database, symptoms))
    ]


def _claimed_ahead(name: str, database: Database, symptoms: Symptoms) -> int:
    """Return how many deliveries replicas hold for a next hop beyond what they can send at once."""
    sending = sum(lane.sending for lane in _lanes(database) if lane.next_hop == name)
    return max(sending - _place_count(name, database, symptoms), 0)


def _place_count(name: str, database: Database, symptoms: Symptoms) -> int:
    configured, hop = symptoms.configured, symptoms.configured.hops.get(name)
    per_replica = min(configured.concurrency, hop.max_connections) if hop else configured.concurrency
    return len(_alive(database, configured.ttl_s)) * per_replica


def _inbox_late(database: Database) -> list[str]:
    inbox = database.inbox
    if isinstance(inbox, Unread) or not inbox.waiting or inbox.oldest_s < WAITING_S:
        return []
    return [
        f"{times(inbox.waiting, 'command')} of mail.enqueue not taken, the first from {ago(inbox.oldest_s)}"
    ]


def _told(lane: Lane) -> str:
    at_least = "at least " if lane.waiting >= COUNTED_ROWS else ""
    claimed = f"; {lane.sending:,} claimed, the first for {lane.claimed_s:.0f} s" if lane.sending else ""
    due = f"{at_least}{lane.due:,} due, the first for {lane.oldest_s:.0f} s"
    return f"{lane.next_hop}, {lane.delivery_class}: {due}{claimed}"


# -- Redis -----------------------------------------------------------------------------------------------------------


def stream(found: Stream | Unread, *, explained: bool) -> Check:
    """Whether commands of the stream are taken."""
    if isinstance(found, Unread):
        if not found.missing:
            return skipped("stream", found.why)
        return Check("stream", found.why, (finding(Cause.REDIS_UNREACHABLE, Severity.CRITICAL, found.why),))
    unread = "unknown" if found.unread is None else f"{found.unread:,}"
    asked = "nobody ever asked" if found.idle_s is None else f"a consumer asked {ago(found.idle_s)}"
    seen = f"Redis answers in {found.ping_ms:.0f} ms; entries unread: {unread}, unacknowledged: {found.pending:,}; {asked}"
    idle = found.idle_s is None or found.idle_s >= STREAM_IDLE_S
    if explained or not idle or not (found.unread or found.pending):
        return Check("stream", seen)
    return Check("stream", seen, (finding(Cause.STREAM_NOT_READ, Severity.CRITICAL, seen),))
