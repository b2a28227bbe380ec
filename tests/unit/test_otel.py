"""Which exporters the variables of OpenTelemetry ask for."""

import pytest

from mailkeep.telemetry import metrics, tracing
from mailkeep.telemetry.otel import TelemetryError, start, wanted

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environ", "traces", "readings"),
    [
        ({}, (), ()),
        (ENDPOINT, ("otlp",), ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, ("otlp",), ()),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, (), ("otlp",)),
        ({"OTEL_METRICS_EXPORTER": "prometheus, console"}, (), ("prometheus", "console")),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, (), ()),
    ],
)
def test_what_is_exported(environ, traces, readings):
    """Nothing without a variable; an endpoint alone is OTLP; names win; disabled is off."""
    assert (wanted(environ, "TRACES"), wanted(environ, "METRICS")) == (traces, readings)


@pytest.mark.parametrize(("signal", "name"), [("TRACES", "prometheus"), ("METRICS", "statsd")])
def test_an_unknown_exporter_is_named(signal, name):
    """A typing error stops the start with the variable and what there is."""
    with pytest.raises(TelemetryError, match=f"OTEL_{signal}_EXPORTER: '{name}' is none of: otlp, console"):
        start({f"OTEL_{signal}_EXPORTER": name})


def test_without_an_exporter_nothing_is_made():
    """No span, no ids, and the caller's `traceparent` goes through as it is."""
    telemetry = start({})
    telemetry.stop()
    with tracing.request_span("POST /", None) as span:
        assert not span.get_span_context().is_valid
        assert tracing.traceparent_of(span, "given") == "given"
    metrics.count(metrics.ACCEPTED, [("api",), ("api",)])


def test_names_are_unique_and_attributes_bounded():
    """Each metric stands once, under the product's prefix, with a handful of attributes at most."""
    names = [metric.name for metric in metrics.METRICS]
    assert len(names) == len(set(names))
    assert all(name.startswith("mail.") for name in names)
    assert all(len(metric.attributes) <= 2 for metric in metrics.METRICS)
