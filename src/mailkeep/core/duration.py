"""Durations as people write them: `90s`, `5m`, `7d`."""

import re
from typing import Final

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)")


def parse_duration(text: str) -> float:
    """Return the seconds in `text`, e.g. `90s`, `1h30m`, `250ms`. Raises ValueError for anything else."""
    text = text.strip()
    total_s, end = 0.0, 0
    for match in _PART.finditer(text):
        if match.start() != end:
            break
        total_s += float(match[1]) * _UNITS_S[match[2]]
        end = match.end()
    if not text or end != len(text):
        raise ValueError(f"{text!r} is not a duration; write it like 90s, 5m, 1h30m or 7d")
    return total_s


def format_duration(seconds: float) -> str:
    """Return `seconds` the way `parse_duration` reads them, to the millisecond: `90.0` is `1m30s`, `0.25` is `250ms`."""
    rest, parts = round(seconds * 1000), []
    for unit, size_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, size_ms)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0ms"


def parse_ladder(text: str) -> tuple[float, ...]:
    """Return the waits of a ladder in seconds, e.g. `10s, 30s, 90s`. Raises ValueError if it is empty or malformed."""
    waits_s = tuple(parse_duration(part) for part in text.split(","))
    if any(wait_s <= 0 for wait_s in waits_s):
        raise ValueError("each wait of a ladder must be longer than zero")
    return waits_s
