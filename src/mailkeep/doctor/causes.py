"""Every cause that the doctor can name, once: its stable name, which incidents it explains, its meaning, the next step.

The runbook (docs/how-to/incidents.md) links to the reference that is generated from here. Names stay: alerts and scripts
know them. `of_attempt` says which cause a failed attempt speaks of, by the rule that it matched.
"""

from enum import StrEnum
from typing import Final

import msgspec

from mailkeep.core.delivery import AttemptStatus
from mailkeep.core.outcome import Phase


class Incident(StrEnum):
    """What an operator sees first."""

    BACKLOG = "backlog"
    DEAD_LETTERS = "dead-letters"
    SUPPRESSED = "suppressed"
    AUTH = "auth"
    TIMEOUTS = "timeouts"
    MALFORMED = "malformed"


SYMPTOMS: Final = {
    Incident.BACKLOG: "Mail or commands that are due wait, and what is due longest grows older.",
    Incident.DEAD_LETTERS: "Mail is given up: dead letters, and refusals for good that are not about one mailbox.",
    Incident.SUPPRESSED: "Deliveries end `suppressed`: they were accepted and nothing was sent.",
    Incident.AUTH: "A next hop does not let us log in, or TLS, which a login needs, fails.",
    Incident.TIMEOUTS: "Attempts end `timed_out`, or take about as long as they may.",
    Incident.MALFORMED: "Commands from the stream or from SQL can't be taken.",
}


