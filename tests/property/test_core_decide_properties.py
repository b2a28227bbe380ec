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
from mailkeep.core.ladder import JITTER
from mailkeep.core.outcome import Outcome, Phase, RecipientOutcome, Scope, Severity

S = DeliveryStatus
PARK_S = 7.0
MAX_ATTEMPTS = 20
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


def _outcome(recipients: tuple[RecipientOutcome, ...]) -> Outcome:
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
    )


@st.composite
def outcomes(draw: st.DrawFn, states: str, severities=tuple(Severity), scopes=tuple(Scope)) -> Outcome:
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
        )
    )


@st.composite
def cases(draw: st.DrawFn, severities=tuple(Severity), scopes=tuple(Scope)) -> Case:
    """Draw a delivery with somebody still open, and an answer for each of those."""
    states = draw(st.text("osfx", min_size=1, max_size=5).filter(lambda text: "o" in text))
    ladder_s = draw(st.lists(st.floats(1, 1e5), min_size=1, max_size=6).map(tuple))
    return Case(
        states=states,
        outcome=draw(outcomes(states, severities, scopes)),
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


@given(
    cases(severities=(Severity.SUCCESS, Severity.PERMANENT, Severity.TRANSIENT), scopes=tuple(OUTAGE_SCOPES))
)
def test_an_outage_uses_no_rung(case):
    """An outage of the next hop or of our login parks the mail, however much of the ladder is used."""
    assume(case.outcome.severity is Severity.TRANSIENT)
    decision = case.decide()
    assert decision.status is S.RENDERED
    assert decision.wait_s == PARK_S
    assert not decision.uses_rung


@given(cases(severities=(Severity.TRANSIENT,), scopes=tuple(set(Scope) - OUTAGE_SCOPES)))
def test_a_deferral_takes_the_next_rung_or_ends_the_ladder(case):
    """The n-th deferral waits the n-th rung ±10 %; past the last one the delivery is a dead letter."""
    decision = case.decide()
    if case.rungs_used >= len(case.ladder_s):
        assert decision.status is S.DEAD_LETTER
        assert decision.dead_letter_cause == "ladder_exhausted"
        return
    rung_s = case.ladder_s[case.rungs_used]
    assert decision.uses_rung
    assert decision.wait_s is not None
    assert abs(decision.wait_s - rung_s) <= rung_s * JITTER * (1 + 1e-9)


@given(cases())
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
