"""The accounting ledger: three records that do not trust each other, and the rules that must hold between them.

What the producer was answered, what the store holds at the end (with every change of a status, noted by a trigger of
ours), and what the next hop took. `broken_rules` compares them after a full drain and names each rule that is broken.
Pure: `witness` and `producer` gather the records for the chaos drill and for acceptance tests.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

import msgspec

from mailkeep.core.delivery import (
    BIRTH,
    TERMINAL,
    TRANSITIONS,
    WAITING,
    AttemptStatus,
    Certainty,
    DeliveryClass,
    DeliveryStatus,
    Guarantee,
)
from mailkeep.core.queue import POISON_TAKEOVERS

SENT: Final = frozenset({DeliveryStatus.SENT})
IN_QUEUE: Final = WAITING | {DeliveryStatus.SENDING, DeliveryStatus.HELD}
MAX_SHOWN: Final = 20
"""Broken rules in one message: beyond that more of them say nothing new."""


class Answer(msgspec.Struct, frozen=True):
    """What the producer read: an HTTP status and, where the mail was taken, its id."""

    status: int
    delivery_id: str | None = None
    is_replayed: bool = False
    retry_after: str | None = None


class Submission(msgspec.Struct):
    """One mail of the producer under its key, and every answer to it; None where the connection was cut."""

    key: str
    path: str
    body: dict[str, Any]
    recipients: tuple[str, ...]
    answers: list[Answer | None] = msgspec.field(default_factory=list)

    @property
    def ids(self) -> set[str]:
        """The ids under which it was taken: more than one is a fault."""
        return {answer.delivery_id for answer in self.answers if answer and answer.delivery_id}


class Attempt(msgspec.Struct, frozen=True):
    """One attempt as recorded."""

    number: int
    status: str
    certainty: str


class Delivery(msgspec.Struct, frozen=True):
    """One delivery as stored. `history` holds every status it ever had, in the order of the commits."""

    id: str
    status: str
    recipient_states: str
    attempt_count: int
    attempts: tuple[Attempt, ...]
    history: tuple[str, ...]
    guarantee: str = Guarantee.AT_LEAST_ONCE
    is_sensitive: bool = False
    delivery_class: str = DeliveryClass.TRANSACTIONAL
    about_id: str | None = None
    """Of a bounce: the delivery that its sender is told of."""

    @property
    def unserved_count(self) -> int:
        """Recipients who will not get it."""
        states = self.recipient_states
        given_up = self.status in {DeliveryStatus.DEAD_LETTER, DeliveryStatus.EXPIRED}
        return states.count("f") + states.count("x") + given_up * states.count("o")


class Copy(msgspec.Struct, frozen=True):
    """One message that the next hop took."""

    message_id: str
    recipients: tuple[str, ...]
    sha256: str
    anomalies: tuple[str, ...] = ()

    @property
    def delivery_id(self) -> str:
        """The delivery that the Message-ID names."""
        return self.message_id.strip("<>").partition("@")[0]


class Ledger(msgspec.Struct, frozen=True):
    """All three records. Of the store: deliveries by id, idempotency keys (key -> id), ids of payloads and dead letters."""

    submissions: tuple[Submission, ...]
    deliveries: Mapping[str, Delivery]
    keys: Mapping[str, str]
    payloads: frozenset[str]
    copies: tuple[Copy, ...]
    sender: str = ""
    """Whose mail it is, and who gets the bounces."""
    dead_letters: frozenset[str] = frozenset()
    ends: frozenset[DeliveryStatus] = SENT
    rungs: int | None = None
    """Waits of every class's ladder; None where dead letters are not judged by it."""


class Broken(msgspec.Struct, frozen=True):
    """One rule that one thing breaks."""

    rule: str
    subject: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.rule}: {self.subject} {self.why}".rstrip()


def check_ledger(ledger: Ledger) -> None:
    """Raise AssertionError that names every broken rule. Call after a drain: before it, nothing can be judged."""
    if found := broken_rules(ledger):
        raise AssertionError(f"{len(found)} broken rules\n" + "\n".join(map(str, found[:MAX_SHOWN])))


def broken_rules(ledger: Ledger) -> list[Broken]:
    """Return every rule that `ledger` breaks."""
    return [broken for rule in _RULES for broken in rule(ledger)]


