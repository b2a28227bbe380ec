"""OpenTelemetry's SDK, set up from its own standard variables; without them nothing of it is even imported.

`OTEL_TRACES_EXPORTER` and `OTEL_METRICS_EXPORTER` name exporters (`otlp`, `console`, `prometheus` for metrics, `none`); with
`OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`, `…_METRICS_ENDPOINT`) alone it is `otlp` over HTTP. The rest (headers,
intervals, sampler, resource, `OTEL_SDK_DISABLED`) the SDK reads by itself. An exporter that fails says so in the log and
never stops mail. Called once a process by `serving`.
"""

import os
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from opentelemetry import trace

KNOWN: Final = {"TRACES": ("otlp", "console", "none"), "METRICS": ("otlp", "console", "prometheus", "none")}


class TelemetryError(ValueError):
    """An `OTEL_*` variable asks for what there is not; the message names it."""


class Telemetry(msgspec.Struct, frozen=True):
    """What is exported. `stop` flushes and ends it, within seconds."""

    traces: tuple[str, ...]
    metrics: tuple[str, ...]
    stop: Callable[[], None]


def wanted(environ: Mapping[str, str], signal: str) -> tuple[str, ...]:
    """Return the exporters that `environ` asks for; none where nothing is configured. Raises `TelemetryError`."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    named = environ.get(f"OTEL_{signal}_EXPORTER", "").strip()
    if not named:
        endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
        return ("otlp",) if any(environ.get(name) for name in endpoints) else ()
    names = tuple(name.strip() for name in named.split(","))
    for name in names:
        if name not in KNOWN[signal]:
            raise TelemetryError(f"OTEL_{signal}_EXPORTER: {name!r} is none of: {', '.join(KNOWN[signal])}")
    return tuple(name for name in names if name != "none")


def start(environ: Mapping[str, str] = os.environ) -> Telemetry:
    """Set the SDK up for this process as `environ` says. Raises `TelemetryError`."""
    spans, readings = wanted(environ, "TRACES"), wanted(environ, "METRICS")
    if not spans and not readings:
        return Telemetry((), (), lambda: None)
    from mailkeep.telemetry import exporters  # noqa: PLC0415 - the SDK costs memory and time: only for those who use it

    stops: list[Callable[[], None]] = []
    if spans:
        stops.append(exporters.export_traces(spans))
    if readings:
        stops.append(exporters.export_metrics(readings, environ))

    def stop() -> None:
        for each in stops:
            each()

    return Telemetry(spans, readings, stop)


def trace_ids() -> tuple[str, str] | None:
    """Return the ids of the current trace and span in hexadecimal, None outside of any."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
