"""Write the pages of `docs/reference` that follow from the code: `make docs`.

Each page is a function of one source: the declared settings, the table of transitions, `rules.toml` with the replies that
the tests hold it against, the servers that the tests play, the sinkhole's script, the command line's own help, the declared log events,
the doctor's causes. The output depends on nothing else, so
that `tests/unit/test_docs.py` can hold the committed pages against it.
"""
# ruff: noqa: INP001  # a script beside the pages it writes, no package

import importlib
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

import typer.main
from typer.testing import CliRunner

from mailkeep.cli import app
from mailkeep.cli.output import EXIT_CODES as CLI_EXIT_CODES
from mailkeep.core.decide import OUTAGE_SCOPES
from mailkeep.core.delivery import (
    BIRTH,
    TERMINAL,
    TRANSITIONS,
    AttemptStatus,
    Certainty,
    DeliveryStatus,
    RecipientState,
)
from mailkeep.core.duration import format_duration
from mailkeep.core.ladder import JITTER, SOON_RUNGS, SOON_S
from mailkeep.core.outcome import MAX_WAIT_HINT_S, Retry
from mailkeep.doctor.causes import CAUSES, SYMPTOMS
from mailkeep.doctor.examine import EXIT_CODES
from mailkeep.sinkhole.api import MAX_PAGE, USUAL_PAGE
from mailkeep.sinkhole.script import (
    GREYLIST_WINDOW_S,
    HEALTHY,
    SLOW_REPLY_S,
    SURE,
    Action,
    Mode,
    ModeName,
    answer,
    describe,
    is_of_phase,
    parse_mode,
)
from mailkeep.smtp.classify import RULES, Rule
from mailkeep.telemetry.metrics import METRICS
from mailkeep.telemetry.names import LOG_EVENTS

E = TypeVar("E", bound=StrEnum)

REFERENCE: Final = Path(__file__).parent / "reference"
TESTS: Final = Path(__file__).parents[1] / "tests"
REPLIES: Final = TESTS / "data/replies.toml"
NOTICE: Final = "<!-- Written by docs/generate.py (`make docs`); edit its source instead. -->"
HELP_CHARS: Final = 100

_DELIVERY: Final = {
    DeliveryStatus.QUEUED: "Durable, content not rendered yet.",
    DeliveryStatus.RENDERED: "The message's bytes are fixed; it waits for an attempt.",
    DeliveryStatus.SENDING: "One replica has claimed it: an attempt is under way or about to begin.",
    DeliveryStatus.HELD: "It waits for a person: under `at_most_once` the outcome of an attempt is unknown.",
    DeliveryStatus.SENT: "A next hop accepted it for every recipient.",
    DeliveryStatus.SUPPRESSED: "Not sent to at least one recipient: on the suppression list, on a list of the provider's own, or stub mode.",
    DeliveryStatus.FAILED: "Refused for good for at least one recipient; the record says which got it.",
    DeliveryStatus.DEAD_LETTER: "The ladder is exhausted, or it was taken over three times in a row without a recorded attempt (`poison`).",
    DeliveryStatus.EXPIRED: "Its time ran out, or the next wait would have ended after it.",
    DeliveryStatus.CANCELLED: "Taken back before it was sent.",
}
_ATTEMPT: Final = {
    AttemptStatus.IN_PROGRESS: "Under way. It has no row yet; the claim says all there is to say.",
    AttemptStatus.PROVIDER_ACCEPTED: "The next hop answered the final dot with 2yz.",
    AttemptStatus.PROVIDER_REJECTED: "The next hop answered something else, or announced that it can't take the message.",
    AttemptStatus.TRANSPORT_FAILED: "The connection failed, or was interrupted on our side.",
    AttemptStatus.TIMED_OUT: "A reply did not come in time; `phase` says which.",
    AttemptStatus.RENDER_FAILED: "There was nothing that may be sent: no content, or a reserved domain without the sinkhole as its next hop.",
    AttemptStatus.ABANDONED: "Its replica was lost; what it did is not known. Uses no rung of the ladder.",
}
_CERTAINTY: Final = {
    Certainty.DELIVERED: "The next hop has it.",
    Certainty.NOT_DELIVERED: "The next hop certainly does not have it.",
    Certainty.UNKNOWN: "The final dot left, or may have left, and no reply was recorded.",
}
_RECIPIENT: Final = {
    RecipientState.OPEN: "Still to be sent to; a retry addresses these only.",
    RecipientState.SENT: "Accepted.",
    RecipientState.FAILED: "Refused for good.",
    RecipientState.SUPPRESSED: "On the suppression list, on a list of the provider's own, or stub mode.",
}


