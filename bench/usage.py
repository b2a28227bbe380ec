"""What a peer costs: CPU seconds and memory of whole process trees, from outside and by equal means for both.

CPU of a process that has ended is in its parent's "children" times (getrusage(2)), because every parent here waits for
its children: Postfix's master for its short-lived daemons, PostgreSQL's postmaster for its backends, `mailkeep serve`
for its workers. The sum over the living tree is therefore the whole. Work that the kernel does on its own account
(journal, writeback) is nobody's and is left out for both.
"""

import contextlib
import sys
import time
from collections.abc import Iterable

import psutil

TRIES = 10  # at a reading during which no process ends


def cpu_s(roots: Iterable[int]) -> float:
    """Return the CPU seconds, user and system, spent so far by the trees below the process ids `roots`."""
    roots = tuple(roots)
    for _ in range(TRIES - 1):
        # One that ended since it was listed may be missing in what was read of its parent: read all of it again.
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            return _cpu_s(roots)
    return _cpu_s(roots)


def _cpu_s(roots: Iterable[int]) -> float:
    total_s = 0.0
    for process in _tree(roots):
        times = process.cpu_times()
        total_s += _own_cpu_s(process.pid, times.user + times.system)
        total_s += times.children_user + times.children_system
    return total_s


def memory_bytes(roots: Iterable[int]) -> int:
    """Return the memory the trees use now: shared pages count once (PSS; where the system has none, USS)."""
    total_bytes = 0
    for process in _tree(roots):
        try:
            memory = process.memory_full_info()
        except psutil.NoSuchProcess:
            continue  # ended since it was listed
        total_bytes += getattr(memory, "pss", memory.uss)
    return total_bytes


def _tree(roots: Iterable[int]) -> Iterable[psutil.Process]:
    """Return every process below `roots` once, though one root may be below another."""
    tree: dict[int, psutil.Process] = {}
    for root in map(psutil.Process, roots):
        tree |= {process.pid: process for process in (root, *root.children(recursive=True))}
    return tree.values()


def _own_cpu_s(pid: int, rounded_s: float) -> float:
    """Return the process's own CPU, exact on Linux: `/proc` rounds down to 10 ms twice, a second over 100 processes."""
    if sys.platform != "linux":
        return rounded_s
    return time.clock_gettime(~pid << 3 | 2)  # the clock of clock_getcpuclockid(3)
