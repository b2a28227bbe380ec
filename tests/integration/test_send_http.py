"""`POST /send` with API keys, on the whole service: who may send what, and what is answered is kept, once."""

import asyncio
import base64
import email
import email.policy

import asyncpg
import pytest
from http_kit import SETTLE_S
from send_kit import SENDER, calling, mail, new_key, problem

from mailkeep.intake import api_keys
from mailkeep.operator.keys import OperatorKeys


async def fetch(dsn, statement, *arguments):
    """Run a statement of a test's own."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement, *arguments)
    finally:
        await connection.close()


@pytest.fixture
async def sends(serve, next_hop):
    """Run a service that takes sends and hands mail to `next_hop`."""
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
        MAIL_SEND_HTTP_ADDR="127.0.0.1:0",
    )
    async with calling(served) as calls:
        yield calls


@pytest.fixture
async def token(dsn):
    """The token of a key for one sender."""
    return (await new_key(dsn)).token


async def arrived(next_hop, count=1):
    """Wait until the next hop has so many messages and return them."""
    async with asyncio.timeout(SETTLE_S):
        while len(next_hop.messages) < count:
            await asyncio.sleep(0.02)
    return next_hop.messages


# -- what is taken -------------------------------------------------------------------------------------------------


async def test_a_mail_is_sent_as_its_sender(sends, token, next_hop):
    """200 with the id; envelope and From are the sender's, Bcc is in the envelope alone, and nothing says it is automatic."""
    content = base64.b64encode(b"46.65 EUR\n").decode()
    answer = await sends.post(
        token,
        mail(
            **{"from": "Ann Lee <Ann@example.org>"},
            cc=["cy@example.net"],
            bcc=["di@example.net"],
            reply_to="office@example.com",
            html="<p>It works.</p>",
            attachments=[{"filename": "a.txt", "content": content}],
        ),
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] in {"sending", "rendered"}
    (envelope,) = await arrived(next_hop)
    assert envelope.mail_from == "Ann@example.org"
    assert envelope.rcpt_tos == ["bo@example.net", "cy@example.net", "di@example.net"]
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert (message["From"], message["Reply-To"]) == ("Ann Lee <Ann@example.org>", "office@example.com")
    assert message["Message-ID"] == f"<{answer.json()['delivery_id']}@example.org>"
    assert (message["Bcc"], message["Auto-Submitted"]) == (None, None)
    leaves = [part.get_content_type() for part in message.walk() if not part.is_multipart()]
    assert leaves == ["text/plain", "text/html", "application/octet-stream"]
    delivery = await sends.delivery(answer)
    assert (delivery["source"], delivery["class"]) == ("send", "relay")


async def test_body_is_another_name_for_text(sends, token, next_hop):
    """`body` is the text; with `text` beside it the mail is refused."""
    plain = {name: value for name, value in mail().items() if name != "text"}
    assert (await sends.post(token, plain | {"body": "It works too."})).status_code == 200
    (envelope,) = await arrived(next_hop)
    assert b"It works too." in envelope.content
    refused = await sends.post(token, mail(body="or this"))
    assert (problem(refused), refused.json()["field"]) == ((422, "invalid_field"), "body")


async def test_a_key_names_one_mail_of_one_program(sends, token, dsn):
    """The same key and mail are answered alike, another mail is refused, and another program's key is another key."""
    first = await sends.post(token, key="order-1")
    again = await sends.post((await new_key(dsn)).token, key='"order-1"')  # a newer key of the same program
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    other = await sends.post(token, mail(subject="Bye"), key="order-1")
    assert problem(other) == (422, "idempotency_conflict")
    neighbour = await sends.post((await new_key(dsn, name="other")).token, mail(subject="Bye"), key="order-1")
    assert neighbour.status_code == 200
    assert neighbour.json()["delivery_id"] != first.json()["delivery_id"]


