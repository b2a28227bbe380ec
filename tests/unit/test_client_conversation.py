"""What is repeated, with which key, for how long: the calls driven by hand, with a clock that only waits move."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from uuid import UUID

import pytest

from mailkeep.client import Accepted, BatchError, Mail, RejectedError, UnavailableError
from mailkeep.client import conversation as calls
from mailkeep.client.conversation import FIRST_WAIT_S, LONGEST_WAIT_S, MAX_TRIES, Fault, Patience, Try, Wait
from mailkeep.client.http11 import Answer

ID = UUID("019a2014-e74e-7dd9-8b9b-d92cda9fd921")
MAIL = Mail(to="ann@example.org", subject="s", text="t")


class Clock:
    """Stands still except for waits and for what a try takes."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def answer(status, body=None, **headers):
    """Return an answer with a JSON body."""
    return Answer(status, headers, json.dumps(body).encode(), reusable=True)


def problem(status, code="", **headers):
    """Return a refusal as Mailkeep gives it."""
    body = {"type": f"urn:mailkeep:problem:{code}", "code": code, "field": "payload.to", "detail": "why"}
    return answer(status, body, **headers)


def acceptance(**headers):
    """Return the answer to a mail that was taken."""
    return answer(202, {"delivery_id": str(ID), "status": "rendered"}, **headers)


def hold(talk, came, clock=None, try_takes_s=0.0):
    """Carry `talk` out: `came(request)` is what each try gives. Return its result, its tries and its waits."""
    clock = clock or Clock()
    tries, waits, given = [], [], None
    try:
        while True:
            step = talk.send(given)
            if isinstance(step, Try):
                tries.append(step)
                clock.now_s += min(try_takes_s, step.timeout_s)
                given = came(step.request)
            else:
                assert isinstance(step, Wait)
                waits.append(step.wait_s)
                clock.now_s += step.wait_s
                given = None
    except StopIteration as done:
        return done.value, tries, waits


def patience(clock, timeout_s=10.0, deadline_s=30.0):
    """Return the patience of a client whose clock is `clock`."""
    return Patience(timeout_s, deadline_s, clock)


def in_turn(*answers):
    """Give one after the other."""
    left = iter(answers)
    return lambda _request: next(left)


PASSING = [
    Fault("the connection was cut"),
    Fault("timed out"),
    answer(408),
    problem(409, "in_progress", **{"retry-after": "1"}),
    answer(425),
    answer(429),
    problem(500, "internal_error"),
    answer(502),
    problem(503, "unavailable", **{"retry-after": "1"}),
    answer(504),
    answer(302, location="https://elsewhere.example"),
    answer(200, "a page of a proxy"),
    answer(202, {"delivery_id": "none", "status": "rendered"}),
    answer(202, {"delivery_id": 7, "status": "rendered"}),
    answer(202, {}),
    Answer(202, {}, b"<html>", reusable=True),
    Answer(202, {}, b"[" * 100_000, reusable=True),
]


@pytest.mark.parametrize("came", PASSING, ids=repr)
def test_what_may_pass_is_repeated_with_the_same_key_and_bytes(came):
    """After any fault that leaves the outcome open the very same request goes out again, and its answer counts."""
    clock = Clock()
    accepted, tries, waits = hold(calls.send(MAIL, patience(clock)), in_turn(came, came, acceptance()), clock)
    assert accepted == Accepted(ID, "rendered", replayed=False)
    assert len(tries) == 3
    assert len(waits) == 2
    assert len({(step.request.idempotency_key, step.request.body) for step in tries}) == 1


def test_every_call_makes_a_key_of_its_own_unless_the_mail_has_one():
    """Two calls with the same mail are two deliveries; a key of the mail makes them one."""
    keyed = Mail(to="ann@example.org", subject="s", text="t", idempotency_key="order-1042")
    keys = [
        hold(calls.send(mail, Patience()), in_turn(acceptance()))[1][0].request.idempotency_key
        for mail in (MAIL, MAIL, keyed)
    ]
    assert len(set(keys)) == 3
    assert keys[2] == "order-1042"