class Severity(StrEnum):
    """How bad it is; each has an exit code."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


class Cause(StrEnum):
    """What is at the bottom of an incident."""

    # what holds the queue up
    DATABASE_UNREACHABLE = "database_unreachable"
    DATABASE_READ_ONLY = "database_read_only"
    SCHEMA_MISSING = "schema_missing"
    DATABASE_LOCKED = "database_locked"
    DUE_INDEX_MISSING = "due_index_missing"
    DATABASE_SLOW = "database_slow"
    VACUUM_HELD_BACK = "vacuum_held_back"
    NO_REPLICA = "no_replica"
    REPLICA_FROZEN = "replica_frozen"
    CONFIGURATION_REFUSED = "configuration_refused"
    NEXT_HOP_NOT_CONFIGURED = "next_hop_not_configured"
    NEXT_HOP_UNREACHABLE = "next_hop_unreachable"
    NEXT_HOP_REFUSES = "next_hop_refuses"
    CONNECTION_LOST = "connection_lost"
    PROTOCOL_BROKEN = "protocol_broken"
    THROTTLED = "throttled"
    PACE_TOO_LOW = "pace_too_low"
    CONCURRENCY_TOO_SMALL = "concurrency_too_small"
    CPU_STARVED = "cpu_starved"
    REDIS_UNREACHABLE = "redis_unreachable"
    STREAM_NOT_READ = "stream_not_read"
    BACKLOG_UNEXPLAINED = "backlog_unexplained"
    # what makes mail be given up
    POISON = "poison"
    DEFERRED = "deferred"
    REPUTATION = "reputation"
    REFUSED_BY_POLICY = "refused_by_policy"
    MESSAGE_REFUSED = "message_refused"
    MESSAGE_UNFIT = "message_unfit"
    SENDER_REFUSED = "sender_refused"
    RELAY_DENIED = "relay_denied"
    RECIPIENTS_REFUSED = "recipients_refused"
    CONTENT_GONE = "content_gone"
    INTERNAL_FAULT = "internal_fault"
    BURIED_BY_HAND = "buried_by_hand"
    # what suppresses
    STUB_MODE = "stub_mode"
    SUPPRESSION_LIST = "suppression_list"
    PROVIDER_LIST = "provider_list"
    # logging in
    CREDENTIALS_NOT_PAIRED = "credentials_not_paired"
    LOGIN_REFUSED = "login_refused"
    LOGIN_DEFERRED = "login_deferred"
    LOGIN_NOT_OFFERED = "login_not_offered"
    LOGIN_IN_CLEAR = "login_in_clear"
    LOGIN_REQUIRED = "login_required"
    NO_TOKEN = "no_token"  # noqa: S105 - the name of a cause
    ACCOUNT_BLOCKED = "account_blocked"
    QUOTA_USED_UP = "quota_used_up"
    STARTTLS_NOT_OFFERED = "starttls_not_offered"
    TLS_FAILED = "tls_failed"
    TLS_REQUIRED = "tls_required"
    # time
    CONNECT_TIMED_OUT = "connect_timed_out"
    HOP_STALLS = "hop_stalls"
    TIMEOUT_TOO_SHORT = "timeout_too_short"
    TARPIT = "tarpit"
    # producers
    FIELD_RENAMED = "field_renamed"
    FIELD_MISSING = "field_missing"
    FIELD_UNKNOWN = "field_unknown"
    FIELD_INVALID = "field_invalid"
    JSON_INVALID = "json_invalid"
    ADDRESS_INVALID = "address_invalid"
    LOCALE_INVALID = "locale_invalid"
    TEMPLATE_UNKNOWN = "template_unknown"
    VARIABLE_MISSING = "variable_missing"
    COMMAND_TOO_LARGE = "command_too_large"
    KEY_REUSED = "key_reused"
    DOMAIN_RESERVED = "domain_reserved"


class About(msgspec.Struct, frozen=True):
    """What is known of a cause. `step` is what to do next; `{about}` in it is the next hop or producer concerned."""

    incidents: tuple[Incident, ...]
    meaning: str
    step: str


_B, _D, _S, _A, _T, _M = Incident
_ALL: Final = tuple(Incident)
_ROUTES_TEST: Final = "mailkeep routes test {about}"
_MALFORMED: Final = "mailkeep malformed list --source {about}"
_DEAD: Final = "mailkeep dead-letters"

CAUSES: Final[dict[Cause, About]] = {
    Cause.DATABASE_UNREACHABLE: About(
        _ALL,
        "PostgreSQL can't be reached: nothing is accepted, claimed or recorded until it can.",
        "bring PostgreSQL back, or correct MAIL_POSTGRES_DSN; then `mailkeep doctor`",
    ),
    Cause.DATABASE_READ_ONLY: About(
        (_B,),
        "MAIL_POSTGRES_DSN leads to a standby, which takes no writes.",
        "point MAIL_POSTGRES_DSN at the primary, or promote the standby; then `mailkeep doctor backlog`",
    ),
    Cause.SCHEMA_MISSING: About(
        (_B,),
        "The database has no schema of Mailkeep, or an older one than this build.",
        "mailkeep migrate",
    ),
    Cause.DATABASE_LOCKED: About(
        (_B,),
        "A transaction holds locks on the queue's tables, and statements of replicas wait for it.",
        "end that transaction, `SELECT pg_terminate_backend({about})` in psql; then `mailkeep doctor backlog`",
    ),
    Cause.DUE_INDEX_MISSING: About(
        (_B,),
        "The index deliveries_due is missing or invalid: each claim reads the whole table.",
        "make it anew as the migration 0001_queue.sql has it; then `mailkeep doctor backlog`",
    ),
    Cause.DATABASE_SLOW: About(
        (_B,),
        "Mail waits, and PostgreSQL takes long even for one look at the due index.",
        "look at PostgreSQL's disk, CPU and vacuum; then `mailkeep doctor backlog`",
    ),
    Cause.VACUUM_HELD_BACK: About(
        (_B,),
        "An old snapshot is held open: vacuum may take no row away that was changed since, and claims grow slower with each of them.",
        "end {about} in psql (`SELECT pg_terminate_backend(pid)`, `ROLLBACK PREPARED 'name'`, `SELECT pg_drop_replication_slot('name')`),"
        " or the query that a standby runs; then `mailkeep doctor backlog`",
    ),
    Cause.NO_REPLICA: About(
        (_B,), "No replica runs: nobody claims what is due.", "mailkeep serve"
    ),
    Cause.REPLICA_FROZEN: About(
        (_B,),
        "The process of a replica exists and does not beat: it is stopped, or hangs. No other replica runs.",
        "continue the process (`kill -CONT {about}`) or restart it; then `mailkeep replicas`",
    ),
    Cause.CONFIGURATION_REFUSED: About(
        (_B,),
        "A service started with this environment would refuse it.",
        "mailkeep config",
    ),
    Cause.NEXT_HOP_NOT_CONFIGURED: About(
        (_B,),
        "Mail waits for a next hop that is not configured: no replica claims it.",
        "give the next hop {about} back to MAIL_ROUTES_FILE, or cancel its mail: `mailkeep queue --next-hop {about}`",
    ),
    Cause.NEXT_HOP_UNREACHABLE: About(
        (_B,), "No connection to the next hop: refused, unreachable, or its name has no address.", _ROUTES_TEST
    ),
    Cause.NEXT_HOP_REFUSES: About(
        (_B,), "The next hop greets with a refusal: it is closing, overloaded or unwilling.", _ROUTES_TEST
    ),
    Cause.CONNECTION_LOST: About(
        (_B, _D), "The next hop, or what is between, cuts connections in the middle of the dialog.", _ROUTES_TEST
    ),
    Cause.PROTOCOL_BROKEN: About(
        (_B, _D), "What answers is no SMTP, or answers out of turn.", _ROUTES_TEST
    ),
    Cause.THROTTLED: About(
        (_B, _D),
        "The next hop takes no more connections or messages from us at a time.",
        "lower max_connections or messages_per_s of the hop in MAIL_ROUTES_FILE; `mailkeep routes` shows them",
    ),
    Cause.PACE_TOO_LOW: About(
        (_B,),
        "More mail comes for the next hop than its messages_per_s lets through.",
        "raise messages_per_s of {about} in MAIL_ROUTES_FILE if it allows that; `mailkeep routes` shows it",
    ),
    Cause.CONCURRENCY_TOO_SMALL: About(
        (_B,),
        "Every place is taken, and by Little's law the load needs more of them: rate times seconds a send takes.",
        "raise MAIL_ATTEMPT_WORKER_CONCURRENCY or the hop's connections, or start another replica: `mailkeep serve`",
    ),
    Cause.CPU_STARVED: About(
        (_B,),
        "Mail waits although workers are free: the machine gives the replicas no CPU.",
        "take load off this machine, or start a replica on another: `mailkeep serve`",
    ),
    Cause.REDIS_UNREACHABLE: About(
        (_B,),
        "Redis can't be reached: commands of the stream are not taken.",
        "bring Redis back, or correct MAIL_REDIS_*; then `mailkeep doctor backlog`",
    ),
    Cause.STREAM_NOT_READ: About(
        (_B,),
        "Commands wait in the stream and no replica reads it: none has this Redis in its settings.",
        "set MAIL_REDIS_MASTER_ADDR for the replicas and restart them; `mailkeep config` shows it",
    ),
    Cause.BACKLOG_UNEXPLAINED: About(
        (_B,), "Mail is due and waits, and no check found why.", "mailkeep queue shape --by next_hop"
    ),
    Cause.POISON: About(
        (_D,),
        "A message was with replicas three times in a row as they died: it kills them, or was there by chance.",
        "look at the replicas' last log lines, then `mailkeep dead-letters`; resend only when that is understood",
    ),
    Cause.DEFERRED: About(
        (_D,), "The next hop deferred the mail until its ladder ended.", _DEAD
    ),
    Cause.REPUTATION: About(
        (_B, _D),
        "Our address, name, SPF, DKIM or DMARC is refused; the recipients are innocent.",
        "mend what the reply names (`mailkeep dkim list` shows the DNS records), then `mailkeep dead-letters`",
    ),
    Cause.REFUSED_BY_POLICY: About(
        (_D,), "The next hop refuses the mail for good by a policy of its own.", "mailkeep explain {about}"
    ),
    Cause.MESSAGE_REFUSED: About(
        (_D,), "The next hop refuses the content for good.", "mailkeep explain {about}"
    ),
    Cause.MESSAGE_UNFIT: About(
        (_D,),
        "The message is larger than the next hop takes, or needs an extension that it does not have.",
        "mailkeep explain {about}",
    ),
    Cause.SENDER_REFUSED: About(
        (_D,),
        "The next hop does not take MAIL_SMTP_FROM_EMAIL as a sender.",
        "verify the sender with the provider or change MAIL_SMTP_FROM_EMAIL; `mailkeep config` shows it",
    ),
    Cause.RELAY_DENIED: About(
        (_D,),
        "The next hop does not carry mail for these domains for us.",
        "mailkeep routes",
    ),
    Cause.RECIPIENTS_REFUSED: About(
        (_D,), "Many mailboxes are refused for good: a list of addresses is old or wrong.", "mailkeep suppressions"
    ),
    Cause.CONTENT_GONE: About(
        (_D,), "The content of a delivery was erased before it was sent.", "mailkeep explain {about}"
    ),
    Cause.INTERNAL_FAULT: About(
        (_D,), "A fault of Mailkeep itself; the traceback is in the replica's log.", "mailkeep explain {about}"
    ),
    Cause.BURIED_BY_HAND: About((_D,), "A person made them dead letters.", _DEAD),
    Cause.STUB_MODE: About(
        (_S,),
        "MAIL_SMTP_MODE=stub: every delivery ends suppressed, nothing is sent.",
        "set MAIL_SMTP_MODE=smtp for the replicas and restart them; `mailkeep config` shows it",
    ),
    Cause.SUPPRESSION_LIST: About(
        (_S,), "The recipients are on the suppression list.", "mailkeep suppressions"
    ),
    Cause.PROVIDER_LIST: About(
        (_S,),
        "The provider keeps the recipients on a suppression list of its own.",
        "have them removed there; `mailkeep explain {about}` shows its reply",
    ),
    Cause.CREDENTIALS_NOT_PAIRED: About(
        (_A,), "A username is configured without a password, or the other way round.", "mailkeep config"
    ),
    Cause.LOGIN_REFUSED: About(
        (_A, _B), "The next hop refuses username and password, or the token.", _ROUTES_TEST
    ),
    Cause.LOGIN_DEFERRED: About(
        (_A, _B), "The next hop can't check logins at the moment.", _ROUTES_TEST
    ),
    Cause.LOGIN_NOT_OFFERED: About(
        (_A, _B), "The next hop offers no way to log in that we may use.", _ROUTES_TEST
    ),
    Cause.LOGIN_IN_CLEAR: About(
        (_A, _B),
        "TLS does not protect and verify the connection, so the login was not sent.",
        "set TLS for the hop, or a certificate to pin; `mailkeep routes` shows what it has",
    ),
    Cause.LOGIN_REQUIRED: About(
        (_A, _B),
        "The next hop wants a login and none is configured.",
        "set MAIL_SMTP_USERNAME and MAIL_SMTP_PASSWORD, then `mailkeep routes test {about}`",
    ),
    Cause.NO_TOKEN: About((_A, _B), "The token command gives no token.", _ROUTES_TEST),
    Cause.ACCOUNT_BLOCKED: About(
        (_A, _B), "Our account at the next hop is disabled.", "have the provider open it, then `mailkeep routes test {about}`"
    ),
    Cause.QUOTA_USED_UP: About(
        (_A, _B),
        "Our account at the next hop has sent all that it may for now.",
        "wait or raise the quota; `mailkeep queue` shows what is parked",
    ),
    Cause.STARTTLS_NOT_OFFERED: About(
        (_A, _B),
        "STARTTLS is required and not offered or refused: a wrong port, or somebody between strips it.",
        _ROUTES_TEST,
    ),
    Cause.TLS_FAILED: About(
        (_A, _B), "The TLS handshake fails: certificate, name, authority or version.", _ROUTES_TEST
    ),
    Cause.TLS_REQUIRED: About(
        (_A, _B),
        "The next hop wants TLS and none is configured for it.",
        "set MAIL_SMTP_TLS, then `mailkeep routes test {about}`",
    ),
    Cause.CONNECT_TIMED_OUT: About(
        (_T, _B),
        "Nothing answers the attempt to connect, or to look up the name: a firewall, a route, a name server.",
        _ROUTES_TEST,
    ),
    Cause.HOP_STALLS: About(
        (_T, _B, _D), "The next hop falls silent in the middle of the dialog.", _ROUTES_TEST
    ),
    Cause.TIMEOUT_TOO_SHORT: About(
        (_T, _B, _D),
        "The next hop does answer, usually in more than half of the time that it has.",
        "raise MAIL_SMTP_TIMEOUT (MAIL_SMTP_DATA_TIMEOUT for the final dot), or the timer of the hop; `mailkeep config` shows it",
    ),
    Cause.TARPIT: About(
        (_T, _B, _D),
        "The next hop delays every answer: overload, or it slows us down on purpose.",
        "send it less at a time (max_connections, messages_per_s); `mailkeep routes` shows what is set",
    ),
    Cause.FIELD_RENAMED: About(
        (_M,), "The producer sends a field that is unknown and omits one that is required: probably renamed.", _MALFORMED
    ),
    Cause.FIELD_MISSING: About((_M,), "The producer omits a field that is required.", _MALFORMED),
    Cause.FIELD_UNKNOWN: About((_M,), "The producer sends a field that is not known.", _MALFORMED),
    Cause.FIELD_INVALID: About((_M,), "The producer sends a value that a field can't have.", _MALFORMED),
    Cause.JSON_INVALID: About((_M,), "payload_json is no JSON object.", _MALFORMED),
    Cause.ADDRESS_INVALID: About((_M,), "The producer sends addresses that are none.", _MALFORMED),
    Cause.LOCALE_INVALID: About(
        (_M,), "The producer sends a locale that is no BCP 47 tag, such as pt_BR for pt-BR.", _MALFORMED
    ),
    Cause.TEMPLATE_UNKNOWN: About(
        (_M,),
        "The producer names a template that the catalog of the replicas does not have.",
        "mailkeep templates list",
    ),
    Cause.VARIABLE_MISSING: About(
        (_M,), "The producer omits a variable that its template requires.", "mailkeep templates list"
    ),
    Cause.COMMAND_TOO_LARGE: About((_M,), "The producer sends more than MAIL_LIMIT_* allow.", _MALFORMED),
    Cause.KEY_REUSED: About(
        (_M,), "The producer uses an idempotency key again for another command.", _MALFORMED
    ),
    Cause.DOMAIN_RESERVED: About(
        (_M,), "The producer sends to .test, .example, .invalid or .localhost, which never leave.", _MALFORMED
    ),
}  # fmt: skip

AUTH_CAUSES: Final = frozenset(cause for cause, about in CAUSES.items() if _A in about.incidents)
TIME_CAUSES: Final = frozenset(cause for cause, about in CAUSES.items() if _T in about.incidents)
MALFORMED_CAUSES: Final = frozenset(cause for cause, about in CAUSES.items() if about.incidents == (_M,))

BY_RULE: Final[dict[str, Cause | None]] = {
    # None: a success, or something that says nothing of a cause.
    **dict.fromkeys(("going_on", "data_going_on", "delivered", "claim_lost", "replica_lost", "shutdown")),
    "no_connection": Cause.NEXT_HOP_UNREACHABLE,
    **dict.fromkeys(("lost_before_mail", "lost_before_dot", "reply_lost"), Cause.CONNECTION_LOST),
    **dict.fromkeys(
        (
            "broken_protocol",
            "out_of_sequence",
            "unexpected_reply",
            "unexpected_reply_to_data",
            "unexpected_reply_in_body",
            "reply_unreadable",
        ),
        Cause.PROTOCOL_BROKEN,
    ),
    **dict.fromkeys(("next_hop_closing", "next_hop_unwilling"), Cause.NEXT_HOP_REFUSES),
    **dict.fromkeys(("next_hop_busy", "next_hop_throttles", "too_fast"), Cause.THROTTLED),
    **dict.fromkeys(
        ("next_hop_distrusts_us", "reputation_by_enhanced_code", "reputation", "message_reputation"),
        Cause.REPUTATION,
    ),
    **dict.fromkeys(("starttls_not_offered", "starttls_refused"), Cause.STARTTLS_NOT_OFFERED),
    "tls_failed": Cause.TLS_FAILED,
    "tls_required": Cause.TLS_REQUIRED,
    "login_not_offered": Cause.LOGIN_NOT_OFFERED,
    "login_in_clear": Cause.LOGIN_IN_CLEAR,
    "login_deferred": Cause.LOGIN_DEFERRED,
    "login_refused": Cause.LOGIN_REFUSED,
    **dict.fromkeys(("login_required", "login_required_by_text"), Cause.LOGIN_REQUIRED),
    "no_token": Cause.NO_TOKEN,
    "account_blocked": Cause.ACCOUNT_BLOCKED,
    "sending_quota_used_up": Cause.QUOTA_USED_UP,
    **dict.fromkeys(
        (
            "rcpt_receives_too_fast",
            "rcpt_greylisted",
            "message_greylisted",
            "rcpt_too_many",
            "rcpt_too_many_by_text",
            "rcpt_over_quota",
            "rcpt_over_quota_by_text",
            "rcpt_deferred",
            "message_closing",
            "message_deferred",
        ),
        Cause.DEFERRED,
    ),
    **dict.fromkeys(
        (
            "mail_sender_deferred",
            "mail_sender_refused",
            "rcpt_sender_deferred",
            "rcpt_sender_deferred_by_text",
            "rcpt_sender_refused",
            "rcpt_sender_refused_by_text",
            "message_sender_refused",
        ),
        Cause.SENDER_REFUSED,
    ),
    "rcpt_relay_denied": Cause.RELAY_DENIED,
    **dict.fromkeys(("rcpt_policy", "rcpt_policy_by_text", "message_policy"), Cause.REFUSED_BY_POLICY),
    "message_refused": Cause.MESSAGE_REFUSED,
    **dict.fromkeys(
        (
            "too_large",
            "smtputf8_not_offered",
            "8bitmime_not_offered",
            "unsafe_envelope",
            "mail_too_large",
            "mail_too_large_by_enhanced_code",
            "mail_needs_smtputf8",
            "rcpt_too_large",
            "message_too_large",
            "message_too_large_by_enhanced_code",
        ),
        Cause.MESSAGE_UNFIT,
    ),
    **dict.fromkeys(
        (
            "rcpt_over_quota_for_good",
            "rcpt_over_quota_for_good_by_text",
            "rcpt_mailbox_gone",
            "rcpt_mailbox_gone_by_text",
            "rcpt_mailbox_moved",
            "rcpt_refused",
            "message_over_quota",
        ),
        Cause.RECIPIENTS_REFUSED,
    ),
    "rcpt_provider_suppressed": Cause.PROVIDER_LIST,
    "suppression_list": Cause.SUPPRESSION_LIST,
    "internal_fault": Cause.INTERNAL_FAULT,
    "no_content": Cause.CONTENT_GONE,
}
"""The cause that each rule of attempts and deliveries speaks of; a test holds it against the whole of `rules.toml`."""


def of_attempt(status: str, phase: str | None, rule: str | None) -> Cause | None:
    """Return the cause that a failed attempt speaks of, None if it speaks of none. A timeout says so whatever its rule."""
    if status == AttemptStatus.TIMED_OUT:
        return Cause.CONNECT_TIMED_OUT if phase == Phase.CONNECT else Cause.HOP_STALLS
    return BY_RULE.get(rule or "")
