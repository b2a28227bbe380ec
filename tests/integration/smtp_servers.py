"""Servers for the tests of the SMTP client: aiosmtpd, Postfix and its smtp-sink (not written here), and a scripted peer for faults."""

import asyncio
import contextlib
import functools
import inspect
import itertools
import os
import pwd
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mailkeep.core.outcome import Outcome
from mailkeep.smtp.envelope import Envelope
from mailkeep.smtp.next_hop import HopAddress, NextHop, Timers, TlsMode
from mailkeep.smtp.pool import Pool

USERNAME, PASSWORD = "ann", "a canary passw0rd"
MESSAGE = (
    b"Message-ID: <1@client.test>\r\nSubject: hello\r\n\r\n"
    b"first line\r\n.a dot in front\r\n..two\r\n.\r\nlast line\r\n"
)
DAY = timedelta(days=1)
SMALL_BUFFER_BYTES = 64 * 1024
"""What a scripted peer's kernel takes before the peer reads, so that a stalled body stalls soon."""
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on asyncio's own loop and on uvloop."""

    @pytest.mark.parametrize("event_loop_name", LOOPS)
    @functools.wraps(test)
    def run(event_loop_name, **arguments):
        with asyncio.Runner(loop_factory=LOOPS[event_loop_name]) as runner:
            runner.run(test(**arguments))

    signature = inspect.signature(test)
    name = inspect.Parameter("event_loop_name", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), name])
    return run


class OpenFence:
    """A fence that lets everything pass and notes whether the dot left; `commit` makes it an at_most_once one."""

    def __init__(self, *, may_open=True, may_dot=True, commit=None):
        self.may_open, self.may_dot, self.commit_dot = may_open, may_dot, commit
        self.dots_left = 0

    def may_open_transaction(self):
        return self.may_open

    def dot_allowed(self):
        return self.may_dot

    def dot_left(self):
        self.dots_left += 1


def hop_to(port: int, **changes: Any) -> NextHop:
    """A next hop on loopback, in clear, with timers of 30 s, unless `changes` say otherwise."""
    limits = dict.fromkeys(Timers.__struct_fields__, 30.0) | changes.pop("timers", {})
    address = HopAddress(changes.pop("host", "127.0.0.1"), port)
    options = {"addresses": (address,), "tls": TlsMode.NONE, "helo_name": "client.test", "max_connections": 4}
    return NextHop(name="hop", timers=Timers(**limits), **(options | changes))


def mail(
    *recipients: str, message: bytes = MESSAGE, sender: str = "from@client.test", **options: bool
) -> Envelope:
    """An envelope for `recipients`, one of them by default."""
    addresses = recipients or ("to@example.test",)
    return Envelope(sender, tuple(enumerate(addresses)), message, **options)


async def send(hop: NextHop, envelope: Envelope | None = None, fence: OpenFence | None = None) -> Outcome:
    """Send one envelope through a pool of its own and close that."""
    async with pool_of(hop) as pool:
        return await pool.send(hop, envelope or mail(), fence or OpenFence())


@contextlib.asynccontextmanager
async def pool_of(hop: NextHop) -> AsyncIterator[Pool]:
    """A pool for one hop, closed at the end."""
    pool = Pool(hop)
    try:
        yield pool
    finally:
        await pool.close(3)


# -- a peer that plays a script --------------------------------------------------------------------------------------


class Act:
    """What a scripted peer does instead of answering."""

    STALL, CLOSE, RESET = "stall", "close", "reset"


class Drip:
    """An answer that comes byte by byte."""

    def __init__(self, data: bytes, interval_s: float) -> None:
        self.data, self.interval_s = data, interval_s


class Flood:
    """An answer that is `data` over and over, `times` times or without end."""

    def __init__(self, data: bytes, times: int | None = None, *, last: bytes = b"") -> None:
        self.data, self.times, self.last = data, times, last


class Last:
    """An answer behind which the connection ends, by closing or by `Act.RESET`."""

    def __init__(self, data: bytes, act: str = Act.CLOSE) -> None:
        self.data, self.act = data, act


