"""`mailkeep drill chaos`: accounts for every mail of a sound build, finds each broken one out, and leaves nothing behind."""

import json
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from harness import PATIENCE_S, own_environment, until

from mailkeep.drill.chaos import STEPS, Chaos, Plan, settings
from mailkeep.drill.local import local_deployment
from mailkeep.drill.strikes import Strike, StrikeKind

COMMAND = [sys.executable, "-m", "mailkeep", "drill", "chaos"]
SHORT = ["--minutes", "0.25", "--seed", "7", "--replica-ttl", "2", "--kills-per-minute", "20"]
BROKEN = Path(__file__).parent / "broken_serve.py"
KILLS = [Strike(at_s, StrikeKind.KILL, 0.5) for at_s in (2.0, 3.5, 5.0)]
FREEZES = [Strike(at_s, StrikeKind.FREEZE, 0.5, lasts_s=5.0) for at_s in (2.0, 4.0)]
LOST_REPLIES = [Strike(1.0, StrikeKind.SINK, lasts_s=5.0, mode="accept-then-drop")]


@pytest.fixture
def folder(tmp_path_factory):
    """A folder that PostgreSQL may reach as another user."""
    path = Path(tmp_path_factory.mktemp("chaos"))
    for each in (path, *path.parents[:2]):
        each.chmod(0o755)
    return path


@pytest.mark.long
def test_a_sound_build_accounts_for_every_mail(tmp_path):
    """A short run of a fixed seed: every kind of fault strikes, every step holds, and the ledger says so in figures."""
    junit = tmp_path / "chaos.xml"
    ran = subprocess.run(
        [*COMMAND, *SHORT, "--json", "--junit", str(junit)],
        env=own_environment(),
        capture_output=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout.decode() + ran.stderr.decode()
    report = json.loads(ran.stdout)
    assert [step["name"] for step in report["steps"]] == list(STEPS)
    assert report["held"]
    assert set(report["struck"]) >= {kind.value for kind in StrikeKind} - {"redis"}
    ledger = report["ledger"]
    assert ledger["accepted"] == sum(ledger["ended"].values()) > 0
    assert ledger["copies"] >= ledger["ended"]["sent"]
    assert (ledger["lost"], ledger["copies_unexplained"], ledger["at_most_once_doubled"]) == (0, 0, 0)
    suite = ET.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == (str(len(STEPS)), "0")


@pytest.mark.parametrize(
    ("build", "strikes", "step"),
    [
        ("answer_before_commit", KILLS, "nothing lost"),
        ("sent_before_dot", KILLS, "nothing lost"),
        ("no_fencing", FREEZES, "at_most_once never doubled"),
        ("lost_reply_is_failure", LOST_REPLIES, "copies explained"),
    ],
)
@pytest.mark.long
def test_a_broken_build_is_found_out(folder, build, strikes, step):
    """Each breakage fails the step that is there for it."""
    plan = Plan(seed=0, duration_s=7.0, replica_count=2, mails_per_s=20.0, ttl_s=1.5, patience_s=PATIENCE_S)
    serve = (sys.executable, str(BROKEN), build)
    with local_deployment(
        folder, replica_count=2, serve=serve, environ=settings(plan), mode="accept"
    ) as deployment:
        run = Chaos(deployment, plan, lambda _step: None, strikes=strikes).run()
    results = {one.name: one.result for one in run.report.steps}
    assert results["drained"] == "held", run.report
    assert results[step] == "failed", run.report
    assert not run.report.held


@pytest.mark.long
def test_an_interrupted_run_is_drained_and_judged():
    """Ctrl-C ends the faults; the mail that was accepted until then is accounted for, and nothing is left running.

    It comes right after another replica was started, before its watcher was: that one was left behind once.
    """
    with running() as process:
        before, ends_at = children(process.pid), time.monotonic() + PATIENCE_S
        while not (new := children(process.pid) - before):
            assert time.monotonic() < ends_at, "no replica was started"
        process.send_signal(signal.SIGINT)
        started = []
        for pid in before | new:
            with suppress(psutil.NoSuchProcess):
                started.append(psutil.Process(pid))
        said, _ = process.communicate(timeout=4 * PATIENCE_S)
    _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
    assert not alive
    report = json.loads(said)
    assert process.returncode == 130
    assert [step for step in report["steps"] if step["result"] != "held"] == []
    assert (report["held"], report["interrupted"]) == (True, True)
    assert report["ledger"]["lost"] == 0


def test_a_killed_drill_leaves_no_process_behind():
    """Its watchers end replicas, sinkhole, PostgreSQL and Redis when the drill itself dies."""
    with running() as process:
        children = psutil.Process(process.pid).children(recursive=True)
        (folder,) = {mode_file.parent for child in children for mode_file in mode_files(child)}
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert not alive
    shutil.rmtree(folder)


@contextmanager
def running():
    """Run the drill for minutes, in the hands of the test once a replica was killed and replaced."""
    with subprocess.Popen(
        [*COMMAND, "--minutes", "5", "--replicas", "2", "--replica-ttl", "2", "--json"],
        env=own_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        seen = set()

        def is_replaced():
            now = set(replicas(process.pid))
            gone = seen - now
            seen.update(now)
            return gone

        try:
            until(is_replaced, "a replica was replaced")
            yield process
        finally:
            process.kill()


def children(pid):
    """Return the numbers of all children; where there is `/proc` within microseconds."""
    with suppress(FileNotFoundError):
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return {child.pid for child in psutil.Process(pid).children()}


def mode_files(process):
    """Yield the file of its mode if `process` is a sinkhole."""
    with suppress(psutil.NoSuchProcess, ValueError):
        words = process.cmdline()
        yield Path(words[words.index("--mode-file") + 1])


def replicas(pid):
    """Yield the numbers of the replicas of the drill `pid`."""
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if "serve" in child.cmdline():
                yield child.pid