def copies_of(ledger: Ledger) -> dict[str, Counter[str]]:
    """Return delivery id -> how many copies each of its recipients got."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for copy in ledger.copies:
        counts[copy.delivery_id].update(copy.recipients)
    return counts


# -- the rules -----------------------------------------------------------------------------------------------------


def _nothing_lost(ledger: Ledger) -> Iterator[Broken]:
    """Find what was answered 2xx and is not stored."""
    for submission in ledger.submissions:
        for delivery_id in submission.ids - ledger.deliveries.keys():
            yield Broken("lost", delivery_id, f"was answered to {submission.key} and is not stored")


def _nothing_unasked(ledger: Ledger) -> Iterator[Broken]:
    """Find what is stored and was not submitted, or arrived and was not stored for that recipient; bounces ask themselves."""
    submitted = {submission.key: submission for submission in ledger.submissions}
    wanted: dict[str, tuple[str, ...]] = {
        delivery.id: (ledger.sender,) for delivery in ledger.deliveries.values() if delivery.about_id
    }
    for key, delivery_id in ledger.keys.items():
        if key in submitted:
            wanted[delivery_id] = submitted[key].recipients
        elif delivery_id not in wanted:
            yield Broken("unasked", delivery_id, f"is stored under {key}, which nobody submitted")
    for copy in ledger.copies:
        if not set(copy.recipients) <= set(wanted.get(copy.delivery_id, ())):
            yield Broken("unasked", copy.delivery_id, "went to somebody who was not asked for")


def _senders_are_told(ledger: Ledger) -> Iterator[Broken]:
    """Relayed mail that somebody will not get has a bounce, one for each of them at most; nothing else has any."""
    told = Counter(delivery.about_id for delivery in ledger.deliveries.values() if delivery.about_id)
    for delivery in ledger.deliveries.values():
        is_owed = (
            delivery.delivery_class == DeliveryClass.RELAY
            and not delivery.is_sensitive
            and not delivery.about_id
        )
        most = delivery.unserved_count if is_owed else 0
        if not min(most, 1) <= told[delivery.id] <= most:
            yield Broken(
                "bounces", delivery.id, f"{told[delivery.id]} bounces for {most} who will not get it"
            )
    for about_id in told.keys() - ledger.deliveries.keys():
        yield Broken("bounces", str(about_id), "has a bounce and is not stored")


def _one_id_a_key(ledger: Ledger) -> Iterator[Broken]:
    """Every answer to one key names the delivery that the store has under it; a first answer is followed by replays."""
    for submission in ledger.submissions:
        if submission.ids - {ledger.keys.get(submission.key)}:
            yield Broken("two ids", submission.key, f"was answered {sorted(submission.ids)}")
        taken = [answer for answer in submission.answers if answer and answer.delivery_id]
        if not all(answer.is_replayed for answer in taken[1:]):
            yield Broken("two ids", submission.key, "was taken as new more than once")


def _keys_and_deliveries_agree(ledger: Ledger) -> Iterator[Broken]:
    """Each key has its delivery, each delivery its key (nothing else stores any here), and no two share one."""
    for delivery_id, count in Counter(ledger.keys.values()).items():
        if delivery_id not in ledger.deliveries:
            yield Broken("accounts", delivery_id, "has a key but is not stored")
        if count > 1:
            yield Broken("accounts", delivery_id, f"has {count} keys")
    for delivery_id in ledger.deliveries.keys() - set(ledger.keys.values()):
        yield Broken("accounts", delivery_id, "is stored without a key")


def _accounts_add_up(ledger: Ledger) -> Iterator[Broken]:
    """Compare what was accepted with what ended plus what is still in the queue."""
    counts = Counter(delivery.status for delivery in ledger.deliveries.values())
    total = sum(counts[status] for status in TERMINAL) + sum(counts[status] for status in IN_QUEUE)
    if total != len(ledger.keys):
        yield Broken("accounts", str(dict(counts)), f"is not the {len(ledger.keys)} that were accepted")


def _ended_as_expected(ledger: Ledger) -> Iterator[Broken]:
    """Find deliveries that did not end, or not in one of the expected ways."""
    for delivery in ledger.deliveries.values():
        if delivery.status not in ledger.ends:
            yield Broken("ended", delivery.id, f"is {delivery.status}")


def _held_for_a_cause(ledger: Ledger) -> Iterator[Broken]:
    """Find deliveries that wait for a person without `at_most_once` and an unknown outcome: nobody holds any here."""
    for delivery in ledger.deliveries.values():
        unknown = any(attempt.certainty == Certainty.UNKNOWN for attempt in delivery.attempts)
        if delivery.status == DeliveryStatus.HELD and not (
            unknown and delivery.guarantee == Guarantee.AT_MOST_ONCE
        ):
            yield Broken("held", delivery.id, "waits for a person without a cause")


def _dead_for_a_cause(ledger: Ledger) -> Iterator[Broken]:
    """Find dead letters with rungs left that did not outlive `POISON_TAKEOVERS` replicas in a row."""
    for delivery in ledger.deliveries.values():
        if delivery.status != DeliveryStatus.DEAD_LETTER or ledger.rungs is None:
            continue
        last = delivery.attempts[-POISON_TAKEOVERS:]
        is_poison = len(last) == POISON_TAKEOVERS and all(
            attempt.status == AttemptStatus.ABANDONED for attempt in last
        )
        if not is_poison and delivery.attempt_count <= ledger.rungs:
            yield Broken("dead too early", delivery.id, f"after {delivery.attempt_count} attempts")


def _history_is_legal(ledger: Ledger) -> Iterator[Broken]:
    """Find a status against the table, and a terminal one that was left or entered twice."""
    for delivery in ledger.deliveries.values():
        steps = tuple(DeliveryStatus(status) for status in delivery.history)
        pairs = pairwise(steps)
        legal = bool(steps) and steps[0] in BIRTH and all(pair in TRANSITIONS for pair in pairs)
        if not legal or steps[-1] != delivery.status:
            yield Broken("history", delivery.id, f"{' -> '.join(steps)}, and is {delivery.status}")
        if sum(status in TERMINAL for status in steps) > 1:
            yield Broken("two endings", delivery.id, " -> ".join(steps))


def _attempts_are_counted(ledger: Ledger) -> Iterator[Broken]:
    """Find attempts that are not numbered 1 to n without a gap, n being what the delivery says."""
    for delivery in ledger.deliveries.values():
        numbers = [attempt.number for attempt in delivery.attempts]
        if numbers != list(range(1, delivery.attempt_count + 1)):
            yield Broken("attempts", delivery.id, f"counts {delivery.attempt_count} and has {numbers}")


def _who_was_served_has_it(ledger: Ledger) -> Iterator[Broken]:
    """Each recipient that counts as sent got a copy."""
    counts = copies_of(ledger)
    for submission, delivery in _stored(ledger):
        for recipient, state in zip(submission.recipients, delivery.recipient_states, strict=True):
            if state == "s" and not counts[delivery.id][recipient]:
                yield Broken("undelivered", delivery.id, "counts as sent to somebody who never got it")


def _copies_are_explained(ledger: Ledger) -> Iterator[Broken]:
    """Find copies beyond one for a recipient and one more for each attempt whose outcome is unknown."""
    counts = copies_of(ledger)
    for delivery in ledger.deliveries.values():
        unknown = sum(attempt.certainty == Certainty.UNKNOWN for attempt in delivery.attempts)
        delivered = any(attempt.certainty == Certainty.DELIVERED for attempt in delivery.attempts)
        allowed = 1 if delivery.guarantee == Guarantee.AT_MOST_ONCE else unknown + delivered
        most = max(counts[delivery.id].values(), default=0)
        if most > allowed:
            yield Broken("copied", delivery.id, f"{most} copies, {allowed} explained")


def _copies_are_equal(ledger: Ledger) -> Iterator[Broken]:
    """All copies of a delivery are equal to the last byte, Message-ID included."""
    bytes_of: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for copy in ledger.copies:
        bytes_of[copy.delivery_id].add((copy.message_id, copy.sha256))
        if copy.anomalies:
            yield Broken("anomalies", copy.delivery_id, ", ".join(copy.anomalies))
    for delivery_id, different in bytes_of.items():
        if len(different) > 1:
            yield Broken("changed", delivery_id, f"{len(different)} different messages")


def _dead_letters_match(ledger: Ledger) -> Iterator[Broken]:
    """Find a status `dead_letter` without its entry, and an entry without the status."""
    dead = {
        delivery.id
        for delivery in ledger.deliveries.values()
        if delivery.status == DeliveryStatus.DEAD_LETTER
    }
    for delivery_id in dead ^ ledger.dead_letters:
        yield Broken("dead letters", delivery_id, "has the status or the entry, not both")


def _payloads_match(ledger: Ledger) -> Iterator[Broken]:
    """Each delivery has its content, but for what is sensitive and over; no content is left without a delivery."""
    erased = {
        delivery.id
        for delivery in ledger.deliveries.values()
        if delivery.is_sensitive and delivery.status in TERMINAL
    }
    for delivery_id in (ledger.deliveries.keys() - erased) ^ ledger.payloads:
        yield Broken("payloads", delivery_id, "has content where none must be, or none where it must be")


def _stored(ledger: Ledger) -> Iterator[tuple[Submission, Delivery]]:
    for submission in ledger.submissions:
        delivery = ledger.deliveries.get(ledger.keys.get(submission.key, ""))
        if delivery is not None:
            yield submission, delivery


_RULES: Final[tuple[Callable[[Ledger], Iterable[Broken]], ...]] = (
    _nothing_lost,
    _nothing_unasked,
    _senders_are_told,
    _one_id_a_key,
    _keys_and_deliveries_agree,
    _accounts_add_up,
    _ended_as_expected,
    _held_for_a_cause,
    _dead_for_a_cause,
    _history_is_legal,
    _attempts_are_counted,
    _who_was_served_has_it,
    _copies_are_explained,
    _copies_are_equal,
    _dead_letters_match,
    _payloads_match,
)
