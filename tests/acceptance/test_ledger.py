"""The checker itself: a right ledger passes, and each kind of wrong one is caught by the rule that is there for it."""

import msgspec
import pytest

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.drill.ledger import (
    Answer,
    Attempt,
    Copy,
    Delivery,
    Ledger,
    Submission,
    broken_rules,
    check_ledger,
)

ANN, BOB = "ann@sinkhole.test", "bob@sinkhole.test"
DELIVERED = Attempt(1, "provider_accepted", "delivered")
ABANDONED = Attempt(1, "abandoned", "unknown")
REFUSED = Attempt(1, "provider_rejected", "not_delivered")
HELD = {"status": "held", "history": ("sending", "held"), "recipient_states": "o", "attempts": (ABANDONED,)}
DEAD = {"status": "dead_letter", "history": ("sending", "dead_letter"), "recipient_states": "o"}
BIRTH_TO_SENT = ("sending", "sent")
TAKEN_OVER = ("sending", "rendered", "sending", "sent")


def submission(*answers, key="k1", recipients=(ANN,)):
    """Return a submission that was taken as d1 unless `answers` say otherwise."""
    return Submission(key, "/", {}, recipients, list(answers or [Answer(202, "d1")]))


def delivery(**fields):
    """Return a delivery that was sent to one recipient in one attempt."""
    attempts = fields.pop("attempts", (DELIVERED,))
    values = {
        "status": "sent",
        "recipient_states": "s",
        "history": BIRTH_TO_SENT,
        "attempt_count": len(attempts),
    }
    return Delivery(id="d1", attempts=attempts, **values | fields)


def copy(*recipients, **fields):
    """Return a copy of d1."""
    return Copy(
        **{"message_id": "<d1@example.org>", "recipients": recipients or (ANN,), "sha256": "a"} | fields
    )


def ledger(**fields):
    """Return the ledger of one mail that was taken, sent once and arrived once, but for `fields`."""
    stored = fields.pop("stored", delivery())
    values = {
        "submissions": (submission(),),
        "deliveries": {"d1": stored} if stored else {},
        "keys": {"k1": "d1"},
        "payloads": frozenset({"d1"} if stored else ()),
        "copies": (copy(),),
    }
    return Ledger(**values | fields)


def second(attempt):
    """Return `attempt` as the second of its delivery."""
    return msgspec.structs.replace(attempt, number=2)


RIGHT = {
    "sent once": ledger(),
    "a login code, sent and erased": ledger(stored=delivery(is_sensitive=True), payloads=frozenset()),
    "never answered, sent once": ledger(submissions=(submission(None),)),
    "never answered, never stored": ledger(submissions=(submission(None),), stored=None, keys={}, copies=()),
    "cut, then told its first answer": ledger(
        submissions=(submission(None, Answer(503), Answer(202, "d1", is_replayed=True)),)
    ),
    "a second copy after a lost replica": ledger(
        stored=delivery(attempts=(ABANDONED, second(DELIVERED)), history=TAKEN_OVER), copies=(copy(), copy())
    ),
    "abandoned before the next hop took it": ledger(
        stored=delivery(attempts=(ABANDONED, second(DELIVERED)), history=TAKEN_OVER)
    ),
    "two recipients, one after the other": ledger(
        submissions=(submission(recipients=(ANN, BOB)),),
        stored=delivery(recipient_states="ss", attempts=(DELIVERED, second(DELIVERED)), history=TAKEN_OVER),
        copies=(copy(ANN), copy(BOB)),
    ),
}


def poisoned():
    """Return the ledger of a mail that outlived three replicas."""
    lost = tuple(msgspec.structs.replace(ABANDONED, number=number) for number in (1, 2, 3))
    history = ("sending", "rendered", "sending", "rendered", "sending", "dead_letter")
    return ledger(
        stored=delivery(**DEAD | {"history": history}, attempts=lost),
        copies=(),
        dead_letters=frozenset({"d1"}),
        ends=frozenset({DeliveryStatus.DEAD_LETTER}),
        rungs=5,
    )


RIGHT["poison"] = poisoned()


def given_up(*bounces, **fields):
    """Return the ledger of relayed mail that became a dead letter, with `bounces` to its sender."""
    found = poisoned()
    stored = msgspec.structs.replace(found.deliveries["d1"], delivery_class="relay")
    values = {
        "deliveries": {"d1": stored} | {bounce.id: bounce for bounce in bounces},
        "keys": {"k1": "d1"} | {f"owed-{bounce.id}": bounce.id for bounce in bounces},
        "payloads": frozenset({"d1", *(bounce.id for bounce in bounces)}),
        "copies": tuple(copy(BOB, message_id=f"<{bounce.id}@example.org>") for bounce in bounces),
        "ends": frozenset({DeliveryStatus.DEAD_LETTER, DeliveryStatus.SENT}),
        "sender": BOB,
    }
    return msgspec.structs.replace(found, **values | fields)


def bounce(delivery_id="b1", about_id="d1"):
    """Return a bounce that was sent."""
    return msgspec.structs.replace(delivery(), id=delivery_id, delivery_class="relay", about_id=about_id)


RIGHT["a bounce"] = given_up(bounce())

