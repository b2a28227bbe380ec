"""A real Django project sends through `django.core.mail`; what the next hop gets is what it meant.

The project in `django_project` runs in processes of its own, with nothing of Mailkeep's server in reach but `mailkeep.client`
and `mailkeep.django`: under the Django of this environment, and under those of the interpreters in `DJANGO_PYTHONS` (paths,
separated as in PATH; each needs Django and psycopg). With Django 6.1 or newer both forms of settings are tried. `.ci/run` makes
an environment with the end of the supported versions that the first one has not.
"""

import asyncio
import email
import email.policy
import functools
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from client_kit import front

PROJECT = Path(__file__).parent / "django_project"
SOURCES = Path(__file__).parents[2] / "src"
PYTHONS = [sys.executable, *filter(None, os.environ.get("DJANGO_PYTHONS", "").split(os.pathsep))]
RUN_S = 60.0
SETTLE_S = 20.0
PRELUDE = """
import django, json, os
django.setup()
from django.core.mail import EmailMessage, EmailMultiAlternatives
from mailkeep.django import EmailBackend, UnsupportedMessageError

def backend(silent=False, **options):
    return EmailBackend(silent, **{"url": os.environ["SHOP_MAILKEEP_URL"], "deadline_s": 5, **options})

def message(subject="s", text="t", from_email=None, to=("ann@example.org",), **more):
    return EmailMultiAlternatives(subject, text, from_email, to, **more)
"""


@functools.cache
def django_version(python):
    """Return the version of Django under an interpreter, as (major, minor)."""
    told = subprocess.run(
        [python, "-c", "import django; print(*django.VERSION[:2])"],
        capture_output=True,
        text=True,
        check=True,
        timeout=RUN_S,
    )
    major, minor = told.stdout.split()
    return int(major), int(minor)


def test_both_ends_are_tested():
    """Django 5.2 LTS, and one that has the newer form of settings."""
    if len(PYTHONS) == 1:
        pytest.skip("DJANGO_PYTHONS names no interpreter with another Django")
    versions = set(map(django_version, PYTHONS))
    assert min(versions) == (5, 2)
    assert max(versions) >= (6, 1)


def variants():
    """Return each interpreter with each form of settings that its Django knows."""
    for python in PYTHONS:
        version = django_version(python)
        for form in ["MAILKEEP", "MAILERS"] if version >= (6, 1) else ["MAILKEEP"]:
            yield pytest.param((python, form), id=f"{version[0]}.{version[1]}-{form}")


