"""What operators are shown: addresses masked, attempts in a few lines."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from mailkeep.cli.queue import describe_attempt
from mailkeep.core.delivery import AttemptStatus
from mailkeep.core.outcome import Phase
from mailkeep.core.redact import mask_address
from mailkeep.operator.queue import AttemptView, StepView


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("ann@example.org", "a***@e***"),
        ("a@b.c", "a***@b***"),
        ('"an@n"@example.org', '"***@e***'),
        ("änn@xn--bcher-kva.example", "ä***@x***"),
    ],
)
def test_an_address_is_masked_to_its_first_letters(address, masked):
    """Only the first letter of each side is shown, whatever the length and the quoting."""
    assert mask_address(address) == masked


def test_an_attempt_is_told_with_its_steps():
    """One line has number, time, hop, status, phase, certainty and reply; each step has its own."""
    attempt = AttemptView(
        number=2,
        status=AttemptStatus.TIMED_OUT,
        next_hop="default",
        replica_id=UUID(int=1),
        started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        certainty="unknown",
        phase="dot",
        steps=(StepView(Phase.GREETING, "", "220 Hi", 1), StepView(Phase.DOT, "the final dot", "", 12.3)),
    )
    assert list(describe_attempt(attempt)) == [
        "attempt 2 2026-01-02 03:04:05 to default timed_out at dot (unknown)",
        "         1 ms  greeting  220 Hi",
        "        12 ms  dot       the final dot -> no reply",
    ]
