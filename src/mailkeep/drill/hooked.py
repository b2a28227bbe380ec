"""An existing deployment, reached by the URLs of its replicas and by commands that the operator gives.

A command is run without a shell, its words as `shlex` splits them, with `{replica}` (its number from 1), `{url}`, `{mode}` or
`{recipient}` put in. It must end with 0 within `COMMAND_S`.
"""

import shlex
import subprocess
from collections.abc import Sequence
from typing import Final

from mailkeep.drill.replica_api import ReplicaApi
from mailkeep.drill.steps import DrillError

COMMAND_S: Final = 120.0
SHOWN_CHARS: Final = 300


class HookedDeployment:
    """The replicas at their URLs.

    `kill_command` kills one, `replace_command` starts another where nobody else does, `mode_command` sets the mode of the
    sinkhole, `copies_command` prints how many messages it took for a recipient.
    """

    def __init__(
        self,
        replicas: Sequence[ReplicaApi],
        *,
        kill_command: str,
        mode_command: str,
        replace_command: str | None = None,
        copies_command: str | None = None,
    ) -> None:
        self.replicas = tuple(replicas)
        self._kill_command = kill_command
        self._mode_command = mode_command
        self._replace_command = replace_command
        self._copies_command = copies_command

    def set_mode(self, mode: str) -> None:
        """Run the command for the mode."""
        _run(self._mode_command, mode=mode)

    def kill(self, index: int) -> None:
        """Run the command that kills."""
        _run(self._kill_command, replica=str(index + 1), url=self.replicas[index].url)

    def replace(self, index: int) -> None:
        """Run the command that replaces, if there is one."""
        if self._replace_command:
            _run(self._replace_command, replica=str(index + 1), url=self.replicas[index].url)

    def copies(self, recipient: str) -> int | None:
        """Run the command that counts, if there is one."""
        if not self._copies_command:
            return None
        printed = _run(self._copies_command, recipient=recipient).strip()
        if not printed.isascii() or not printed.isdigit():
            raise DrillError(f"the command for copies printed no number: {printed[:SHOWN_CHARS]!r}")
        return int(printed)


def _run(command: str, **values: str) -> str:
    words = [_filled(word, values) for word in shlex.split(command)]
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S, check=False)  # noqa: S603 - the operator's own command
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise DrillError(f"{shlex.join(words)}: {fault}") from fault
    if ran.returncode:
        said = (ran.stderr or ran.stdout).strip()[-SHOWN_CHARS:]
        raise DrillError(f"{shlex.join(words)} ended with {ran.returncode}: {said}")
    return ran.stdout


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", value)
    return word
