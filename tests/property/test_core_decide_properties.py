"""`decide`: whatever an attempt brings, the delivery's next state is legal and keeps the contract's rules."""

from dataclasses import dataclass

from hypothesis import assume, given
from hypothesis import strategies as st

from mailkeep.core.decide import OUTAGE_SCOPES, Decision, decide, settled_status, states_after
from mailkeep.core.delivery import (
    TERMINAL,
    TRANSITIONS,
    AttemptStatus,
    Certainty,
    DeliveryStatus,
    Guarantee,
    RecipientState,
)
from mailkeep.core.ladder import JITTER, SOON_RUNGS, SOON_S, next_wait_s
from mailkeep.core.outcome import MAX_WAIT_HINT_S, Outcome, Phase, RecipientOutcome, Retry, Scope, Severity

S = DeliveryStatus
PARK_S = 7.0
MAX_ATTEMPTS = 20
MOSTLY = 4  # times what a test is about is drawn as often as the rest, so that few examples are thrown away
_WEIGHT = {Severity.SUCCESS: 0, Severity.PERMANENT: 1, Severity.TRANSIENT: 2, Severity.UNKNOWN: 3}


@dataclass
class Case:
    """One call of `decide`."""

    states: str
    outcome: Outcome
    guarantee: Guarantee
    ladder_s: tuple[float, ...]
    rungs_used: int
    chance: float

    def decide(self) -> Decision:
        return decide(
            states=self.states,
            outcome=self.outcome,
            guarantee=self.guarantee,
            ladder_s=self.ladder_s,
            rungs_used=self.rungs_used,
            park_s=PARK_S,
            chance=self.chance,
        )


def _outcome(recipients: tuple[RecipientOutcome, ...], retry: Retry, wait_hint_s: float) -> Outcome:
    """Build an outcome that stands for its worst recipient, as a session does."""
    worst = max(recipients, key=lambda recipient: _WEIGHT[recipient.severity])
    unknown = worst.severity is Severity.UNKNOWN
    success = all(recipient.severity is Severity.SUCCESS for recipient in recipients)
    return Outcome(
        status=AttemptStatus.PROVIDER_ACCEPTED if success else AttemptStatus.PROVIDER_REJECTED,
        certainty=Certainty.UNKNOWN
        if unknown
        else (Certainty.DELIVERED if success else Certainty.NOT_DELIVERED),
        phase=Phase.DOT if unknown or success else Phase.RCPT,
        severity=worst.severity,
        scope=worst.scope,
        rule="a_rule",
        recipients=recipients,
        retry=retry,
        wait_hint_s=wait_hint_s,
    )


HINTS_S = st.floats(0, MAX_WAIT_HINT_S)


@st.composite
def outcomes(
    draw: st.DrawFn, states: str, severities=tuple(Severity), scopes=tuple(Scope), retries=tuple(Retry)
) -> Outcome:
    """Draw an answer for each recipient that is open in `states`."""
    return _outcome(
        tuple(
            RecipientOutcome(
                ordinal=ordinal,
                severity=draw(st.sampled_from(severities)),
                scope=draw(st.sampled_from(scopes)),
                rule="a_rule",
                suppress=draw(st.booleans()),
            )
            for ordinal, state in enumerate(states)
            if state == RecipientState.OPEN
        ),
        draw(st.sampled_from(retries)),
        draw(st.just(0.0) | HINTS_S),
    )


@st.composite
def cases(draw: st.DrawFn, severities=tuple(Severity), scopes=tuple(Scope), retries=tuple(Retry)) -> Case:
    """Draw a delivery with somebody still open, and an answer for each of those."""
    states = draw(st.tuples(*[st.text("osfx", max_size=2)] * 2).map("o".join))
    ladder_s = draw(st.lists(st.floats(1, 1e5), min_size=1, max_size=6).map(tuple))
    return Case(
        states=states,
        outcome=draw(outcomes(states, severities, scopes, retries)),
        guarantee=draw(st.sampled_from(Guarantee)),
        ladder_s=ladder_s,
        rungs_used=draw(st.integers(0, len(ladder_s) + 1)),
        chance=draw(st.floats(0, 1, exclude_max=True)),
    )


