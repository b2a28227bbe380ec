"""The version before this one and this one share a queue while a deployment is upgraded, and while it is taken back."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from harness import QUICK, Cluster, Deployment, SinkThread, mails, own_environment, submit_all, until

from mailkeep.drill.ledger import Submission

ROOT = Path(__file__).parents[2]
PREVIOUS = (ROOT / "tests/data/previous_release.txt").read_text().split()[0]

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="the version before is in the history, which is not here"
)


@pytest.fixture
def before(tmp_path: Path) -> dict[str, str]:
    """Return the environment in which `mailkeep` is the version before."""
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", PREVIOUS, "src/mailkeep"], check=True, capture_output=True
    ).stdout
    folder = tmp_path / "previous"
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    environ = {"PYTHONPATH": str(folder / "src")}
    asked = [sys.executable, "-c", "import mailkeep; print(mailkeep.__file__)"]
    found = subprocess.run(
        asked, env=own_environment(**environ), check=True, capture_output=True, text=True
    ).stdout
    assert found.startswith(str(folder))
    return environ


@pytest.mark.long
def test_an_upgrade_and_its_undoing_lose_nothing(
    deployment: Deployment, postgres: Cluster, before: dict[str, str]
):
    """The new one migrates under the old one's feet; both send, each takes over from the other, and the old one starts again."""
    deployment.database = database = postgres.database()
    sink = deployment.told_sink()
    old = deployment.service(sink.port, name="old", **QUICK, **before)
    new = deployment.service(sink.port, name="new", **QUICK)
    old.start()
    database.watch()
    submissions = mails(20, scripts=("", "defer-1x+"))
    submit_all(old, submissions)
    new.start()
    for service in (old, new):
        batch = mails(30, scripts=("", "", "", "defer-1x+"))
        submit_all(service, batch)
        submit_all(new if service is old else old, batch)  # known to both under its key
        submissions += batch
    submissions += killed_with_mail(old, new, sink, deployment)
    old.start()
    submissions += killed_with_mail(new, old, sink, deployment)
    deployment.database.check(submissions, sink.copies)
    for service in (old, new):
        assert [
            line for line in service.lines if line["level"] == "error" and line["event"] != "replica lost"
        ] == []


def killed_with_mail(doomed, survivor, sink: SinkThread, deployment: Deployment) -> list[Submission]:
    """Kill one with mail in its hands; return the mail, which the other has sent."""
    deployment.database.drain()  # a dialog of the other that stalls now would do so for ten minutes
    sink.mode("stall@dot")
    submissions = mails(4)
    submit_all(doomed, submissions)
    until(lambda: sink.connection_count, "they are being sent")
    doomed.kill9()
    sink.mode("accept")
    deployment.database.drain()
    assert survivor.logged("claims taken over")
    return submissions
