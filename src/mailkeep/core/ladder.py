"""The ladder: the fixed list of waits between the attempts of a class."""

from typing import Final

JITTER: Final = 0.10
"""Waits vary by this share either way, so that what failed together does not return together."""
SOON_S: Final = 360.0
"""What a longer rung is shortened to after a greylisting answer: with jitter just past the five minutes most ask for."""
SOON_RUNGS: Final = 2
"""Rungs that greylisting shortens; a server that still does not know us then never will, and is treated like any other."""


def next_wait_s(
    ladder_s: tuple[float, ...],
    rungs_used: int,
    chance: float,
    *,
    soon: bool = False,
    wait_hint_s: float = 0.0,
) -> float | None:
    """Return the wait before the next attempt in seconds, or None when the ladder is exhausted.

    `rungs_used` counts the rungs taken so far (0 after the first attempt); `chance` is uniform in [0, 1). With `soon` (a
    greylisting answer) the first rungs wait `SOON_S` at most. `wait_hint_s` is what the server asked for: the wait is never
    shorter than it, and where it decides, varied upwards only.
    """
    if rungs_used >= len(ladder_s):
        return None
    rung_s = ladder_s[rungs_used]
    if soon and rungs_used < SOON_RUNGS:
        rung_s = min(rung_s, SOON_S)
    return max(rung_s * (1 - JITTER + 2 * JITTER * chance), wait_hint_s * (1 + JITTER * chance))
