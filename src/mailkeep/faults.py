"""Named points at which tests kill the process; unarmed they cost one comparison.

`MAIL_FAULT_POINT=accept_after_commit:3` kills the process with SIGKILL the third time it reaches that point. Refused in
production by `arm`. What can be seen from outside (a statement, a reply) is broken there instead, by the crash matrix; these are for
moments within the process, and for crashes under load.
"""

import os
import signal
from collections.abc import Mapping
from enum import StrEnum


class FaultPoint(StrEnum):
    """Where a crash is interesting: the line before and the line after each commit and each SMTP step."""

    ACCEPT_BEFORE_COMMIT = "accept_before_commit"
    ACCEPT_AFTER_COMMIT = "accept_after_commit"
    ACCEPT_AFTER_ANSWER = "accept_after_answer"
    HANDED_OVER = "handed_over"
    CLAIM_AFTER_COMMIT = "claim_after_commit"
    ATTEMPT_BEGINS = "attempt_begins"
    TRANSACTION_BEGINS = "transaction_begins"
    BEFORE_DOT = "before_dot"
    AFTER_DOT = "after_dot"
    OUTCOME_KNOWN = "outcome_known"
    FINISH_BEFORE_COMMIT = "finish_before_commit"
    FINISH_AFTER_COMMIT = "finish_after_commit"
    BOUNCE_BEFORE_SETTLED = "bounce_before_settled"
    WEBHOOK_BEFORE_COMMIT = "webhook_before_commit"


class _Armed:
    point: FaultPoint | None = None
    countdown = 0


def arm(environ: Mapping[str, str]) -> None:
    """Arm the point named in `MAIL_FAULT_POINT`. Raises ValueError in production or for an unknown name."""
    spec = environ.get("MAIL_FAULT_POINT")
    if not spec:
        return
    if environ.get("MAIL_ENVIRONMENT") == "production":
        raise ValueError("MAIL_FAULT_POINT kills the process on purpose and is refused in production")
    name, _, countdown = spec.partition(":")
    _Armed.point, _Armed.countdown = FaultPoint(name), int(countdown or "1")


def armed(point: FaultPoint) -> bool:
    """Whether the process is to die at `point`."""
    return _Armed.point is point


def reach(point: FaultPoint) -> None:
    """Die here if `point` is armed and its count is up."""
    if _Armed.point is point:
        _Armed.countdown -= 1
        if _Armed.countdown <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
