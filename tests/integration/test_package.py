"""What is built is whole: the wheel and the sdist, installed where nothing else is."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mailkeep.version import __version__

ROOT = Path(__file__).parents[2]
WHEEL = f"mailkeep-{__version__}-py3-none-any.whl"
RUN_S = 100.0


def run(*command, **options):
    """Run a command and return what it left with, said and complained of."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN_S, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both, the wheel from the unpacked sdist, as an installer would; yield their folder."""
    folder = tmp_path_factory.mktemp("dist")
    code, _, said = run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    assert code == 0, said
    with tarfile.open(folder / f"mailkeep-{__version__}.tar.gz") as sdist:
        sdist.extractall(folder, filter="data")
    source = folder / f"mailkeep-{__version__}"
    code, _, said = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    assert code == 0, said
    return folder


def test_a_wheel_holds_every_file_of_the_package_and_the_manual(built):
    """Templates, SQL, pages and manual pages are there, and no test, no cache, nothing of this machine."""
    with zipfile.ZipFile(built / WHEEL) as wheel:
        names = set(wheel.namelist())
    ours = run("git", "ls-files", "src/mailkeep", "docs/man", cwd=ROOT)[1].splitlines()
    expected = {name.removeprefix("src/") for name in ours if name.startswith("src/")}
    assert expected <= names
    manual = {name.rpartition("/")[2] for name in names if "/share/man/man1/" in name}
    assert manual == {Path(name).name for name in ours if name.startswith("docs/man/")}
    rest = {name for name in names - expected if ".data/data/share/man/" not in name}
    assert {name.partition("/")[0] for name in rest} == {f"mailkeep-{__version__}.dist-info"}


def test_a_client_alone_says_what_its_command_needs(built, tmp_path):
    """Without extras nothing else is installed: the client works, the command names the extra that it needs."""
    # With a pip of its own: the environment of the tests has none where uv made it.
    assert run(sys.executable, "-m", "venv", tmp_path)[0] == 0
    python = tmp_path / "bin/python"
    code, _, said = run(python, "-m", "pip", "install", "-q", "--no-index", built / WHEEL)
    assert code == 0, said
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    assert run(python, "-c", "import mailkeep.client", env=clean)[0] == 0
    code, _, said = run(tmp_path / "bin/mailkeep", "--version", env=clean)
    assert (code, "pip install 'mailkeep[server]'" in said, "Traceback" in said) == (1, True, False)
    assert (tmp_path / "share/man/man1/mailkeep.1").is_file()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_comes_along(shell):
    """The command writes what a shell needs to complete it, and completes its verbs."""
    environ = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    code, script, said = run(sys.executable, "-m", "mailkeep", "--show-completion", shell, env=environ)
    assert (code, "mailkeep" in script) == (0, True), said
