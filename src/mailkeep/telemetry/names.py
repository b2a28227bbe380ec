"""Every log event of Mailkeep, declared once: what it means and what to do about it.

The event is the literal first argument of the log call, so that a line in a log is found in the code by searching for it.
A test holds this table against the calls in `src`; the reference page is generated from it. To log something new, add a
row. `alert` is for the person on call; empty means that nobody need look.
"""

from typing import Final

import msgspec


class LogEvent(msgspec.Struct, frozen=True):
    """One kind of line: who writes it (`logger`), its text, its meaning, and when it deserves a person."""

    logger: str
    event: str
    meaning: str
    alert: str = ""


LOG_EVENTS: Final = (
    LogEvent(
        "service",
        "can't start",
        "The configuration can't be used or a server is away; `error` says which.",
        alert="always",
    ),
    LogEvent(
        "service",
        "mail waits for a next hop that is not configured",
        "A next hop was taken out of the configuration while mail waited for it; put it back until its queue is empty.",
        alert="always",
    ),
    LogEvent(
        "service",
        "internal http listener started",
        "The internal HTTP API takes requests; everything below it runs.",
    ),
    LogEvent(
        "service",
        "internal http listener stopped",
        "No request is taken any more; those in flight were answered.",
    ),
    LogEvent("service", "console started", "The pages for people answer from now on."),
    LogEvent("service", "console stopped", "The pages for people are gone."),
    LogEvent(
        "console",
        "page met a fault",
        "A page was answered 500; `at` is where it happened. Nothing was changed, or the change is recorded.",
        alert="always: a fault of ours",
    ),
    LogEvent("console", "login refused", "Somebody gave a token that is none.", alert="when frequent"),
    LogEvent(
        "console", "sinkhole changed by hand", "Its mode or its inbox, from the console; `actor` is who."
    ),
    LogEvent(
        "console",
        "replay asked by hand",
        "Malformed commands are to be taken again, from the console; `actor` is who, `count` how many.",
    ),
    LogEvent(
        "service", "send http listener started", "`POST /send` takes mail with API keys and access tokens."
    ),
    LogEvent("service", "send http listener stopped", "No mail is taken over `POST /send` any more."),
    LogEvent(
        "service",
        "a worker failed; stopping",
        "A fault of ours ended a worker; the process stops, its mail is taken over.",
        alert="always",
    ),
    LogEvent(
        "internal_http",
        "request met a fault",
        "A request was answered 500; `at` is where it happened. Repeating it with its key is safe. Of `POST /send` the logger is "
        "`send_http`.",
        alert="always: a fault of ours",
    ),
    LogEvent(
        "internal_http",
        "certificate renewed",
        "The listener's certificate changed in its file; new connections see the new one. Of `POST /send` the logger is `send_http`, of the "
        "console `console`.",
    ),
    LogEvent(
        "internal_http",
        "the renewed certificate can't be used",
        "The listener's certificate and its key changed and do not fit; the old ones stay in use until the next restart.",
        alert="always: soon the old one expires",
    ),
    LogEvent(
        "issuer_keys",
        "keys of the issuer can't be fetched",
        "The issuer of access tokens is away or answers something else; the keys fetched last stay in force. Said once.",
        alert="when it lasts: new keys of the issuer are not known, and after a start no token is",
    ),
    LogEvent("issuer_keys", "keys of the issuer are fetched again", "The issuer answers again."),
    LogEvent(
        "bounce_dispatcher",
        "bounce dispatcher started",
        "Senders are told of relayed mail that is not delivered.",
    ),
    LogEvent("bounce_dispatcher", "bounce dispatcher stopped", "Bounces that are owed wait for others."),
    LogEvent(
        "bounce_dispatcher",
        "bounces wait for PostgreSQL",
        "What is owed stays in its table until PostgreSQL is back.",
        alert="when it lasts",
    ),
    LogEvent("bounce_dispatcher", "bounces are sent again", "PostgreSQL is back."),
    LogEvent(
        "bounce_dispatcher",
        "a bounce could not be made",
        "A sender is not told: its address can't be sent to from here, or a fault of ours; `at` is where it happened.",
        alert="when frequent",
    ),
    LogEvent("service", "service stopped", "The process ends in order."),
    LogEvent("supervisor", "can't listen", "The address of an HTTP listener is taken.", alert="always"),
    LogEvent(
        "supervisor",
        "process died",
        "A serving process ended by itself and is replaced; siblings take its mail over.",
        alert="when repeated",
    ),
    LogEvent(
        "supervisor",
        "process did not stop in time and is killed",
        "MAIL_SHUTDOWN_TIMEOUT was too short for what was in flight; it is taken over.",
        alert="when repeated",
    ),
    LogEvent("replica", "replica heartbeat started", "This process is a replica; `replica_id` names it."),
    LogEvent("replica", "replica heartbeat stopped", "This replica handed back what it held and said so."),
    LogEvent(
        "replica",
        "replica could not say goodbye; others take over after its TTL",
        "PostgreSQL was away at the stop; nothing is lost.",
    ),
    LogEvent(
        "replica",
        "heartbeat failed",
        "PostgreSQL did not answer a beat; from half the TTL on this replica sends nothing.",
        alert="when it lasts longer than MAIL_REPLICA_TTL",
    ),
    LogEvent(
        "replica",
        "replica was declared lost and starts anew",
        "It was silent for longer than MAIL_REPLICA_TTL; others took its deliveries over.",
        alert="when repeated: the machine stalls or PostgreSQL is slow",
    ),
    LogEvent(
        "takeover_worker",
        "replica lost",
        "A replica fell silent; its deliveries are taken over.",
        alert="always",
    ),
    LogEvent(
        "takeover_worker",
        "claims taken over",
        "`count` deliveries of lost replicas wait again; `poisoned` of them became dead letters.",
        alert="when poisoned is not 0",
    ),
    LogEvent("takeover_worker", "takeover waits for PostgreSQL", "Tried again at the next interval."),
    LogEvent("attempt_scheduler", "attempt scheduler started", "Due deliveries are claimed."),
    LogEvent("attempt_scheduler", "attempt scheduler stopped", "Nothing more is claimed."),
    LogEvent(
        "attempt_scheduler",
        "claims without a holder could not be given back; they are taken over",
        "PostgreSQL was away as this replica stopped, just after it had claimed mail; another one takes it over as it does that of a lost one.",
    ),
    LogEvent("attempt_scheduler", "attempt scheduler waits for PostgreSQL", "Tried again after a pause."),
    LogEvent(
        "attempt_scheduler",
        "recipients are suppressed",
        "The suppression list names recipients of a delivery since it was accepted; with nobody left it has ended.",
    ),
    LogEvent(
        "attempt_scheduler",
        "could not announce due mail; others find it by themselves",
        "A wake-up call to other replicas was lost; they look at least every few seconds.",
    ),
    LogEvent(
        "attempt_scheduler",
        "a claim without a holder is given back",
        "A claim of this replica was found that no worker works on.",
        alert="when repeated: a fault of ours",
    ),
    LogEvent(
        "attempt_worker_pool", "attempt worker pool stopped", "`left` attempts were still running then."
    ),
    LogEvent(
        "attempt_worker_pool",
        "attempt did not deliver",
        "An attempt ended without acceptance; `reason` says why.",
    ),
    LogEvent(
        "attempt_worker_pool",
        "attempt failed by a fault of Mailkeep",
        "An attempt raised; the delivery is tried again, the traceback is in `exception`.",
        alert="always: a fault of ours",
    ),
    LogEvent(
        "attempt_worker_pool",
        "reserved domain refused at its route",
        "A queued delivery for a reserved domain would have left by an ordinary next hop; it ended `failed` instead.",
        alert="always: it passed intake under other settings, or came into the table by other means",
    ),
    LogEvent(
        "attempt_worker_pool",
        "breaker changed",
        "A next hop was found out of service or well again; its mail is parked or released.",
        alert="when a breaker stays open",
    ),
    LogEvent(
        "attempt_worker_pool",
        "claim could not be handed back; it is reclaimed later",
        "PostgreSQL was away at the stop; nothing is lost.",
    ),
    LogEvent(
        "recorder",
        "claim was lost before its attempt was recorded",
        "Another replica took the delivery over meanwhile; this outcome changed nothing.",
        alert="when repeated: replicas stall",
    ),
    LogEvent(
        "recorder",
        "attempts wait for PostgreSQL to be recorded",
        "Finished attempts are kept and written later.",
    ),
    LogEvent("retention_worker", "retention worker started", "What is old enough is erased from now on."),
    LogEvent("retention_worker", "retention worker stopped", "Nothing more is erased."),
    LogEvent("retention_worker", "retention swept", "What one sweep erased, by kind."),
    LogEvent(
        "retention_worker", "retention waits for PostgreSQL", "Tried again at the next MAIL_CLEANUP_INTERVAL."
    ),
    LogEvent(
        "notification_listener",
        "listening for notifications interrupted",
        "Wake-up calls are missed until it reconnects; what they announce is found a second or two later.",
    ),
    LogEvent(
        "notification_listener",
        "a pooler stands before PostgreSQL: new mail is looked for, not heard of",
        "Every replica looks for new work by itself, at least every 2 seconds.",
    ),
    LogEvent("command_consumer", "command consumer started", "Commands of the stream are taken from now on."),
    LogEvent("command_consumer", "command consumer stopped", "No more commands of the stream are taken."),
    LogEvent(
        "command_consumer",
        "stream can't be read; trying again",
        "Redis is away or answers with an error; said once for each kind of error.",
        alert="when no `stream is read again` follows within a minute",
    ),
    LogEvent("command_consumer", "stream is read again", "Redis answers again; nothing it kept was lost."),
    LogEvent(
        "command_consumer",
        "stream is read from its beginning",
        "The consumer group was made: at the very first start, or because Redis lost its state. What was taken before is "
        "recognised by its keys.",
        alert="when it is not the first start",
    ),
    LogEvent(
        "command_consumer",
        "stream entries were trimmed before they were taken",
        "Producers cap the stream faster than it is read: `count` commands may be lost.",
        alert="always",
    ),
    LogEvent(
        "command_consumer",
        "command consumer met a fault; trying again",
        "A fault of ours; `at` is where it happened. The entries stay unacknowledged and are taken again.",
        alert="always: a fault of ours",
    ),
    LogEvent(
        "command_consumer",
        "stream commands wait for PostgreSQL",
        "Entries that were read stay unacknowledged until PostgreSQL is back.",
        alert="when it lasts",
    ),
    LogEvent("command_consumer", "stream commands are taken again", "PostgreSQL is back."),
    LogEvent(
        "enqueued_consumer", "enqueued consumer started", "Commands of `mail.enqueue` are taken from now on."
    ),
    LogEvent(
        "enqueued_consumer", "enqueued consumer stopped", "No more commands of `mail.enqueue` are taken."
    ),
    LogEvent(
        "enqueued_consumer",
        "enqueued commands wait for PostgreSQL",
        "They stay in the inbox table until PostgreSQL is back.",
        alert="when it lasts",
    ),
    LogEvent("enqueued_consumer", "enqueued commands are taken again", "PostgreSQL is back."),
    LogEvent(
        "enqueued_consumer",
        "enqueued consumer met a fault; trying again",
        "A fault of ours; `at` is where it happened. The commands stay in the inbox table and are taken again.",
        alert="always: a fault of ours",
    ),
    LogEvent(
        "command_intake",
        "stream command rejected",
        "A stream entry can't be taken; it is kept as a malformed command, and `failure_code` says why.",
        alert="when frequent: a producer is wrong",
    ),
    LogEvent(
        "command_intake",
        "sql command rejected",
        "A command given to `mail.enqueue` can't be taken; it is kept as a malformed command.",
        alert="when frequent: a producer is wrong",
    ),
    LogEvent(
        "command_intake",
        "command for a reserved domain refused",
        "A command of the stream or of SQL (`at`) is for a reserved domain; it is kept as a malformed command.",
        alert="when frequent: a producer holds test data",
    ),
    LogEvent(
        "internal_http",
        "request for a reserved domain refused",
        "A request is for a reserved domain such as .test or .example, and was answered 422.",
        alert="when frequent: a producer holds test data",
    ),
    LogEvent(
        "command_intake",
        "command met a fault",
        "A command tripped us; it is kept as a malformed command and can be replayed. `at` is where it happened.",
        alert="always: a fault of ours",
    ),
    LogEvent("webhook_dispatcher", "webhook dispatcher started", "Webhooks are told what becomes of mail."),
    LogEvent(
        "webhook_dispatcher", "webhook dispatcher stopped", "What they are not told yet waits for others."
    ),
    LogEvent(
        "webhook_dispatcher",
        "webhooks wait for PostgreSQL",
        "What they are to be told waits there until PostgreSQL is back.",
        alert="when it lasts",
    ),
    LogEvent("webhook_dispatcher", "webhooks are told again", "PostgreSQL is back."),
    LogEvent(
        "webhook_dispatcher",
        "webhook takes no events",
        "Nothing was taken; its events wait, and it is probed every five minutes at least. `problem` says why.",
        alert="when no `webhook takes events again` follows within an hour",
    ),
    LogEvent("webhook_dispatcher", "webhook takes events again", "It is told all that waited for it."),
    LogEvent(
        "webhook_dispatcher",
        "webhook was not told of an event, which is given up",
        "It failed for about three days. `mailkeep webhooks retry NAME` tells all that was given up once more.",
        alert="always",
    ),
    LogEvent(
        "webhook_dispatcher",
        "webhook is gone for good and disabled",
        "It answered 410. `mailkeep webhooks enable NAME` lets it go on from where it stopped.",
        alert="always",
    ),
    LogEvent(
        "webhook_dispatcher",
        "webhook dispatcher met a fault; trying again",
        "A fault of ours; `at` is where it happened. The events are told again.",
        alert="always: a fault of ours",
    ),
)
