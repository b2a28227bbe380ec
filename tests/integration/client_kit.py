"""A front between a client and the service, which passes requests on and loses answers on demand."""

import asyncio
from contextlib import asynccontextmanager


class Front:
    """Passes requests to `port`; `faults` says what happens to the next ones.

    `refuse`: cut without passing it on; `lose`: passed on, the answer thrown away; `tear`: half of the answer; `leave`:
    answered with `Connection: close`, but the connection stays; `twice`: answered twice; `stall`: nothing for ever;
    `503`; `page`: a web page of somebody else; "": nothing. `requests` are those seen.
    """

    def __init__(self, port):
        self._to_port = port
        self.faults = []
        self.requests = []
        self.connections = 0
        self._open = set()

    async def serve(self, reader, writer):
        """Serve one connection."""
        self.connections += 1
        self._open.add(asyncio.current_task())
        try:
            while True:
                await self._pass_one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, StopAsyncIteration):
            pass
        finally:
            self._open.discard(asyncio.current_task())
            writer.close()

    async def _pass_one(self, reader, writer):
        request = await _message(reader)
        self.requests.append(request)
        fault = self.faults.pop(0) if self.faults else ""
        match fault:
            case "refuse":
                raise StopAsyncIteration
            case "stall":
                await asyncio.sleep(3600)
            case "503":
                answer = b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
            case "page":
                answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"
            case _:
                answer = await self._ask(request)
        if fault == "lose":
            raise StopAsyncIteration
        if fault == "leave":
            answer = answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        writer.write(answer[: len(answer) // 2] if fault == "tear" else answer)
        await writer.drain()
        if fault == "tear":
            raise StopAsyncIteration
        if fault == "twice":
            await asyncio.sleep(0.05)
            writer.write(answer)

    async def _ask(self, request):
        reader, writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        writer.write(request)
        answer = await _message(reader)
        writer.close()
        return answer

    def cut(self):
        """Cut every open connection."""
        for task in self._open:
            task.cancel()

    def keys(self):
        """Return the idempotency keys of the requests seen."""
        return [_header(request, b"idempotency-key") for request in self.requests]


@asynccontextmanager
async def front(port, tls=None):
    """Run a front before `port`; yields it with `port` and `url`."""
    made = Front(port)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    made.url = f"http{'s' if tls else ''}://127.0.0.1:{made.port}"
    try:
        yield made
    finally:
        server.close()
        made.cut()
        await asyncio.sleep(0)


async def _message(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(int(_header(head, b"content-length") or 0))


def _header(message, name):
    for line in message.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        found, _, value = line.partition(b":")
        if found.lower() == name:
            return value.strip()
    return None
