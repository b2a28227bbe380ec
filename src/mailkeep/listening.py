"""A listening TCP socket for a host by name or number, and who is let in: what every server here begins with."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

PAUSE_S: Final = 1.0
"""While the process or the machine is out of file descriptors or memory: as long as asyncio's own servers wait."""
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def listen(host: str, port: int, *, backlog: int) -> socket.socket:
    """Return a socket that is bound to `host`:`port` (0: a free one) and holds `backlog` connections. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # A name that has both, such as localhost: where every client looks.
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return socket.create_server(cast("tuple[str, int]", address[:2]), family=family, backlog=backlog)


class Acceptor:
    """Accepts connections on `listening` and hands each to a new `protocol`, one a turn of the event loop.

    Where several processes share the socket, each takes its part so. A loop's own server takes all that wait at once: of
    twenty clients that keep their connections, whichever process woke first served all.
    """

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        tls: ssl.SSLContext | None = None,
        handshake_timeout_s: float | None = None,
    ) -> None:
        self._listening = listening
        self._protocol = protocol
        self._tls = tls
        self._handshake_timeout_s = handshake_timeout_s if tls else None
        self._loop = asyncio.get_running_loop()
        self._greeting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listening.settimeout(0)
        self._resume()

    def stop(self) -> None:
        """Accept no more; who is not through the handshake is dropped. The socket stays open."""
        if self._pause is None:
            self._loop.remove_reader(self._listening)
        else:
            self._pause.cancel()
        for task in self._greeting:
            task.cancel()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError as fault:  # another process was faster, or the peer has gone again
            if fault.errno in _OUT_OF_RESOURCES:
                self._loop.remove_reader(self._listening)
                self._pause = self._loop.call_later(PAUSE_S, self._resume)
            return
        task = self._loop.create_task(self._greet(connection))
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)

    async def _greet(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(0)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                self._protocol, connection, ssl=self._tls, ssl_handshake_timeout=self._handshake_timeout_s
            )
        except OSError:  # ssl.SSLError and TimeoutError among them: there is nobody to tell
            connection.close()
        except BaseException:
            connection.close()
            raise
