"""PgBouncer in transaction mode before one database, set up as the docs say: what acceptance and integration tests share."""

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from mailkeep.store.embedded_process import unprivileged_identity

PGBOUNCER = "/usr/sbin/pgbouncer"
EXAMPLE = Path(__file__).parents[1] / "docs/how-to/patroni/pgbouncer.ini"
PATIENCE_S = 60.0

needs_pgbouncer = pytest.mark.skipif(
    not os.access(PGBOUNCER, os.X_OK), reason="pgbouncer is not installed (see .ci/run)"
)


class PgBouncer:
    """A pooler of the test's own before the database of `dsn`, with so many connections to it; `options` follow those of the docs."""

    def __init__(self, folder: Path, dsn: str, server_connections: int, *options: str) -> None:
        folder.chmod(0o755)  # it runs as another user
        parts = urlsplit(dsn)
        name, user = parts.path.removeprefix("/"), parts.username
        self._folder, self.port = folder, _free_port()
        self.dsn = f"postgresql://{user}@127.0.0.1:{self.port}/{name}?sslmode=disable"
        own = f"default_pool_size = {server_connections}\nunix_socket_dir =\n" + "\n".join(options)
        text = EXAMPLE.read_text()
        for place, here in {
            "mailkeep = host=10.0.0.31 port=5432 dbname=mailkeep": f"{name} = host={parse_qs(parts.query)['host'][0]} port=5432",
            "10.0.0.41": "127.0.0.1",
            "6432": str(self.port),
            "scram-sha-256": "trust",
            "/etc/pgbouncer/userlist.txt": str(folder / "userlist.txt"),
            "default_pool_size = 20": own,
        }.items():
            assert place in text
            text = text.replace(place, here)
        (folder / "pgbouncer.ini").write_text(text)
        (folder / "userlist.txt").write_text(f'"{user}" ""\n')

    def start(self) -> "PgBouncer":
        """Start it, or start it again."""
        command = [*unprivileged_identity().prefix, PGBOUNCER, str(self._folder / "pgbouncer.ini")]
        with (self._folder / "pgbouncer.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline_s = time.monotonic() + PATIENCE_S
        while not self._listens():
            assert time.monotonic() < deadline_s, (self._folder / "pgbouncer.log").read_text()
            time.sleep(0.01)
        return self

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def kill9(self) -> None:
        """Kill it."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
