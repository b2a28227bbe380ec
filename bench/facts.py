"""What the figures depend on: the machine, its system and its disk."""

import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil

from bench.errors import BenchError

MEMORY_FILE_SYSTEMS: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
FSYNC_PROBES: Final = 200


def machine_facts(folder: Path) -> dict[str, str]:
    """Return the facts, for the report. Raises `BenchError` if `folder` is not on a disk."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()}, uvloop {version('uvloop')}",
        "disk": f"{_file_system(folder)}, fsync of 4 KB {_fsync_ms(folder / 'fsync-probe'):.2f} ms (median)",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _file_system(folder: Path) -> str:
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    mount = max(mounts, key=lambda part: len(part.mountpoint))
    if mount.fstype in MEMORY_FILE_SYSTEMS:
        raise BenchError(f"{folder} is in memory ({mount.fstype}); name a folder on a disk with --dir")
    return f"{mount.fstype} on {mount.device}"


def _fsync_ms(path: Path) -> float:
    waits_s = []
    with path.open("wb", buffering=0) as file:
        for _ in range(FSYNC_PROBES):
            begin_s = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            waits_s.append(time.perf_counter() - begin_s)
    path.unlink()
    return statistics.median(waits_s) * 1000