def pages() -> dict[str, str]:
    """Return every generated page, file name -> text."""
    texts = {
        "causes.md": _causes(),
        "cli.md": _cli(),
        "hostile-servers.md": _hostile_servers(),
        "log-events.md": _log_events(),
        "metrics.md": _metrics(),
        "settings.md": _settings(),
        "sinkhole.md": _sinkhole(),
        "smtp-classification.md": _smtp_classification(),
        "statuses.md": _statuses(),
    }
    return {name: f"{NOTICE}\n\n{text.strip()}\n" for name, text in texts.items()}


# -- settings and command line -------------------------------------------------------------------------------------


def _settings() -> str:
    return f"""{_run("config", "--reference")}
Durations are written like `90s`, `5m`, `1h30m`, `7d`. A name that begins with `MAIL_` and is not listed here stops the
start, so that a typing error is not ignored. `mailkeep config` shows what is in force and everything that is wrong with it.
"""


def _cli() -> str:
    sections = [
        f"## mailkeep {' '.join(verb)}\n\n```text\n{_run(*verb, '--help').strip()}\n```" for verb in _verbs()
    ]
    exit_codes = _table(
        ("exit code", "meaning"),
        [(str(code), meaning) for code, meaning in CLI_EXIT_CODES],
    )
    head = "Results go to standard output, faults to standard error. `--json` prints JSON for programs."
    return "\n\n".join(["# Command line", head, exit_codes, *sections])


def _verbs() -> list[tuple[str, ...]]:
    commands = _commands(typer.main.get_command(app))
    return [
        (name, *below)
        for name, verb in commands.items()
        for below in [(), *((sub,) for sub in _commands(verb))]
    ]


def _commands(command: object) -> Mapping[str, object]:
    return getattr(command, "commands", {})  # a group has them, a verb has none


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), prog_name="mailkeep", terminal_width=HELP_CHARS)
    if done.exit_code:
        raise RuntimeError(f"mailkeep {' '.join(arguments)} left with exit code {done.exit_code}")
    return done.stdout


# -- causes --------------------------------------------------------------------------------------------------------


def _causes() -> str:
    sections = [
        f"## {incident}\n\n{meaning}\n\n"
        + _table(
            ("cause", "meaning", "next step"),
            [
                (f"`{cause}`", about.meaning, _step(about.step))
                for cause, about in CAUSES.items()
                if incident in about.incidents
            ],
        )
        for incident, meaning in SYMPTOMS.items()
    ]
    codes = ", ".join(f"`{severity}` {code}" for severity, code in EXIT_CODES.items())
    return f"""# Causes

What [`mailkeep doctor`](../how-to/incidents.md) can name, by incident. Names stay, so that scripts may know them; a cause that
explains several incidents has one name. Exit code by the worst severity: {codes}.

{(chr(10) * 2).join(sections)}
"""


def _step(step: str) -> str:
    text = step.replace("{about}", "NAME")
    return text if "`" in text or not text.startswith("mailkeep ") else f"`{text}`"


# -- statuses ------------------------------------------------------------------------------------------------------


def _statuses() -> str:
    moves = [(f"`{before}`", f"`{after}`", why) for (before, after), why in TRANSITIONS.items()]
    return f"""# Statuses

## Of a delivery

{_meanings(_DELIVERY)}

{_listed(TERMINAL)} are terminal: the delivery has ended. Every delivery ends in exactly one of them.

{_diagram()}

{_table(("from", "to", "why"), moves)}

There are no other moves. A delivery is born as one of {_listed(BIRTH)}.

## Of an attempt

{_meanings(_ATTEMPT)}

## Certainty of an attempt

{_meanings(_CERTAINTY)}

## Of a recipient

{_table(("state", "meaning"), [(f"`{state.name.lower()}`", text) for state, text in _whole(_RECIPIENT)])}
"""


def _diagram() -> str:
    births = [f"    [*] --> {status}" for status in DeliveryStatus if status in BIRTH]
    moves = [f"    {before} --> {after}" for before, after in TRANSITIONS]
    ends = [f"    {status} --> [*]" for status in DeliveryStatus if status in TERMINAL]
    return "\n".join(["```mermaid", "stateDiagram-v2", *births, *moves, *ends, "```"])


