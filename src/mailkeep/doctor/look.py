"""Looks at the live system once and returns its `Symptoms`. Reads only: no row, entry or mail is made, no MAIL is said.

Everything looked at has a bound in time, side by side, so that the whole ends within `LOOK_S` whatever is away or silent.
What can't be read is told as such, never guessed.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import psutil

from mailkeep.core.outcome import Severity
from mailkeep.doctor.symptoms import (
    Configured,
    Database,
    DueLook,
    LocalProcess,
    Machine,
    Probed,
    Section,
    Stream,
    Symptoms,
    Unread,
)
from mailkeep.settings import Settings, SettingsError, SettingsProblem, SmtpMode
from mailkeep.smtp.configured import next_hops
from mailkeep.smtp.next_hop import HopAddress, NextHop, Timers
from mailkeep.smtp.probe import Probe, probe
from mailkeep.store.diagnosis import STATEMENT_S, AttemptGroup, Diagnosis
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.reads import StoredReplica

PROBE_PHASE_S: Final = 3.0
"""A phase of a probe; a next hop that takes longer is told as silent for so long, not as timed out."""
PROBE_S: Final = 8.0
"""A probe as a whole."""
MAX_PROBES: Final = 16
"""Addresses tried in one look, the first ones: each is a connection, or two with a login."""
DATABASE_S: Final = 8.0
LOOK_S: Final = 9.0
REDIS_S: Final = 4.0
MACHINE_S: Final = 0.5
"""How long CPU time is watched for."""
DUE_LOOKS: Final = 3
_PRESSURE: Final = Path("/proc/pressure/cpu")
_BASE: Final = ("MAIL_POSTGRES_", "MAIL_REDIS_")

LOGIN_REFUSED: Final = "login_refused"

T = TypeVar("T")


class _Refusal(NamedTuple):
    probe: Probe
    at_s: float


def configured(environ: Mapping[str, str]) -> tuple[Settings, tuple[SettingsProblem, ...]]:
    """Return the settings of `environ`, and what a start would refuse of them; refused ones are left out."""
    try:
        return Settings.load(environ), ()
    except SettingsError as fault:
        problems = fault.problems
    refused = {name for problem in problems for name in _family(problem.name)}
    for kept in (
        {name: text for name, text in environ.items() if name not in refused},
        {name: text for name, text in environ.items() if name.startswith(_BASE)},
    ):
        try:
            return Settings.load(kept), problems
        except SettingsError:
            continue
    return Settings(), problems


def _family(name: str) -> tuple[str, ...]:
    login = ("MAIL_SMTP_USERNAME", "MAIL_SMTP_PASSWORD", "MAIL_SMTP_PASSWORD_FILE")
    return login if name in login else (name, f"{name}_FILE")


class Doctor:
    """Looks as often as it is asked to.

    A login that was refused is not tried again until mail was delivered there: servers lock accounts for that.
    """

    def __init__(
        self, settings: Settings, since_s: float, problems: tuple[SettingsProblem, ...] = ()
    ) -> None:
        self._settings = settings
        self._since_s = since_s
        self._refused: dict[tuple[str, HopAddress], _Refusal] = {}
        self._configured = Configured(
            stub=self._settings.smtp_mode is SmtpMode.STUB,
            concurrency=self._settings.attempt_worker_concurrency,
            ttl_s=self._settings.replica_ttl_s,
            has_redis=self._settings.has_redis,
            hops=next_hops(self._settings),
            problems=problems,
        )

    @classmethod
    def of(cls, environ: Mapping[str, str], since_s: float) -> "Doctor":
        """Return one for the settings of `environ`, which need not be such that a start would take them."""
        settings, problems = configured(environ)
        return cls(settings, since_s, problems)

    async def look(self) -> Symptoms:
        """Return the symptoms of this moment."""
        database, probes, stream, machine = await asyncio.gather(
            _bounded(self._database(), DATABASE_S, "PostgreSQL"),
            _bounded(self._probes(), LOOK_S, "the next hops"),
            _bounded(self._stream(), REDIS_S, "Redis"),
            _bounded(_machine(), LOOK_S, "this machine"),
        )
        if isinstance(database, Database):
            self._forget_refusals(database.attempts)
        if isinstance(database, Database) and isinstance(machine, Machine):
            machine = msgspec.structs.replace(machine, processes=_processes(database.replicas, machine.host))
        return Symptoms(self._since_s, self._configured, database, probes, stream, machine)

    async def _database(self) -> Section[Database]:
        dsn = self._settings.postgres_dsn
        if dsn is None:
            return Unread("MAIL_POSTGRES_DSN is not set and no `mailkeep dev` runs")
        try:
            async with Diagnosis.open(dsn.reveal(), self._since_s) as diagnosis:
                return await _read(diagnosis)
        except StoreUnavailableError as fault:
            return Unread(f"{dsn.place}: {fault}")

    async def _probes(self) -> Section[tuple[Probed, ...]]:
        hops = self._configured.hops
        if not hops:
            return Unread("no next hop is configured in this environment", missing=False)
        wanted = [(hop, address) for hop in hops.values() for address in hop.addresses][:MAX_PROBES]
        return tuple(await asyncio.gather(*(self._probe(hop, address) for hop, address in wanted)))

    async def _probe(self, hop: NextHop, address: HopAddress) -> Probed:
        if refusal := self._refused.get((hop.name, address)):
            return Probed(refusal.probe, PROBE_PHASE_S, time.monotonic() - refusal.at_s)
        quick = msgspec.structs.replace(hop, timers=_quick(hop.timers))
        try:
            async with asyncio.timeout(PROBE_S):
                found = await probe(quick, address)
        except TimeoutError:
            found = Probe(hop=hop.name, address=str(address), problem=f"not through after {PROBE_S:g} s")
        if found.rule == LOGIN_REFUSED:
            self._refused[hop.name, address] = _Refusal(found, time.monotonic())
        return Probed(found, PROBE_PHASE_S)

    def _forget_refusals(self, attempts: Section[tuple[AttemptGroup, ...]]) -> None:
        if isinstance(attempts, Unread):
            return
        for (name, address), refusal in list(self._refused.items()):
            age_s = time.monotonic() - refusal.at_s
            if any(
                group.next_hop == name and group.severity == Severity.SUCCESS and group.last_s < age_s
                for group in attempts
            ):
                del self._refused[name, address]

    async def _stream(self) -> Section[Stream]:
        if not self._settings.has_redis:
            return Unread("no Redis is configured", missing=False)
        from redis.exceptions import RedisError  # noqa: PLC0415 - only those who use Redis load it

        from mailkeep.intake.redis_client import redis_connector  # noqa: PLC0415 - likewise

        try:
            async with redis_connector(self._settings)() as client:
                return await _read_stream(client)
        except (RedisError, OSError) as fault:
            where = self._settings.redis_master_addr or "the sentinels"
            return Unread(f"Redis at {where}: {fault}")


def _quick(timers: Timers) -> Timers:
    return Timers(
        **{name: min(limit_s, PROBE_PHASE_S) for name, limit_s in msgspec.structs.asdict(timers).items()}
        | {"session_s": PROBE_S / 2}  # without the login, and once more with it
    )


async def _bounded(looking: Awaitable[Section[T]], limit_s: float, what: str) -> Section[T]:
    try:
        async with asyncio.timeout(limit_s):
            return await looking
    except TimeoutError:
        return Unread(f"{what} did not answer within {limit_s:g} s")
    except OSError as fault:
        return Unread(f"{what}: {fault.strerror or fault}")


# -- PostgreSQL ------------------------------------------------------------------------------------------------------


async def _read(diagnosis: Diagnosis) -> Section[Database]:
    server = await diagnosis.server()
    if server.version is None or server.version < server.wanted:
        have = "none" if server.version is None else str(server.version)
        why = f"the schema is not this build's: migration {have} there, {server.wanted} here"
        missing: Unread = Unread(why)
        return Database(server, *[missing] * 11)
    ends_s = time.monotonic() + DATABASE_S - 2 * STATEMENT_S  # for the last statement, and for the locks

    async def section(read: Callable[[], Awaitable[T]]) -> Section[T]:
        if time.monotonic() > ends_s:
            return Unread("no time was left: PostgreSQL answers slowly")
        try:
            return await read()
        except StoreUnavailableError as fault:
            return Unread(str(fault))

    replicas = await section(diagnosis.replicas)
    due_look = await section(lambda: _due_look(diagnosis))
    lanes = await section(diagnosis.lanes)
    inbox = await section(diagnosis.inbox)
    ended = await section(diagnosis.ended)
    attempts = await section(diagnosis.attempts)
    dialogs = await section(diagnosis.dialogs)
    dead_letters = await section(diagnosis.dead_letters)
    malformed = await section(diagnosis.malformed)
    snapshots = await section(diagnosis.snapshot_holders)
    # Last: a lock that stood in the way of the others has been held for a while now.
    try:
        locks: Section[Any] = await diagnosis.lock_holders()
    except StoreUnavailableError as fault:
        locks = Unread(str(fault))
    return Database(
        server=server,
        locks=locks,
        snapshots=snapshots,
        due_look=due_look,
        replicas=replicas,
        lanes=lanes,
        inbox=inbox,
        ended=ended,
        attempts=attempts,
        dialogs=dialogs,
        dead_letters=dead_letters,
        malformed=malformed,
    )


async def _due_look(diagnosis: Diagnosis) -> DueLook:
    took_s = []
    for _ in range(DUE_LOOKS):
        began_s = time.monotonic()
        await diagnosis.look_at_due()
        took_s.append(time.monotonic() - began_s)
    return DueLook(min(took_s), max(took_s))


# -- Redis -----------------------------------------------------------------------------------------------------------


async def _read_stream(client: Any) -> Stream:  # noqa: ANN401 - redis-py's answers are untyped
    from redis.exceptions import ResponseError  # noqa: PLC0415 - as above

    from mailkeep.intake.stream import GROUP, STREAM  # noqa: PLC0415 - likewise

    began_s = time.monotonic()
    await client.ping()
    ping_ms = (time.monotonic() - began_s) * 1000
    length = await client.xlen(STREAM)
    try:
        groups = [group for group in await client.xinfo_groups(STREAM) if group["name"] == GROUP.encode()]
        consumers = await client.xinfo_consumers(STREAM, GROUP) if groups else []
    except ResponseError:  # there is no stream yet
        groups, consumers = [], []
    return Stream(
        ping_ms=ping_ms,
        unread=groups[0].get("lag") if groups else length,
        pending=groups[0]["pending"] if groups else 0,
        consumers=len(consumers),
        idle_s=min((consumer["idle"] / 1000 for consumer in consumers), default=None),
    )


# -- the machine -----------------------------------------------------------------------------------------------------


async def _machine() -> Section[Machine]:
    before = psutil.cpu_times()
    await asyncio.sleep(MACHINE_S)
    after = psutil.cpu_times()
    passed_s = sum(after) - sum(before)
    stolen_s = getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)  # Linux alone knows it
    return Machine(
        host=socket.gethostname(),
        cpus=psutil.cpu_count() or 1,
        load_1m=psutil.getloadavg()[0],
        steal_percent=100 * stolen_s / passed_s if passed_s > 0 else 0.0,
        stall_percent=_stall_percent(),
        processes=(),
    )


def _stall_percent() -> float | None:
    try:
        words = _PRESSURE.read_text(encoding="ascii").split()
        return float(words[words.index("some") + 1].removeprefix("avg10="))
    except (OSError, ValueError):
        return None


def _processes(replicas: Section[tuple[StoredReplica, ...]], host: str) -> tuple[LocalProcess, ...]:
    """Return the processes of replicas that say they run on `host`, where they are there."""
    if isinstance(replicas, Unread):
        return ()
    found = []
    for replica in replicas:
        if replica.host != host or replica.stopped_at or replica.lost_at:
            continue
        try:
            process = psutil.Process(replica.pid)
            # Another process may have that number by now: one that began after the replica.
            if process.create_time() <= replica.started_at.timestamp() + 1.0:
                found.append(LocalProcess(replica.pid, str(process.status())))
        except psutil.Error:
            continue
    return tuple(found)
