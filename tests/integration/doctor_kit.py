"""What the tests of the doctor share: a look at a live system, the causes it names, and mail that has waited for long."""

import asyncio

from http_kit import DELIVERIES, command
from stream_kit import query

from mailkeep.doctor.causes import Incident, Severity
from mailkeep.doctor.examine import Report, examine
from mailkeep.doctor.look import Doctor

PATIENCE_S = 90.0
HOUR_S = 3600.0


def smtp_environ(dsn, port, **environ):
    """Return the settings of a deployment with one next hop on loopback."""
    return {
        "MAIL_POSTGRES_DSN": dsn,
        "MAIL_SMTP_MODE": "smtp",
        "MAIL_SMTP_ADDR": f"127.0.0.1:{port}",
        "MAIL_SMTP_FROM_EMAIL": "mail@mailkeep.example",
        "MAIL_REPLICA_HEARTBEAT": "200ms",
    } | environ


async def examined(environ, incidents=Incident):
    """Look once and judge."""
    return examine(await Doctor.of(environ, HOUR_S).look(), incidents)


def causes(report: Report):
    """Return every cause that is named, in whatever incident."""
    return {cause for diagnosis in report.diagnoses for cause in diagnosis.causes}


def severities(report: Report):
    """Return how bad each incident is that is not well."""
    return {one.incident: one.severity for one in report.diagnoses if one.severity is not Severity.OK}


def told(report: Report):
    """Return every sentence of the findings."""
    found = [finding for diagnosis in report.diagnoses for finding in diagnosis.findings]
    return " | ".join(line for finding in found for line in (*finding.evidence, finding.next_step))


async def accept(served, count=1, **fields):
    """Hand `count` mails in and return their ids."""
    answers = [await served.post(DELIVERIES, command(**fields)) for _ in range(count)]
    assert all(answer.status_code == 202 for answer in answers), answers[0].text
    return [answer.json()["delivery_id"] for answer in answers]


async def until_row(dsn, statement, *arguments):
    """Wait until `statement` answers a row, and return it."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await query(dsn, statement, *arguments)):
            await asyncio.sleep(0.05)
    return found[0]


async def attempts_ended(dsn, count):
    """Wait until `count` attempts are recorded."""
    await until_row(dsn, "SELECT FROM mail.attempts HAVING count(*) >= $1", count)


async def hop_out(dsn):
    """Wait until a replica tells that a next hop is out."""
    await until_row(dsn, "SELECT FROM mail.replicas WHERE hops_out <> '{}'")


async def grow_old(dsn, minutes=5):
    """Let what waits have been due, and what is claimed have been claimed, for that much longer."""
    await query(
        dsn,
        "UPDATE mail.deliveries SET due_at = due_at - $1 * interval '1 minute',"
        " claimed_at = claimed_at - $1 * interval '1 minute' WHERE finished_at IS NULL",
        minutes,
    )
