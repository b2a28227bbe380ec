"""`mailkeep drill queue-persistence`: passes on a sound build, fails on a broken one, and parks the sinkhole whatever happens."""

import json
import shlex
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from harness import PATIENCE_S, free_port, own_environment

from mailkeep.drill.hooked import HookedDeployment
from mailkeep.drill.local import local_deployment
from mailkeep.drill.queue_persistence import STEPS, QueuePersistence
from mailkeep.drill.replica_api import ReplicaApi

COMMAND = [sys.executable, "-m", "mailkeep", "drill", "queue-persistence"]


@pytest.fixture
def folder(tmp_path_factory):
    """A folder that PostgreSQL may reach as another user."""
    path = Path(tmp_path_factory.mktemp("drill"))
    for each in (path, *path.parents[:2]):
        each.chmod(0o755)
    return path


def results(report):
    """Return step -> result."""
    return {step.name: step.result for step in report.steps}


def test_every_step_holds_on_a_sound_build(tmp_path):
    """By default on a deployment of its own, three replicas; the report is there as JSON and as JUnit XML."""
    junit = tmp_path / "drill.xml"
    ran = subprocess.run(
        [*COMMAND, "--json", "--junit", str(junit)],
        env=own_environment(),
        capture_output=True,
        timeout=3 * PATIENCE_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout.decode() + ran.stderr.decode()
    report = json.loads(ran.stdout)
    assert report["held"]
    assert [step["name"] for step in report["steps"]] == list(STEPS)
    (once,) = [step["seen"] for step in report["steps"] if step["name"] == "delivered exactly once"]
    assert once.startswith("1 copy in the sinkhole")
    suite = ET.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == (str(len(STEPS)), "0")


def test_it_fails_on_a_build_that_forgets(folder):
    """A queue that a restart empties is found out at the step that looks for it, and the rest is skipped."""
    serve = (sys.executable, str(Path(__file__).parent / "forgetful_serve.py"))
    with local_deployment(folder, replica_count=2, serve=serve) as deployment:
        report = QueuePersistence(deployment, lambda _step: None, patience_s=10).run()
    found = results(report)
    assert not report.held
    assert found["replacement answers"] == "held"
    assert found["still there on every replica"] == "failed"
    assert found["delivered exactly once"] == "skipped"
    assert found["sinkhole parked again"] == "held"
    assert (folder / "sinkhole.mode").read_text().strip() == "defer"


def test_an_interrupted_drill_parks_the_sinkhole():
    """Ctrl-C ends it with 130, after the sinkhole was parked; nothing it started stays."""
    process = subprocess.Popen(
        COMMAND, env=own_environment(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    lines = []
    for line in process.stdout:
        lines.append(line.decode())
        if "mail accepted" in lines[-1]:
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=PATIENCE_S)
    lines += rest.decode().splitlines()
    assert process.returncode == 130
    assert "ok   sinkhole parked again" in lines[-1]


def test_an_existing_deployment_is_drilled_by_hooks(deployment):
    """Replicas by their URLs, the kill, the sinkhole's mode and its copies by commands; somebody else replaces the killed one."""
    sink = deployment.sink()
    sink.ready()
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    services = [
        deployment.service(sink.port, name=f"service-{number}", MAIL_INTERNAL_HTTP_ADDR=address).start()
        for number, address in enumerate(addresses)
    ]
    mailkeep = shlex.join([sys.executable, "-m", "mailkeep"])

    def supervise():
        services[1].wait()
        services[1].start()

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    hooks = HookedDeployment(
        [ReplicaApi(f"http://{address}") for address in addresses],
        kill_command=f"kill -KILL {services[1].pid}",
        mode_command=f"{mailkeep} sinkhole mode {{mode}} --mode-file {sink.mode_file}",
        copies_command=f"grep -c {{recipient}} {sink.capture_file}",
    )
    report = QueuePersistence(hooks, lambda _step: None, patience_s=PATIENCE_S).run()
    supervisor.join()
    assert report.held, report
    deployment.database.drain()


def test_a_kill_that_kills_nobody_is_found_out(deployment):
    """A hook that does nothing does not pass for a drill; a command that fails says what it said."""
    sink = deployment.sink("defer")
    sink.ready()
    service = deployment.service(sink.port).start()
    replicas = [ReplicaApi(f"http://127.0.0.1:{service.port}")] * 2
    idle = HookedDeployment(replicas, kill_command="true", mode_command="true {mode}")
    report = QueuePersistence(idle, lambda _step: None, patience_s=3).run()
    assert results(report)["replacement answers"] == "failed"
    broken = HookedDeployment(
        replicas, kill_command="true", mode_command="sh -c 'echo no such host >&2; exit 3'"
    )
    report = QueuePersistence(broken, lambda _step: None, patience_s=3).run()
    (parked,) = [step for step in report.steps if step.name == "sinkhole parked in defer"]
    assert (parked.result, parked.seen.endswith("ended with 3: no such host")) == ("failed", True)