def _meanings(meanings: Mapping[E, str]) -> str:
    return _table(("status", "meaning"), [(f"`{member}`", text) for member, text in _whole(meanings)])


def _whole(meanings: Mapping[E, str]) -> list[tuple[E, str]]:
    """Return the meaning of each member in order. Raises KeyError if one has none."""
    kind = type(next(iter(meanings)))
    return [(member, meanings[member]) for member in kind]


def _listed(members: Iterable[DeliveryStatus]) -> str:
    return ", ".join(f"`{status}`" for status in DeliveryStatus if status in members)


# -- SMTP classification -------------------------------------------------------------------------------------------


def _smtp_classification() -> str:
    notes = _notes()
    rows = [
        (
            f"`{rule.name}`",
            ", ".join(rule.phases),
            _condition(rule),
            rule.severity,
            _scope(rule),
            _waiting(rule),
            notes.get(rule.name, ""),
        )
        for rule in RULES.rows
    ]
    sources = tomllib.loads(REPLIES.read_text(encoding="utf-8"))["source"]
    replies = [reply for source in sources for reply in source["replies"]]
    patterns = [f"`{rule.name}`\n\n```text\n{rule.text}\n```" for rule in RULES.rows if rule.text]
    return f"""# SMTP classification

What a reply of a next hop, or its absence, means. Version {
        RULES.version
    } of `src/mailkeep/smtp/rules.toml`. The first row
that fits decides, and its name is stored on the attempt as `rule`. `mailkeep classify "550 5.1.1 User unknown"` explains one reply.

- severity `transient`: tried again. `permanent`: not tried again. `unknown`: the next hop may have the message.
- scope `message`, `recipient`, `sender`, `reputation`: the attempt uses a rung of the ladder. {
        _codes(sorted(OUTAGE_SCOPES))
    }: an
  outage; the mail is parked without using a rung, and the breaker of the next hop learns of it.
- `5yz` stands for every reply that begins with 5; `none` for a reply without an enhanced code.
- wait: what is waited at least; `soon` and `at once` are explained under [Waits](#waits).

{_table(("rule", "phases", "when", "severity", "scope", "wait", "note"), rows)}

Rules that no reply decides:

{
        _table(
            ("rule", "meaning"),
            [
                ("`replica_lost`", "the replica was lost; another took the delivery over"),
                ("`shutdown`", "the replica stopped after the final dot and before its reply"),
                ("`internal_fault`", "a fault of Mailkeep; the traceback is in the log"),
                ("`no_content`", "the content is no longer stored"),
                (
                    "`reserved_domain`",
                    "a recipient's domain is reserved (RFC 2606) and its next hop is not the sinkhole; not tried",
                ),
                (
                    "`suppression_list`",
                    "a recipient is on the [suppression list](../how-to/suppressions.md); not tried",
                ),
            ],
        )
    }

## Waits

A transient answer takes the next rung of the class's ladder, ±{
        JITTER:.0%}. What the answer asks for is respected upwards only: a
wait is never shorter than it. More than {format_duration(MAX_WAIT_HINT_S)} is not granted.

- The words of the reply come first: "try again in 5 minutes", "come back in 00:05:00", "greylisted for 300 seconds". A wait that
  ends past the expiry of a delivery ends it `expired`.
- Where the reply tells no wait, that of the rule counts.
- `soon`: greylisted. The first {SOON_RUNGS} rungs are at most {
        format_duration(SOON_S)
    } long; each is used up as usual. Several
  open recipients are tried again soon only if all of them are greylisted.
- `at once`: the server took no more recipients, or no more of this kind, in one transaction. If the message was delivered to
  others, the rest goes in a new transaction without using a rung, at once, or when another answer asked for a wait, after that.
  If it was delivered to nobody, that is a deferral like any other.
- While mail is parked the breaker alone decides.

## Text patterns

Searched for in the text of the reply, in any letter case; addresses in it are masked as `…@…` first.

{(chr(10) * 2).join(patterns)}

How long to wait:

```text
{RULES.told_wait}
```

## Replies

The answers of servers that the rules are tested with (`tests/data/replies.toml`): {len(replies)} from {
        len(sources)
    } sources.

{(chr(10) * 2).join(_replies(source) for source in sources)}
"""