async def test_one_key_at_once_is_one_mail(sends, token, dsn):
    """Forty calls at the same moment under one idempotency key get one answer, and make one delivery."""
    answers = await asyncio.gather(*(sends.post(token, key="once") for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["delivery_id"] for answer in answers}) == 1
    assert (await fetch(dsn, "SELECT count(*) FROM mail.deliveries"))[0][0] == 1


WRONG = [
    ({"from": "nobody"}, "invalid_address", "from"),
    ({"from": "ann@mail.test"}, "reserved_domain", "from"),
    ({"to": ["x"]}, "invalid_address", "to[0]"),
    ({"to": []}, "missing_field", "to"),
    ({"to": [], "bcc": ["bo@example.net"]}, "missing_field", "to"),
    ({"to": ["a@b.invalid"]}, "reserved_domain", "to"),
    ({"to": "bo@example.net"}, "invalid_field", "to"),
    ({"subject": "a\r\nBcc: x@example.net"}, "invalid_field", "subject"),
    ({"text": None}, "missing_field", "text"),
    ({"priority": 1}, "unknown_field", "priority"),
    ({"attachments": [{"filename": "a", "content": "*"}]}, "invalid_field", "attachments[0].content"),
    ({"reply_to": ["x"]}, "invalid_address", "reply_to[0]"),
]


async def test_what_is_wrong_is_named(sends, token, dsn):
    """A mail that can't be taken is refused with the name of its field, and leaves nothing."""
    for fields, code, field in WRONG:
        answer = await sends.post(token, mail(**fields), key="k")
        assert (problem(answer), answer.json().get("field")) == ((422, code), field), fields
    counts = await fetch(
        dsn, "SELECT (SELECT count(*) FROM mail.deliveries) + (SELECT count(*) FROM mail.idempotency_keys)"
    )
    assert counts[0][0] == 0


async def test_other_paths_and_methods_are_told(sends, token):
    """Nothing but POST /send is here; what is no JSON is refused as on the other listener."""
    assert problem(await sends.post(token, path="/api/v1/internal/deliveries")) == (404, "not_found")
    got = await sends.client.get("/send")
    assert (problem(got), got.headers["allow"]) == ((405, "method_not_allowed"), "POST")
    assert problem(await sends.post(token, b"{")) == (400, "invalid_json")
    assert problem(await sends.post(token, **{"content-type": "text/plain"})) == (
        415,
        "unsupported_media_type",
    )


# -- who may --------------------------------------------------------------------------------------------------------


async def test_without_a_valid_key_nothing_is_taken(sends, token, dsn):
    """401 says whether a token is missing or wrong (RFC 6750), and never which part of it was."""
    bare = await sends.post(None)
    assert (problem(bare), bare.headers["www-authenticate"]) == (
        (401, "unauthorized"),
        'Bearer realm="mailkeep"',
    )
    secret = "A" * 43
    wrong = [f"{token[:20]}{secret}", f"mk_{'0' * 16}_{secret}", "mk_", "x", token[:-1], f"{token}A", "a.b.c"]
    for text in wrong:
        answer = await sends.post(text)
        assert problem(answer) == (401, "unauthorized"), text
        assert answer.headers["www-authenticate"] == 'Bearer realm="mailkeep", error="invalid_token"'
        assert answer.json()["detail"].startswith("the token is unknown")
    basic = await sends.client.post("/send", headers={"authorization": "Basic YTpi"})
    assert basic.headers["www-authenticate"] == 'Bearer realm="mailkeep"'
    twice = await sends.client.post(
        "/send", headers=[("authorization", f"Bearer {token}"), ("authorization", "Bearer x")]
    )
    assert problem(twice) == (401, "unauthorized")
    assert (await fetch(dsn, "SELECT count(*) FROM mail.deliveries"))[0][0] == 0


OWNED = [
    (SENDER, "ANN@Example.ORG", True),
    (SENDER, "bo@example.org", False),
    (SENDER, "ann@mail.example.org", False),
    (SENDER, "ann+x@example.org", False),
    ("@example.org", "anybody@EXAMPLE.org", True),
    ("@example.org", "ann@mail.example.org", False),
    ("@example.org", "ann@notexample.org", False),
    ("@bücher.example.org", "bö@xn--bcher-kva.example.org", True),
]


