"""`serve --processes 2`: two replicas on one socket, each replaced when it dies, all of them stopped with the supervisor."""

import signal
import socket

import psutil
import pytest
from harness import free_port, mails, smokes, submit_all, until

TWO = ("--processes", "2")
REPLICAS = "SELECT pid FROM mail.replicas WHERE stopped_at IS NULL AND pid <> ALL ($1::int[])"


def replicas(database, count, *, without=()):
    """Return the process numbers of `count` replicas that did not leave, once there are as many."""

    def found():
        pids = [row["pid"] for row in database.fetch(REPLICAS, list(without))]
        return pids if len(pids) == count else None

    return until(found, f"{count} replicas are there")


def serves_without(frozen_pid, port):
    """Whether the service answers while one of its processes stands still."""
    frozen = psutil.Process(frozen_pid)
    frozen.suspend()
    try:
        return smokes(port)
    finally:
        frozen.resume()


def serve_two(deployment):
    """Start a service of two processes; return it, its port and the sinkhole."""
    sink, port = deployment.told_sink(), free_port()
    service = deployment.service(sink.port, *TWO, MAIL_INTERNAL_HTTP_ADDR=f"127.0.0.1:{port}")
    return service.start(), port, sink


def test_both_serve_and_a_dead_one_is_replaced(deployment):
    """Either answers while the other stands still; a killed one has a successor; SIGTERM ends them all with 0."""
    service, port, sink = serve_two(deployment)
    first, second = replicas(deployment.database, 2)
    until(lambda: serves_without(first, port), "the second serves")
    until(lambda: serves_without(second, port), "the first serves")
    before = mails(20)
    submit_all(service, before)
    psutil.Process(first).kill()
    (third,) = replicas(deployment.database, 1, without=[first, second])
    assert [line["pid"] for line in service.logged("process died")] == [first]
    until(lambda: serves_without(second, port), "the new one serves")
    after = mails(20)
    submit_all(service, after)
    deployment.database.drain()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert not any(map(psutil.pid_exists, (second, third)))
    assert not smokes(port)
    deployment.database.check([*before, *after], sink.copies)


def test_the_supervisor_takes_its_processes_with_it(deployment):
    """Killed without a chance to tell them: they notice, stop in order, and free the port."""
    service, port, _ = serve_two(deployment)
    pids = replicas(deployment.database, 2)
    service.kill9()
    until(lambda: not any(map(psutil.pid_exists, pids)), "both are gone")
    assert deployment.database.value("SELECT count(*) FROM mail.replicas WHERE stopped_at IS NULL") == 0
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("arguments", [(), TWO], ids=["one", "two"])
def test_a_taken_port_is_named(deployment, arguments):
    """Exit code 78 and a line that says which address can't be had."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = deployment.service(1, *arguments, MAIL_INTERNAL_HTTP_ADDR=f"127.0.0.1:{port}")
        service.spawn()
        assert service.wait() == 78
    (line,) = [line for line in service.lines if line["level"] == "error"]
    assert str(port) in f"{line}"
    assert "in use" in line["error"]
