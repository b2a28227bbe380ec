"""A receiver of webhooks for tests: a real HTTP(S) server that answers as it is told, and keeps what it got."""

import asyncio
import json
import ssl

import trustme
from standardwebhooks import Webhook

from mailkeep.core.webhook import SECRET_PREFIX
from mailkeep.settings import Secret, WebhookSettings

SECRET = f"{SECRET_PREFIX}MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = f"{SECRET_PREFIX}b2xkIHNlY3JldCBvZiB0aGUgcmVjZWl2ZXIhISE="
PATIENCE_S = 60


class Receiver:
    """Answers each request with `answer(nth)`: a status, or a coroutine function that is given the writer."""

    def __init__(self):
        self.requests = []
        self.answer = lambda _nth: 200
        self.arrived = asyncio.Condition()
        self.port = 0
        self.scheme = "http"

    async def start(self, tls=None):
        """Listen on a loopback port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.scheme = "https" if tls else "http"

    def stop(self):
        """Listen no longer."""
        self._server.close()

    def settings(self, **fields):
        """Return settings of a webhook that is this receiver."""
        values = {
            "name": "shop",
            "url": Secret(f"{self.scheme}://127.0.0.1:{self.port}/hook?token=hidden"),
            "secrets": (Secret(SECRET),),
            "allow_private": True,
        }
        return WebhookSettings(**values | fields)

    async def got(self, count):
        """Wait until `count` requests came and return them all."""
        async with asyncio.timeout(PATIENCE_S), self.arrived:
            await self.arrived.wait_for(lambda: len(self.requests) >= count)
        return list(self.requests)

    @property
    def events(self):
        """What was told, in order."""
        return [json.loads(body) for _, body in self.requests]

    async def _serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                fields = (line.split(": ", 1) for line in head[1:] if line)
                headers = {name.lower(): value for name, value in fields}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                async with self.arrived:
                    self.requests.append(({"request": head[0], **headers}, body))
                    nth = len(self.requests)
                    self.arrived.notify_all()
                answer = self.answer(nth)
                if callable(answer):
                    await answer(writer)
                    return
                writer.write(f"HTTP/1.1 {answer} As Told\r\ncontent-length: 2\r\n\r\nok".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()


def verified(headers, body, secret=SECRET):
    """Check the signature as a receiver does, with the library of the standard; answers the event."""
    return Webhook(secret).verify(body, headers)


def authority():
    """Return an authority, and a TLS context of a server at 127.0.0.1 and localhost that it vouches for."""
    ca = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1", "localhost").configure_cert(tls)
    return ca, tls