EHLO = b"250-peer.test\r\n250-PIPELINING\r\n250-SIZE 1000000\r\n250 8BITMIME\r\n"
EHLO_BARE = b"250 peer.test\r\n"
POLITE = {
    "GREETING": b"220 peer.test\r\n",
    "EHLO": EHLO,
    "HELO": b"250 peer.test\r\n",
    "STARTTLS": b"220 go on\r\n",
    "AUTH": b"235 2.7.0 welcome\r\n",
    "MAIL": b"250 2.1.0 sender ok\r\n",
    "RCPT": b"250 2.1.5 recipient ok\r\n",
    "DATA": b"354 go on\r\n",
    ".": b"250 2.0.0 taken\r\n",
    "RSET": b"250 2.0.0 ok\r\n",
    "QUIT": b"221 2.0.0 bye\r\n",
}


class ScriptedPeer:
    """Answers each command from a table: bytes to write, an `Act`, `Drip`, `Flood` or `Last`, or several of those.

    A list has one for each time the command comes and repeats the last; a tuple does so anew for each connection, round
    and round. Whatever else it is, an answer is written as it is; several replies in one, or none (`b""`), are the point
    of it.
    """

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers: dict[str, Any] = POLITE | dict(answers)
        self.commands: list[list[str]] = []
        """The verbs heard, for each connection."""
        self.raw: list[bytearray] = []
        """All bytes received, for each connection."""
        self.bodies: list[bytes] = []
        self.readers: list[asyncio.StreamReader] = []
        self.stalled = asyncio.Event()
        """Set when it came to an `Act.STALL`."""
        self.watching = False
        self.most_connections = 0
        """At once, as the client holds them, while `watching`."""
        self.tls: ssl.SSLContext | None = None
        self.refusing_tls: ssl.SSLContext | None = None
        """What no client can shake hands with; told so as OpenSSL does, which asyncio's servers don't."""
        self.refuses_at_once = False
        self.port = 0
        self.over = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.watching:
            self.most_connections = max(self.most_connections, connections_to(self.port))
        self.readers.append(reader)
        self.commands.append([])
        self.raw.append(bytearray())
        index = len(self.raw) - 1
        try:
            await self._converse(reader, writer, index)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the client hung up
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, index: int) -> None:
        if self.refusing_tls is not None and self.refuses_at_once:
            await refuse_handshake(reader, writer, self.refusing_tls)
            return
        await self._play("GREETING", writer, index)
        while not writer.is_closing():
            line = await reader.readuntil(b"\n")
            self.raw[index] += line
            verb = line.split(b" ")[0].strip().decode("latin-1").upper()
            self.commands[index].append(verb)
            if not await self._play(verb, writer, index):
                continue
            if verb == "STARTTLS" and "HANDSHAKE" in self.answers:
                await reader.read(1)
                await self._play("HANDSHAKE", writer, index)
            elif verb == "STARTTLS" and self.refusing_tls is not None:
                await refuse_handshake(reader, writer, self.refusing_tls)
            elif verb == "STARTTLS" and self.tls is not None:
                await writer.start_tls(self.tls)
            if verb == "DATA":
                await self._read_body(reader, writer, index)
                self.commands[index].append(".")
                await self._play(".", writer, index)

    async def _read_body(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, index: int
    ) -> None:
        body = bytearray()
        if "BODY" in self.answers:
            body += await reader.read(1)
            await self._play("BODY", writer, index)
        while not (body == b".\r\n" or body.endswith(b"\r\n.\r\n")):
            data = await reader.readuntil(b"\n")
            body += data
            self.raw[index] += data
        self.bodies.append(bytes(body))

    async def _play(self, verb: str, writer: asyncio.StreamWriter, index: int) -> bool:
        """Answer `verb`; False if that was no 2yz or 3yz."""
        answer = self.answers.get(verb, b"500 5.5.1 what?\r\n")
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        elif isinstance(answer, tuple):
            answer = answer[(self.commands[index].count(verb) - 1) % len(answer)]
        if isinstance(answer, Last):
            writer.write(answer.data)
            await writer.drain()
            answer = answer.act
        if answer == Act.STALL:
            self.stalled.set()
            await self.over.wait()
        elif answer == Act.RESET:
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            writer.transport.abort()
        elif answer == Act.CLOSE:
            writer.close()
        elif isinstance(answer, Drip):
            for byte in answer.data:
                writer.write(bytes([byte]))
                await asyncio.sleep(answer.interval_s)
        elif isinstance(answer, Flood):
            for _ in itertools.count() if answer.times is None else range(answer.times):
                writer.write(answer.data)
                await writer.drain()
                await asyncio.sleep(0)  # whoever else runs on this loop has a turn
            writer.write(answer.last)
        else:
            writer.write(answer)
            await writer.drain()
            return answer[:1] in (b"2", b"3")
        return False


