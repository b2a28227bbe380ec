"""The load of the chaos drill: so many mails a second, over HTTP and the stream, each repeated until it is taken.

It behaves as a producer should: whatever is not acknowledged is submitted again, to the next replica, under the same key.
While nobody takes anything the load waits with it instead of piling up.
"""

import http.client
import json
import queue
import random
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import redis

from mailkeep.core.delivery import DeliveryClass, Guarantee, Source
from mailkeep.core.ids import new_id
from mailkeep.drill.ledger import Answer, Submission
from mailkeep.drill.producer import DOMAIN, mail, post, rendered
from mailkeep.intake.stream import STREAM

PRODUCERS: Final = 12
"""Requests under way: a frozen replica holds each that reaches it for `TIMEOUT_S`."""
MAX_WAITING: Final = 2 * PRODUCERS
TIMEOUT_S: Final = 3.0
PAUSE_S: Final = 0.2
"""Between two tries, about."""
REDIS_TIMEOUT_S: Final = 3.0
REPEATED: Final = frozenset({HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS})
"""Refusals that pass: the first try is still under way, or too much is."""


class SteadyLoad:
    """`mails_per_s` mails to the replicas at `ports`, and to the stream if there is a Redis, from `start` to `finish`."""

    def __init__(self, ports: Sequence[int], redis_socket: Path | None, mails_per_s: float) -> None:
        self._ports, self._redis_socket, self._gap_s = tuple(ports), redis_socket, 1.0 / mails_per_s
        self.submissions: list[Submission] = []
        self.refused: list[Submission] = []
        """Those that were refused for good: none should be."""
        self.accepted_count = 0
        self._counting = threading.Lock()
        self._waiting: queue.Queue[Submission | None] = queue.Queue(MAX_WAITING)
        self._has_ended, self._gives_up = threading.Event(), threading.Event()
        self._feeder = threading.Thread(target=self._feed, name="feeder", daemon=True)
        self._producers = [
            threading.Thread(target=self._produce, args=(first,), name="producer", daemon=True)
            for first in range(PRODUCERS)
        ]

    def start(self) -> None:
        """Begin to submit."""
        self._feeder.start()
        for producer in self._producers:
            producer.start()

    def finish(self, within_s: float) -> bool:
        """Submit nothing new, repeat the rest until it is taken; false if some was not within `within_s`."""
        ends_at = time.monotonic() + within_s
        self._has_ended.set()
        for thread in (self._feeder, *self._producers):
            thread.join(max(ends_at - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._producers)

    def abandon(self) -> None:
        """Give up whatever is still under way."""
        self._has_ended.set()
        self._gives_up.set()

    def _feed(self) -> None:
        number = 0
        next_at = time.monotonic()
        while not self._has_ended.wait(max(next_at - time.monotonic(), 0.0)):
            submission = self._submission(number)
            if self._give(submission):
                self.submissions.append(submission)
                number += 1
            next_at = max(next_at + self._gap_s, time.monotonic() - self._gap_s)
        for _ in self._producers:
            self._waiting.put(None)  # behind all that waits

    def _give(self, submission: Submission) -> bool:
        try:
            self._waiting.put(submission, timeout=PAUSE_S)
        except queue.Full:
            return False
        return True

    def _submission(self, number: int) -> Submission:
        """Return the next mail: every fifth by the stream; of the rest some at most once, some of class relay."""
        if self._redis_socket is not None and number % 5 == 4:
            return _for_stream(number)
        fields: list[dict[str, Any]] = [
            {},
            {"guarantee": Guarantee.AT_MOST_ONCE},
            {"class": DeliveryClass.RELAY},
        ]
        return mail(number, **fields[number % len(fields)])

    def _produce(self, first: int) -> None:
        ports = cycle(islice(cycle(self._ports), first, first + len(self._ports)))
        connections = {
            port: http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S) for port in self._ports
        }
        stream = None if self._redis_socket is None else _stream(self._redis_socket)
        while (submission := self._waiting.get()) is not None:
            while not self._gives_up.is_set():
                if submission.path == STREAM and stream is not None:
                    answer = _add(stream, submission)
                else:
                    answer = post(connections[next(ports)], submission)
                submission.answers.append(answer)
                if answer is not None and not _passes(answer):
                    self._note(submission, answer)
                    break
                self._gives_up.wait(PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        for connection in connections.values():
            connection.close()
        if stream is not None:
            stream.close()

    def _note(self, submission: Submission, answer: Answer) -> None:
        if answer.delivery_id is None:
            self.refused.append(submission)
            return
        with self._counting:
            self.accepted_count += 1


def _passes(answer: Answer) -> bool:
    return answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status in REPEATED


def _for_stream(number: int) -> Submission:
    base = rendered([f"stream-{number}-{random.randrange(16**8):08x}@{DOMAIN}"])  # noqa: S311 - a name, not a secret
    fields = {
        "delivery_id": str(new_id(time.time())),
        "source": Source.NOTIFICATION.value,
        "payload_mode": base.body["payload_mode"],
        "idempotency_key": base.key,
        "requested_at_ms": str(time.time_ns() // 1_000_000),
        "payload_json": json.dumps(base.body["payload"]),
    }
    return Submission(base.key, STREAM, fields, base.recipients)


def _stream(socket: Path) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=str(socket),
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
        protocol=2,
    )


def _add(stream: redis.Redis, submission: Submission) -> Answer | None:
    """Put `submission` into the stream once; None if Redis did not say that it has it."""
    try:
        stream.xadd(STREAM, submission.body)  # type: ignore[arg-type] # redis-py's mapping is invariant
    except redis.RedisError:
        return None
    return Answer(HTTPStatus.OK, submission.body["delivery_id"])