class Shop:
    """The project, configured for one service."""

    def __init__(self, variant, url, dsn, served):
        self.python, self.form = self.variant = variant
        self.served, self.rest = served, (dsn, served)
        self._environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join((str(PROJECT), str(SOURCES))),
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "SHOP_DATABASE": dsn,
            "SHOP_MAILKEEP_URL": url,
            "SHOP_FORM": self.form,
        }
        # The older form and arguments are deprecated from 6.1 on; whoever uses the newer one must not be warned of us.
        self._warnings = (
            ["-W", "error"] if self.form == "MAILERS" or django_version(self.python) < (6, 1) else []
        )

    async def run(self, *arguments):
        """Run Python in the project and return what it printed; it must end well."""
        process = await asyncio.create_subprocess_exec(
            self.python, *self._warnings, *arguments,
            cwd=PROJECT, env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(RUN_S):
            printed, complaints = await process.communicate()
        assert process.returncode == 0, complaints.decode()
        return printed.decode()

    async def manage(self, *arguments):
        """Run a management command."""
        return await self.run("manage.py", *arguments)

    async def do(self, code):
        """Run `code` in the project; return the value that it gives to `told`, by way of JSON."""
        return json.loads(await self.run("-c", PRELUDE + textwrap.dedent(code) + "\nprint(json.dumps(told))"))

    async def sent(self, next_hop, count=1):
        """Wait until `count` mails have arrived and return them, parsed, with their recipients."""
        async with asyncio.timeout(SETTLE_S):
            while len(next_hop.messages) < count:
                await asyncio.sleep(0.02)
        assert len(next_hop.messages) == count
        return [
            (email.message_from_bytes(envelope.content, policy=email.policy.default), envelope.rcpt_tos)
            for envelope in next_hop.messages
        ]


@pytest.fixture(params=variants())
async def shop(request, sending, dsn):
    """Return the project, sending to a service that hands mail to `next_hop`."""
    return Shop(request.param, f"http://127.0.0.1:{sending.port}", dsn, sending)


def contents(message):
    """Return the content of each leaf by its type."""
    return {part.get_content_type(): part.get_content() for part in message.walk() if not part.is_multipart()}


# -- what is sent ------------------------------------------------------------------------------------------------


async def test_djangos_own_commands_send(shop, next_hop):
    """`check` has nothing to say, and `sendtestemail` arrives."""
    assert "no issues" in await shop.manage("check")
    await shop.manage("sendtestemail", "ann@example.org")
    ((message, recipients),) = await shop.sent(next_hop)
    assert recipients == ["ann@example.org"]
    assert message["subject"].startswith("Test email from")
    assert message["from"] == "mail@mailkeep.example"


async def test_send_mail_answers_how_many_and_carries_html(shop, next_hop):
    """The function that everybody calls, with an HTML alternative and a lazy translation as subject."""
    told = await shop.do(
        """
        from django.core.mail import send_mail
        from django.utils.translation import gettext_lazy
        told = send_mail(gettext_lazy("Grüße"), "the text", None, ["Ann Lee <ann@example.org>"], html_message="<p>the html</p>")
        """
    )
    assert told == 1
    ((message, recipients),) = await shop.sent(next_hop)
    assert (message["subject"], message["to"], recipients) == (
        "Grüße",
        "Ann Lee <ann@example.org>",
        ["ann@example.org"],
    )
    assert {name: text.strip() for name, text in contents(message).items()} == {
        "text/plain": "the text",
        "text/html": "<p>the html</p>",
    }


async def test_everything_a_message_can_carry_arrives(shop, next_hop):
    """cc, bcc, reply-to, attachments of every kind, an inline image, harmless headers."""
    told = await shop.do(
        """
        import email.message
        from email.mime.image import MIMEImage
        message = EmailMultiAlternatives(
            "subject", "text", to=["ann@example.org"], cc=["bo@example.org"], bcc=["cy@example.org"],
            reply_to=["Desk, The <desk@example.org>"], headers={"X-Mailer": "shop", "Message-ID": "<own@shop>"},
        )
        message.attach_alternative('<img src="cid:logo">', "text/html")
        message.attach("é.csv", "a;ü", "text/csv")
        message.attach("b.bin", bytes(range(256)), "application/octet-stream")
        message.attach("guessed.pdf", b"%PDF")
        message.attach(content=b"nameless", mimetype="application/zip")
        message.attach("other.eml", EmailMessage("inner", "inner text", to=["x@example.org"]), "message/rfc822")
        if django.VERSION >= (6, 0):
            image = email.message.MIMEPart()
            image.set_content(b"png", "image", "png", cid="<logo>", disposition="inline", filename="logo.png")
        else:
            image = MIMEImage(b"png", "png")
            image.add_header("Content-ID", "<logo>")
        message.attach(image)
        told = [message.send(), str(message.delivery_id)]
        """
    )
    count, delivery_id = told
    assert count == 1
    assert (await shop.served.settled(delivery_id, "sent"))["source"] == "api"
    ((message, recipients),) = await shop.sent(next_hop)
    assert recipients == ["ann@example.org", "bo@example.org", "cy@example.org"]
    assert message["reply-to"].addresses[0].display_name == "Desk, The"
    assert (message["x-mailer"], message["bcc"]) == (None, None)
    assert delivery_id in message["message-id"]
    found = {part.get_filename(): part for part in message.walk() if part.get_filename()}
    assert found["é.csv"].get_payload(decode=True) == "a;ü".encode()
    assert found["b.bin"].get_content() == bytes(range(256))
    assert found["guessed.pdf"].get_content_type() == "application/pdf"
    assert found["attachment-4.zip"].get_content() == b"nameless"
    assert b"inner text" in found["other.eml"].get_payload(decode=True)
    (image,) = [part for part in message.walk() if part["content-id"]]
    assert (image["content-id"], image.get_content(), image.get_content_disposition()) == (
        "<logo>",
        b"png",
        "inline",
    )


async def test_html_as_the_only_body_is_html(shop, next_hop):
    """`content_subtype = "html"`, with and without a plain alternative; a Reply-To among the headers."""
    await shop.do(
        """
        for alternatives in ([], [("own text", "text/plain")]):
            message = EmailMultiAlternatives(
                "s", "<p>html</p>", to=["ann@example.org"], alternatives=alternatives,
                headers={"Reply-To": 'One <one@example.org>, "Two, Inc." <two@example.org>'},
            )
            message.content_subtype = "html"
            message.send()
        told = None
        """
    )
    first, second = [message for message, _ in await shop.sent(next_hop, 2)]
    assert contents(first)["text/html"].strip() == contents(second)["text/html"].strip() == "<p>html</p>"
    assert contents(first)["text/plain"].strip() == "html"
    assert contents(second)["text/plain"].strip() == "own text"
    assert [address.display_name for address in first["reply-to"].addresses] == ["One", "Two, Inc."]


async def test_many_messages_go_with_one_request_and_are_counted(shop, next_hop):
    """`send_mass_mail`; messages without recipients are left out, as Django's own backends do."""
    told = await shop.do(
        """
        from django.core.mail import send_mass_mail
        told = send_mass_mail([(str(n), "text", None, ["ann@example.org"] if n else []) for n in range(8)])
        """
    )
    assert told == 7
    assert Counter(message["subject"] for message, _ in await shop.sent(next_hop, 7)) == Counter("1234567")


async def test_admins_are_mailed_from_the_servers_address(shop, next_hop):
    """SERVER_EMAIL is no sender of the message's own."""
    await shop.do("from django.core.mail import mail_admins\nmail_admins('down', 'the text')\ntold = None")
    ((message, recipients),) = await shop.sent(next_hop)
    assert (message["subject"], recipients) == ("[Django] down", ["ops@example.org"])


async def test_a_password_reset_is_mailed(shop, next_hop):
    """Django's own view, user and template, on the project's database."""
    await shop.manage("migrate", "-v", "0")
    told = await shop.do(
        """
        from django.contrib.auth.models import User
        from django.test import Client
        User.objects.create_user("ann", "ann@example.org", "secret")
        told = Client().post("/reset", {"email": "ann@example.org"}).status_code
        """
    )
    assert told == 302
    ((message, _),) = await shop.sent(next_hop)
    assert "Password reset" in message["subject"]
    assert "http://testserver/reset/" in message.get_body().get_content()


# -- with the transaction ----------------------------------------------------------------------------------------


async def test_an_order_and_its_mail_commit_together(shop, next_hop):
    """The mail of an order that the database refused is never sent; Django's report of that to the admins is."""
    await shop.manage("migrate", "-v", "0")
    told = await shop.do(
        """
        from django.db import IntegrityError
        from django.test import Client
        from shop.models import Order
        ids = [Client().post("/orders", {"number": "A-1"}).json()["delivery_id"]]
        try:
            Client().post("/orders", {"number": "A-1"})
        except IntegrityError:
            ids.append(Client().post("/orders", {"number": "A-2"}).json()["delivery_id"])
        told = [ids, Order.objects.count()]
        """
    )
    ids, orders = told
    assert orders == len(ids) == 2
    found = {message["subject"]: message for message, _ in await shop.sent(next_hop, 3)}
    refusal = "[Django] ERROR (EXTERNAL IP): Internal Server Error: /orders"
    assert set(found) == {"Your order A-1", "Your order A-2", refusal}
    assert {"text/plain", "text/html"} == set(contents(found["Your order A-1"]))
    for delivery_id in ids:
        assert (await shop.served.settled(delivery_id, "sent"))["source"] == "sql"


async def test_a_database_that_refuses_is_an_error_that_silence_does_not_turn_into_another(shop):
    """Without the function `mail.enqueue` sending raises; with `fail_silently` the transaction around it goes on."""
    told = await shop.do(
        """
        from django.db import connection, transaction
        connection.cursor().execute("ALTER FUNCTION mail.enqueue(jsonb) RENAME TO gone")
        told = []
        for silent in (False, True):
            with transaction.atomic():
                try:
                    told.append(backend(silent, transport="sql").send_messages([message()]))
                except Exception as fault:
                    told.append(type(fault).__name__)
                    transaction.set_rollback(True)
                else:
                    connection.cursor().execute("SELECT 1")
        """
    )
    assert told == ["ProgrammingError", 0]


# -- what is refused ---------------------------------------------------------------------------------------------

UNSUPPORTED = {
    "message(from_email='canary@example.org')": "a sender other than DEFAULT_FROM_EMAIL",
    "message(headers={'From': 'canary@example.org'})": "a sender other than DEFAULT_FROM_EMAIL",
    "message(headers={'List-Unsubscribe': 'canary'})": "the header 'list-unsubscribe'",
    "message(headers={'To': 'canary'})": "the header 'to'",
    "message(to=[], bcc=['canary@example.org'])": "without an address in `to`",
    "message(headers={'Idempotency-Key': 'canary key'})": "idempotency_key must be",
    "message(alternatives=[('canary', 'text/calendar')])": "an alternative of type text/calendar",
    "message(alternatives=[('canary', 'text/plain')])": "there is one text and one HTML",
    "message(attachments=[('canary', b'', 'text/csv; charset=latin-1')])": "whose type has parameters",
}


async def test_what_can_not_be_done_as_asked_is_named(shop, next_hop):
    """Nothing is left out in silence, nothing of the batch is sent, and no address or content is in the error."""
    told = await shop.do(
        f"""
        told = {{}}
        for text in {list(UNSUPPORTED)!r}:
            try:
                backend().send_messages([message(), eval(text)])
            except UnsupportedMessageError as fault:
                told[text] = str(fault)
        """
    )
    for text, said in UNSUPPORTED.items():
        assert said in told[text]
        assert "canary" not in told[text]
    assert next_hop.messages == []


async def test_what_is_to_be_ignored_is_said_by_options(shop, next_hop):
    """A sender and headers that the message asks for are left out where the options say so."""
    told = await shop.do(
        """
        asking = message(from_email="own@example.org", headers={"List-Unsubscribe": "x", "X-Priority": "1"})
        told = backend(ignore_from_email=True, ignore_headers=["X-PRIORITY", "List-Unsubscribe"]).send_messages([asking])
        """
    )
    assert told == 1
    ((message, _),) = await shop.sent(next_hop)
    assert (message["from"], message["x-priority"]) == ("mail@mailkeep.example", None)


async def test_refusals_are_raised_or_swallowed(shop, next_hop):
    """One message: its own error; several: one error with all answers; silent: the number of those that were taken."""
    told = await shop.do(
        """
        from mailkeep.client import BatchError, RejectedError
        bad, good = message(to=["nobody"]), message()
        told = []
        try:
            backend().send_messages([bad])
        except RejectedError as fault:
            told.append([fault.code, fault.field])
        try:
            backend().send_messages([bad, good])
        except BatchError as fault:
            told.append([type(answer).__name__ for answer in fault.answers])
        told.append(hasattr(good, "delivery_id"))
        told.append(backend(True).send_messages([bad, good, message(headers={"List-Id": "x"})]))
        """
    )
    assert told == [["invalid_address", "payload.to[0]"], ["RejectedError", "Accepted"], True, 1]
    await shop.sent(next_hop, 2)


async def test_a_service_that_is_away_is_an_error_or_silence(shop):
    """`UnavailableError`, and with `fail_silently`, however it is asked for, a count of nothing."""
    async with front(1) as gone:
        pass
    silent = (
        "from django.core.mail import mailers\ntold.append(mailers['silent'].send_messages([message()]))"
        if shop.form == "MAILERS"
        else "told.append(message().send(fail_silently=True))"
    )
    told = await Shop(shop.variant, gone.url, *shop.rest).do(
        "from mailkeep.client import UnavailableError\n"
        "told = []\n"
        "try:\n    message().send()\n"
        "except UnavailableError as fault:\n    told.append(fault.reason)\n" + silent
    )
    assert told == ["Connection refused", 0]


async def test_an_answer_that_is_lost_is_no_second_mail_and_connections_are_kept(shop, sending, next_hop):
    """Retries under one key; a key of the message's own, as header or attribute; one connection from open to close."""
    async with front(sending.port) as lossy:
        lossy.faults = ["lose"]
        told = await Shop(shop.variant, lossy.url, *shop.rest).do(
            """
            keyed = message(headers={"Idempotency-Key": "by-header"})
            other = message()
            other.idempotency_key = "by-attribute"
            told = [backend().send_messages([message()])]
            with backend() as kept:
                told += [kept.send_messages([each]) for each in (keyed, keyed, other)]
            told.append([kept.open(), kept.open()])
            """
        )
        assert told == [1, 1, 1, 1, [True, False]]
        first, again, *keyed = lossy.keys()
        assert first == again
        assert keyed == [b"by-header", b"by-header", b"by-attribute"]
        assert lossy.connections == 3
    await shop.sent(next_hop, 3)


async def test_options_that_can_not_be_are_found_when_the_backend_is_made(shop):
    """Each is `ImproperlyConfigured` and names the setting, never a secret."""
    told = await shop.do(
        """
        from django.core import mail
        from django.core.exceptions import ImproperlyConfigured
        from django.test import override_settings

        def configured(**options):
            if hasattr(django.conf.settings, "MAILERS"):
                mailer = {"BACKEND": "mailkeep.django.EmailBackend", "OPTIONS": options}
                with override_settings(MAILERS={"default": mailer}):
                    mail.mailers.default
            else:
                with override_settings(MAILKEEP=options):
                    EmailBackend()

        told = {}
        for text in ("backend(url='http://u:canary@host')", "backend(token='canary token')",
                     "backend(transport='pigeon')", "configured(pigeon=1)", "configured(url='canary')"):
            try:
                eval(text)
            except ImproperlyConfigured as fault:
                told[text] = str(fault)
        """
    )
    place = "MAILERS['default']" if shop.form == "MAILERS" else "MAILKEEP"
    assert list(told.values()) == [
        "MAILKEEP: base_url must hold no user, query or fragment; give a token as token",
        "MAILKEEP: token must be visible ASCII characters",
        "MAILKEEP: transport must be 'http' or 'sql'",
        f"{place}: Unknown options 'pigeon'."
        if shop.form == "MAILERS"
        else f"{place} has unknown options: 'pigeon'",
        f"{place}: base_url must be like http://127.0.0.1:8080",
    ]