async def refuse_handshake(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
) -> None:
    """Fail to shake hands, and say why in an alert."""
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(heard, said, server_side=True)
    while not reader.at_eof():
        heard.write(await reader.read(10_000))
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError:
            break
    writer.write(said.read())
    writer.close()
    await writer.wait_closed()


def connections_to(port: int) -> int:
    """How many connections to `port` of this machine stand, seen from this process as the client."""
    standing = psutil.Process().net_connections("tcp")
    return sum(
        bool(one.raddr) and one.raddr.port == port and one.status == psutil.CONN_ESTABLISHED
        for one in standing
    )


@contextlib.asynccontextmanager
async def scripted_peer(
    *,
    tls: ssl.SSLContext | None = None,
    implicit_tls: ssl.SSLContext | None = None,
    port: int = 0,
    **answers: Any,
) -> AsyncIterator[ScriptedPeer]:
    """A peer on loopback that plays `answers`; `dot`, `greeting`, `mail` … name the commands."""
    peer = ScriptedPeer({"." if verb == "dot" else verb.upper(): answer for verb, answer in answers.items()})
    peer.tls = tls
    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(peer.serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    listener = socket.socket(
        socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # asyncio wants the protocol named
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
    server = await asyncio.start_server(accept, sock=listener, ssl=implicit_tls)
    peer.port = listener.getsockname()[1]
    try:
        yield peer
    finally:
        peer.over.set()
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports say goodbye in the next turn of the loop


# -- certificates ----------------------------------------------------------------------------------------------------


class Certificates:
    """An authority of our own, and servers' contexts signed by it."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.ca_file = str(folder / "ca.pem")
        self._authority.cert_pem.write_to_path(self.ca_file)

    def server_context(self, *names: str) -> ssl.SSLContext:
        """A server's context with a certificate for `names`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        return context

    def hostile_context(self, proof: str) -> ssl.SSLContext:
        """A server's context for `localhost` with the fault that `proof` names (see `hostile_servers`)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        now = datetime.now(UTC)
        issue = self._authority.issue_cert
        match proof:
            case "expired":
                issue("localhost", not_before=now - 9 * DAY, not_after=now - DAY).configure_cert(context)
            case "early":
                issue("localhost", not_before=now + DAY, not_after=now + 9 * DAY).configure_cert(context)
            case "self-signed" | "weak":
                context.set_ciphers("DEFAULT:@SECLEVEL=0")
                self._load_own(context, self_signed=proof == "self-signed")
            case "stranger":
                trustme.CA().issue_cert("localhost").configure_cert(context)
            case "elsewhere":
                issue("elsewhere.test").configure_cert(context)
            case "common name":
                issue(common_name="localhost").configure_cert(context)
            case "wildcard":
                issue("*.localhost").configure_cert(context)
            case _:
                issue("localhost").configure_cert(context)
        if proof == "old TLS":
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        elif proof in ("anonymous", "in clear"):
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("aNULL:@SECLEVEL=0" if proof == "anonymous" else "eNULL:@SECLEVEL=0")
        return context

    def _load_own(self, context: ssl.SSLContext, *, self_signed: bool) -> None:
        """Load a certificate that trustme does not make: signed by itself, or by the authority for a key of 1024 bits."""
        own = rsa.generate_private_key(65537, 2048 if self_signed else 1024)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        authority = x509.load_pem_x509_certificate(self._authority.cert_pem.bytes())
        signer, issuer = own, name
        if not self_signed:
            signer = serialization.load_pem_private_key(self._authority.private_key_pem.bytes(), None)
            issuer = authority.subject
        certificate = (
            x509.CertificateBuilder(issuer, name, own.public_key(), x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - DAY)
            .not_valid_after(datetime.now(UTC) + DAY)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
            .sign(signer, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        key = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with tempfile.NamedTemporaryFile() as file:
            file.write(key + certificate.public_bytes(pem))
            file.flush()
            context.load_cert_chain(file.name)

    def write_pair(self, folder: Path, *names: str) -> tuple[Path, Path]:
        """Write a certificate for `names` and its key into `folder`; return both paths."""
        certificate = self._authority.issue_cert(*names)
        chain, key = folder / "cert.pem", folder / "key.pem"
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(key))
        return chain, key


# -- aiosmtpd, in a thread with a loop of its own ----------------------------------------------------------------------


class Inbox:
    """An aiosmtpd handler that keeps what it gets; `refusals` answers a recipient with something else than 250."""

    def __init__(self, refusals: Mapping[str, str] | None = None, *, pipelining: bool = False) -> None:
        self.messages: list[Any] = []
        self._refusals = refusals or {}
        self._pipelining = pipelining

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        session.host_name = hostname
        return [*responses[:-1], *(["250-PIPELINING"] if self._pipelining else []), responses[-1]]

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in self._refusals:
            return self._refusals[address]
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server, session, envelope):
        envelope.logged_in = bool(session.authenticated)
        self.messages.append(envelope)
        return "250 2.0.0 taken"


@contextlib.contextmanager
def aiosmtpd_server(
    handler: Any, *, implicit_tls: ssl.SSLContext | None = None, **options: Any
) -> Iterator[int]:
    """An aiosmtpd server on loopback; yields its port."""
    from aiosmtpd.smtp import SMTP

    started: Future[tuple[int, Callable[[], object]]] = Future()
    sessions: list[SMTP] = []

    def session() -> SMTP:
        options.setdefault("enable_SMTPUTF8", True)
        sessions.append(SMTP(handler, hostname="aiosmtpd.test", **options))
        return sessions[-1]

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        server = await loop.create_server(session, "127.0.0.1", 0, ssl=implicit_tls)
        port = server.sockets[0].getsockname()[1]
        started.set_result((port, functools.partial(loop.call_soon_threadsafe, stop.set)))
        await stop.wait()
        server.close()
        for open_session in sessions:
            if open_session.transport is not None:
                open_session.transport.abort()
        await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    port, stop = started.result(10)
    try:
        yield port
    finally:
        stop()
        thread.join(10)


def login_checker(username: str = USERNAME, password: str = PASSWORD) -> Callable[..., Any]:
    """An aiosmtpd authenticator for one login."""
    from aiosmtpd.smtp import AuthResult

    def check(server, session, envelope, mechanism, login):
        right = (login.login, login.password) == (username.encode(), password.encode())
        return AuthResult(success=right, handled=False, auth_data=login if right else None)

    return check


# -- Postfix ---------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A loopback port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, limit_s: float = 20.0) -> None:
    """Wait until something listens on `port`."""
    deadline = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port}")
        time.sleep(0.05)


@contextlib.contextmanager
def smtp_sink(*options: str, port: int | None = None) -> Iterator[int]:
    """Postfix's own sink on loopback; yields its port."""
    program = shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("smtp-sink (Debian package postfix) is not installed")
    port = port or free_port()
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = subprocess.Popen([program, *user, *options, f"127.0.0.1:{port}", "64"], start_new_session=True)
    try:
        wait_for_port(port)
        yield port
    finally:
        process.terminate()
        process.wait(10)


_MAIN_CF = """
compatibility_level = 3.6
queue_directory = {queue}
data_directory = {data}
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {log}
maillog_file_prefixes = /tmp
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = postfix.test
mydestination =
alias_maps =
alias_database =
mynetworks =
virtual_mailbox_domains = example.test
virtual_mailbox_base = {mail}
virtual_mailbox_maps = inline:{{ {{ to@example.test = inbox/ }}, {{ other@example.test = inbox/ }} }}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_reject_unlisted_recipient = yes
smtpd_forbid_bare_newline = yes
smtpd_tls_security_level = may
smtpd_tls_auth_only = yes
smtpd_tls_chain_files = {key}, {chain}
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = cyrus
smtpd_sasl_path = smtpd
cyrus_sasl_config_path = {sasl}
smtpd_sasl_local_domain = postfix.test
message_size_limit = 200000
"""

_MASTER_CF = """
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
error unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """A private Postfix instance: its port, and the messages in its mailbox."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port, self._mailbox, self._log = port, folder / "mail" / "inbox" / "new", folder / "log"

    def wait_for_message(self, limit_s: float = 20.0) -> bytes:
        """Wait for a delivered message and take it out of the mailbox."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            for path in sorted(self._mailbox.glob("*")):
                content = path.read_bytes()
                path.unlink()
                return content
            time.sleep(0.05)
        raise TimeoutError(f"no message arrived; the log says: {self._log.read_text()[-3000:]}")


@contextlib.contextmanager
def postfix_server(certificates: Certificates) -> Iterator[Postfix]:
    """Start Postfix as a real next hop on loopback, with STARTTLS and SASL."""
    if shutil.which("postconf") is None:
        pytest.skip("Postfix (postconf) is not installed")
    if os.geteuid() != 0:
        pytest.skip("Postfix must be started as root")
    if shutil.which("saslpasswd2") is None:
        pytest.skip("sasl2-bin (saslpasswd2) is not installed")
    owner, reader = pwd.getpwnam("postfix"), pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="postfix-", dir="/tmp") as name:
        folder, port = Path(name), free_port()
        folder.chmod(0o755)
        sasl = folder / "etc" / "sasl"  # where Debian's Postfix looks, whatever cyrus_sasl_config_path says
        for part in ("etc", "queue", "data", "mail", "etc/sasl"):
            (folder / part).mkdir(mode=0o755)
        os.chown(folder / "data", owner.pw_uid, owner.pw_gid)
        os.chown(folder / "mail", reader.pw_uid, reader.pw_gid)
        chain, key = certificates.write_pair(folder / "etc", "localhost")
        (folder / "etc" / "main.cf").write_text(
            _MAIN_CF.format(
                queue=folder / "queue",
                data=folder / "data",
                mail=folder / "mail",
                sasl=sasl,
                log=folder / "log",
                uid=reader.pw_uid,
                gid=reader.pw_gid,
                chain=chain,
                key=key,
            )
        )
        (folder / "etc" / "master.cf").write_text(_MASTER_CF.format(port=port))
        _write_sasl(sasl, owner)
        command = ["postfix", "-c", str(folder / "etc")]
        subprocess.run([*command, "start"], check=True, capture_output=True, timeout=60)
        try:
            wait_for_port(port)
            yield Postfix(port, folder)
        finally:
            subprocess.run([*command, "stop"], check=False, capture_output=True, timeout=60)


def _write_sasl(folder: Path, owner: pwd.struct_passwd) -> None:
    database = folder / "sasldb2"
    (folder / "smtpd.conf").write_text(
        f"pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {database}\nmech_list: PLAIN LOGIN\n"
    )
    subprocess.run(
        ["saslpasswd2", "-p", "-c", "-f", str(database), "-u", "postfix.test", USERNAME],
        input=PASSWORD.encode(),
        check=True,
        capture_output=True,
        timeout=30,
    )
    os.chown(database, owner.pw_uid, owner.pw_gid)
