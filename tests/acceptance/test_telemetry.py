"""What is exported over OTLP: one trace over processes, every metric that is declared, and nothing that is anybody's."""

import gzip
import json
import signal
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import redis
from harness import API, login_code, mails, rendered, submit_all, until
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mailkeep.drill.producer import template
from mailkeep.intake.stream import STREAM
from mailkeep.telemetry.metrics import DEAD_LETTERS, METRICS, TAKEOVERS, UNKNOWN

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
WEBHOOK_PATH = "/hook"


class Receiver:
    """An OTLP endpoint over HTTP that keeps what it gets, and a webhook that does not."""

    def __init__(self):
        self.spans, self.points, self.exemplars, self.raw = [], defaultdict(list), [], b""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.take(
                    self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
                )
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path, body):
        """Keep one export."""
        if path == WEBHOOK_PATH:
            return
        self.raw += body
        if path.endswith("/v1/traces"):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                process = attributes(resource.resource)["service.instance.id"]
                self.spans += [(process, span) for scope in resource.scope_spans for span in scope.spans]
            return
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    data = getattr(metric, metric.WhichOneof("data"))
                    self.points[metric.name] += [attributes(point) for point in data.data_points]
                    self.exemplars += [
                        (exemplar.trace_id.hex(), exemplar.span_id)
                        for point in data.data_points
                        for exemplar in point.exemplars
                    ]

    def named(self, name):
        """Return the spans of a name that belong to the trace of these tests, with their process."""
        return [
            (process, span)
            for process, span in self.spans
            if span.name == name and span.trace_id.hex() == TRACE_ID
        ]

    def stop(self):
        """Take nothing more."""
        self._server.shutdown()
        self._server.server_close()


def attributes(holder):
    """Return attributes as plain values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in holder.attributes}


@pytest.fixture
def receiver():
    """Run a receiver."""
    receiving = Receiver()
    yield receiving
    receiving.stop()


def exporting(receiver):
    """The variables of OpenTelemetry that send everything there, soon."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_METRIC_EXPORT_INTERVAL": "300",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }


def test_one_trace_from_the_request_to_an_attempt_of_another_process(deployment, receiver):
    """The caller's trace goes on in the request, in an attempt that fails, and in one after a kill and a restart."""
    sink = deployment.sink("defer")
    sink.ready()
    service = deployment.service(sink.port, **exporting(receiver)).start()
    mail = rendered(["ann@sinkhole.test"], traceparent=TRACEPARENT, idempotency_key="traced")
    status, answer = service.call("POST", f"{API}/deliveries", mail.body)
    assert status == 202
    until(lambda: receiver.named("attempt"), "the first attempt is exported")
    traced = {line["event"] for line in service.lines if line.get("otel_trace_id") == TRACE_ID}
    assert "attempt did not deliver" in traced
    until(
        lambda: (TRACE_ID, receiver.named("attempt")[0][1].span_id) in receiver.exemplars,
        "its duration has it as an example: what is not exported yet is lost with the process",
    )
    service.kill9()
    sink.mode("accept")
    service.start()
    service.flush(answer["delivery_id"])
    deployment.database.drain()
    until(lambda: len(receiver.named("attempt")) >= 2, "the second attempt is exported")
    (first_process, first), *_, (second_process, second) = receiver.named("attempt")
    assert first_process != second_process
    assert {attributes(first)["mail.delivery.id"], attributes(second)["mail.delivery.id"]} == {
        answer["delivery_id"]
    }
    assert attributes(first)["mail.attempt.status"] == "provider_rejected"
    assert attributes(second)["mail.attempt.status"] == "provider_accepted"
    until(
        lambda: (TRACE_ID, second.span_id) in receiver.exemplars,
        "the duration of the second attempt has it as an example",
    )