@given(cases())
def test_the_next_status_is_always_a_legal_move(case):
    """From `sending` only moves of the table are decided, and every field agrees with the status."""
    decision = case.decide()
    assert (S.SENDING, decision.status) in TRANSITIONS
    assert (decision.wait_s is not None) == (decision.status is S.RENDERED)
    assert (decision.dead_letter_cause is not None) == (decision.status is S.DEAD_LETTER)
    assert not decision.uses_rung or decision.status is S.RENDERED


@given(cases())
def test_it_ends_exactly_when_no_recipient_is_open(case):
    """With nobody left the delivery settles; with somebody left it waits, is held, or is buried."""
    decision = case.decide()
    is_open = RecipientState.OPEN in decision.recipient_states
    assert is_open == (decision.status in {S.RENDERED, S.HELD, S.DEAD_LETTER})


@given(cases())
def test_sent_means_accepted_for_everybody(case):
    """`sent` is never said of a delivery that somebody did not get; a refusal outweighs a suppression."""
    decision = case.decide()
    settled = set(decision.recipient_states)
    assert (decision.status is S.SENT) == (settled == {"s"})
    assert (decision.status is S.FAILED) == ("o" not in settled and "f" in settled)
    assert (decision.status is S.SUPPRESSED) == (settled <= {"s", "x"} and "x" in settled)


@given(cases())
def test_each_recipient_has_its_own_outcome(case):
    """A settled recipient keeps its letter; an addressed one gets that of its own answer."""
    after = case.decide().recipient_states
    answers = {recipient.ordinal: recipient for recipient in case.outcome.recipients}
    assert len(after) == len(case.states)
    for ordinal, (before, letter) in enumerate(zip(case.states, after, strict=True)):
        if ordinal not in answers:
            assert letter == before
            continue
        match answers[ordinal].severity:
            case Severity.SUCCESS:
                assert letter == "s"
            case Severity.PERMANENT:
                policy = answers[ordinal].suppress and answers[ordinal].scope is Scope.REPUTATION
                assert letter == ("x" if policy else "f")
            case Severity.TRANSIENT | Severity.UNKNOWN:
                assert letter == "o"


@given(cases((*[Severity.TRANSIENT] * MOSTLY, Severity.SUCCESS, Severity.PERMANENT), tuple(OUTAGE_SCOPES)))
def test_an_outage_uses_no_rung(case):
    """An outage of the next hop or of our login parks the mail, however much of the ladder is used."""
    assume(case.outcome.severity is Severity.TRANSIENT)
    decision = case.decide()
    assert decision.status is S.RENDERED
    assert decision.wait_s == PARK_S
    assert not decision.uses_rung


@given(cases(severities=(Severity.TRANSIENT,), scopes=tuple(set(Scope) - OUTAGE_SCOPES)))
def test_a_deferral_takes_the_next_rung_or_ends_the_ladder(case):
    """The n-th deferral takes the n-th rung and waits by it; past the last one the delivery is a dead letter."""
    decision = case.decide()
    if case.rungs_used >= len(case.ladder_s):
        assert decision.status is S.DEAD_LETTER
        assert decision.dead_letter_cause == "ladder_exhausted"
        return
    assert decision.uses_rung
    assert decision.wait_s == next_wait_s(
        case.ladder_s,
        case.rungs_used,
        case.chance,
        soon=case.outcome.retry is Retry.SOON,
        wait_hint_s=case.outcome.wait_hint_s,
    )


WAITS = {
    "ladder_s": st.lists(st.floats(1, 1e5), min_size=1, max_size=4).map(tuple),
    "rungs_used": st.integers(0, 4),
    "chance": st.floats(0, 1, exclude_max=True),
}


@given(**WAITS, soon=st.booleans(), hint_s=HINTS_S)
def test_a_wait_is_never_shorter_than_the_server_asked(ladder_s, rungs_used, chance, soon, hint_s):
    """A hint makes a wait longer or leaves it; what it makes longer exceeds it by the jitter at most."""
    wait_s = next_wait_s(ladder_s, rungs_used, chance, soon=soon, wait_hint_s=hint_s)
    unasked_s = next_wait_s(ladder_s, rungs_used, chance, soon=soon)
    assert (wait_s is None) == (unasked_s is None) == (rungs_used >= len(ladder_s))
    if wait_s is not None:
        assert wait_s >= max(hint_s, unasked_s)
        assert wait_s <= max(hint_s * (1 + JITTER), unasked_s)


