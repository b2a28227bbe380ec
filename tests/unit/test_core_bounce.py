"""What a bounce says, and what it never says."""

from datetime import UTC, datetime
from uuid import UUID

from mailkeep.core.bounce import MAX_HEAD_BYTES, OwedBounce, Said, compose, header_of
from mailkeep.core.delivery import Guarantee
from mailkeep.core.outcome import RecipientOutcome, Scope, Severity

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def owed(failed, *outcomes, status="failed"):
    """Return what is owed of a delivery for as many recipients."""
    return OwedBounce(
        id=UUID(int=1),
        delivery_id=UUID(int=2),
        failed=failed,
        status=status,
        accepted_at=AT,
        sender="ann@example.org",
        recipients=tuple(f"r{number}@example.net" for number in range(len(failed))),
        head=b"Subject: x\r\n\r\nsecret",
        said=tuple(Said(AT, outcome) for outcome in outcomes),
        traceparent=None,
    )


def composed(bounce):
    """Return the content of its bounce."""
    return compose(bounce, "example.org", Guarantee.AT_LEAST_ONCE).content


def test_each_failed_recipient_has_its_group():
    """Only those whom it is about, each with action, status and the server's words; lines can be folded and no more."""
    refused = RecipientOutcome(
        0, Severity.PERMANENT, Scope.RECIPIENT, "r", 550, "5.1.1", "No such user " * 30
    )
    content = composed(owed("f.o", refused))
    about, first, second = content.status.split("\n\n")
    assert about.startswith("Reporting-MTA: dns; example.org\n")
    assert first.startswith("Final-Recipient: rfc822; r0@example.net\nAction: failed\nStatus: 5.1.1\n")
    assert "Diagnostic-Code: smtp; 550 5.1.1 No such user" in first
    assert "Final-Recipient: rfc822; r2@example.net\nAction: failed\nStatus: 4.4.7\n" in second
    assert max(map(len, content.status.split("\n"))) <= 78
    assert "r1@" not in content.text
    assert content.head == b"Subject: x\r\n"


def test_our_own_network_is_not_told():
    """Words of a next hop about itself, of a login and of our own stay here."""
    for scope, code in ((Scope.NEXT_HOP, 421), (Scope.CREDENTIAL, 535), (Scope.MESSAGE, None)):
        outcome = RecipientOutcome(0, Severity.TRANSIENT, scope, "r", code, None, "10.0.0.7 said no")
        content = composed(owed("o", outcome, status="dead_letter"))
        assert "10.0.0.7" not in content.status + content.text


def test_words_that_are_not_ascii_are_replaced():
    """A server's text can't leave its field."""
    outcome = RecipientOutcome(
        0, Severity.PERMANENT, Scope.RECIPIENT, "r", 550, None, "nö\nAction: delivered"
    )
    content = composed(owed("f", outcome))
    assert "n?Action" in content.status.replace("\n ", "")
    assert content.status.count("\nAction: ") == 1
    assert "Status: 5.0.0" in content.status


def test_a_header_is_cut_at_a_line():
    """A header beyond the bound ends with its last whole line, one without an end too."""
    line = b"X: " + b"y" * 500 + b"\r\n"
    cut = header_of(line * 100 + b"\r\nbody")
    assert len(cut) <= MAX_HEAD_BYTES
    assert len(cut) % len(line) == 0
    assert header_of(b"X: y\r\nZ") == b"X: y\r\n"
    assert header_of(b"") == b""
