"""Private server processes: what embedded PostgreSQL and Redis need of the operating system.

A private server belongs to one data folder and to one parent process. A lock in that folder keeps a second parent out;
the socket lives in a short folder of its own that only this user can enter (a socket's path has 103 bytes on macOS, 107
on Linux); a watcher stops the server when its parent dies, however it dies; and what a machine crash or the loss of the
watcher still leaves running is stopped before a new start. Nothing on the host is changed: no user is added, no
permission of a folder above the data folder is touched, no process is searched by name.

Called by `mailkeep.store.embedded`; the drill has its processes `watched`. Linux and macOS.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

MAX_SOCKET_PATH_BYTES: Final = 103  # sun_path of macOS, the shorter one, less its final NUL
START_TIMEOUT_S: Final = 60.0  # crash recovery of a large queue on a slow disk takes this long at worst
STOP_TIMEOUT_S: Final = 10.0  # a fast shutdown writes one checkpoint
POLL_S: Final = 0.01  # a warm start takes 0.05 s
MAX_LOG_TAIL_BYTES: Final = 4096  # of a server that did not start; its last lines name the fault
NOBODY: Final = 65534  # the user and group without rights, by number as containers have no names for them
_NAMESPACE: Final = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
_DROP: Final = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")


class EmbeddedError(RuntimeError):
    """An embedded server can't be had; the message says why and what to do."""


class Identity(msgspec.Struct, frozen=True):
    """As whom a server runs: what stands before its command, and the user and group that its files must have."""

    prefix: tuple[str, ...]
    uid: int
    gid: int


def own_identity() -> Identity:
    """Return the identity of this process."""
    return Identity((), os.geteuid(), os.getegid())


def unprivileged_identity() -> Identity:
    """Return an identity that is not root, as PostgreSQL demands.

    Root steps into a user namespace, where it is seen as user 1000 and keeps its files, or else becomes `nobody`.
    """
    if os.geteuid() != 0:
        return own_identity()
    if shutil.which("unshare") and run_once([*_NAMESPACE, "true"]).returncode == 0:
        return Identity(_NAMESPACE, 0, 0)
    if shutil.which("setpriv"):
        return Identity(_DROP, NOBODY, NOBODY)
    raise EmbeddedError(
        "PostgreSQL does not run as root, and neither unshare nor setpriv is here: start as another user"
    )


def check_reachable(path: Path, identity: Identity) -> None:
    """Raise `EmbeddedError` if `identity` is another user, to whom a folder above `path` is closed."""
    if identity.uid == os.geteuid():
        return
    for folder in path.parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise EmbeddedError(
                f"{path} can't be reached by user {identity.uid}, as whom PostgreSQL has to run here: {folder} is"
                " closed to others; choose another place or start as another user"
            )


