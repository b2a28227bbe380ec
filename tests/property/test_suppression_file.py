"""Suppressions as files: what is written is read, what is wrong is named by its line, and nothing else is raised."""

import io
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailkeep.core.suppression import MAX_EVIDENCE_CHARS, NewSuppression, SuppressionReason
from mailkeep.operator import suppression_file
from mailkeep.operator.suppression_file import (
    MAX_FAULTS,
    MAX_LINE_CHARS,
    SuppressionFileError,
    json_line,
    lines_of,
    read_suppressions,
    write_csv,
)
from mailkeep.store.suppressions import Suppression

YEAR_2000 = datetime(2000, 1, 1)  # noqa: DTZ001 - the strategy gives it a zone
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
EVIDENCE = (
    st.text(min_size=1, max_size=MAX_EVIDENCE_CHARS)
    .map(str.strip)
    .filter(lambda text: text and text.isprintable())
)
SUPPRESSIONS = st.builds(
    Suppression,
    suppression_id=st.just(UUID(int=0)),
    address=st.sampled_from(
        ["ann@example.org", "B.o+x@xn--bcher-kva.example", '"a, b"@example.org', "ü@example.org"]
    ),
    reason=st.sampled_from(SuppressionReason),
    evidence=EVIDENCE,
    rule=st.none(),
    delivery_id=st.none(),
    attempt=st.none(),
    actor=st.just("eve"),
    created_at=st.just(NOW),
    expires_at=st.none() | st.datetimes(min_value=YEAR_2000, timezones=st.just(UTC)),
)


def read(text, *, json=False, **usual):
    """Read a file as `import` does."""
    usual = {"reason": SuppressionReason.MANUAL, "evidence": "imported"} | usual
    return read_suppressions(lines_of(io.StringIO(text, newline="")), json=json, **usual)


def faults(text, *, json=False):
    """Return what is wrong with a file."""
    with pytest.raises(SuppressionFileError) as raised:
        read(text, json=json)
    return raised.value.faults


@given(st.lists(SUPPRESSIONS, max_size=5))
def test_what_is_exported_is_imported(listed):
    """Address, reason, evidence and expiry survive either format."""
    wanted = [NewSuppression(each.address, each.reason, each.evidence, each.expires_at) for each in listed]
    out = io.StringIO()
    write_csv(listed, out, titles=True)
    assert read(out.getvalue()) == wanted
    assert read("".join(f"{json_line(each)}\n" for each in listed), json=True) == wanted


@given(st.text(), st.booleans())
def test_any_text_is_read_or_refused(text, json):
    """No file brings another exception about."""
    try:
        read(text, json=json)
    except SuppressionFileError as fault:
        assert all(line.startswith(("line ", "there may")) for line in fault.faults)


@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_bare_addresses_need_no_titles(begin):
    """A list of addresses is a file; empty lines and spaces around are nothing."""
    found = read(f"{begin} ann@example.org\r\n\r\nbo@example.org", reason=SuppressionReason.COMPLAINT)
    assert [(each.address, each.reason, each.evidence) for each in found] == [
        ("ann@example.org", "complaint", "imported"),
        ("bo@example.org", "complaint", "imported"),
    ]


def test_members_of_other_lists_are_passed_over():
    """What another service exports beside the address is no fault."""
    assert len(read("created,Address,status\n1,ann@example.org,5.1.1\n")) == 1
    assert len(read('{"address": "ann@example.org", "created": 1}\n', json=True)) == 1


@pytest.mark.parametrize(
    ("json", "line", "fault"),
    [
        (False, "nobody", "address: not a valid address"),
        (False, "ann@example.org,spam", "reason: must be one of"),
        (False, "ann@example.org,manual,why,soon", "expires_at: is not an instant"),
        (False, "ann@example.org,manual,why,2026-12-31T00:00:00", "expires_at: is not an instant"),
        (False, "ann@example.org,manual,a\x07b", "evidence: must be"),
        (False, "ann@example.org,manual,why,,x", "more cells than there are titles"),
        (False, "ann@example.org,manual," + "x" * MAX_LINE_CHARS, "evidence: must be"),
        (True, "ann@example.org", "is not a JSON object"),
        (True, "[1]", "is not a JSON object"),
        (True, "{}", "address: not a valid address"),
        (True, '{"address": 1}', "has a member that is not a text"),
        (True, '{"address": "ann@example.org", "x": "' + "x" * MAX_LINE_CHARS + '"}', "is longer than"),
    ],
)
def test_a_wrong_line_is_named(json, line, fault):
    """The fault says which line and what, not what stands there."""
    good = '{"address": "ann@example.org"}' if json else "address,reason,evidence,expires_at"
    told = faults(f"{good}\n{line}\n", json=json)
    assert told[0].startswith("line 2: ")
    assert fault in told[0]
    assert "nobody" not in told[0]


def test_a_quote_without_an_end_is_a_fault():
    """It would swallow the rest of the file."""
    assert "is not CSV" in faults('address\n"' + "x\n" * 200_000)[0]


def test_faults_and_lines_are_bounded(monkeypatch):
    """A file that is no list is given up early, and so is one that is too long."""
    told = faults("x\n" * 1000)
    assert (len(told), told[-1]) == (MAX_FAULTS + 1, "there may be more")
    monkeypatch.setattr(suppression_file, "MAX_LINES", 3)
    assert faults("".join(f"{n}@example.org\n" for n in range(9))) == [
        "line 4: more than 3 addresses; split the file"
    ]
