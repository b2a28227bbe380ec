"""What crosses the store's threshold: a delivery on its way in, a claim on its way out, an attempt on its way back."""

from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from mailkeep.core.decide import Decision
from mailkeep.core.delivery import DeliveryClass, DeliveryStatus, Guarantee, Source
from mailkeep.core.outcome import Outcome

POISON_TAKEOVERS: Final = 3
"""Takeovers in a row, without a recorded attempt, that make a dead letter: one message can't kill replicas forever."""
SUSPECT_TAKEOVERS: Final = 2
"""From here on a delivery is claimed alone, so that the next crash can't take an innocent one with it."""


class NewDelivery(msgspec.Struct, gc=False):
    """A validated delivery that is about to be stored; `message` is None while its content is still a `command`."""

    id: UUID
    source: Source
    delivery_class: DeliveryClass
    guarantee: Guarantee
    status: DeliveryStatus
    next_hop: str
    idempotency_key: str
    fingerprint: bytes
    sender: str
    recipients: tuple[str, ...]
    recipient_hashes: tuple[bytes, ...]
    recipient_domain: str
    message: bytes | None
    sensitive: bool
    command: bytes | None = None
    send_at: datetime | None = None
    expires_at: datetime | None = None
    template_id: str | None = None
    catalog_version: str | None = None
    locale: str | None = None
    locale_chain: str | None = (
        None  # the locales tried, separated by spaces; None where the one asked for was there
    )
    supersede_hash: bytes | None = None
    named_hashes: tuple[bytes, ...] = ()  # of whom else the content names: its sender, where to reply
    parent_id: UUID | None = None
    traceparent: str | None = None
    author_domain: str | None = None  # of From; a bounce has it although its sender is empty

    @property
    def size_bytes(self) -> int:
        """The size of the stored content."""
        return len(self.message or self.command or b"")


class Suppressed(msgspec.Struct, frozen=True):
    """What the suppression list left of a delivery: where it stands now, with an `x` for each recipient left out."""

    id: UUID
    status: DeliveryStatus
    recipient_states: str


class KeyHolder(msgspec.Struct, frozen=True):
    """Who holds an idempotency key, and what its first caller was answered."""

    fingerprint: bytes
    delivery_id: UUID
    first_status: DeliveryStatus


class ClaimKey(msgspec.Struct, gc=False):
    """What fences every statement about a claim: the replica that holds it, the delivery, the token of this claim."""

    replica_id: UUID
    id: UUID
    token: int


class Claim(ClaimKey, gc=False):
    """One delivery that this replica may work on, until it gives it back or loses it."""

    source: str  # a newer version beside this one may know more of them
    delivery_class: DeliveryClass
    guarantee: Guarantee
    next_hop: str
    attempts: int
    rungs_used: int
    recipient_states: str
    size_bytes: int
    sensitive: bool
    accepted_at: datetime | None = None  # None for a claim at birth
    expires_at: datetime | None = None
    sender: str | None = None  # None only where the payload is missing
    recipients: tuple[str, ...] = ()
    message: bytes | None = None  # None: too large to come along, or not rendered yet
    command: bytes | None = None
    traceparent: str | None = None  # of the span that accepted it
    unopened: str | None = None  # why its payload, which is sealed, can't be opened here


class FinishedAttempt(msgspec.Struct, frozen=True, gc=False):
    """A claim with what came of it; `message` is set when this attempt fixed the bytes of a `queued` delivery."""

    claim: Claim
    outcome: Outcome
    decision: Decision
    message: bytes | None = None


class HopOut(msgspec.Struct, frozen=True):
    """Why a next hop gets no mail from a replica, and since when: its breaker is open."""

    cause: str
    since: datetime