def own_folder(path: Path, identity: Identity) -> None:
    """Have the folder `path` (made 0700 if it is missing), with all in it, belong to `identity`.

    Root's may become `nobody`'s and the other way round; raises `EmbeddedError` if it belongs to anybody else.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    owner = path.stat().st_uid
    if owner == identity.uid:
        return
    if os.geteuid() != 0 or owner not in {0, NOBODY}:
        raise EmbeddedError(
            f"{path} belongs to user {owner}; start as that user, or choose another data folder"
        )
    for entry in (path, *path.rglob("*")):
        os.chown(entry, identity.uid, identity.gid, follow_symlinks=False)


@contextmanager
def os_faults_named() -> Iterator[None]:
    """Turn what the operating system refuses (a folder closed, a disk full) into an `EmbeddedError`."""
    try:
        yield
    except OSError as fault:
        raise EmbeddedError(f"{fault.filename or 'the embedded server'}: {fault.strerror}") from fault


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; it falls with the process. Raises `EmbeddedError` if another process holds it."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            raise EmbeddedError(
                f"{path.parent} is in use by another Mailkeep (process {holder}); stop it, or choose another data"
                " folder"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def socket_folder(server_folder: Path) -> Path:
    """Return the folder of the socket of the server that lives in `server_folder`: short, and always the same."""
    digest = hashlib.blake2b(os.fsencode(server_folder), digest_size=6).hexdigest()
    return Path(tempfile.gettempdir()) / f"mailkeep-{os.geteuid()}-{digest}"


@contextmanager
def fresh_socket_folder(server_folder: Path, socket_name: str, identity: Identity) -> Iterator[Path]:
    """Make the socket folder of `server_folder`, empty and closed to others; remove it at the end."""
    folder = socket_folder(server_folder)
    if len(os.fsencode(folder / socket_name)) > MAX_SOCKET_PATH_BYTES:
        raise EmbeddedError(f"{folder.parent} is too long a path for a socket; set TMPDIR to a shorter one")
    with suppress(FileNotFoundError):
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {os.geteuid(), identity.uid}:
            raise EmbeddedError(
                f"{folder} belongs to somebody else; remove it, or set TMPDIR to another folder"
            )
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)  # fails if somebody was quicker
    own_folder(folder, identity)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(
    command: list[str], *, identity: Identity, log: Path, stop_signal: signal.Signals
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server `command` until the end of the block or of this process, its output in `log`.

    It gets a session of its own, so that Ctrl-C reaches it only through its parent, and none of our secrets.
    """
    with log.open("wb") as output:
        server = subprocess.Popen(  # noqa: S603  # a command of ours
            [*identity.prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_server_environment(),
            cwd="/",
            start_new_session=True,
        )
    try:
        with watched(server.pid, stop_signal):
            yield server
    finally:
        _stop(server, stop_signal)


def run_once(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a tool of the server to its end, with `text` as input and the environment of a server."""
    return subprocess.run(  # noqa: S603  # a command of ours
        command, input=text, text=True, check=False, capture_output=True, env=_server_environment(), cwd="/"
    )


def _server_environment() -> dict[str, str]:
    """Return the environment of a server: no `PG*` that would steer it, no `MAIL_*` that it must not know."""
    kept = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}


def wait_ready(server: subprocess.Popen[bytes], ready: Callable[[], bool], name: str, log: Path) -> None:
    """Return when `ready()`; raise `EmbeddedError` with the end of `log` if the server ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        if ready():
            return
        time.sleep(POLL_S)
    said = log.read_bytes()[-MAX_LOG_TAIL_BYTES:].decode(errors="replace").strip().splitlines()
    raise EmbeddedError(f"{name} did not start: {' / '.join(said[-3:]) or 'no output'} (log: {log})")


def stop_leftover(pid_file: Path, server_folder: Path, stop_signal: signal.Signals) -> None:
    """Stop the server of a parent that is gone. Only call with the lock of its folder held.

    The process that `pid_file` names is touched only if its command line names `server_folder`: numbers are reused.
    """
    try:
        pid = int(pid_file.read_text().split()[0])
    except (FileNotFoundError, ValueError, IndexError):
        return
    for number in (stop_signal, signal.SIGKILL):
        if _is_server(pid, server_folder):
            os.kill(pid, number)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _is_server(pid, server_folder) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    if _command_line(pid) and not _is_server(pid, server_folder):
        pid_file.unlink()  # the number is somebody else's now, and a server would refuse to start


def _is_server(pid: int, server_folder: Path) -> bool:
    return str(server_folder) in _command_line(pid)


def _command_line(pid: int) -> str:
    """Return the command line of `pid`, empty if there is no such process (or only its remains)."""
    if not Path("/proc/self/cmdline").exists():
        return run_once(["ps", "-o", "command=", "-p", str(pid)]).stdout
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def watched(pid: int, stop_signal: signal.Signals) -> Iterator[None]:
    """Have `pid` stopped if this process dies within the block: a shell reads a pipe that ends with us."""
    script = 'read -r line; kill -"$1" "$2"'
    with subprocess.Popen(  # noqa: S603  # a command of ours
        ["/bin/sh", "-c", script, "sh", str(int(stop_signal)), str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    ) as watcher:
        try:
            yield
        finally:
            watcher.kill()


def _stop(server: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    server.send_signal(stop_signal)
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
