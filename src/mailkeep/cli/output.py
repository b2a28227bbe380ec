"""What the verbs share: tables, JSON, faults, exit codes.

Tables are plain text, one row a line, so that they can be searched and cut; nothing in them can steer a terminal.
"""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from mailkeep.settings import Settings

EXIT_FAILED: Final = 1
EXIT_UNAVAILABLE: Final = 69  # EX_UNAVAILABLE of sysexits.h: a server that is needed is away
EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h
EXIT_CODES: Final = (
    (0, "done"),
    (1, "failed; `healthcheck`: not healthy; `doctor`: a warning"),
    (2, "wrong usage"),
    (3, "`doctor`: critical"),
    (EXIT_UNAVAILABLE, "a server that is needed is away; later it may work"),
    (EXIT_CONFIG, "the configuration can't be used"),
)
"""What the exit codes of all verbs mean."""
COLUMN_GAP: Final = "  "
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    """Return `text` with control characters as escapes: a reply of a mail server must not steer a terminal."""
    return _CONTROL.sub(lambda control: ascii(control[0])[1:-1], text)


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return `rows` under `titles`, aligned; the last column may be of any length."""
    lines = [list(titles), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        COLUMN_GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def print_json(value: object) -> None:
    """Print `value` (Structs, lists, plain data) as indented JSON."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def fail(message: str, exit_code: int = EXIT_FAILED) -> NoReturn:
    """Say on standard error what is wrong, where and what to do, and leave with `exit_code`."""
    print("mailkeep:", "\n".join(map(printable, message.splitlines())), file=sys.stderr)
    raise SystemExit(exit_code)


def _of_running_dev() -> dict[str, str]:
    from mailkeep.dev.state import running_state
    from mailkeep.store.embedded import default_data_dir

    state = running_state(default_data_dir())
    return {} if state is None else state.environ


def environment(*, find_dev: bool) -> dict[str, str]:
    """Return the variables of this process; with `find_dev` as `load_settings` has it."""
    return {**(_of_running_dev() if find_dev else {}), **os.environ}


def load_settings(exit_code: int = EXIT_CONFIG, *, find_dev: bool = False) -> "Settings":
    """Return the settings of this environment, or leave with every problem in it.

    With `find_dev` a running `mailkeep dev` of this user fills in where its servers are, unless the environment says it.
    """
    from mailkeep.settings import Settings, SettingsError

    try:
        return Settings.load(environment(find_dev=find_dev))
    except SettingsError as fault:
        problems = "\n".join(f"  {problem}" for problem in fault.problems)
        fail(
            f"the configuration can't be used\n{problems}\nmailkeep config --reference shows every setting",
            exit_code,
        )
