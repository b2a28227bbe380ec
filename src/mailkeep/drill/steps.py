"""The steps of a drill as they are taken: each is timed, judged, kept and told as it ends."""

import time
from collections.abc import Callable, Sequence
from typing import Final

from mailkeep.drill.replica_api import ReplicaError
from mailkeep.drill.report import FAILED, HELD, SKIPPED, Step, Tell

SECOND_LOOK_S: Final = 2.0
"""How long a copy too many is waited for once all that was asked for has come: a dialog on loopback or within one network ends
in milliseconds, so it has had its time many times over. Nothing tells of a copy that does not come, so this is a wait."""


class DrillError(Exception):
    """A step does not hold; the message says what was seen instead."""


class Steps:
    """The steps that were taken so far, in order."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._taken: list[Step] = []

    @property
    def taken(self) -> tuple[Step, ...]:
        """What came of them."""
        return tuple(self._taken)

    def take(self, name: str, step: Callable[[], str]) -> bool:
        """Take one, which returns what was seen or raises `DrillError` or `ReplicaError`; answers whether it held."""
        began_s = time.monotonic()
        try:
            seen, result = step(), HELD
        except (DrillError, ReplicaError) as fault:
            seen, result = str(fault), FAILED
        self._note(Step(name, result, seen, round(time.monotonic() - began_s, 3)))
        return result == HELD

    def skip(self, names: Sequence[str]) -> None:
        """Note the steps that are not taken because an earlier one failed."""
        for name in names:
            self._note(Step(name, SKIPPED, "", 0.0))

    def _note(self, step: Step) -> None:
        self._taken.append(step)
        self._tell(step)
