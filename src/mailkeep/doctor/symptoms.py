"""What the doctor knows when it judges: one look at the live system, as values. A section that could not be read says why.

Nothing here holds an address, a subject or a credential: replies were masked when they were stored.
"""

from collections.abc import Mapping
from typing import TypeAlias, TypeVar

import msgspec

from mailkeep.settings import SettingsProblem
from mailkeep.smtp.next_hop import NextHop
from mailkeep.smtp.probe import Probe
from mailkeep.store.diagnosis import (
    AttemptGroup,
    DeadLetterGroup,
    Dialog,
    EndedGroup,
    Inbox,
    Lane,
    LockHolder,
    MalformedGroup,
    Server,
    SnapshotHolder,
)
from mailkeep.store.reads import StoredReplica

T = TypeVar("T")


class Unread(msgspec.Struct, frozen=True):
    """A section that is not there, and why. `missing`: it should be; else there is nothing to read in this deployment."""

    why: str
    missing: bool = True


Section: TypeAlias = T | Unread


class Configured(msgspec.Struct, frozen=True):
    """What this environment's settings say; the replicas' own may differ. `problems` are those a start would refuse."""

    stub: bool
    concurrency: int
    ttl_s: float
    has_redis: bool
    hops: Mapping[str, NextHop]
    problems: tuple[SettingsProblem, ...] = ()


class DueLook(msgspec.Struct, frozen=True):
    """How long PostgreSQL took for looks at the due index: the best and the worst of a few."""

    best_s: float
    worst_s: float


class Database(msgspec.Struct, frozen=True):
    """PostgreSQL answers; each section by itself may still be unread, for a lock or for want of time."""

    server: Server
    locks: Section[tuple[LockHolder, ...]]
    snapshots: Section[tuple[SnapshotHolder, ...]]
    due_look: Section[DueLook]
    replicas: Section[tuple[StoredReplica, ...]]
    lanes: Section[tuple[Lane, ...]]
    inbox: Section[Inbox]
    ended: Section[tuple[EndedGroup, ...]]
    attempts: Section[tuple[AttemptGroup, ...]]
    dialogs: Section[tuple[Dialog, ...]]
    dead_letters: Section[tuple[DeadLetterGroup, ...]]
    malformed: Section[tuple[MalformedGroup, ...]]


class Stream(msgspec.Struct, frozen=True):
    """The stream in Redis: entries that nobody has read (None: Redis can't tell), read and unacknowledged ones, consumers.

    `idle_s` is how long ago the busiest consumer last asked, None without a consumer.
    """

    ping_ms: float
    unread: int | None
    pending: int
    consumers: int
    idle_s: float | None


class LocalProcess(msgspec.Struct, frozen=True):
    """The process of a replica on this machine: `state` as the system names it, such as `running` or `stopped`."""

    pid: int
    state: str


class Machine(msgspec.Struct, frozen=True):
    """The machine the doctor runs on, while it looked. `stall_percent`: how long work waited for a CPU, where Linux tells (PSI)."""

    host: str
    cpus: int
    load_1m: float
    steal_percent: float
    stall_percent: float | None
    processes: tuple[LocalProcess, ...]


class Probed(msgspec.Struct, frozen=True):
    """What was found at one address of a next hop; `limit_s` bounded each phase. A refused login is as it was `old_s` ago."""

    probe: Probe
    limit_s: float
    old_s: float = 0.0


class Symptoms(msgspec.Struct, frozen=True):
    """All of it. `since_s` is the length of the window that recent things are from."""

    since_s: float
    configured: Configured
    database: Section[Database]
    probes: Section[tuple[Probed, ...]]
    stream: Section[Stream]
    machine: Section[Machine]
