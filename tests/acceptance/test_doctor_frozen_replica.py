"""The only replica stands still: the doctor tells its process, and that it is frozen rather than gone."""

import asyncio
import signal

from harness import QUICK, rendered, submit_all, until

from mailkeep.doctor.causes import Cause
from mailkeep.doctor.examine import examine
from mailkeep.doctor.look import Doctor

COMMAND = """{"payload_mode": "rendered", "payload": {"to": ["bo@sinkhole.test"], "subject": "Hello", "text": "x"}}"""


def causes(environ):
    """Look once and return every cause that is named, with the evidence."""
    report = examine(asyncio.run(Doctor.of(environ, 3600.0).look()))
    found = [finding for diagnosis in report.diagnoses for finding in diagnosis.findings]
    return {finding.cause for finding in found}, " ".join(
        line for finding in found for line in finding.evidence
    )


def test_a_frozen_replica_is_told_from_one_that_is_gone(deployment):
    """SIGSTOP: `replica_frozen` with its process id; SIGKILL: `no_replica`; alive: nothing."""
    sink = deployment.sink()
    sink.ready()
    service = deployment.service(sink.port, **QUICK).start()
    submit_all(service, [rendered(["ann@sinkhole.test"])])
    deployment.database.drain()
    environ = {name: text for name, text in service.environ.items() if name.startswith("MAIL_")}
    until(lambda: causes(environ)[0] == set(), "all is well")
    service.signal(signal.SIGSTOP)
    deployment.database.fetch("SELECT mail.enqueue($1::jsonb)", COMMAND)
    silent = "SELECT FROM mail.replicas WHERE last_seen_at < now() - interval '3 seconds'"
    until(lambda: deployment.database.fetch(silent), "the replica is silent")
    frozen, words = causes(environ)
    service.signal(signal.SIGCONT)
    assert frozen == {Cause.REPLICA_FROZEN}
    assert f"process {service.pid} on" in words
    assert "is stopped" in words
    deployment.database.drain()
    service.kill9()
    until(lambda: deployment.database.fetch(silent), "the replica is silent")
    gone, words = causes(environ)
    assert gone == {Cause.NO_REPLICA}
    assert f"process {service.pid} on" in words