def _notes() -> dict[str, str]:
    """Return the comments behind the names of the rows, which the parser drops."""
    source = resources.files("mailkeep.smtp").joinpath("rules.toml").read_text(encoding="utf-8")
    return dict(re.findall(r'^name = "(\w+)" # (.+)$', source, re.MULTILINE))


def _condition(rule: Rule) -> str:
    if rule.failures:
        return _codes(rule.failures)
    parts = [_codes(rule.replies)]
    if rule.enhanced:
        parts.append(f"with {_codes(rule.enhanced)}")
    if rule.text:
        parts.append("with its text")
    return " ".join(parts)


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _scope(rule: Rule) -> str:
    return f"{rule.scope}, suppress" if rule.suppress else rule.scope


def _waiting(rule: Rule) -> str:
    if rule.retry is not Retry.LADDER:
        return rule.retry.replace("_", " ")
    return format_duration(rule.wait_hint_s) if rule.wait_hint_s else ""


def _replies(source: Mapping[str, Any]) -> str:
    rows = [(phase, _in_a_cell(text), f"`{rule}`") for phase, rule, text, *_ in source["replies"]]
    return f"### {source['name']}\n\n{source['document']}\n\n{_table(('phase', 'reply', 'rule'), rows)}"


def _in_a_cell(text: str) -> str:
    shown = text.replace("\n", " ⏎ ").replace("|", "\\|")
    return f"`{shown}`"


# -- hostile servers -------------------------------------------------------------------------------------------------


def _hostile_servers() -> str:
    sys.path.append(str(TESTS / "integration"))
    rows = importlib.import_module("hostile_servers")
    groups = [
        f"## {number} {title}\n\n"
        + _table(
            (
                "the server …",
                "attempt",
                "phase",
                "certainty",
                "severity · scope",
                "then",
                "connection",
                "words",
            ),
            [_scenario(scenario) for scenario in rows.SCENARIOS if scenario.number == number],
        )
        for number, title in rows.GROUPS.items()
    ]
    contents = _table(
        ("no.", "a message or an address …", "what Mailkeep does", "tests"),
        [
            (content.number, content.attack, content.answer, _tests(content.tests))
            for content in rows.CONTENTS
        ],
    )
    return f"""# Hostile servers

What a next hop can do to Mailkeep, whether it is broken, overloaded or means it, and what comes of that. Each row is a test
(`tests/integration/hostile_servers.py`): a server that behaves so, three messages for it over at most two connections, and
beside them messages for another next hop, which all arrive. No server gets more connections than its `max_connections`, and
none fills the memory: what it floods us with stays below {
        rows.MAX_TRACED_BYTES // 1_000_000
    } MB with all that the test itself holds. Some rows are played through the
queue as well, with PostgreSQL and a pool of four workers.

- attempt, phase, certainty: as they stand on [the attempt](statuses.md).
- severity · scope: what the attempt means and whom it concerns; [the rules](smtp-classification.md) decide.
- then: what becomes of the mail. Parked mail uses no rung of its ladder and goes on when the next hop is well.
- connection: `kept` for the next message, or `dropped`; `none` where there was none.
- words: what the attempt's record and `mailkeep queue` say.

{(chr(10) * 2).join(groups)}

## Hostile messages

What comes in with a message meets walls on its way in, when the message is written, and just before the wire.

{contents}
"""


def _scenario(scenario: Any) -> tuple[str, ...]:  # noqa: ANN401 - a row of the tests, which are no package
    end = scenario.end
    about = end.severity if end.severity == "success" else f"{end.severity} · {end.scope}"
    words = " or ".join(_in_a_cell(words) for words in scenario.words)
    return (
        scenario.server.replace("|", "\\|"),
        f"`{end.status}`",
        end.phase,
        end.certainty,
        about,
        end.then,
        scenario.connection,
        words,
    )


def _tests(tests: Mapping[str, Iterable[str]]) -> str:
    return "; ".join(f"`{file}`: {_codes(names)}" for file, names in tests.items())


# -- the sinkhole ------------------------------------------------------------------------------------------------