def test_a_replay_says_so():
    """The header of the answer becomes `replayed`."""
    accepted, _, _ = hold(
        calls.send(MAIL, Patience()), in_turn(acceptance(**{"idempotent-replayed": "true"}))
    )
    assert accepted.replayed


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 415, 422])
def test_a_refusal_is_final_and_tells_the_problem(status):
    """Other 4xx are not repeated; the error has everything the problem document says."""
    with pytest.raises(RejectedError) as refused:
        hold(calls.send(MAIL, Patience()), in_turn(problem(status, "some_code")))
    error = refused.value
    assert (error.status, error.code, error.field, error.detail) == (status, "some_code", "payload.to", "why")
    assert error.problem_type == "urn:mailkeep:problem:some_code"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"\xff"])
def test_a_refusal_by_something_else_is_one_too(body):
    """A proxy's 403 has no problem document."""
    with pytest.raises(RejectedError, match="refused with HTTP 403"):
        hold(calls.send(MAIL, Patience()), in_turn(Answer(403, {}, body, reusable=True)))


def test_the_deadline_ends_a_call_that_nobody_answers():
    """No wait and no try goes beyond it; the error has the key under which repeating is safe, and the last reason."""
    clock = Clock()
    with pytest.raises(UnavailableError) as gone:
        hold(
            calls.send(MAIL, patience(clock, timeout_s=4, deadline_s=20)),
            lambda _: Fault("timed out"),
            clock,
            4.0,
        )
    assert 1000 + 20 - 4 - LONGEST_WAIT_S <= clock.now_s <= 1000 + 20
    assert gone.value.reason == "timed out"
    assert gone.value.tries >= 3
    again, tries, _ = hold(
        calls.send(
            Mail(to="ann@example.org", subject="s", text="t", idempotency_key=gone.value.idempotency_key),
            Patience(),
        ),
        in_turn(acceptance()),
    )
    assert again.delivery_id == ID
    assert tries[0].request.idempotency_key == gone.value.idempotency_key


def test_a_deadline_of_zero_is_one_try():
    """Whoever wants no repeats gets none, and a whole try."""
    clock = Clock()
    talk = calls.send(MAIL, patience(clock, timeout_s=7, deadline_s=0))
    step = next(talk)
    assert step.timeout_s == 7
    with pytest.raises(UnavailableError, match=r"1 tries \(HTTP 503\)"):
        talk.send(answer(503))


def test_waits_grow_with_full_jitter_up_to_a_bound(monkeypatch):
    """Each wait is drawn between zero and twice the bound of the one before, five seconds at most."""
    drawn = []
    monkeypatch.setattr(calls.random, "uniform", lambda low, high: drawn.append((low, high)) or high)
    clock = Clock()
    with pytest.raises(UnavailableError):
        hold(calls.send(MAIL, patience(clock)), lambda _: Fault("cut"), clock)
    assert {low for low, _ in drawn} == {0}
    highs = [high for _, high in drawn]
    assert highs[:7] == pytest.approx([FIRST_WAIT_S * 2**n for n in range(6)] + [LONGEST_WAIT_S])
    assert set(highs[6:]) == {LONGEST_WAIT_S}


def test_a_call_whose_waits_are_all_drawn_as_zero_ends(monkeypatch):
    """The number of tries has a bound of its own."""
    monkeypatch.setattr(calls.random, "uniform", lambda _low, _high: 0.0)
    with pytest.raises(UnavailableError) as gone:
        hold(calls.send(MAIL, patience(Clock())), lambda _: Fault("cut"))
    assert gone.value.tries == MAX_TRIES


@pytest.mark.parametrize(
    ("text", "least_s", "most_s"),
    [
        ("2", 2, 2),
        ("0", 0, 0),
        ("Fri, 01 Jan 2021 00:00:00 GMT", 0, 0),
        ("soon", 0, 0),
        ("-1", 0, 0),
        ("²", 0, 0),
    ],
)
def test_retry_after_is_honoured(monkeypatch, text, least_s, most_s):
    """Seconds are the least wait; nonsense and a date in the past ask for none."""
    assert least_s <= wait_after(monkeypatch, text) <= most_s


def test_retry_after_may_be_a_date(monkeypatch):
    """The wait ends then; the date has whole seconds."""
    date = datetime.now(UTC) + timedelta(seconds=600)
    assert 500 < wait_after(monkeypatch, format_datetime(date, usegmt=True)) <= 600


