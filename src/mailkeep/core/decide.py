"""From an attempt's outcome to the delivery's next state: the policy, in one pure function."""

from typing import Final

import msgspec

from mailkeep.core.delivery import DeliveryStatus, Guarantee, RecipientState, check_transition
from mailkeep.core.ladder import next_wait_s
from mailkeep.core.outcome import Outcome, Retry, Scope, Severity

OUTAGE_SCOPES: Final = frozenset({Scope.NEXT_HOP, Scope.CREDENTIAL})
"""Not the message's fault: parked without using a rung until the next hop is well again."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What the recorder writes: the new status, and for a waiting one how long it waits."""

    status: DeliveryStatus
    recipient_states: str
    wait_s: float | None = None
    uses_rung: bool = False
    dead_letter_cause: str | None = None


_STATE_AFTER: Final = {
    Severity.SUCCESS: RecipientState.SENT,
    Severity.PERMANENT: RecipientState.FAILED,
    Severity.TRANSIENT: RecipientState.OPEN,
    Severity.UNKNOWN: RecipientState.OPEN,
}


def states_after(states: str, outcome: Outcome) -> str:
    """Return the recipient states after `outcome`; recipients it did not address keep theirs."""
    letters = list(states)
    for recipient in outcome.recipients:
        if recipient.is_on_provider_list:
            letters[recipient.ordinal] = RecipientState.SUPPRESSED
        else:
            letters[recipient.ordinal] = _STATE_AFTER[recipient.severity]
    return "".join(letters)


def settled_status(states: str) -> DeliveryStatus:
    """Return the status of a delivery with no open recipient: `sent` only if every recipient was accepted."""
    if RecipientState.FAILED in states:
        return DeliveryStatus.FAILED
    if RecipientState.SUPPRESSED in states:
        return DeliveryStatus.SUPPRESSED
    return DeliveryStatus.SENT


def decide(
    *,
    states: str,
    outcome: Outcome,
    guarantee: Guarantee,
    ladder_s: tuple[float, ...],
    rungs_used: int,
    park_s: float,
    chance: float,
) -> Decision:
    """Return what follows from `outcome` for a delivery that is `sending`.

    `states` are the recipient states before the attempt, `park_s` the wait until a next hop that is out is tried again,
    `chance` the jitter draw in [0, 1). What the server asked us to wait is respected upwards, except while parked: that is
    the breaker's to judge, for the whole next hop. Expiry is the database's to judge: a wait that ends past `expires_at`
    becomes `expired` when it is written.
    """
    after = states_after(states, outcome)
    if RecipientState.OPEN not in after:
        decision = Decision(settled_status(after), after)
    elif outcome.severity is Severity.UNKNOWN and guarantee is Guarantee.AT_MOST_ONCE:
        decision = Decision(DeliveryStatus.HELD, after)
    elif outcome.scope in OUTAGE_SCOPES and outcome.severity is not Severity.UNKNOWN:
        decision = Decision(DeliveryStatus.RENDERED, after, wait_s=park_s)
    elif outcome.retry is Retry.AT_ONCE and _delivered_to_some(outcome):
        decision = Decision(DeliveryStatus.RENDERED, after, wait_s=outcome.wait_hint_s)
    else:
        soon = outcome.retry is Retry.SOON
        wait_s = next_wait_s(ladder_s, rungs_used, chance, soon=soon, wait_hint_s=outcome.wait_hint_s)
        decision = _climb(after, wait_s)
    check_transition(DeliveryStatus.SENDING, decision.status)
    return decision


def _delivered_to_some(outcome: Outcome) -> bool:
    # What makes going on without a rung end: each such attempt leaves fewer recipients open.
    return outcome.severity is Severity.TRANSIENT and any(
        recipient.severity is Severity.SUCCESS for recipient in outcome.recipients
    )


def _climb(after: str, wait_s: float | None) -> Decision:
    if wait_s is None:
        return Decision(DeliveryStatus.DEAD_LETTER, after, dead_letter_cause="ladder_exhausted")
    return Decision(DeliveryStatus.RENDERED, after, wait_s=wait_s, uses_rung=True)
