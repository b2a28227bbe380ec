"""Suppressions: addresses that get no mail, and why.

Only two things make one: a mail server's hard answer about the recipient (`RecipientOutcome.is_hard_bounce`), and a
person. It holds for every class of mail, login codes among them, until it expires or is removed.
"""

from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

USUAL_TTL_S: Final = 30 * 86_400.0
"""How long a hard bounce suppresses, unless `MAIL_SUPPRESSION_TTL` says otherwise."""
MAX_EVIDENCE_CHARS: Final = 500


class SuppressionReason(StrEnum):
    """Why an address gets no mail."""

    HARD_BOUNCE = "hard_bounce"  # a mail server said that there is no such mailbox
    COMPLAINT = "complaint"  # its owner called our mail spam
    MANUAL = "manual"  # whatever else a person knows


class NewSuppression(msgspec.Struct, frozen=True):
    """An address to suppress by hand. `address` is as `Mailbox.address` gives it; no `expires_at`: see who adds it."""

    address: str
    reason: SuppressionReason
    evidence: str
    expires_at: datetime | None = None
