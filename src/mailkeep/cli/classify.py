"""`mailkeep classify`: what a mail server's reply means here, and what follows from it; asks no server."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mailkeep.core.delivery import DeliveryClass
    from mailkeep.core.outcome import Phase, Verdict
    from mailkeep.smtp.reply import Reply


def classify(
    reply: Annotated[str, typer.Argument(metavar="REPLY", help="As the server wrote it, or a failure.")],
    *,
    phase: Annotated[
        str, typer.Option(help="The command it answered: greeting, ehlo … rcpt, data, dot.")
    ] = "rcpt",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain a reply of a mail server: the rule that decides, what it is about, and what Mailkeep does next.

    For example `mailkeep classify "550 5.1.1 User unknown"`, `mailkeep classify "451 try again in 5 minutes" --phase dot`, or
    what it means that none came: `mailkeep classify timeout --phase dot`.
    """
    from mailkeep.cli.output import load_settings, print_json, printable
    from mailkeep.smtp.classify import RULES

    heard, at, verdict = _judged(reply, phase)
    waits_s = _first_waits_s(verdict, load_settings().ladders)
    facts = {
        "reply": heard,
        "phase": at,
        "rule": verdict.rule,
        "rules_version": RULES.version,
        "severity": verdict.severity,
        "scope": verdict.scope,
        "suppress": verdict.suppress,
        "retry": verdict.retry,
        "wait_hint_s": verdict.wait_hint_s,
        "first_waits_s": waits_s,
        "next": _next(verdict, at, waits_s),
    }
    if as_json:
        print_json(facts)
        return
    for name, value in _shown(facts):
        print(f"{name:<11} {printable(value)}")


def _judged(text: str, phase: str) -> "tuple[str, Phase, Verdict]":
    """Return what was heard, where, and what it means; leave with a usage error if that can't be said."""
    from mailkeep.core.outcome import Phase
    from mailkeep.smtp.classify import REPLY_PHASES, FailureKind, classify, classify_failure

    phases = ", ".join([Phase.CONNECT, Phase.TLS, *REPLY_PHASES])
    if phase not in phases.split(", "):
        raise typer.BadParameter(f"{phase!r} is no phase; there are: {phases}")
    at = Phase(phase)
    if text in set(FailureKind):
        try:
            return text, at, classify_failure(at, FailureKind(text))
        except KeyError:
            raise typer.BadParameter(f"{text} can't happen at {at}") from None
    parsed = _parsed(text)
    if at not in REPLY_PHASES:
        raise typer.BadParameter(
            f"no reply is awaited at {at}; what fails there is one of: {', '.join(FailureKind)}"
        )
    return parsed.shown, at, classify(at, parsed)


def _parsed(text: str) -> "Reply":
    from mailkeep.smtp.reply import ReplyParser

    lines = text.splitlines() or [""]
    if lines[-1][3:4] == "-":
        lines[-1] = f"{lines[-1][:3]} {lines[-1][4:]}"  # one line of several, copied from a log
    parser = ReplyParser()
    replies = parser.feed("\r\n".join([*lines, ""]).encode("utf-8", "surrogateescape"))
    if len(replies) != 1 or parser.pending:
        why = parser.fault or "not one whole reply"
        raise typer.BadParameter(
            f'not a reply of a mail server ({why}); write it like "550 5.1.1 User unknown"'
        )
    return replies[0]


def _first_waits_s(
    verdict: "Verdict", ladders: "Mapping[DeliveryClass, tuple[float, ...]]"
) -> "dict[DeliveryClass, float | None] | None":
    """Return how long each class waits after a first attempt that ended so, without jitter; None if none does."""
    from mailkeep.core.decide import OUTAGE_SCOPES
    from mailkeep.core.ladder import next_wait_s
    from mailkeep.core.outcome import Retry, Severity

    if verdict.severity not in (Severity.TRANSIENT, Severity.UNKNOWN) or verdict.scope in OUTAGE_SCOPES:
        return None
    soon = verdict.retry is Retry.SOON
    return {
        name: next_wait_s(ladder_s, 0, 0.5, soon=soon, wait_hint_s=verdict.wait_hint_s)
        for name, ladder_s in ladders.items()
    }


def _next(verdict: "Verdict", phase: "Phase", waits_s: "Mapping[DeliveryClass, float | None] | None") -> str:
    """Return in words what `mailkeep.core.decide` makes of it."""
    from mailkeep.core.outcome import Phase, Scope, Severity

    match verdict.severity:
        case Severity.SUCCESS:
            return "delivered" if phase is Phase.DOT else "the dialog goes on"
        case Severity.PERMANENT:
            whom = "this recipient" if phase is Phase.RCPT else "every recipient of the transaction"
            by_provider = verdict.suppress and verdict.scope is Scope.REPUTATION
            return f"{whom} ends {'suppressed' if by_provider else 'failed'} and is not tried again"
        case Severity.UNKNOWN:
            return f"the next hop may have it. at_most_once: held for an operator; at_least_once: {_again(waits_s)}"
        case Severity.TRANSIENT:
            return _after_a_deferral(verdict, waits_s)


def _after_a_deferral(verdict: "Verdict", waits_s: "Mapping[DeliveryClass, float | None] | None") -> str:
    from mailkeep.core.outcome import Retry, Scope
    from mailkeep.dispatch.breaker import OPENING_FAILURES

    if waits_s is None:
        opens = (
            "at once" if verdict.scope is Scope.CREDENTIAL else f"after {OPENING_FAILURES} of these in a row"
        )
        return f"parked without using a rung of the ladder; the breaker of the next hop opens {opens}"
    if verdict.retry is Retry.AT_ONCE:
        at_once = "if others got the message: at once in a new transaction, without using a rung"
        return f"{at_once}; else: {_again(waits_s)}"
    return _again(waits_s)


def _again(waits_s: "Mapping[DeliveryClass, float | None] | None") -> str:
    from mailkeep.core.duration import format_duration

    firsts = (f"{name} about {format_duration(wait_s or 0)}" for name, wait_s in (waits_s or {}).items())
    return f"tried again by the ladder; the first wait: {', '.join(firsts)}"


def _shown(facts: "Mapping[str, Any]") -> list[tuple[str, str]]:
    from mailkeep.core.duration import format_duration

    return [
        ("reply", facts["reply"]),
        ("phase", facts["phase"]),
        ("rule", f"{facts['rule']} (rules version {facts['rules_version']})"),
        ("severity", facts["severity"]),
        ("scope", facts["scope"]),
        ("suppression", "yes" if facts["suppress"] else "no"),
        ("wait hint", format_duration(facts["wait_hint_s"]) if facts["wait_hint_s"] else "none"),
        ("next", facts["next"]),
    ]