def test_a_request_without_a_trace_begins_one(deployment, receiver):
    """The request's own span is the parent of the attempt's."""
    sink = deployment.sink("accept")
    sink.ready()
    service = deployment.service(sink.port, **exporting(receiver)).start()
    submit_all(service, [login_code("ann@sinkhole.test")])
    deployment.database.drain()
    until(lambda: any(span.name == "attempt" for _, span in receiver.spans), "the attempt is exported")
    (attempt,) = [span for _, span in receiver.spans if span.name == "attempt"]
    until(
        lambda: [span for _, span in receiver.spans if span.span_id == attempt.parent_span_id],
        "its parent is exported",
    )
    (request,) = [span for _, span in receiver.spans if span.span_id == attempt.parent_span_id]
    assert request.name == "POST /api/v1/internal/login-code-deliveries"
    assert request.trace_id == attempt.trace_id
    assert not request.parent_span_id


@pytest.fixture
def webhooks_file(receiver, tmp_path):
    """Name the receiver as the webhook of everything."""
    file = tmp_path / "webhooks.toml"
    file.write_text(
        f'[webhook.shop]\nurl = "{receiver.endpoint}{WEBHOOK_PATH}"\nallow_private = true\n'
        'secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]\n'
    )
    return str(file)


def test_every_declared_metric_is_exported_and_nothing_personal(
    deployment, receiver, redis_server, webhooks_file
):
    """Names and attributes are those of the declarations; no address, code or subject is in any span, metric or line."""
    sink = deployment.sink("accept")
    sink.ready()
    told = exporting(receiver) | {"MAIL_WEBHOOKS_FILE": webhooks_file}
    service = deployment.service(
        sink.port,
        MAIL_RETRY_LADDER_TRANSACTIONAL="10ms",
        MAIL_REDIS_MASTER_ADDR=str(redis_server.socket),
        **told,
    ).start()
    with redis.Redis(unix_socket_path=str(redis_server.socket)) as client:
        client.xadd(STREAM, {"payload_json": '{"to": ["canary-jo@sinkhole.test"]}'})
    refused = rendered(["canary-hal@mail.invalid"])
    assert service.call("POST", refused.path, refused.body)[0] == 422
    marked = [
        login_code("canary-ann@sinkhole.test", code="73190264"),
        rendered(["canary-bo@sinkhole.test"]),
        rendered(["bounce+canary-cy@sinkhole.test"]),
        template(["canary-dee@sinkhole.test"]),
        *mails(20),
    ]
    fallback = template(["canary-eve@sinkhole.test"])
    fallback.body["payload"]["locale"] = "nl"
    submit_all(service, [*marked, fallback])
    deployment.database.drain()
    sink.mode("defer")
    submit_all(service, [rendered(["canary-fay@sinkhole.test"])])
    deployment.database.drain()
    until(lambda: DEAD_LETTERS.name in receiver.points, "the dead letter is exported")
    sink.mode("accept-then-drop")
    submit_all(service, [rendered(["canary-ida@sinkhole.test"])])
    until(lambda: UNKNOWN.name in receiver.points, "the unknown outcome is exported")
    sink.mode("stall@rcpt")
    submit_all(service, mails(3))
    until(lambda: "sending" in deployment.database.statuses().values(), "an attempt stalls")
    service.kill9()
    sink.mode("accept")
    other = deployment.service(
        sink.port, name="other", MAIL_REPLICA_TTL="2s", MAIL_REPLICA_HEARTBEAT="200ms", **told
    ).start()
    deployment.database.drain()
    until(lambda: receiver.points[TAKEOVERS.name], "the takeover is exported")
    stub = deployment.service(sink.port, name="stub", MAIL_SMTP_MODE="stub", **exporting(receiver)).start()
    submit_all(stub, [login_code("canary-gus@sinkhole.test")])
    declared = {metric.name: set(metric.attributes) for metric in METRICS}
    for name in sorted(declared):
        until(lambda name=name: name in receiver.points, f"{name} is exported", within_s=20)
    for process in (other, stub):
        process.signal(signal.SIGTERM)  # an orderly stop exports what is left
        assert process.wait() == 0
    for name, points in receiver.points.items():
        assert {frozenset(point) for point in points} == {frozenset(declared[name])}, name
    said = receiver.raw + b"".join(
        json.dumps(line).encode() for process in (service, other, stub) for line in process.lines
    )
    assert b"mail.delivery.id" in said
    for secret in (b"canary", b"73190264", b"Coffee", b"sinkhole.test"):
        assert secret not in said, secret
