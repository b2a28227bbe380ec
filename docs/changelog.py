"""Write the notes of the version under work into `CHANGELOG.md`: `make changelog`.

They are the fragments of `changelog.d` in their order, put together by towncrier; the notes of older versions stay as they are.
"""
# ruff: noqa: INP001  # a script beside the pages it writes, no package

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mailkeep.version import __version__

ROOT: Final = Path(__file__).parents[1]
CHANGELOG: Final = ROOT / "CHANGELOG.md"
HEAD: Final = "# Changelog\n\nWhat a user, producer or operator can see of each version, the newest first.\n"
NOTES: Final = re.compile(
    r"^## (?P<version>\S+) \((?P<date>[^)]+)\)\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE
)


def changelog() -> str:
    """Return the whole changelog; a version keeps the date that it has there."""
    known = {notes["version"]: notes for notes in NOTES.finditer(CHANGELOG.read_text(encoding="utf-8"))}
    ours = known.pop(__version__, None)
    date = ours["date"] if ours else datetime.now(UTC).date().isoformat()
    towncrier = [
        sys.executable,
        "-m",
        "towncrier",
        "build",
        "--draft",
        "--version",
        __version__,
        "--date",
        date,
    ]
    done = subprocess.run(towncrier, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603 - our own tool
    notes = done.stdout.strip().replace("](../", "](")  # the fragments lie one folder deeper
    return "\n".join([HEAD, f"{notes}\n", *(notes[0] for notes in known.values())])


if __name__ == "__main__":
    CHANGELOG.write_text(changelog(), encoding="utf-8")