async def test_a_key_sends_from_what_it_owns(sends, dsn):
    """An address is owned in any letter case, a domain without those below it; 403 tells it from 401."""
    for owned, sender, may in OWNED:
        answer = await sends.post((await new_key(dsn, owned)).token, mail(**{"from": sender}))
        if may:
            assert answer.status_code == 200, (owned, sender, answer.text)
        else:
            assert (problem(answer), answer.json()["field"]) == ((403, "forbidden"), "from"), (owned, sender)
            assert answer.headers["www-authenticate"] == 'Bearer realm="mailkeep", error="insufficient_scope"'


async def test_a_revoked_or_expired_key_ends(sends, dsn, store, monkeypatch):
    """Once it is not remembered any more, a revoked key is refused, and so is one that has expired."""
    monkeypatch.setattr(api_keys, "REMEMBERED_S", 0.0)
    made = await new_key(dsn)
    assert (await sends.post(made.token)).status_code == 200
    await OperatorKeys(store).revoke(made.key.key_id, actor="eve")
    assert problem(await sends.post(made.token)) == (401, "unauthorized")
    brief = await new_key(dsn, expires_in_s=3600.0)
    assert (await sends.post(brief.token)).status_code == 200
    await fetch(dsn, "UPDATE mail.api_keys SET expires_at = mail.now() WHERE id = $1", brief.key.key_id)
    assert problem(await sends.post(brief.token)) == (401, "unauthorized")


async def test_use_is_noted_by_the_hour_and_secrets_nowhere(sends, dsn, store, log_lines):
    """A key that was used shows this hour; its secret stands in no table and no log line."""
    made = await new_key(dsn)
    assert (await OperatorKeys(store).page())[0].last_used_at is None
    assert (await sends.post(made.token)).status_code == 200
    (key,) = await OperatorKeys(store).page()
    assert key.last_used_at is not None
    assert (key.last_used_at.minute, key.last_used_at.second) == (0, 0)
    secret = made.token.partition(f"{made.key.key_id}_")[2]  # may itself hold an underscore
    dump = str([tuple(row) for row in await fetch(dsn, "SELECT * FROM mail.api_keys")])
    assert made.key.key_id in dump
    assert secret not in dump
    assert secret not in str(log_lines)


async def test_a_token_sends_so_much_a_minute(serve, dsn):
    """Recipients count, refused calls too; then 429 with a time after which it works, and others are not concerned."""
    served = await serve(MAIL_SEND_HTTP_ADDR="127.0.0.1:0", MAIL_SEND_RATE="5", MAIL_LIMIT_RECIPIENTS="5")
    async with calling(served) as sends:
        token = (await new_key(dsn)).token
        assert (await sends.post(token, mail(cc=["a@example.net", "b@example.net"]))).status_code == 200
        assert problem(await sends.post(token, b"{")) == (400, "invalid_json")
        too_many = await sends.post(token, mail(cc=["a@example.net"]))
        assert problem(too_many) == (429, "rate_limited")
        assert 1 <= int(too_many.headers["retry-after"]) <= 60
        none_left = await sends.post(token)
        assert problem(none_left) == (429, "rate_limited")
        assert (await sends.post((await new_key(dsn, name="other")).token)).status_code == 200


async def test_many_keys_are_looked_up_together(sends, dsn):
    """A hundred callers at once, half of them with keys that don't exist, are all told what is right."""
    tokens = [(await new_key(dsn, name=f"p{number}")).token for number in range(5)]
    unknown = [f"mk_{number:016x}_{'A' * 43}" for number in range(50)]
    wanted = [200] * 50 + [401] * 50
    answers = await asyncio.gather(*(sends.post(token) for token in [*tokens * 10, *unknown]))
    assert [answer.status_code for answer in answers] == wanted