WRONG = {
    "a 2xx that is not stored": ("lost", ledger(stored=None, keys={}, copies=())),
    "a 2xx whose row vanished, its key did not": ("lost", ledger(stored=None)),
    "mail nobody submitted": ("unasked", ledger(submissions=())),
    "mail to somebody else": ("unasked", ledger(copies=(copy(ANN, BOB),))),
    "mail of an unknown delivery": ("unasked", ledger(copies=(copy(), copy(message_id="<d9@example.org>")))),
    "a sender who was not told": ("bounces", given_up()),
    "a sender who was told twice": ("bounces", given_up(bounce(), bounce("b2"))),
    "a bounce for what was sent": (
        "bounces",
        given_up(bounce(), deliveries={"d1": delivery(delivery_class="relay"), "b1": bounce()}),
    ),
    "a bounce for nothing": ("bounces", given_up(bounce(about_id="d9"))),
    "a bounce to somebody else": (
        "unasked",
        given_up(bounce(), copies=(copy(message_id="<b1@example.org>"),)),
    ),
    "another id the second time": (
        "two ids",
        ledger(submissions=(submission(Answer(202, "d1"), Answer(202, "d2", is_replayed=True)),)),
    ),
    "taken as new twice": (
        "two ids",
        ledger(submissions=(submission(Answer(202, "d1"), Answer(202, "d1")),)),
    ),
    "a delivery without a key": ("accounts", ledger(keys={})),
    "a key without a delivery": ("accounts", ledger(submissions=(submission(None),), stored=None)),
    "one delivery for two keys": ("accounts", ledger(keys={"k1": "d1", "k2": "d1"})),
    "a status that counts nowhere": ("accounts", ledger(stored=delivery(status="nowhere"))),
    "still waiting after the drain": (
        "ended",
        ledger(stored=delivery(status="rendered", history=("rendered",), recipient_states="o")),
    ),
    "held without at_most_once": ("held", ledger(stored=delivery(**HELD))),
    "held although nothing is unknown": (
        "held",
        ledger(stored=delivery(**HELD | {"attempts": (REFUSED,)}, guarantee="at_most_once")),
    ),
    "dead with rungs left": (
        "dead too early",
        ledger(stored=delivery(**DEAD, attempts=(REFUSED,)), dead_letters=frozenset({"d1"}), rungs=5),
    ),
    "dead where nobody may die": (
        "ended",
        ledger(
            stored=delivery(status="dead_letter", history=("sending", "dead_letter")),
            dead_letters=frozenset({"d1"}),
        ),
    ),
    "two terminal statuses": (
        "two endings",
        ledger(stored=delivery(status="expired", history=("sending", "sent", "expired"))),
    ),
    "a move that is not in the table": ("history", ledger(stored=delivery(history=("rendered", "sent")))),
    "a status that no commit made": ("history", ledger(stored=delivery(history=("sending",)))),
    "an attempt that is missing": ("attempts", ledger(stored=delivery(attempt_count=2))),
    "two attempts of one number": ("attempts", ledger(stored=delivery(attempts=(ABANDONED, DELIVERED)))),
    "sent, and never arrived": ("undelivered", ledger(copies=())),
    "sent to both, arrived at one": (
        "undelivered",
        ledger(submissions=(submission(recipients=(ANN, BOB)),), stored=delivery(recipient_states="ss")),
    ),
    "a second copy without a cause": ("copied", ledger(copies=(copy(), copy()))),
    "a third copy with a cause for two": (
        "copied",
        ledger(
            stored=delivery(attempts=(ABANDONED, second(DELIVERED)), history=TAKEN_OVER),
            copies=(copy(), copy(), copy()),
        ),
    ),
    "a copy that was recorded as refused": (
        "copied",
        ledger(
            stored=delivery(
                attempts=(REFUSED, second(DELIVERED)), history=("sending", "rendered", "sending", "sent")
            ),
            copies=(copy(), copy()),
        ),
    ),
    "a second copy under at_most_once": (
        "copied",
        ledger(
            stored=delivery(
                attempts=(ABANDONED, second(DELIVERED)), history=TAKEN_OVER, guarantee="at_most_once"
            ),
            copies=(copy(), copy()),
        ),
    ),
    "other bytes in the second copy": (
        "changed",
        ledger(
            stored=delivery(attempts=(ABANDONED, second(DELIVERED)), history=TAKEN_OVER),
            copies=(copy(), copy(sha256="b")),
        ),
    ),
    "another Message-ID in the second copy": (
        "changed",
        ledger(
            stored=delivery(attempts=(ABANDONED, second(DELIVERED)), history=TAKEN_OVER),
            copies=(copy(), copy(message_id="<d1@elsewhere.example.org>")),
        ),
    ),
    "bare line feeds on the wire": ("anomalies", ledger(copies=(copy(anomalies=("bare_lf",)),))),
    "a dead letter without its entry": (
        "dead letters",
        ledger(stored=delivery(status="dead_letter", history=("sending", "dead_letter"))),
    ),
    "an entry for what was sent": ("dead letters", ledger(dead_letters=frozenset({"d1"}))),
    "an entry for nothing": ("dead letters", ledger(dead_letters=frozenset({"d9"}))),
    "a delivery without content": ("payloads", ledger(payloads=frozenset())),
    "content without a delivery": ("payloads", ledger(payloads=frozenset({"d1", "d9"}))),
    "a login code that is still at rest": ("payloads", ledger(stored=delivery(is_sensitive=True))),
}


@pytest.mark.parametrize("right", RIGHT.values(), ids=RIGHT.keys())
def test_a_right_ledger_passes(right):
    """What may happen is not complained about."""
    check_ledger(right)


@pytest.mark.parametrize(("rule", "wrong"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_ledger_is_caught(rule, wrong):
    """Each seeded fault breaks the rule that is there for it."""
    assert rule in {broken.rule for broken in broken_rules(wrong)}
    with pytest.raises(AssertionError, match=rule):
        check_ledger(wrong)


def test_what_may_be_held_is_said():
    """A delivery that waits for a person is a fault unless the test expects it."""
    held = delivery(guarantee="at_most_once", **HELD)
    assert [broken.rule for broken in broken_rules(ledger(stored=held))] == ["ended"]
    check_ledger(ledger(stored=held, ends=frozenset({DeliveryStatus.HELD})))