def wait_after(monkeypatch, text):
    """Return the wait, without its jitter, that follows an answer with that `Retry-After`."""
    monkeypatch.setattr(calls.random, "uniform", lambda _low, _high: 0.0)
    came = in_turn(answer(503, **{"retry-after": text}), acceptance())
    _, _, waits = hold(calls.send(MAIL, Patience(deadline_s=3600)), came)
    return waits[0]


def test_a_wait_that_is_asked_for_beyond_the_deadline_ends_the_call():
    """Nobody is kept waiting for what can't come in time."""
    clock = Clock()
    came = lambda _: answer(429, **{"retry-after": "3600"})  # noqa: E731 - as short as it gets
    with pytest.raises(UnavailableError, match="HTTP 429"):
        hold(calls.send(MAIL, patience(clock)), came, clock)
    assert clock.now_s == 1000.0


def test_a_login_code_says_only_what_was_given():
    """Its body and key, and the answer."""
    talk = calls.send_login_code(
        "ann@example.org",
        "493817",
        "de",
        purpose=None,
        expires_in_s=60,
        idempotency_key="k",
        patience=Patience(),
    )
    accepted, (step,), _ = hold(talk, in_turn(answer(200, {"outcome": "sent", "delivery_id": str(ID)})))
    assert (accepted.outcome, accepted.delivery_id) == ("sent", ID)
    assert (step.request.path, step.request.idempotency_key) == (calls.LOGIN_CODES, "k")
    assert json.loads(step.request.body) == {
        "email": "ann@example.org", "code": "493817", "locale": "de", "expires_in_s": 60,
    }  # fmt: skip


@pytest.mark.parametrize("call", [calls.get, calls.attempts])
def test_an_id_is_made_canonical_before_it_is_a_path(call):
    """No other path can be asked for by way of an id."""
    talk = call(str(ID).upper(), Patience())
    assert str(ID) in next(talk).request.path
    with pytest.raises(ValueError, match="UUID"):
        next(call("../queue/flush", Patience()))


# -- batches -----------------------------------------------------------------------------------------------------


def mails(count, **more):
    """Return `count` mails that differ by their subject."""
    return [Mail(to="ann@example.org", subject=str(number), text="t", **more) for number in range(count)]


def subjects(request):
    """Return the subjects in a batch."""
    return [each["payload"]["subject"] for each in json.loads(request.body)["commands"]]


def entry(subject, status=202):
    """Return the answer to one command: an id made of its subject, or a problem."""
    if status == 202:
        return {"status": 202, "delivery_id": str(UUID(int=int(subject)))}
    return {"status": status, "problem": json.loads(problem(status, "some_code").body)}


def taking(request):
    """Take every command of a batch."""
    return answer(200, {"answers": [entry(subject) for subject in subjects(request)]})


def test_a_batch_is_answered_in_order_over_as_few_requests_as_its_bounds_allow(monkeypatch):
    """Ids come back in the order of the mails, whatever batches they went in."""
    monkeypatch.setattr(calls, "BATCH_COMMANDS", 4)
    accepted, tries, _ = hold(calls.send_many(mails(10), Patience()), taking)
    assert [each.delivery_id.int for each in accepted] == list(range(10))
    assert [len(subjects(step.request)) for step in tries] == [4, 4, 2]


def test_a_batch_is_bounded_in_bytes_but_a_large_mail_goes_alone(monkeypatch):
    """No request is larger than the bound unless one mail is."""
    monkeypatch.setattr(calls, "BATCH_BYTES", 1000)
    large = Mail(to="ann@example.org", subject="99", text="x" * 5000)
    accepted, tries, _ = hold(calls.send_many([*mails(6), large, *mails(2)], Patience()), taking)
    assert len(accepted) == 9
    assert ["99"] in [subjects(step.request) for step in tries]
    assert all(len(step.request.body) <= 1100 or subjects(step.request) == ["99"] for step in tries)


def test_nothing_to_send_sends_nothing():
    """An empty batch makes no request."""
    assert hold(calls.send_many([], Patience()), taking) == ((), [], [])


