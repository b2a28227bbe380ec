"""The exporters of OpenTelemetry's SDK. Imported by `telemetry.otel` only where one is configured."""

import uuid
from collections.abc import Callable, Mapping
from os import environ as own_environ
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from prometheus_client import start_http_server

from mailkeep.telemetry.otel import TelemetryError
from mailkeep.version import __version__

FLUSH_MS: Final = 3000
"""How long the end of a process waits for what is not exported yet."""
PROMETHEUS_HOST: Final = "localhost"
PROMETHEUS_PORT: Final = "9464"
"""Of the specification, for `OTEL_EXPORTER_PROMETHEUS_HOST` and `_PORT`."""


def export_traces(names: tuple[str, ...]) -> Callable[[], None]:
    """Export spans to each of `names`; return what flushes and ends it."""
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    for name in names:
        exporter = OTLPSpanExporter() if name == "otlp" else ConsoleSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    def stop() -> None:
        provider.force_flush(FLUSH_MS)
        provider.shutdown()

    return stop


def export_metrics(names: tuple[str, ...], environ: Mapping[str, str]) -> Callable[[], None]:
    """Export metrics to each of `names`; return what flushes and ends it. Raises `TelemetryError`."""
    provider = MeterProvider(
        [_reader(name, environ) for name in names], resource=_resource(), shutdown_on_exit=False
    )
    metrics.set_meter_provider(provider)

    def stop() -> None:
        provider.shutdown(FLUSH_MS)

    return stop


def _resource() -> Resource:
    # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME win over these.
    named = {} if "OTEL_SERVICE_NAME" in own_environ else {"service.name": "mailkeep"}
    return Resource.create(
        {"service.version": __version__, "service.instance.id": str(uuid.uuid4()), **named}
    )


def _reader(name: str, environ: Mapping[str, str]) -> MetricReader:
    match name:
        case "prometheus":
            _serve_prometheus(environ)
            return PrometheusMetricReader()
        case "otlp":
            return PeriodicExportingMetricReader(OTLPMetricExporter())
        case _:
            return PeriodicExportingMetricReader(ConsoleMetricExporter())


def _serve_prometheus(environ: Mapping[str, str]) -> None:
    host = environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or PROMETHEUS_HOST
    port = environ.get("OTEL_EXPORTER_PROMETHEUS_PORT") or PROMETHEUS_PORT
    try:
        start_http_server(int(port), host)
    except ValueError:
        raise TelemetryError(f"OTEL_EXPORTER_PROMETHEUS_PORT: {port!r} is no port") from None
    except OSError as fault:
        raise TelemetryError(
            f"OTEL_EXPORTER_PROMETHEUS_PORT: can't listen on {host}:{port}: {fault.strerror}; "
            "each process needs a port of its own"
        ) from fault
