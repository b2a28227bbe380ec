"""The metrics of Mailkeep, through the OpenTelemetry API: declared once with their meaning, recorded by the rooms.

While no exporter is configured (`telemetry.otel`) every instrument is a no-op of the API. On the hot path they are recorded
for a batch at once where a batch exists. Attributes are the words of the contract (source, status, route, phase, failure
code), never an address, an id or a text of a server. The reference page is generated from `METRICS`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation


class Metric(msgspec.Struct, frozen=True):
    """One instrument. `kind` is counter, histogram or gauge; `alert` is for the person on call, empty: nobody need look."""

    name: str
    kind: str
    unit: str
    meaning: str
    attributes: tuple[str, ...] = ()
    alert: str = ""


DEPTH: Final = Metric(
    "mail.attempt_schedule.depth",
    "gauge",
    "{delivery}",
    "Deliveries that wait for an attempt, of the whole queue: each replica reports the same.",
    ("class",),
    "when it grows for longer than an outage of a next hop explains",
)
OLDEST_AGE: Final = Metric(
    "mail.attempt_schedule.oldest_age_ms",
    "gauge",
    "ms",
    "How long the delivery that is due longest has been due; 0 when none is.",
    ("class",),
    "above 60,000 for class auth, above 600,000 for others",
)
ACCEPTED: Final = Metric(
    "mail.delivery.accepted", "counter", "{delivery}", "Deliveries made durable.", ("source",)
)
TRANSITIONS: Final = Metric(
    "mail.delivery.status_transitions",
    "counter",
    "{delivery}",
    "Deliveries that an attempt or a takeover moved from one status to another.",
    ("from", "to"),
)
DEAD_LETTERS: Final = Metric(
    "mail.delivery.dead_letters",
    "counter",
    "{delivery}",
    "Deliveries that became dead letters.",
    ("cause",),
    "on any increase of cause poison; on a burst of cause ladder_exhausted",
)
SUPPRESSED: Final = Metric(
    "mail.delivery.suppressed",
    "counter",
    "{delivery}",
    "Deliveries that ended suppressed: in stub mode, by the suppression list or by a provider's policy.",
    ("source",),
    "on a burst of source authsession",
)
OUTCOMES: Final = Metric(
    "mail.attempt.outcomes",
    "counter",
    "{attempt}",
    "Attempts recorded, by how they ended.",
    ("status",),
    "when provider_accepted falls far below the others",
)
UNKNOWN: Final = Metric(
    "mail.attempt.unknown_outcomes",
    "counter",
    "{attempt}",
    "Attempts whose final dot left and whose reply never came: the receiver may have the mail.",
    (),
    "when more than one in ten thousand: raise MAIL_SMTP_DATA_TIMEOUT or look at the network",
)
SEND_DURATION: Final = Metric(
    "mail.provider.send.duration_ms",
    "histogram",
    "ms",
    "How long attempts took at the next hop, by route and by the phase they ended in (`dot` is a whole transaction).",
    ("route", "phase"),
    "when the 99th percentile nears MAIL_SMTP_TIMEOUT",
)
HOP_OUT: Final = Metric(
    "mail.next_hop.out",
    "gauge",
    "1",
    "1 while the breaker of a next hop is open for this replica, so that its mail is parked; else 0.",
    ("route",),
    "when it stays 1 for minutes",
)
IN_FLIGHT: Final = Metric(
    "mail.replica.in_flight", "gauge", "{delivery}", "Deliveries that this replica holds in memory."
)
MALFORMED: Final = Metric(
    "mail.stream_commands.malformed",
    "counter",
    "{command}",
    "Commands of the stream that could not be taken.",
    ("failure_code",),
    "on any increase: a producer is wrong",
)
RESERVED_DOMAIN: Final = Metric(
    "mail.reserved_domain.refused",
    "counter",
    "{refusal}",
    "Mail for a reserved domain (.test, .example, .invalid, .localhost) that was refused: at intake (http, stream, sql), or "
    "at its route, where it must not come.",
    ("at",),
    "on any increase of at=route; of the others when frequent: a producer holds test data",
)
LOCALE_FALLBACK: Final = Metric(
    "mail.template.locale_fallback",
    "counter",
    "{delivery}",
    "Deliveries rendered in another locale than the one asked for.",
    ("template", "locale"),
)
TAKEOVERS: Final = Metric(
    "mail.queue.takeovers",
    "counter",
    "{delivery}",
    "Deliveries taken over from replicas that were lost or stopped.",
    (),
    "when it rises without a restart: replicas are lost",
)
WEBHOOK_EVENTS: Final = Metric(
    "mail.webhook.events",
    "counter",
    "{event}",
    "Events posted to webhooks: told, failed (and tried again) or given up.",
    ("webhook", "outcome"),
    "on any increase of given_up; when failed rises and told does not",
)

WEBHOOK_BEHIND: Final = Metric(
    "mail.webhook.behind_ms",
    "gauge",
    "ms",
    "How long the oldest event that a webhook is still to be told has waited; 0 when there is none, no value while it is disabled. "
    "Each replica reports the same.",
    ("webhook",),
    "when it stays above 600,000: the receiver is away, or nobody posts",
)
WEBHOOK_WAITING: Final = Metric(
    "mail.webhook.waiting",
    "gauge",
    "{event}",
    "Events that a webhook is still to be told, counted up to 10,000 ahead of it and again among those that failed before.",
    ("webhook",),
)

METRICS: Final = (
    DEPTH,
    OLDEST_AGE,
    ACCEPTED,
    TRANSITIONS,
    DEAD_LETTERS,
    SUPPRESSED,
    OUTCOMES,
    UNKNOWN,
    SEND_DURATION,
    HOP_OUT,
    IN_FLIGHT,
    MALFORMED,
    RESERVED_DOMAIN,
    LOCALE_FALLBACK,
    TAKEOVERS,
    WEBHOOK_EVENTS,
    WEBHOOK_BEHIND,
    WEBHOOK_WAITING,
)
DURATION_BOUNDS_MS: Final = (
    1,
    2,
    5,
    10,
    25,
    50,
    100,
    250,
    500,
    1000,
    2500,
    5000,
    10_000,
    30_000,
    60_000,
    600_000,
)
"""From a next hop on the same machine to one that takes its whole time for the answer to the final dot."""

_METER: Final = metrics.get_meter("mailkeep")
_COUNTERS: Final = {
    metric.name: _METER.create_counter(metric.name, metric.unit, metric.meaning)
    for metric in METRICS
    if metric.kind == "counter"
}
_totals: Counter[str] = Counter()
_SEND_DURATION: Final = _METER.create_histogram(
    SEND_DURATION.name,
    SEND_DURATION.unit,
    SEND_DURATION.meaning,
    explicit_bucket_boundaries_advisory=DURATION_BOUNDS_MS,
)


def count(metric: Metric, events: Iterable[tuple[str, ...]]) -> None:
    """Add one for each of `events`: the values of the metric's attributes, in their order."""
    counter = _COUNTERS[metric.name]
    for values, number in Counter(events).items():
        counter.add(number, dict(zip(metric.attributes, values, strict=True)))
        if metric is ACCEPTED:
            _totals["accepted"] += number
        elif metric is OUTCOMES:
            _totals[values[0]] += number


def totals() -> dict[str, int]:
    """Return what this process did since it began, exported or not: deliveries `accepted`, attempts by status."""
    return dict(_totals)


def observe_send(duration_ms: float, *, route: str, phase: str) -> None:
    """Record how long one attempt took at its next hop."""
    _SEND_DURATION.record(duration_ms, {"route": route, "phase": phase})


def observe(metric: Metric, read: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
    """Let exporters read the gauge `metric`: `read` returns its values by those of its attributes, at once.

    It is called in a thread of the exporter's.
    """

    def observed(_options: CallbackOptions) -> Iterable[Observation]:
        for values, value in read().items():
            yield Observation(value, dict(zip(metric.attributes, values, strict=True)))

    _METER.create_observable_gauge(metric.name, [observed], metric.unit, metric.meaning)
