"""A receiver of OTLP over HTTP (opentelemetry-proto): what the service's telemetry is exported to while it is measured.

A process of its own, whose CPU is told apart. It answers each export at once, keeps it, and decodes it only when it is asked
what came, after the clock: what a collector makes of telemetry is no cost of a mail service.
"""

import asyncio
from collections import Counter
from multiprocessing.connection import Connection
from typing import Final, cast

import msgspec
import uvloop
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.child import Child

ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
MAX_KEPT_BYTES: Final = (
    512 * 1024 * 1024
)  # 200,000 messages with every trace; what comes after is counted only


class Received(msgspec.Struct):
    """What came: exports by path, spans and metric points by name."""

    exports: Counter[str] = msgspec.field(default_factory=Counter)
    size_bytes: int = 0
    spans: Counter[str] = msgspec.field(default_factory=Counter)
    points: Counter[str] = msgspec.field(default_factory=Counter)


class Exports:
    """What came, not looked at yet."""

    def __init__(self) -> None:
        self.received = Received()
        self.bodies: list[tuple[str, bytes]] = []

    def note(self, path: str, body: bytes) -> None:
        """Keep one export."""
        self.received.exports[path] += 1
        if self.received.size_bytes < MAX_KEPT_BYTES:
            self.bodies.append((path, body))
        self.received.size_bytes += len(body)

    def decoded(self) -> Received:
        """Return what came, decoded."""
        for path, body in self.bodies:
            if path.endswith("/traces"):
                for spans in ExportTraceServiceRequest.FromString(body).resource_spans:
                    self.received.spans.update(
                        span.name for scope in spans.scope_spans for span in scope.spans
                    )
            else:
                for metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    self.received.points.update(
                        metric.name for scope in metrics.scope_metrics for metric in scope.metrics
                    )
        self.bodies.clear()
        return self.received


class OtlpProtocol(asyncio.Protocol):
    """HTTP/1.1 with a Content-Length, as exporters speak it; also answers the prober's GET."""

    def __init__(self, exports: Exports) -> None:
        self._exports = exports
        self._buffer = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._buffer += data
        while (head_end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:head_end])
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
            end = head_end + 4 + int(length or 0)
            if len(self._buffer) < end:
                return
            if head.startswith(b"POST"):
                self._exports.note(head.split(b" ", 2)[1].decode(), bytes(self._buffer[head_end + 4 : end]))
            del self._buffer[:end]
            self._transport.write(ANSWER)


class Collector(Child):
    """The receiver's process; `endpoint` is what OTEL_EXPORTER_OTLP_ENDPOINT takes."""

    def __init__(self) -> None:
        super().__init__(_run)

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        port: int = self.ready
        return port

    @property
    def endpoint(self) -> str:
        """Return its URL."""
        return f"http://127.0.0.1:{self.port}"

    def received(self) -> Received:
        """Return all that came."""
        received: Received = self.ask("received")
        return received


def _run(pipe: Connection) -> None:
    uvloop.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    exports = Exports()
    server = await asyncio.get_running_loop().create_server(lambda: OtlpProtocol(exports), "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    while True:
        await asyncio.to_thread(pipe.recv)  # ends with the bench, by EOFError
        pipe.send(exports.decoded())
