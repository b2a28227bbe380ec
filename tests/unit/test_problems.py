"""Problem documents: stable types, the right status, and nothing of what the caller sent."""

import msgspec
import pytest

from mailkeep.core.command import CommandError, FailureCode
from mailkeep.intake.problems import URN, HttpCode, ProblemError, make_problem, problem_of
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.group_commit import OverloadedError


@pytest.mark.parametrize("code", [*FailureCode, *HttpCode])
def test_every_code_has_a_document(code):
    """Each failure code of the contract, and each of HTTP's, makes a document whose type is its URN."""
    problem = make_problem(code, "why")
    assert problem.type == f"urn:mailkeep:problem:{code}" == URN + problem.code
    assert 400 <= problem.status < 600
    assert problem.title
    assert problem.title != problem.detail


def test_a_command_error_names_its_field():
    """A refused command is a 422 with code, field and detail; only malformed JSON is a 400."""
    problem = problem_of(CommandError(FailureCode.INVALID_ADDRESS, "payload.to[1]", "not a valid address"))
    assert (problem.status, problem.code, problem.field) == (422, "invalid_address", "payload.to[1]")
    assert problem.detail == "payload.to[1]: not a valid address"
    assert problem_of(CommandError(FailureCode.INVALID_JSON, "", "is not valid JSON")).status == 400
    assert problem_of(CommandError(FailureCode.INVALID_FIELD, "limit", "too high"), status=400).status == 400


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ("payload.to[1]", "payload.to[1]"),
        ("payload.variables[]", "payload.variables[]"),
        ("payload.ann@example.org", "payload"),
        ("ann@example.org", ""),
        ("payload.a b", "payload"),
        ("x" * 65, ""),
        ("payload.\r\nSet-Cookie", "payload"),
    ],
)
def test_a_field_that_could_be_personal_is_not_repeated(field, shown):
    """Member names are the caller's: what is no plain word is left out, in `field` and in `detail`."""
    problem = problem_of(CommandError(FailureCode.UNKNOWN_FIELD, field, "is not a field here"))
    assert problem.field == shown
    assert problem.detail == f"{shown or 'the body'}: is not a field here"


def test_an_absent_store_and_overload_ask_to_come_back():
    """503 carries Retry-After and no word of the driver's."""
    away = problem_of(StoreUnavailableError("password for user mail refused", in_doubt=True))
    full = problem_of(OverloadedError("4096 entries"))
    assert (away.status, full.status) == (503, 503)
    assert (away.code, full.code) == ("unavailable", "overloaded")
    assert away.headers == full.headers == ((b"retry-after", b"1"),)
    assert "password" not in away.detail


def test_a_fault_of_ours_tells_nothing():
    """Whatever else is raised becomes a 500 without its words."""
    problem = problem_of(KeyError("ann@example.org"))
    assert (problem.status, problem.code) == (500, "internal_error")
    assert b"ann" not in msgspec.json.encode(problem)


def test_a_problem_that_is_raised_is_the_answer():
    """A ProblemError passes unchanged, and says how to authenticate where that is the problem."""
    problem = make_problem(HttpCode.UNAUTHORIZED, "no")
    assert problem_of(ProblemError(problem)) is problem
    assert problem.headers[0][0] == b"www-authenticate"


def test_an_empty_field_is_left_out():
    """Without a field there is no member `field`."""
    assert b'"field"' not in msgspec.json.encode(make_problem(HttpCode.NOT_FOUND, "why"))
