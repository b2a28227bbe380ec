"""The peer Postfix: the system's own programs in a private instance, its queue on the bench's disk, tuned as a relay.

Touches nothing of the system's instance: configuration, queue, data and log are the bench's. Needs root, as Postfix's
master does. The parameters below are what served Postfix best among those tried; what is not named is its default.
It logs as it always does, to a file by its own postlogd, whose work counts as a syslog daemon's would not.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.peer import SERVICE, Intake, Peer, free_port
from bench.sink import Sink

PROGRAM: Final = Path("/usr/sbin/postfix")
COMMAND_TIMEOUT_S: Final = (
    60.0  # a start checks the queue, a stop waits 5 s for processes and then kills them
)

MAIN_CF: Final = """\
compatibility_level = 3.6
queue_directory = {queue}
data_directory = {data}
maillog_file = {log}
maillog_file_prefixes = {folder}
myhostname = postfix.bench.example.org
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
relayhost = [127.0.0.1]:{sink_port}

# Nothing on loopback is worth a question to DNS.
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtpd_peername_lookup = no

# Intake is not slowed while the queue grows (default 1s).
in_flow_delay = 0
# Full concurrency from the first delivery (default 5, rising to the limit of 20; 50 made no difference).
initial_destination_concurrency = 20
"""
PLAIN_CF: Final = """
# A new connection to a next hop on loopback is cheaper than the detour over scache (default yes; costs 20 % more CPU).
smtp_connection_cache_on_demand = no
"""
TLS_CF: Final = """
smtp_tls_security_level = encrypt
smtp_tls_CAfile = {ca_file}
smtp_tls_loglevel = 0
# Connections are used again, by way of tlsproxy.
smtp_tls_connection_reuse = yes
"""

MASTER_CF: Final = """\
# As Debian's, less the chroot and the services that a relay without TLS and local mail never calls.
127.0.0.1:{port} inet n - n - - smtpd
pickup     unix  n - n 60    1 pickup
cleanup    unix  n - n -     0 cleanup
qmgr       unix  n - n 300   1 qmgr
rewrite    unix  - - n -     - trivial-rewrite
bounce     unix  - - n -     0 bounce
defer      unix  - - n -     0 bounce
trace      unix  - - n -     0 bounce
flush      unix  n - n 1000? 0 flush
proxymap   unix  - - n -     - proxymap
smtp       unix  - - n -     - smtp
relay      unix  - - n -     - smtp
showq      unix  n - n -     - showq
error      unix  - - n -     - error
retry      unix  - - n -     - error
anvil      unix  - - n -     1 anvil
scache     unix  - - n -     1 scache
tlsmgr     unix  - - n 1000? 1 tlsmgr
tlsproxy   unix  - - n -     0 tlsproxy
postlog    unix-dgram n - n - 1 postlogd
"""


def postfix_missing() -> str | None:
    """Return why there can be no Postfix here, or None."""
    if not PROGRAM.exists():
        return "Postfix is not installed (Debian: apt-get install postfix)"
    if os.geteuid() != 0:
        return "Postfix starts only as root"
    return None


@contextmanager
def postfix(folder: Path, sink: Sink, name: str = "Postfix", intake: Intake = Intake.SMTP) -> Iterator[Peer]:
    """Run a private Postfix in the new folder `folder`, which relays everything to the sink."""
    queue, data, config = (folder / part for part in ("queue", "data", "config"))
    for directory in (queue, data, config):
        directory.mkdir(parents=True)
    shutil.chown(data, "postfix")
    port = free_port()
    main = MAIN_CF.format(queue=queue, data=data, log=folder / "log", folder=folder, sink_port=sink.port)
    main += TLS_CF.format(ca_file=sink.ca_file) if sink.behaviour.tls else PLAIN_CF
    (config / "main.cf").write_text(main)
    (config / "master.cf").write_text(MASTER_CF.format(port=port))
    pid_file = queue / "pid/master.pid"
    try:
        _run(PROGRAM, "-c", config, "start")
        facts = {"Postfix": _run(PROGRAM.with_name("postconf"), "-c", config, "-h", "mail_version")}
        roots = {SERVICE: int(pid_file.read_text())}
        yield Peer(name, intake, {intake: str(port)}, roots, facts)
    finally:
        if pid_file.exists():
            _run(PROGRAM, "-c", config, "stop")


def _run(*command: str | Path) -> str:
    """Run a command of Postfix's to its end, even if the bench is interrupted meanwhile; return what it prints."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=COMMAND_TIMEOUT_S)
    finally:
        process.wait(COMMAND_TIMEOUT_S)  # half a start could not be stopped
    if process.returncode:
        raise BenchError(f"{command[0]} {command[-1]} failed: {said.strip()}")
    return said.strip()
