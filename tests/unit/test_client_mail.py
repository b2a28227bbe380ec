"""What the client writes is what Mailkeep reads: judged by Mailkeep's own parsers."""

import base64
import pickle
import time
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from mailkeep.client import (
    Accepted,
    Attachment,
    BatchError,
    Mail,
    RejectedError,
    TemplateMail,
    UnavailableError,
    stream_fields,
)
from mailkeep.client.keys import check_key, new_delivery_id, new_key
from mailkeep.client.mail import command, to_json
from mailkeep.core.command import (
    CommandRules,
    DeliveryRequest,
    RenderedContent,
    TemplateContent,
    parse_delivery_id,
    parse_request,
)
from mailkeep.intake.stream_entry import parse_entry

FULL = Mail(
    to="Ann Lee <ann@example.org>",
    cc=["bo@example.org"],
    bcc=("cy@example.org", "di@example.org"),
    reply_to="desk@example.org",
    subject="Grüße",
    text="one\ntwo",
    html="<p>one</p>",
    attachments=[
        Attachment(filename="é.bin", content=bytes(range(256))),
        Attachment(filename="l.png", content=b"png", content_type="image/png", content_id="logo"),
    ],
    idempotency_key="order-1042",
    delivery_class="relay",
    guarantee="at_most_once",
    send_at=datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=1))),
    expires_at=datetime(2030, 1, 2, 0, 0, 0, 1500, tzinfo=UTC),
    supersede_key="order-1042",
    list_unsubscribe="https://example.org/u?t=1",
    source="notification",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
TEMPLATE = TemplateMail(
    to=["ann@example.org"],
    template_id="welcome",
    locale="pt-br",
    variables={"product": "Notes", "n": [1, None]},
)


def parsed(mail):
    """Return the command that Mailkeep makes of `mail`, and the request it came in."""
    request = msgspec.json.decode(to_json(command(mail)), type=DeliveryRequest)
    return parse_request(request, CommandRules()), request


def test_every_field_of_a_mail_arrives():
    """Mailkeep's own parser reads each value back."""
    made, request = parsed(FULL)
    assert made.content == RenderedContent("Grüße", "one\ntwo", "<p>one</p>")
    assert [mailbox.display for mailbox in made.to] == ["Ann Lee"]
    assert [mailbox.local for mailbox in made.recipients] == ["ann", "bo", "cy", "di"]
    assert [mailbox.local for mailbox in made.reply_to] == ["desk"]
    assert [
        (file.filename, file.content, file.content_type, file.content_id) for file in made.attachments
    ] == [
        ("é.bin", bytes(range(256)), "application/octet-stream", None),
        ("l.png", b"png", "image/png", "logo"),
    ]
    assert (made.delivery_class, made.guarantee, made.source) == ("relay", "at_most_once", "notification")
    assert made.send_at_ms == 1893495600_000
    assert made.expires_at_ms == 1893542400_002
    assert made.supersede_key == "order-1042"
    assert made.list_unsubscribe == "https://example.org/u?t=1"
    assert (request.idempotency_key, request.traceparent) == (FULL.idempotency_key, FULL.traceparent)


def test_what_is_not_said_is_not_sent():
    """A small mail is a small command: Mailkeep's defaults are Mailkeep's."""
    assert command(Mail(to="a@example.org", subject="s", text="")) == {
        "payload_mode": "rendered",
        "payload": {"to": ["a@example.org"], "subject": "s", "text": ""},
    }


def test_a_template_mail_arrives():
    """Id, locale and variables, and nothing of a rendered one."""
    made, _ = parsed(TEMPLATE)
    assert made.content == TemplateContent("welcome", "pt-BR", {"product": "Notes", "n": [1, None]})


@pytest.mark.parametrize("mail", [FULL, TEMPLATE])
def test_a_stream_entry_means_the_same(mail):
    """The fields for the stream are the same command, with an id of now and all that the stream requires."""
    fields = stream_fields(mail)
    assert all(type(value) is str for value in fields.values())
    request = parse_entry({name.encode(): value.encode() for name, value in fields.items()}, 10**6)
    made, _ = parsed(mail)
    assert parse_request(request, CommandRules()) == msgspec.structs.replace(made, source="notification")
    parse_delivery_id(request.delivery_id, time.time())
    assert request.idempotency_key == (mail.idempotency_key or request.idempotency_key) is not None


def test_every_call_gets_a_key_and_an_id_of_its_own():
    """No two are alike, and each is one that Mailkeep takes."""
    keys = {check_key(new_key()) for _ in range(1000)}
    ids = [new_delivery_id() for _ in range(1000)]
    assert len(keys) == len(set(ids)) == 1000
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    assert ids[0].int >> 80 <= ids[-1].int >> 80 <= time.time_ns() // 1_000_000


@pytest.mark.parametrize("key", ["", "a b", "a\r\nX: y", "ä", "x" * 256])
def test_a_key_that_would_break_a_header_is_refused(key):
    """Before anything leaves."""
    with pytest.raises(ValueError, match="idempotency_key"):
        Mail(to="a@example.org", subject="s", text="t", idempotency_key=key)


@pytest.mark.parametrize("name", ["send_at", "expires_at"])
def test_a_naive_instant_is_refused(name):
    """Nobody knows which instant it is."""
    with pytest.raises(ValueError, match=f"{name} needs a time zone"):
        Mail(to="a@example.org", subject="s", text="t", **{name: datetime(2030, 1, 1)})  # noqa: DTZ001 - the point


def test_what_json_can_not_say_is_refused():
    """Instants, sets and NaN among the variables are the caller's to turn into JSON data."""
    for value in (datetime.now(UTC), {1}, float("nan")):
        mail = TemplateMail(to="a@example.org", template_id="x", locale="en", variables={"v": value})
        with pytest.raises((TypeError, ValueError)):
            to_json(command(mail))


def test_no_repr_shows_a_mail():
    """Reprs end in logs: no address, content or variable."""
    shown = repr((FULL, TEMPLATE, FULL.attachments))
    for secret in ("ann", "example.org", "Grüße", "one", "Notes", "é.bin", base64.b64encode(b"png").decode()):
        assert secret not in shown


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RejectedError(
                422, "urn:mailkeep:problem:invalid_address", "invalid_address", "payload.to[0]", "no"
            ),
            "invalid_address: no",
        ),
        (RejectedError(403), "refused with HTTP 403"),
        (UnavailableError("timed out", 3), "no settling answer in 3 tries (timed out)"),
        (
            UnavailableError("timed out", 3, "k"),
            (
                "no settling answer in 3 tries (timed out); whether the mail was taken is unknown, "
                "repeating with the same idempotency_key is safe"
            ),
        ),
        (
            BatchError((Accepted(new_delivery_id()), RejectedError(403), UnavailableError("cut", 1, "k"))),
            "2 of 3 mails were not accepted; the first: refused with HTTP 403",
        ),
    ],
)
def test_errors_say_what_to_do_and_survive_pickling(error, said):
    """Their words, and all of them after a way through another process."""
    again = pickle.loads(pickle.dumps(error))
    assert str(error) == str(again) == said
    assert {name: repr(value) for name, value in vars(again).items()} == {
        name: repr(value) for name, value in vars(error).items()
    }
