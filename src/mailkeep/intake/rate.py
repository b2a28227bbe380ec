"""How much one token may send: a bucket for each owner, which fills by the minute. In memory, for this process alone."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

MAX_OWNERS: Final = 10_000
"""Buckets kept; past it that of who sent longest ago is forgotten, and full again."""


class RateLimitedError(Exception):
    """The bucket holds too little; after `retry_after_s`, at least 1, it will hold enough."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"try again after {retry_after_s} s")
        self.retry_after_s = retry_after_s


class RateLimiter:
    """Lets each owner have `per_minute`, at once or one by one."""

    def __init__(self, per_minute: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, owner: str, count: int) -> None:
        """Take `count` from the bucket of `owner`, or nothing. Raises `RateLimitedError`."""
        now_s = self._monotonic()
        level, at_s = self._buckets.pop(owner, (float(self._per_minute), now_s))
        level = min(level + (now_s - at_s) * self._per_minute / 60, self._per_minute)
        is_enough = level >= count
        self._buckets[owner] = (level - count if is_enough else level, now_s)
        if len(self._buckets) > MAX_OWNERS:
            self._buckets.popitem(last=False)
        if not is_enough:
            raise RateLimitedError(max(math.ceil((count - level) * 60 / self._per_minute), 1))
