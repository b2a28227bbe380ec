"""The demo: one command that works for anybody, again and again, also after it was killed."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from harness import PATIENCE_S, own_environment, until

ORDINARY = 65534
AS_ORDINARY = ("setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups", "--")


def demo(data_dir, *prefix, **environ):
    """Spawn the demo with its data in `data_dir`."""
    command = [
        *prefix,
        sys.executable,
        "-m",
        "mailkeep",
        "dev",
        "--examples",
        "--once",
        "--data-dir",
        data_dir,
    ]
    return subprocess.Popen(
        command,
        env=own_environment(**environ),
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process):
    """Wait for the end of the demo; return its exit code and what it said."""
    said, _ = process.communicate(timeout=2 * PATIENCE_S)
    return process.returncode, said


@pytest.fixture
def folder():
    """Make a folder with a path that is short and open to others, as a home is."""
    made = Path(tempfile.mkdtemp(prefix="mk-demo-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.mark.long
def test_the_demo_runs_again_and_after_a_kill(folder):
    """Every example ends as expected: the first time, with data that is there, and after a kill in the middle."""
    code, said = ended(demo(folder))
    assert code == 0, said
    killed = demo(folder)
    until((folder / "dev.json").exists, "the demo is in full swing")
    killed.kill()
    ended(killed)
    code, said = ended(demo(folder))
    assert code == 0, said
    code, said = ended(demo(folder))
    assert code == 0, said


@pytest.mark.skipif(os.geteuid() != 0, reason="the other test runs as an ordinary user already")
def test_the_demo_runs_as_an_ordinary_user(folder):
    """Without any right but to its own home."""
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not here")
    os.chown(folder, ORDINARY, ORDINARY)
    look = [*AS_ORDINARY, sys.executable, "-c", "import sys, mailkeep; print(sys.base_prefix)"]
    seen = subprocess.run(look, cwd="/", check=False, capture_output=True, text=True)
    if seen.stdout.strip() != sys.base_prefix:
        pytest.skip("this Python is closed to ordinary users")
    code, said = ended(demo(folder / "data", *AS_ORDINARY, HOME=str(folder)))
    assert code == 0, said
