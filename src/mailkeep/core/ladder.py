"""The ladder: the fixed list of waits between the attempts of a class."""

from typing import Final

JITTER: Final = 0.10
"""Waits vary by this share either way, so that what failed together does not return together."""


def next_wait_s(ladder_s: tuple[float, ...], rungs_used: int, chance: float) -> float | None:
    """Return the wait before the next attempt in seconds, or None when the ladder is exhausted.

    `rungs_used` counts the rungs taken so far (0 after the first attempt); `chance` is uniform in [0, 1).
    """
    if rungs_used >= len(ladder_s):
        return None
    return ladder_s[rungs_used] * (1 - JITTER + 2 * JITTER * chance)