def test_only_what_is_still_open_of_a_batch_is_sent_again():
    """Commands that were taken or refused are settled; those that met a fault go again under their own keys."""
    seen = []

    def came(request):
        seen.append(
            [
                (each["idempotency_key"], each["payload"]["subject"])
                for each in json.loads(request.body)["commands"]
            ]
        )
        return answer(
            200,
            {"answers": [entry(s, 503 if len(seen) == 1 and s in "13" else 202) for s in subjects(request)]},
        )

    accepted, _, waits = hold(calls.send_many(mails(5), Patience()), came)
    assert [each.delivery_id.int for each in accepted] == list(range(5))
    assert seen[1] == [seen[0][1], seen[0][3]]
    assert len(waits) == 1


def test_a_refused_command_of_a_batch_is_an_error_that_tells_the_fate_of_each():
    """The others are taken; nobody can overlook the one that was not."""

    def came(request):
        return answer(200, {"answers": [entry(s, 422 if s == "1" else 202) for s in subjects(request)]})

    with pytest.raises(BatchError) as refused:
        hold(calls.send_many(mails(3), Patience()), came)
    first, second, third = refused.value.answers
    assert (first.delivery_id.int, third.delivery_id.int) == (0, 2)
    assert (second.status, second.code) == (422, "some_code")
    assert refused.value.errors == (second,)


def test_two_mails_with_one_key_keep_their_own_answers():
    """A key used twice in a batch: what became of the one is not told of the other."""

    def came(request):
        return answer(200, {"answers": [entry("0"), entry("1", 422)]})

    with pytest.raises(BatchError) as refused:
        hold(calls.send_many(mails(2, idempotency_key="same"), Patience()), came)
    assert isinstance(refused.value.answers[0], Accepted)
    assert isinstance(refused.value.answers[1], RejectedError)


def test_a_batch_without_an_answer_leaves_each_open_under_its_own_key(monkeypatch):
    """What was settled stays; the rest is unknown, each with its key; batches behind it are not tried."""
    monkeypatch.setattr(calls, "BATCH_COMMANDS", 2)
    clock = Clock()

    def came(request):
        found = subjects(request)
        if found == ["0", "1"]:
            return taking(request)
        return (
            answer(200, {"answers": [entry(found[0])] + [entry(s, 503) for s in found[1:]]})
            if len(found) == 2
            else Fault("cut")
        )

    with pytest.raises(BatchError) as gone:
        hold(calls.send_many(mails(6), patience(clock)), came, clock)
    answers = gone.value.answers
    assert [isinstance(each, Accepted) for each in answers] == [True, True, True, False, False, False]
    assert len({each.idempotency_key for each in answers[3:]}) == 3
    assert [each.reason for each in answers[3:]] == ["cut", "not tried", "not tried"]


def test_a_batch_that_is_too_large_for_the_server_is_halved():
    """A 413 to several commands is about their sum; one alone is refused."""

    def came(request):
        found = subjects(request)
        return problem(413, "too_large") if len(found) > 2 or "4" in found else taking(request)

    with pytest.raises(BatchError) as refused:
        hold(calls.send_many(mails(5), Patience()), came)
    assert [isinstance(each, Accepted) for each in refused.value.answers] == [True] * 4 + [False]
    assert refused.value.answers[4].status == 413


def test_a_refusal_of_the_whole_batch_is_each_mails():
    """A missing token, say."""
    with pytest.raises(BatchError) as refused:
        hold(calls.send_many(mails(2), Patience()), lambda _: problem(401, "unauthorized"))
    assert [each.code for each in refused.value.answers] == ["unauthorized"] * 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"answers": []},
        {"answers": [{}]},
        {"answers": [5]},
        {"answers": "x"},
        {"answers": [{"status": 422}]},
        {"answers": [{"status": 422, "problem": 5}]},
        {"answers": None},
    ],
)
def test_a_batch_answer_that_makes_no_sense_settles_nothing(body):
    """It is repeated like any answer that is not Mailkeep's."""
    accepted, tries, _ = hold(
        calls.send_many(mails(1), Patience()),
        in_turn(answer(200, body), answer(200, {"answers": [entry("0")]})),
    )
    assert len(accepted) == 1
    assert len(tries) == 2
