"""One trace from the request that brought a mail to each attempt to send it, across processes and hours.

The W3C `traceparent` of the accepting span is kept with the delivery; every attempt, by whichever replica and whenever, is a
child of it. Until `turn_on` was called nothing here costs more than a look at a flag. Attributes are ids, counts and the
words of the contract; never an address, a text of a server or what a request held.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Final
from uuid import UUID

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

MAX_LINKS: Final = 32
"""Of a span for a batch: the first producers; the deliveries themselves carry on all of them."""

_HEADER: Final = "traceparent"
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_NOTHING: Final = nullcontext(trace.INVALID_SPAN)
_tracer = trace.get_tracer("mailkeep")
_is_on = False
_follows_parents = False


def turn_on() -> None:
    """Make spans from now on, for the whole process, by the tracer provider that there is."""
    global _is_on, _follows_parents  # noqa: PLW0603 - there is one tracer provider a process, too
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - only for those who use it
    from opentelemetry.sdk.trace.sampling import ParentBased  # noqa: PLC0415

    provider = trace.get_tracer_provider()
    _is_on = True
    _follows_parents = isinstance(provider, TracerProvider) and isinstance(provider.sampler, ParentBased)


def request_span(name: str, traceparent: str | None) -> AbstractContextManager[Span]:
    """Return the span of one request, a child of the caller's."""
    return _span(name, SpanKind.SERVER, traceparent) if _is_on else _NOTHING


def batch_span(name: str) -> AbstractContextManager[Span]:
    """Return the span of one batch of commands."""
    return _span(name, SpanKind.CONSUMER, None) if _is_on else _NOTHING


def link(span: Span, traceparents: Iterable[str | None]) -> None:
    """Link `span` to what producers were doing; to the first `MAX_LINKS` of them."""
    if not span.is_recording():  # a share of all is
        return
    for traceparent in islice(filter(None, traceparents), MAX_LINKS):
        span.add_link(trace.get_current_span(_context(traceparent)).get_span_context())


def attempt_span(
    traceparent: str | None, *, delivery_id: UUID, number: int, route: str
) -> AbstractContextManager[Span]:
    """Return the span of one attempt, a child of what accepted the delivery."""
    if not _is_on:
        return _NOTHING
    attributes: dict[str, str | int] = {
        "mail.delivery.id": str(delivery_id),
        "mail.attempt.number": number,
        "mail.route": route,
    }
    return _span("attempt", SpanKind.CLIENT, traceparent, attributes)


def tell_outcome(span: Span, *, status: str, phase: str, rule: str, certainty: str, delivered: bool) -> None:
    """Put what came of an attempt on its span."""
    if not span.is_recording():
        return
    span.set_attributes(
        {
            "mail.attempt.status": status,
            "mail.attempt.phase": phase,
            "mail.attempt.rule": rule,
            "mail.attempt.certainty": certainty,
        }
    )
    if not delivered:
        span.set_status(Status(StatusCode.ERROR, rule))


def tell_status(span: Span, status: int) -> None:
    """Put the status of an answer on the span of its request."""
    if span.is_recording():
        span.set_attribute("http.response.status_code", status)
        if status >= 500:  # the caller's faults are not ours: semantic conventions of OpenTelemetry
            span.set_status(Status(StatusCode.ERROR))


def traceparent_of(span: Span, given: str | None = None) -> str | None:
    """Return the `traceparent` of `span`, or `given` where spans are not made."""
    own = span.get_span_context()
    if not own.is_valid:
        return given
    return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"


class _Current:
    """A span that is the current one while the body runs, and ends with it.

    Exceptions are not told to it: their words may hold what the request held. The API's own way is two generators dearer, and
    each mail has two spans.
    """

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self._span

    def __exit__(self, *_fault: object) -> None:
        context.detach(self._token)
        self._span.end()


def _span(
    name: str, kind: SpanKind, traceparent: str | None, attributes: dict[str, str | int] | None = None
) -> AbstractContextManager[Span]:
    span = _left_out(traceparent) if traceparent and _follows_parents else None
    return _Current(
        span or _tracer.start_span(name, context=_context(traceparent), kind=kind, attributes=attributes)
    )


def _left_out(traceparent: str) -> Span | None:
    """Return what stands for a span in a trace that is not sampled: most attempts, told apart without asking the sampler."""
    flags = int(traceparent[-2:], 16)
    if flags & TraceFlags.SAMPLED or not traceparent.startswith("00-"):
        return None
    caller = SpanContext(
        int(traceparent[3:35], 16), int(traceparent[36:52], 16), is_remote=True, trace_flags=TraceFlags(flags)
    )
    return NonRecordingSpan(caller) if caller.is_valid else None


def _context(traceparent: str | None) -> context.Context:
    return _PROPAGATOR.extract({_HEADER: traceparent}) if traceparent else context.Context()
