"""The rate of one owner: a bucket that fills by the minute, bounded in number."""

import pytest

from mailkeep.intake import rate
from mailkeep.intake.rate import RateLimitedError, RateLimiter


def limiter(per_minute):
    """Return a limiter and the clock that a test moves."""
    clock = [0.0]
    return RateLimiter(per_minute, lambda: clock[0]), clock


def test_a_bucket_is_emptied_and_fills():
    """A minute's worth at once, then nothing, then what time brings; never more than a minute's worth."""
    limited, clock = limiter(60)
    limited.take("a", 60)
    with pytest.raises(RateLimitedError) as refused:
        limited.take("a", 10)
    assert refused.value.retry_after_s == 10
    limited.take("b", 60)
    clock[0] = 10.0
    limited.take("a", 10)
    clock[0] = 1000.0
    limited.take("a", 60)
    with pytest.raises(RateLimitedError):
        limited.take("a", 1)


def test_what_is_refused_takes_nothing():
    """After a refusal the rest is still there."""
    limited, _ = limiter(10)
    limited.take("a", 6)
    with pytest.raises(RateLimitedError):
        limited.take("a", 5)
    limited.take("a", 4)


def test_buckets_are_bounded(monkeypatch):
    """Past the bound that of who sent longest ago is forgotten."""
    monkeypatch.setattr(rate, "MAX_OWNERS", 2)
    limited, _ = limiter(1)
    for owner in ("a", "b", "c"):
        limited.take(owner, 1)
    limited.take("a", 1)
    with pytest.raises(RateLimitedError):
        limited.take("c", 1)
