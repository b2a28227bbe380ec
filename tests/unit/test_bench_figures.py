"""What a benchmark's instants say: rates, percentiles, and whether every mail arrived."""

from datetime import UTC, datetime, timedelta

from mailkeep.bench.figures import Cpu, Settled, findings, percentiles
from mailkeep.core.delivery import DeliveryStatus

BEGIN = datetime(2026, 3, 14, 15, 9, tzinfo=UTC)
CPU = Cpu(replicas=0, service_ms_per_mail=None, benchmark_ms_per_mail=0.1)


def settled(number, *, after_s=0.5, status=DeliveryStatus.SENT):
    """The `number`th mail of ten a second."""
    accepted_at = BEGIN + timedelta(seconds=number / 10)
    return Settled(accepted_at, accepted_at + timedelta(seconds=after_s), status)


def found(mails, *, accepted=None, refused=0):
    """The findings about `mails`."""
    return findings(
        via="http",
        accepted=len(mails) if accepted is None else accepted,
        refused=refused,
        settled=mails,
        request_ms=[],
        cpu=CPU,
    )


def test_percentiles_are_measured_values():
    """By nearest rank: of a hundred times the fiftieth and the ninety-ninth, of one that one, of none nothing."""
    times = [float(number) for number in range(100, 0, -1)]
    assert (percentiles(times).p50_ms, percentiles(times).p99_ms) == (50.0, 99.0)
    assert (percentiles([7.0]).p50_ms, percentiles([7.0]).p99_ms) == (7.0, 7.0)
    assert percentiles([]) is None


def test_rates_count_from_the_first_acceptance():
    """Eleven mails accepted within a second and sent half a second later."""
    told = found([settled(number) for number in range(11)])
    assert told.accepted_per_s == 11.0
    assert abs(told.sent_per_s - 11 / 1.5) < 1e-9
    assert told.accepted_to_sent.p99_ms == 500.0
    assert told.held


def test_one_that_is_missing_or_refused_is_no_success():
    """A mail that ended otherwise, one that nothing is known of, one that was refused: none is passed over."""
    assert found([settled(0), settled(1, status=DeliveryStatus.CANCELLED)]).not_sent == {"cancelled": 1}
    assert not found([settled(0), settled(1, status=DeliveryStatus.CANCELLED)]).held
    assert found([settled(0)], accepted=2).not_sent == {"unsettled": 1}
    assert not found([settled(0)], accepted=2).held
    assert not found([settled(0)], refused=1).held
    assert not found([]).held


def test_one_commit_has_a_rate():
    """Mails of one instant don't divide by zero."""
    assert found([settled(0, after_s=0.0)]).sent_per_s > 0