def _sinkhole() -> str:
    modes = [
        (f"`{name}`", _in_words(name), "yes" if is_of_phase(name) else "", "" if name in SURE else "yes")
        for name in ModeName
    ]
    faults = [name for name in ModeName if is_of_phase(name)]
    phases = [
        (f"`{phase}`", *(_answer(answer(Mode(name, phase), phase)) for name in faults)) for phase in HEALTHY
    ]
    calls = [
        ("`GET /mode`", "the mode in force, and what it does"),
        ("`PUT /mode`", 'takes `{"mode": "defer"}`; written where the sinkhole follows it'),
        (
            "`GET /messages?recipient=&limit=`",
            f"the inbox, newest first; {USUAL_PAGE} unless given, {MAX_PAGE} at most",
        ),
        ("`DELETE /messages`", "empties it"),
        ("`GET /messages/ID`", "one message with its envelope and text"),
        ("`GET /messages/ID/raw`", "its octets, `message/rfc822`"),
        ("`GET /connections?limit=`", "the newest connections"),
        ("`GET /connections/ID`", "what was said on one"),
    ]
    return f"""# The sinkhole's modes

A mode is a word of the first table; [how to use it](../how-to/use-the-sinkhole.md). `-3x` behind `defer` puts each recipient off three times.
`@PHASE` limits a fault to a phase; without one it strikes at the first it meets. `~25%` lets it strike a quarter of the time, by
`--seed`, the recipient and how often it was seen: the same every time. Before a `+` in an address at `sinkhole.test` a mode is that
recipient's script from RCPT on, with a dot for the `@`: `drop.dot+x@sinkhole.test`. Whatever is not said here is answered as a healthy server does.

{_table(("mode", "what it does", "`@PHASE`", "`~N%`"), modes)}

## Faults by phase

{_table(("phase", *(f"`{name}`" for name in faults)), phases)}

The 421 of `defer` and of `greylist` leaves the connection open; that of `421` closes it, as RFC 5321 has it. `stall` falls silent
and reads on, at `body` it does not even read. A handshake that comes first (`--implicit-tls`) is the phase `tls`, too.
`greylist` knows client, sender and recipient for {format_duration(GREYLIST_WINDOW_S)} (`--greylist-window`).

## HTTP API

{_table(("call", "what"), calls)}

JSON; faults are problem documents (RFC 9457). With a token: `Authorization: Bearer …`.
"""


def _in_words(name: ModeName) -> str:
    about = {
        ModeName.ACCEPT_LOG: "accepts everything and shows envelope and headers in its report",
        ModeName.SLOW: f"each reply comes {SLOW_REPLY_S:g} s late",
        ModeName.GREYLIST: f"{describe(parse_mode(name))} at first, then accepted",
    }
    return about.get(name) or ("see below" if is_of_phase(name) else describe(parse_mode(name)))


def _answer(action: Action) -> str:
    if action.delay_s:
        return "late"
    ending = {"close": "closes", "stall": "silence", "freeze": "silence, unread"}.get(action.then, "")
    return ", ".join(filter(None, (action.reply, ending)))


# -- log events ----------------------------------------------------------------------------------------------------


def _log_events() -> str:
    loggers = dict.fromkeys(event.logger for event in LOG_EVENTS)
    sections = [
        f"## {logger}\n\n"
        + _table(
            ("event", "meaning", "wake somebody"),
            [(event.event, event.meaning, event.alert) for event in LOG_EVENTS if event.logger == logger],
        )
        for logger in loggers
    ]
    head = """# Log events

Every line has `timestamp`, `level`, `logger` and `event`; more members follow by name. JSON, or coloured text on a terminal
(`MAIL_LOG_FORMAT`), on standard error. No address, code, subject, body or credential is ever in a line: whatever looks like
an address is masked. An empty last column means that nobody need look."""
    return "\n\n".join([head, *sections])


def _metrics() -> str:
    rows = [
        (
            f"`{metric.name}`",
            f"{metric.kind}, {metric.unit}",
            ", ".join(f"`{name}`" for name in metric.attributes) or "-",
            metric.meaning,
            metric.alert,
        )
        for metric in METRICS
    ]
    head = """# Metrics

Through OpenTelemetry, where an exporter is configured ([how to](../how-to/observe.md)). Prometheus shows them with underscores, the unit
and, for counters, `_total`. Attributes are words of Mailkeep; none is an address, an id or a text of a server. An empty last
column means that nobody need look."""
    return f"{head}\n\n{_table(('metric', 'kind', 'attributes', 'meaning', 'wake somebody'), rows)}"


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for page_name, page in pages().items():
        (REFERENCE / page_name).write_text(page, encoding="utf-8")