@given(**WAITS, hint_s=st.just(0.0) | HINTS_S)
def test_greylisting_never_waits_longer_than_the_ladder(ladder_s, rungs_used, chance, hint_s):
    """At first it waits a few minutes at most, unless asked for more; from the third rung on it waits like any other."""
    soon_s = next_wait_s(ladder_s, rungs_used, chance, soon=True, wait_hint_s=hint_s)
    ladder_wait_s = next_wait_s(ladder_s, rungs_used, chance, wait_hint_s=hint_s)
    if rungs_used >= min(SOON_RUNGS, len(ladder_s)):
        assert soon_s == ladder_wait_s
    else:
        assert hint_s <= soon_s <= ladder_wait_s
        assert soon_s <= max(SOON_S, hint_s) * (1 + JITTER) * (1 + 1e-9)


@given(
    cases(
        (*[Severity.TRANSIENT] * MOSTLY, Severity.SUCCESS, Severity.PERMANENT),
        tuple(set(Scope) - OUTAGE_SCOPES),
        (Retry.AT_ONCE,),
    )
)
def test_recipients_who_had_no_turn_cost_no_rung_if_others_had(case):
    """After a transaction that delivered, the rest goes on at once, or when it was asked to; else it is a deferral."""
    assume(case.outcome.severity is Severity.TRANSIENT)
    decision = case.decide()
    if Severity.SUCCESS in {recipient.severity for recipient in case.outcome.recipients}:
        assert (decision.status, decision.wait_s) == (S.RENDERED, case.outcome.wait_hint_s)
        assert not decision.uses_rung
    else:
        assert decision.uses_rung or decision.status is S.DEAD_LETTER


@given(cases(severities=(Severity.SUCCESS, Severity.TRANSIENT), scopes=(Scope.RECIPIENT,)), st.data())
def test_going_on_at_once_comes_to_an_end(case, data):
    """Without a rung there are no more transactions than recipients, whatever the server says."""
    recipients, going_on = len(case.states), 0
    for _ in range(MAX_ATTEMPTS):
        decision = case.decide()
        if decision.status is not S.RENDERED:
            break
        going_on += not decision.uses_rung
        case.rungs_used += decision.uses_rung
        case.states = decision.recipient_states
        case.outcome = data.draw(
            outcomes(case.states, (Severity.SUCCESS, Severity.TRANSIENT), (Scope.RECIPIENT,))
        )
    assert going_on < recipients


@given(cases((*[Severity.UNKNOWN] * MOSTLY, *Severity)))
def test_an_unknown_outcome_is_held_under_at_most_once(case):
    """Where any recipient may have the message already, `at_most_once` stops and `at_least_once` goes on."""
    assume(any(recipient.severity is Severity.UNKNOWN for recipient in case.outcome.recipients))
    decision = case.decide()
    if case.guarantee is Guarantee.AT_MOST_ONCE:
        assert decision.status is S.HELD
    else:
        assert decision.status is (S.RENDERED if case.rungs_used < len(case.ladder_s) else S.DEAD_LETTER)
        assert decision.uses_rung == (decision.status is S.RENDERED)


@given(cases(), st.data())
def test_a_delivery_never_takes_more_rungs_than_its_ladder_has(case, data):
    """Attempt after attempt, whatever comes, it stays within its ladder, and a settled recipient stays settled."""
    case.rungs_used = 0
    for _ in range(MAX_ATTEMPTS):
        decision = case.decide()
        assert all(
            before in ("o", after)
            for before, after in zip(case.states, decision.recipient_states, strict=True)
        )
        case.rungs_used += decision.uses_rung
        if decision.status is not S.RENDERED:
            break
        case.states = decision.recipient_states
        case.outcome = data.draw(outcomes(case.states))
    assert case.rungs_used <= len(case.ladder_s)


@given(st.text("sfx", min_size=1, max_size=8))
def test_a_settled_status_is_terminal(states):
    """Whatever mix of settled recipients there is, the delivery ends."""
    assert settled_status(states) in TERMINAL


@given(cases())
def test_states_after_is_what_decide_records(case):
    """The letters an operator is shown are those the decision was taken by."""
    assert case.decide().recipient_states == states_after(case.states, case.outcome)
