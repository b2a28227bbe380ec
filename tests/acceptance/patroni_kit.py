"""A PostgreSQL with a synchronous standby under Patroni, with etcd and HAProxy: Debian's packages, on loopback, as the docs set them up.

The configuration is that of `docs/how-to/patroni`, with places and addresses of a test. PostgreSQL refuses to run as root: there
everything but HAProxy runs as Debian's user `postgres`.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import asyncpg
import psutil
from harness import Database, free_port, until

EXAMPLES: Final = Path(__file__).parents[2] / "docs/how-to/patroni"
POSTGRES: Final = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql/15/bin"))
BINARIES: Final = ("/usr/bin/patroni", "/usr/bin/etcd", "/usr/sbin/haproxy", f"{POSTGRES}/postgres")
NODES: Final = ("pg1", "pg2")
REQUEST_S: Final = 10.0
USER: Final = "postgres"


def missing() -> str:
    """Name the programs that are not here, empty if all are."""
    return ", ".join(path for path in BINARIES if not os.access(path, os.X_OK))


class PatroniCluster:
    """Two nodes; `start` it, `stop` it. `database` leads to the primary through HAProxy."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mk-patroni-"))
        self._etcd, self._etcd_peer, self._haproxy = free_port(), free_port(), free_port()
        self._ports = {name: (free_port(), free_port()) for name in NODES}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.database = Database(f"postgresql://postgres:change-me@127.0.0.1:{self._haproxy}/postgres")

    def start(self) -> "PatroniCluster":
        """Start everything and return when the standby is synchronous."""
        if os.geteuid() == 0:
            shutil.chown(self.folder, USER, USER)
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd, self._etcd_peer))
        urls = ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        urls += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        self._run("etcd", [BINARIES[1], "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync", *urls])
        for name in NODES:
            self._write(f"{name}.yml", self._patroni(name))
            self.start_node(name)
            until(lambda name=name: self.role(name), f"{name} is running")
        self._write(
            "haproxy.cfg", self._filled("haproxy.cfg", {"10.0.0.31:5432": f"127.0.0.1:{self._haproxy}"})
        )
        self._run("haproxy", [BINARIES[2], "-db", "-f", str(self.folder / "haproxy.cfg")])
        self.wait_for_standby()
        return self

    def start_node(self, name: str) -> None:
        """Start a node, or start it again after it was killed."""
        self._run(name, [BINARIES[0], str(self.folder / f"{name}.yml")])

    def stop(self) -> None:
        """End everything and remove it."""
        for name in NODES:
            self.kill9(name)
        for process in self._running.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.folder)

    # -- what happens to it ----------------------------------------------------------------------------------------

    @property
    def primary(self) -> str:
        """The node that is primary now."""
        return str(until(lambda: self._with_role("leader"), "there is a primary"))

    def role(self, name: str) -> str:
        """Return the role of a running node: `leader`, `sync_standby`, `replica`; empty for one that is not running."""
        for member in self._members():
            if member["name"] == name and member["state"] in ("running", "streaming"):
                return str(member["role"])
        return ""

    def wait_for_standby(self) -> None:
        """Wait until a primary answers through HAProxy and its standby is synchronous."""
        until(lambda: self._with_role("sync_standby"), "the standby is synchronous")
        synced = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"

        def has_one() -> bool:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return bool(self.database.value(synced))
            return False

        until(has_one, "PostgreSQL waits for its standby")

    def switch_over(self) -> None:
        """Have the standby take over in order, and wait until it did."""
        first = self.primary
        (candidate,) = set(NODES) - {first}
        body = json.dumps({"leader": first, "candidate": candidate}).encode()
        request = urllib.request.Request(f"{self._api(first)}/switchover", body, method="POST")
        with urllib.request.urlopen(request, timeout=90) as response:
            assert response.status == 200
        until(lambda: self._with_role("leader") == candidate, f"{candidate} is primary")

    def kill9(self, name: str) -> None:
        """Kill Patroni and PostgreSQL of a node at once, as the loss of its machine does."""
        doomed = self._family(self._running[name].pid)
        with suppress(FileNotFoundError, ValueError, IndexError):
            doomed += self._family(int((self.folder / name / "postmaster.pid").read_text().split()[0]))
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self._running[name].wait()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _with_role(self, role: str) -> str:
        return next((name for name in NODES if self.role(name) == role), "")

    def _members(self) -> list[dict[str, Any]]:
        for name in NODES:
            if self._running.get(name) is not None and self._running[name].poll() is None:
                with (
                    suppress(OSError, ValueError),
                    urllib.request.urlopen(f"{self._api(name)}/cluster", timeout=REQUEST_S) as response,
                ):
                    members: list[dict[str, Any]] = json.load(response)["members"]
                    return members
        return []

    def _api(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name][1]}"

    def _patroni(self, name: str) -> str:
        postgres, api = self._ports[name]
        return self._filled(
            "patroni.yml",
            {
                "name: pg1": f"name: {name}",
                "10.0.0.11:8008": f"127.0.0.1:{api}",
                "10.0.0.11:5432": f"127.0.0.1:{postgres}",
                "10.0.0.21:2379": f"127.0.0.1:{self._etcd}",
                "10.0.0.0/24": "127.0.0.0/8",
                "/var/lib/postgresql/15/mail": str(self.folder / name),
                "/usr/lib/postgresql/15/bin": str(POSTGRES),
                "/var/run/postgresql": str(self.folder),
            },
        )

    def _filled(self, example: str, places: dict[str, str]) -> str:
        text = (EXAMPLES / example).read_text()
        for number, name in enumerate(NODES, 11):
            postgres, api = self._ports[name]
            there = f"{name} 10.0.0.{number}:5432 check port 8008"
            places = (
                places | {there: f"{name} 127.0.0.1:{postgres} check port {api}"} if there in text else places
            )
        for place, own in places.items():
            assert place in text, f"{example} has no {place}"
            text = text.replace(place, own)
        assert "10.0.0." not in text
        return text

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o644)

    def _run(self, name: str, command: Sequence[str]) -> None:
        prefix = (
            ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"] if os.geteuid() == 0 else []
        )
        with (self.folder / f"{name}.log").open("ab") as output:
            self._running[name] = subprocess.Popen(
                [*prefix, *command],
                stdout=output,
                stderr=output,
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "HOME": str(self.folder)},
                cwd=self.folder,
                start_new_session=True,
            )

    @staticmethod
    def _family(pid: int) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            head = psutil.Process(pid)
            return [head, *head.children(recursive=True)]
        return []
