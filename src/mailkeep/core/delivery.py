"""Delivery and attempt statuses, and the one table of transitions.

The table is the single truth: the store's SQL makes only these moves (a test holds the two against each other) and the
state diagram in the docs is generated from it. A pair that is not in the table raises.
"""

from enum import StrEnum
from typing import Final


class DeliveryStatus(StrEnum):
    """Where a delivery stands."""

    QUEUED = "queued"  # durable, content not rendered yet
    RENDERED = "rendered"  # message bytes fixed, waiting for an attempt
    SENDING = "sending"  # claimed by one replica
    HELD = "held"  # waits for a person
    SENT = "sent"
    SUPPRESSED = "suppressed"
    FAILED = "failed"  # refused for good
    DEAD_LETTER = "dead_letter"  # ladder exhausted, or by an operator's or a guarantee's rule
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class AttemptStatus(StrEnum):
    """How one try ended."""

    IN_PROGRESS = "in_progress"
    PROVIDER_ACCEPTED = "provider_accepted"
    PROVIDER_REJECTED = "provider_rejected"
    TRANSPORT_FAILED = "transport_failed"
    TIMED_OUT = "timed_out"
    RENDER_FAILED = "render_failed"
    ABANDONED = "abandoned"  # its replica was lost


class Certainty(StrEnum):
    """What is known of an attempt: whether the next hop took the message."""

    DELIVERED = "delivered"
    NOT_DELIVERED = "not_delivered"
    UNKNOWN = "unknown"  # the final dot left, no reply came


class DeliveryClass(StrEnum):
    """How a delivery is kept: ladder, priority, expiry, guarantee."""

    AUTH = "auth"
    TRANSACTIONAL = "transactional"
    RELAY = "relay"


class Source(StrEnum):
    """Who asked."""

    AUTHSESSION = "authsession"
    NOTIFICATION = "notification"
    API = "api"
    SEND = "send"
    SQL = "sql"
    SMTP = "smtp"
    OPERATOR_RESEND = "operator_resend"
    BOUNCE = "bounce"  # the service itself: it tells a sender that relayed mail was not delivered


class Guarantee(StrEnum):
    """What happens when the outcome of an attempt is unknown."""

    AT_LEAST_ONCE = "at_least_once"  # retried
    AT_MOST_ONCE = "at_most_once"  # held for an operator


class RecipientState(StrEnum):
    """One letter a recipient in `deliveries.recipient_states`."""

    OPEN = "o"
    SENT = "s"
    FAILED = "f"
    SUPPRESSED = "x"


TERMINAL: Final = frozenset(
    {
        DeliveryStatus.SENT,
        DeliveryStatus.SUPPRESSED,
        DeliveryStatus.FAILED,
        DeliveryStatus.DEAD_LETTER,
        DeliveryStatus.EXPIRED,
        DeliveryStatus.CANCELLED,
    }
)
DEAD_LETTER_CAUSES: Final = ("ladder_exhausted", "poison", "operator")
WAITING: Final = frozenset({DeliveryStatus.QUEUED, DeliveryStatus.RENDERED})

_S = DeliveryStatus

TRANSITIONS: Final[dict[tuple[DeliveryStatus, DeliveryStatus], str]] = {
    (_S.QUEUED, _S.SENDING): "claimed; the claimant renders first",
    (_S.QUEUED, _S.EXPIRED): "its time ran out before an attempt",
    (_S.QUEUED, _S.CANCELLED): "cancelled by an operator or superseded",
    (_S.QUEUED, _S.HELD): "held by an operator",
    (_S.RENDERED, _S.SENDING): "claimed for an attempt",
    (_S.RENDERED, _S.EXPIRED): "its time ran out between attempts",
    (_S.RENDERED, _S.CANCELLED): "cancelled by an operator or superseded",
    (_S.RENDERED, _S.HELD): "held by an operator",
    (_S.SENDING, _S.QUEUED): "handed back before it was rendered, or its replica was lost",
    (_S.SENDING, _S.RENDERED): "retry scheduled, parked, handed back, or its replica was lost",
    (_S.SENDING, _S.SENT): "every recipient accepted",
    (_S.SENDING, _S.SUPPRESSED): "on the suppression list by now, or on the provider's own",
    (_S.SENDING, _S.FAILED): "refused for good",
    (_S.SENDING, _S.DEAD_LETTER): "ladder exhausted, or poison",
    (_S.SENDING, _S.EXPIRED): "its time ran out",
    (_S.SENDING, _S.HELD): "unknown outcome under at_most_once",
    (_S.HELD, _S.QUEUED): "released by an operator",
    (_S.HELD, _S.RENDERED): "released by an operator",
    (_S.HELD, _S.SENT): "an operator confirmed the delivery",
    (_S.HELD, _S.FAILED): "an operator confirmed the delivery; another recipient had been refused",
    (_S.HELD, _S.SUPPRESSED): "an operator confirmed the delivery; another recipient had been suppressed",
    (_S.HELD, _S.CANCELLED): "dropped or resent by an operator",
    (_S.HELD, _S.EXPIRED): "its time ran out while held",
}
"""(from, to) -> why. Intake creates `queued`, `rendered`, `sending` (claimed at birth) or `suppressed` (stub
mode, or every recipient is on the suppression list)."""

BIRTH: Final = frozenset({_S.QUEUED, _S.RENDERED, _S.SENDING, _S.SUPPRESSED})


class IllegalTransitionError(ValueError):
    """A move that is not in the table: a fault of ours, never of a mail server."""


def check_transition(before: DeliveryStatus, after: DeliveryStatus) -> None:
    """Raise `IllegalTransitionError` unless the table has this move."""
    if (before, after) not in TRANSITIONS:
        raise IllegalTransitionError(f"{before} -> {after}")
