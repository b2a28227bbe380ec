"""`mailkeep classify`."""

import json

import pytest
from typer.testing import CliRunner

from mailkeep.cli import app
from mailkeep.smtp.classify import RULES


def run(*arguments):
    """Run the verb with the default ladders."""
    return CliRunner().invoke(app, ["classify", *arguments], terminal_width=200)


def test_a_reply_is_explained():
    """Every fact has a line of its own; without a phase a reply is taken as one to RCPT."""
    done = run("550 5.1.1 <a@b.test> User unknown")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "reply       550 5.1.1 <…@…> User unknown",
        "phase       rcpt",
        f"rule        rcpt_mailbox_gone (rules version {RULES.version})",
        "severity    permanent",
        "scope       recipient",
        "suppression yes",
        "wait hint   none",
        "next        this recipient ends failed and is not tried again",
    ]


@pytest.mark.parametrize(
    ("reply", "phase", "follows"),
    [
        ("250 ok", "mail", "the dialog goes on"),
        ("250 ok", "dot", "delivered"),
        ("554 no", "dot", "every recipient of the transaction ends failed and is not tried again"),
        (
            "554 5.7.1 recipient address was suppressed",
            "rcpt",
            "this recipient ends suppressed and is not tried again",
        ),
        (
            "450 later",
            "rcpt",
            "tried again by the ladder; the first wait: auth about 10s, transactional about 1m, relay about 30m",
        ),
        (
            "450 greylisted",
            "rcpt",
            "tried again by the ladder; the first wait: auth about 10s, transactional about 1m, relay about 6m",
        ),
        (
            "450 try again in 10 minutes",
            "rcpt",
            "tried again by the ladder; the first wait: auth about 10m30s, transactional about 10m30s, relay about 30m",
        ),
        (
            "452 4.5.3 too many recipients",
            "rcpt",
            "if others got the message: at once in a new transaction, without using a rung; else: ",
        ),
        (
            "535 no",
            "auth",
            "parked without using a rung of the ladder; the breaker of the next hop opens at once",
        ),
        (
            "421 busy",
            "greeting",
            "parked without using a rung of the ladder; the breaker of the next hop opens after 3 of these in a row",
        ),
        (
            "refused",
            "connect",
            "parked without using a rung of the ladder; the breaker of the next hop opens after 3 of these in a row",
        ),
        (
            "timeout",
            "dot",
            "the next hop may have it. at_most_once: held for an operator; at_least_once: tried again by the ladder",
        ),
    ],
)
def test_what_follows_is_said(reply, phase, follows):
    """The last line tells what Mailkeep does next, by the ladders that are configured."""
    shown = run(reply, "--phase", phase).stdout.splitlines()[-1]
    assert shown.removeprefix("next        ").startswith(follows)


def test_json_says_the_same():
    """For programs: the same facts, waits in seconds by class."""
    facts = json.loads(run("451 4.7.1 Greylisted, please try again in 300 seconds", "--json").stdout)
    assert facts.pop("next").startswith("tried again by the ladder")
    assert facts == {
        "reply": "451 4.7.1 Greylisted, please try again in 300 seconds",
        "phase": "rcpt",
        "rule": "rcpt_greylisted",
        "rules_version": RULES.version,
        "severity": "transient",
        "scope": "recipient",
        "suppress": False,
        "retry": "soon",
        "wait_hint_s": 300.0,
        "first_waits_s": {"auth": 315.0, "transactional": 315.0, "relay": 360.0},
    }
    assert json.loads(run("550 no", "--json").stdout)["first_waits_s"] is None


@pytest.mark.parametrize("reply", ["550-5.1.1 gone\n550 5.1.1 for good", "550-5.1.1 one line of several"])
def test_a_reply_may_have_several_lines(reply):
    """As a server sends it, or a line of it copied from a log."""
    assert "rcpt_mailbox_gone" in run(reply).stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["hello"], "not a reply of a mail server (a line that is not an SMTP reply)"),
        ([""], "not a reply of a mail server (a line that is not an SMTP reply)"),
        (["999 hm"], "a reply code outside 100 to 599"),
        (["250 a\n550 b"], "not one whole reply"),
        (["550 no", "--phase", "lunch"], "'lunch' is no phase; there are: connect, tls, greeting"),
        (["550 no", "--phase", "connect"], "no reply is awaited at connect"),
        (["dns", "--phase", "dot"], "dns can't happen at dot"),
    ],
)
def test_what_can_not_be_explained_is_a_usage_error(arguments, complaint):
    """Exit code 2 and one clear sentence on standard error, nothing on standard output."""
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_the_ladders_are_those_in_force(monkeypatch):
    """What the environment configures is what the answer tells."""
    monkeypatch.setenv("MAIL_RETRY_LADDER_AUTH", "42s")
    assert "auth about 42s" in run("450 later").stdout
