"""Spans: whose trace they belong to, which are left out, and what they never tell."""

from uuid import uuid4

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, DEFAULT_ON, ParentBased

from mailkeep.telemetry import tracing

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
NOT_SAMPLED = f"00-{TRACE_ID}-00f067aa0ba902b7-00"
NOBODY = f"00-{'0' * 32}-{'0' * 16}-00"


@pytest.fixture
def spans(monkeypatch):
    """Return what turns tracing on with a sampler, and answers the spans that were exported."""

    def on(sampler):
        provider, exporter = TracerProvider(sampler=sampler, shutdown_on_exit=False), InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
        monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("mailkeep"))
        monkeypatch.setattr(tracing, "_is_on", False)
        monkeypatch.setattr(tracing, "_follows_parents", False)
        tracing.turn_on()
        return exporter.get_finished_spans

    return on


def one_mail(traceparent):
    """Let a request and an attempt be traced; answer the `traceparent` that was kept in between."""
    with tracing.request_span("POST /", traceparent) as span:
        kept = tracing.traceparent_of(span, traceparent)
        tracing.tell_status(span, 202)
    with tracing.attempt_span(kept, delivery_id=uuid4(), number=1, route="default") as span:
        tracing.tell_outcome(
            span, status="provider_accepted", phase="dot", rule="ok", certainty="certain", delivered=True
        )
    assert not trace.get_current_span().get_span_context().is_valid
    return kept


def test_a_sampled_trace_goes_on_in_the_request_and_its_attempt(spans):
    """Each is a child of the one before."""
    exported = spans(DEFAULT_ON)
    kept = one_mail(SAMPLED)
    request, attempt = exported()
    assert kept == f"00-{TRACE_ID}-{request.context.span_id:016x}-{request.context.trace_flags:02x}"
    assert f"{request.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert attempt.parent.span_id == request.context.span_id
    assert {f"{span.context.trace_id:032x}" for span in (request, attempt)} == {TRACE_ID}
    assert request.attributes["http.response.status_code"] == 202
    assert attempt.attributes["mail.attempt.status"] == "provider_accepted"


def test_a_trace_that_is_not_sampled_costs_no_span_and_keeps_its_id(spans):
    """The caller decided; lines of the log still find each other by the id."""
    exported = spans(DEFAULT_ON)
    with tracing.request_span("POST /", NOT_SAMPLED) as span:
        assert not span.is_recording()
        assert f"{trace.get_current_span().get_span_context().trace_id:032x}" == TRACE_ID
    assert one_mail(NOT_SAMPLED) == NOT_SAMPLED
    assert not exported()


def test_a_trace_that_begins_here_and_is_not_sampled_is_left_out_to_its_end(spans):
    """The attempt follows the request, also where it would be asked anew."""
    exported = spans(ParentBased(ALWAYS_OFF))
    kept = one_mail(None)
    assert kept is not None
    assert not int(kept[-2:], 16) & 1
    assert not exported()


@pytest.mark.parametrize("traceparent", [None, NOBODY, f"ff-{TRACE_ID}-00f067aa0ba902b7-00"])
def test_where_nobody_decided_the_sampler_does(spans, traceparent):
    """No caller, and one whose ids say nothing."""
    exported = spans(DEFAULT_ON)
    one_mail(traceparent)
    assert [span.name for span in exported()] == ["POST /", "attempt"]


def test_a_sampler_that_asks_no_parent_is_asked(spans):
    """`always_on` means always."""
    exported = spans(ALWAYS_ON)
    one_mail(NOT_SAMPLED)
    assert [f"{span.context.trace_id:032x}" for span in exported()] == [TRACE_ID, TRACE_ID]


def test_no_span_tells_what_an_exception_said(spans):
    """It may hold what the request held; the span ends all the same."""
    exported = spans(DEFAULT_ON)
    for begin in (
        lambda: tracing.request_span("POST /", None),
        lambda: tracing.batch_span("take commands"),
    ):
        with pytest.raises(ValueError, match="ann@example.org"), begin():
            raise ValueError("ann@example.org")
    first, second = exported()
    assert not first.events
    assert not second.events
    assert "ann@" not in first.to_json() + second.to_json()
