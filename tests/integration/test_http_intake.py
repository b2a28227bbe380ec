"""Intake over HTTP, on the whole service: what is answered is kept, once; what is refused leaves no trace."""

import asyncio
import base64
import gzip
import json
import time
from collections import Counter
from uuid import UUID, uuid4

import asyncpg
import httpx2
from http_kit import BATCH, DELIVERIES, LOGIN_CODES, command, login_code

from mailkeep.core.ids import new_id
from mailkeep.intake import application
from mailkeep.intake.http import MAX_COMMANDS, MAX_LOGIN_CODE_BYTES

CANARY = "canary"
TABLES = ("deliveries", "payloads", "recipients", "attempts", "idempotency_keys")


async def fetch(dsn, statement, *arguments):
    """Run a statement of a test's own."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement, *arguments)
    finally:
        await connection.close()


async def kept(dsn):
    """Return how many rows each table of the queue has."""
    counts = ", ".join(f"(SELECT count(*) FROM mail.{table}) AS {table}" for table in TABLES)
    return dict((await fetch(dsn, f"SELECT {counts}"))[0])


def fault_of(answer, status, code, field=None):
    """Return what is wrong with `answer` as the problem it should be, "" if nothing is."""
    problem = answer.json()
    wanted = {"status": status, "code": code, "field": field, "type": f"urn:mailkeep:problem:{code}"}
    found = {name: problem.get(name) for name in wanted}
    if answer.status_code != status or found != wanted:
        return f"{answer.status_code} {problem}"
    if answer.headers["content-type"] != "application/problem+json":
        return answer.headers["content-type"]
    return f"repeats a value: {answer.text}" if CANARY in answer.text else ""


async def check_refused(answer, dsn, status, code, field=None):
    """Check that `answer` is the right problem document, holds no value, and that nothing is kept."""
    assert fault_of(answer, status, code, field) == ""
    await check_nothing_kept(dsn)


async def check_nothing_kept(dsn):
    """Check that no table of the queue has a row: nothing is stored, no key reserved."""
    assert set((await kept(dsn)).values()) == {0}


# -- what is taken -----------------------------------------------------------------------------------------------


async def test_a_login_code_is_kept_and_sent(sending, next_hop):
    """A login code is answered `sent` when it is durable, and reaches the next hop."""
    answer = await sending.post(LOGIN_CODES, login_code(locale="de"), key="k")
    assert answer.status_code == 200
    assert answer.json()["outcome"] == "sent"
    delivery = await sending.settled(answer.json()["delivery_id"], "sent")
    assert (delivery["class"], delivery["source"], delivery["locale"]) == ("auth", "authsession", "de")
    (message,) = next_hop.messages
    assert message.rcpt_tos == ["ann@example.org"]
    assert b"482913" in message.content


async def test_stub_mode_answers_suppressed(served):
    """Where nothing is sent, a login code is taken all the same and says so."""
    answer = await served.post(LOGIN_CODES, login_code(), key="k")
    assert answer.status_code == 200
    assert answer.json()["outcome"] == "suppressed"


async def test_a_command_is_kept_and_sent(sending, next_hop):
    """A command with every kind of content is answered 202 with its id and reaches all of its recipients."""
    attachment = {"filename": "é.txt", "content": base64.b64encode(b"attached").decode()}
    payload = {"cc": ["Bo <bo@example.org>"], "bcc": ["cy@example.org"], "attachments": [attachment]}
    answer = await sending.post(DELIVERIES, command(payload=payload))
    assert answer.status_code == 202
    delivery = await sending.settled(answer.json()["delivery_id"], "sent")
    assert [recipient["state"] for recipient in delivery["recipients"]] == ["sent"] * 3
    (message,) = next_hop.messages
    assert message.rcpt_tos == ["ann@example.org", "bo@example.org", "cy@example.org"]
    assert b"cy@example.org" not in message.content


async def test_a_template_is_rendered_at_acceptance(served):
    """A template command records the locale it used and the catalog it came from."""
    payload = {
        "to": ["ann@example.org"],
        "template_id": "welcome",
        "locale": "de-CH",
        "variables": {"product": "Notes", "start_url": "https://example.com"},
    }
    answer = await served.post(DELIVERIES, {"payload_mode": "template", "payload": payload})
    assert answer.status_code == 202, answer.text
    delivery = (await served.get(f"{DELIVERIES}/{answer.json()['delivery_id']}")).json()
    assert (delivery["template_id"], delivery["locale"]) == ("welcome", "de")
    assert delivery["catalog_version"]


async def test_the_callers_delivery_id_is_kept(served):
    """A producer may bring the delivery's id, if it is a UUIDv7 of these days."""
    delivery_id = str(new_id(time.time()))
    answer = await served.post(DELIVERIES, command(delivery_id=delivery_id))
    assert answer.json()["delivery_id"] == delivery_id


async def test_an_id_that_can_not_be_kept_is_refused(served, dsn):
    """Other versions of UUIDs, and times without a partition, are refused before they meet the table."""
    for delivery_id in ("", "x", uuid4(), new_id(1e9), new_id(time.time() + 200_000)):
        answer = await served.post(DELIVERIES, command(delivery_id=str(delivery_id)))
        await check_refused(answer, dsn, 422, "invalid_field", "delivery_id")


async def test_an_id_of_another_delivery_is_refused(served):
    """An id that is taken, under another key, is a fault of the caller's."""
    delivery_id = str(new_id(time.time()))
    first = await served.post(DELIVERIES, command(delivery_id=delivery_id), key="one")
    second = await served.post(DELIVERIES, command(delivery_id=delivery_id), key="two")
    assert (first.status_code, second.status_code) == (202, 422)
    assert second.json()["field"] == "delivery_id"


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_a_well_formed_traceparent_is_kept(served, dsn):
    """The header `traceparent` is stored with the delivery; a malformed one is ignored."""
    no_trace = TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32)
    for header in (TRACE, "nonsense", TRACE.upper(), no_trace, f"ff{TRACE[2:]}"):
        answer = await served.post(DELIVERIES, command(), traceparent=header)
        assert answer.status_code == 202
    rows = await fetch(dsn, "SELECT traceparent FROM mail.deliveries ORDER BY id")
    assert [row["traceparent"] for row in rows] == [TRACE, None, None, None, None]


# -- idempotency -------------------------------------------------------------------------------------------------


async def test_two_hundred_parallel_calls_under_one_key_make_one_delivery(served, dsn):
    """200 requests at once with one key: one delivery, and 200 equal answers of which one is no replay."""
    answers = await asyncio.gather(*(served.post(DELIVERIES, command(), key="same") for _ in range(200)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    replays = Counter(answer.headers.get("idempotent-replayed") for answer in answers)
    assert replays == {None: 1, "true": 199}
    counts = await kept(dsn)
    assert (counts["deliveries"], counts["payloads"], counts["idempotency_keys"]) == (1, 1, 1)


async def test_parallel_calls_to_two_replicas_make_one_delivery(serve, dsn):
    """The same key at two replicas at once: one delivery, and both give its id."""
    replicas = [await serve(), await serve()]
    answers = await asyncio.gather(
        *(replica.post(LOGIN_CODES, login_code(), key="same") for replica in replicas for _ in range(20))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert (await kept(dsn))["deliveries"] == 1


async def test_a_replay_is_the_first_answer_again(sending):
    """A replay has the same status and body after the delivery ended, and says that it is one."""
    first = await sending.post(DELIVERIES, command(), key="k")
    await sending.settled(first.json()["delivery_id"], "sent")
    again = await sending.post(DELIVERIES, command(), key="k")
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers


async def test_the_same_meaning_in_other_bytes_is_the_same_command(served):
    """Member order, escapes and spaces do not make another command."""
    first = await served.post(DELIVERIES, command(), key="k")
    reordered = json.dumps(dict(reversed(command().items())), indent=3).replace("Hello", "\\u0048ello")
    again = await served.post(DELIVERIES, reordered.encode(), key="k")
    assert again.content == first.content


async def test_the_same_key_with_another_command_is_refused(served):
    """A key that belongs to another command is a 422, whatever differs."""
    await served.post(DELIVERIES, command(), key="k")
    for other in (rendered(text="Other."), rendered(to=["bo@example.org"]), command(**{"class": "relay"})):
        answer = await served.post(DELIVERIES, other, key="k")
        assert fault_of(answer, 422, "idempotency_conflict", "idempotency_key") == ""


async def test_header_quotes_and_member_spell_one_key(served):
    """The bare header, the quoted one and the member `idempotency_key` name the same key."""
    answers = [
        await served.post(DELIVERIES, command(), key="k-1"),
        await served.post(DELIVERIES, command(), key='"k-1"'),
        await served.post(DELIVERIES, command(idempotency_key="k-1")),
        await served.post(DELIVERIES, command(idempotency_key="k-1"), key="k-1"),
    ]
    assert len({answer.content for answer in answers}) == 1


async def test_without_a_key_each_call_is_a_delivery(served, dsn):
    """Equal commands without a key are deliveries of their own."""
    for _ in range(2):
        await served.post(DELIVERIES, command())
    assert (await kept(dsn))["deliveries"] == 2


async def test_a_login_code_needs_a_key(served, dsn):
    """Without Idempotency-Key a login code is refused."""
    answer = await served.post(LOGIN_CODES, login_code())
    await check_refused(answer, dsn, 400, "missing_field", "Idempotency-Key")


async def test_a_malformed_key_is_refused(served, dsn):
    """Keys that are not 1 to 255 visible ASCII characters, or badly quoted, are a 400 that names the header."""
    bodies = {DELIVERIES: command(), LOGIN_CODES: login_code(), BATCH: {"commands": [command()]}}
    for key in ("", "a b", "ä", "x" * 256, '"open', '"', '""', '"a"b"', '"a\\c"'):
        for path, body in bodies.items():
            answer = await served.post(path, body, key=key.encode())
            assert fault_of(answer, 400, "invalid_field", "Idempotency-Key") == "", (key, path)
    await check_nothing_kept(dsn)


async def test_two_different_keys_are_refused(served, dsn):
    """A header and a member that differ, or two headers that differ, are refused."""
    answer = await served.post(DELIVERIES, command(idempotency_key="a"), key="b")
    await check_refused(answer, dsn, 400, "invalid_field", "Idempotency-Key")
    headers = [("content-type", "application/json"), ("idempotency-key", "a"), ("idempotency-key", "b")]
    answer = await served.client.post(DELIVERIES, content=json.dumps(command()), headers=headers)
    await check_refused(answer, dsn, 400, "invalid_field", "Idempotency-Key")


async def test_a_refused_command_reserves_nothing(served):
    """After a validation error the same key is free for the corrected command."""
    bad = await served.post(DELIVERIES, command(payload={"to": ["nobody"]}), key="k")
    good = await served.post(DELIVERIES, command(), key="k")
    assert (bad.status_code, good.status_code) == (422, 202)
    assert "idempotent-replayed" not in good.headers


# -- batches -----------------------------------------------------------------------------------------------------


async def test_each_command_of_a_batch_is_answered_in_order(served, dsn):
    """Good and bad commands of a batch are judged each by itself, and answered in their order."""
    commands = [command(payload={"subject": f"{index}"}) for index in range(40)]
    commands[7] = command(payload={"to": [CANARY]})
    commands[23] = {"payload_mode": "rendered"}
    answer = await served.post(BATCH, {"commands": commands})
    assert answer.status_code == 200
    answers = answer.json()["answers"]
    assert [index for index, item in enumerate(answers) if item["status"] != 202] == [7, 23]
    assert [answers[index]["problem"]["field"] for index in (7, 23)] == ["payload.to[0]", "payload"]
    assert CANARY not in answer.text
    assert len({item["delivery_id"] for item in answers if "delivery_id" in item}) == 38
    assert (await kept(dsn))["deliveries"] == 38


async def test_a_batch_key_makes_a_key_for_each_command(served, dsn):
    """Under a batch key the repeated batch is answered alike, each command marked as replayed."""
    batch = {"commands": [command(), command(), command(idempotency_key="own")]}
    first = (await served.post(BATCH, batch, key="b")).json()["answers"]
    again = (await served.post(BATCH, batch, key="b")).json()["answers"]
    assert again == [{**item, "replayed": True} for item in first]
    assert {row["key"] for row in await fetch(dsn, "SELECT key FROM mail.idempotency_keys")} == {
        "b#0",
        "b#1",
        "own",
    }


async def test_a_full_batch_is_taken(served, dsn):
    """A batch of 1,000 commands is taken whole."""
    answer = await served.post(BATCH, {"commands": [command()] * MAX_COMMANDS}, key="b")
    assert Counter(item["status"] for item in answer.json()["answers"]) == {202: MAX_COMMANDS}
    assert (await kept(dsn))["deliveries"] == MAX_COMMANDS


BAD_BATCHES = (
    ({"commands": [{}] * (MAX_COMMANDS + 1)}, None, 422, "too_large", "commands"),
    ({}, None, 422, "missing_field", "commands"),
    ({"commands": {}}, None, 422, "invalid_field", "commands"),
    ({"commands": [], "x": 1}, None, 422, "unknown_field", "x"),
    ({"commands": [{}]}, "x" * 252, 400, "invalid_field", "Idempotency-Key"),
    (b'{"commands": [{"a": 1, "a": 2}]}', None, 400, "invalid_json", None),
    (b'{"commands": [{}', None, 400, "invalid_json", None),
)


async def test_a_malformed_batch_is_refused_whole(served, dsn):
    """What is wrong with the batch itself is one problem."""
    for batch, key, *wanted in BAD_BATCHES:
        answer = await served.post(BATCH, batch, key=key)
        assert fault_of(answer, *wanted) == ""
    await check_nothing_kept(dsn)


async def test_an_empty_batch_is_no_fault(served):
    """No commands, no answers."""
    answer = await served.post(BATCH, {"commands": []})
    assert (answer.status_code, answer.json()) == (200, {"answers": []})


# -- what is refused ---------------------------------------------------------------------------------------------


PLAIN = json.dumps(command()).encode()
MALFORMED = (
    b"",
    b"{",
    b"\xff\xfe{}",
    json.dumps(command()).encode("utf-16"),
    PLAIN[:-1],
    PLAIN + b"{}",
    PLAIN.replace(b"Hello", b"\xff"),
    PLAIN.replace(b"Hello", b"\\ud800"),
    PLAIN.replace(b"Hello", b"a\x00b"),
    PLAIN.replace(b'"Hello"', b"NaN"),
    b'{"payload_mode": "rendered", ' + PLAIN[1:],
    PLAIN.replace(b'"subject"', b'"s\\u0075bject": "a", "subject"'),
    b'{"payload": ' * 50_000 + b"1" + b"}" * 50_000,
    json.dumps(command(payload={"variables": {}})).encode().replace(b"{}", b"[" * 9000 + b"]" * 9000),
)


async def test_malformed_json_is_refused(served, dsn):
    """A body that is not exactly one JSON text of UTF-8 is refused, and so is nesting without end."""
    for body in MALFORMED:
        answer = await served.post(DELIVERIES, body, key="k")
        assert fault_of(answer, 400, "invalid_json") == "", body[:100]
    for body in (b"null", b'"text"', b"[]"):
        answer = await served.post(DELIVERIES, body, key="k")
        assert fault_of(answer, 422, "invalid_field") == "", body
    await check_nothing_kept(dsn)


def rendered(**payload):
    """Return a rendered command with other payload members."""
    return command(payload=payload)


def templated(template_id="welcome", locale="en", **variables):
    """Return a template command."""
    payload = {
        "to": ["ann@example.org"],
        "template_id": template_id,
        "locale": locale,
        "variables": variables,
    }
    return {"payload_mode": "template", "payload": payload}


def without(name):
    """Return a command whose payload lacks a member."""
    body = command()
    del body["payload"][name]
    return body


NESTED = {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": 1}}}}}}}}}}
ATTACHMENT = {"filename": "a.txt", "content": "YQ=="}

BAD_COMMANDS = {
    "no payload": ({"payload_mode": "rendered"}, "missing_field", "payload"),
    "no mode": ({"payload": command()["payload"]}, "missing_field", "payload_mode"),
    "no recipients": (without("to"), "missing_field", "payload.to"),
    "empty recipients": (rendered(to=[]), "missing_field", "payload.to"),
    "no subject": (without("subject"), "missing_field", "payload.subject"),
    "no body": (without("text"), "missing_field", "payload.text"),
    "recipients not a list": (rendered(to="ann@example.org"), "invalid_field", "payload.to"),
    "recipient a number": (rendered(to=["ann@example.org", 7]), "invalid_field", "payload.to[1]"),
    "subject a list": (rendered(subject=[CANARY]), "invalid_field", "payload.subject"),
    "payload a list": ({"payload_mode": "rendered", "payload": []}, "invalid_field", "payload"),
    "time a string": (command(send_at_ms=CANARY), "invalid_field", "send_at_ms"),
    "time beyond the calendar": (command(send_at_ms=10**15), "invalid_field", "send_at_ms"),
    "expired already": (command(expires_at_ms=1), "invalid_field", "expires_at_ms"),
    "expires before it is sent": (
        command(expires_at_ms=9 * 10**12, send_at_ms=9 * 10**12),
        "invalid_field",
        "expires_at_ms",
    ),
    "unknown member": (command(subject=CANARY), "unknown_field", "subject"),
    "unknown payload member": (rendered(body=CANARY), "unknown_field", "payload.body"),
    "member named like an address": (rendered(**{f"{CANARY}@example.org": 1}), "unknown_field", "payload"),
    "unknown attachment member": (
        rendered(attachments=[{**ATTACHMENT, "path": "/etc/passwd"}]),
        "unknown_field",
        "payload.attachments[0].path",
    ),
    "template member in a rendered command": (rendered(locale="en"), "unknown_field", "payload.locale"),
    "unknown mode": (command(payload_mode=CANARY), "unsupported_payload_mode", "payload_mode"),
    "unknown source": (command(source=CANARY), "unsupported_source", "source"),
    "source of the service's own": (command(source="smtp"), "unsupported_source", "source"),
    "unknown class": (command(**{"class": CANARY}), "invalid_field", "class"),
    "unknown guarantee": (command(guarantee=CANARY), "invalid_field", "guarantee"),
    "malformed traceparent": (command(traceparent=CANARY), "invalid_field", "traceparent"),
    "malformed key": (command(idempotency_key="a b"), "invalid_field", "idempotency_key"),
    "long supersede key": (command(supersede_key="x" * 256), "invalid_field", "supersede_key"),
    "not an address": (rendered(to=["ann@example.org", CANARY]), "invalid_address", "payload.to[1]"),
    "two at signs": (rendered(cc=[f"{CANARY}@b@example.org"]), "invalid_address", "payload.cc[0]"),
    "no domain": (rendered(bcc=[f"{CANARY}@"]), "invalid_address", "payload.bcc[0]"),
    "bad reply-to": (rendered(reply_to=[CANARY]), "invalid_address", "payload.reply_to[0]"),
    "long local part": (rendered(to=[f"{'x' * 65}@example.org"]), "invalid_address", "payload.to[0]"),
    "long address": (rendered(to=[f"x@{'y.' * 130}org"]), "invalid_address", "payload.to[0]"),
    "reserved domain": (rendered(to=["ann@some.test"]), "reserved_domain", "payload.to"),
    "sinkhole without a route": (rendered(to=["ann@sinkhole.test"]), "reserved_domain", "payload.to"),
    "too many recipients": (
        rendered(to=[f"a{n}@example.org" for n in range(101)]),
        "too_large",
        "payload.to",
    ),
    "long subject": (rendered(subject="x" * 501), "too_large", "payload.subject"),
    "large text": (rendered(text="x" * (2 * 1024 * 1024 + 1)), "too_large", "payload.text"),
    "large html": (rendered(html="ä" * (1024 * 1024 + 1)), "too_large", "payload.html"),
    "many attachments": (rendered(attachments=[ATTACHMENT] * 21), "too_large", "payload.attachments"),
    "attachment not base64": (
        rendered(attachments=[{"filename": "a", "content": "%%"}]),
        "invalid_field",
        "payload.attachments[0].content",
    ),
    "attachment without a name": (
        rendered(attachments=[{"filename": "", "content": ""}]),
        "invalid_field",
        "payload.attachments[0].filename",
    ),
    "attachment of no type": (
        rendered(attachments=[{**ATTACHMENT, "content_type": CANARY}]),
        "invalid_field",
        "payload.attachments[0].content_type",
    ),
    "unknown template": (templated("no-such-template"), "unknown_template", "payload.template_id"),
    "template id that is a path": (templated("../../etc/passwd"), "unknown_template", "payload.template_id"),
    "no template": (command(payload_mode="template", payload={}), "unknown_field", "payload.subject"),
    "wrong locale": (templated(locale="not a locale"), "invalid_locale", "payload.locale"),
    "missing variable": (
        templated(product="Notes"),
        "missing_variable",
        "payload.variables.start_url",
    ),
    "extra variable": (
        templated(product="Notes", start_url="https://example.com", extra=CANARY),
        "unknown_field",
        "payload.variables.extra",
    ),
    "variable of a wrong type": (
        templated(product=["Notes"], start_url="https://example.com"),
        "invalid_field",
        "payload.variables.product",
    ),
    "variables not an object": (
        {"payload_mode": "template", "payload": {**templated()["payload"], "variables": [CANARY]}},
        "invalid_field",
        "payload.variables",
    ),
    "variables too large": (templated(product="x" * 70_000), "too_large", "payload.variables"),
    "variables too deep": (templated(product=NESTED), "too_large", "payload.variables"),
}


async def test_a_bad_command_is_refused_by_its_field(served, dsn):
    """Each fault of a command is a 422 that names the field; nothing is stored and no key reserved."""
    faults = {}
    for case, (body, code, field) in BAD_COMMANDS.items():
        faults[case] = fault_of(await served.post(DELIVERIES, body), 422, code, field)
    assert {case: fault for case, fault in faults.items() if fault} == {}
    await check_nothing_kept(dsn)


def tainted(control):
    """Return commands and login codes with `control` in one field each."""
    bad = f"a{control}Bcc: x@example.org"
    attachments = {
        "filename": bad,
        "content_id": bad,
        "content_type": f"a/b{control}",
    }
    commands = {
        "payload.to[0]": rendered(to=[f"a{control}@example.org"]),
        "payload.cc[0]": rendered(cc=[f"{bad} <a@example.org>"]),
        "payload.bcc[0]": rendered(bcc=[f"a@exam{control}ple.org"]),
        "payload.reply_to[0]": rendered(reply_to=[f'"{bad}" <a@example.org>']),
        "payload.subject": rendered(subject=bad),
        "payload.locale": templated(locale=f"en{control}"),
        "payload.template_id": templated(f"welcome{control}"),
        "supersede_key": command(supersede_key=bad),
        "idempotency_key": command(idempotency_key=f"k{control}"),
        "traceparent": command(traceparent=f"{TRACE}{control}"),
        "delivery_id": command(delivery_id=f"{new_id(time.time())}{control}"),
    }
    for name, value in attachments.items():
        field = f"payload.attachments[0].{name}"
        commands[field] = rendered(attachments=[{**ATTACHMENT, name: value}])
    login_codes = {
        "email": login_code(email=f"a{control}@example.org"),
        "code": login_code(code=f"1{control}"),
        "purpose": login_code(purpose=f"login{control}"),
        "locale": login_code(locale=f"en{control}"),
    }
    return [(DELIVERIES, *case) for case in commands.items()] + [
        (LOGIN_CODES, *case) for case in login_codes.items()
    ]


async def test_no_control_character_reaches_a_header_or_an_envelope(served, dsn):
    """CR, LF, NUL and other line separators are refused in every member that becomes a header or a command."""
    for control in ("\r", "\n", "\r\n", "\0", "\x0b", "\x85", "\u2028"):
        for path, field, body in tainted(control):
            answer = await served.post(path, body, key="k" if path == LOGIN_CODES else None)
            assert (answer.status_code, answer.json()["field"]) == (422, field), (control, answer.text)
    await check_nothing_kept(dsn)


BAD_LOGIN_CODES = (
    ({"code": "1", "locale": "en"}, "missing_field", "email"),
    (login_code(email=CANARY), "invalid_address", "email"),
    (login_code(email="ann@some.invalid"), "reserved_domain", "email"),
    (login_code(code=""), "invalid_field", "code"),
    (login_code(code=482913), "invalid_field", "code"),
    (login_code(code="x" * 65), "invalid_field", "code"),
    (login_code(locale="x_y"), "invalid_locale", "locale"),
    (login_code(expires_in_s=0), "invalid_field", "expires_in_s"),
    (login_code(idempotency_key="k"), "unknown_field", "idempotency_key"),
    ([login_code()], "invalid_field", None),
)


async def test_a_bad_login_code_is_refused_by_its_field(served, dsn):
    """Each fault of a login code is a 422 that names the field; nothing is stored and no key reserved."""
    for body, code, field in BAD_LOGIN_CODES:
        assert fault_of(await served.post(LOGIN_CODES, body, key="k"), 422, code, field) == ""
    await check_nothing_kept(dsn)


# -- bounds, types, methods, tokens ------------------------------------------------------------------------------


async def test_a_large_command_within_the_limits_is_taken(served, dsn):
    """A body of several megabytes, which comes in many pieces, is taken whole."""
    content = base64.b64encode(bytes(6 * 1024 * 1024)).decode()
    attachment = {"filename": "a.bin", "content": content}
    answer = await served.post(DELIVERIES, rendered(attachments=[attachment]))
    assert answer.status_code == 202, answer.text
    (row,) = await fetch(dsn, "SELECT size_bytes FROM mail.deliveries")
    assert row["size_bytes"] > 8 * 1024 * 1024


async def test_large_bodies_together_are_bounded(served, monkeypatch):
    """Past the bound on all large bodies at once callers are told to come back; what was held is given back."""
    monkeypatch.setattr(application, "MAX_HELD_BYTES", 1024 * 1024)
    large, larger = rendered(text="x" * 900_000), rendered(text="x" * 1_200_000)
    for _ in range(3):
        answer = await served.post(DELIVERIES, larger)
        assert fault_of(answer, 503, "overloaded") == ""
        assert answer.headers["retry-after"] == "1"
        assert (await served.post(DELIVERIES, large)).status_code == 202


async def test_an_announced_body_beyond_the_bound_is_not_read(served, dsn):
    """A Content-Length beyond the bound is a 413 at once, and the connection is closed."""
    body = json.dumps(login_code(code="x" * MAX_LOGIN_CODE_BYTES)).encode()
    answer = await served.post(LOGIN_CODES, body, key="k")
    await check_refused(answer, dsn, 413, "too_large")
    assert answer.headers["connection"] == "close"


async def test_a_streamed_body_beyond_the_bound_is_not_read_to_its_end(serve, dsn):
    """Without a Content-Length reading stops at the bound: the caller never gets to send the rest."""
    served = await serve(MAIL_LIMIT_MESSAGE_BYTES="1024")
    sent = 0

    async def pieces():
        nonlocal sent
        while sent < 512 * 1024 * 1024:
            yield b" " * 65536
            sent += 65536

    headers = {"content-type": "application/json", "transfer-encoding": "chunked"}
    try:
        answer = await served.client.post(DELIVERIES, content=pieces(), headers=headers)
        assert answer.status_code == 413
    except httpx2.TransportError:
        pass  # it was still writing when the connection was closed
    assert sent < 64 * 1024 * 1024
    await check_nothing_kept(dsn)


async def test_a_message_that_grows_beyond_its_limit_is_refused(serve, dsn):
    """What fits as JSON and not as a message is refused by the command's limit."""
    served = await serve(MAIL_LIMIT_MESSAGE_BYTES="2000")
    await check_refused(
        await served.post(DELIVERIES, rendered(text="x" * 2000)), dsn, 422, "too_large", "payload"
    )


async def test_other_media_types_are_refused(served, dsn):
    """Forms, other charsets and compressed bodies are a 415; a bomb is never inflated."""
    body = json.dumps(command()).encode()
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/json; charset=latin-1"}):
        await check_refused(
            await served.post(DELIVERIES, body, **headers), dsn, 415, "unsupported_media_type"
        )
    bomb = gzip.compress(bytes(50 * 1024 * 1024))
    answer = await served.client.post(
        DELIVERIES, content=bomb, headers={"content-type": "application/json", "content-encoding": "gzip"}
    )
    await check_refused(answer, dsn, 415, "unsupported_media_type")


async def test_other_methods_are_refused(served):
    """A known path under another method is a 405 that says which are allowed."""
    for method, path, allowed in (
        ("PUT", DELIVERIES, {"GET", "HEAD", "POST"}),
        ("GET", LOGIN_CODES, {"POST"}),
        ("DELETE", BATCH, {"POST"}),
        ("PATCH", f"{DELIVERIES}/{UUID(int=0)}", {"GET", "HEAD"}),
    ):
        answer = await served.client.request(method, path)
        assert fault_of(answer, 405, "method_not_allowed") == ""
        assert set(answer.headers["allow"].split(", ")) == allowed


async def test_there_is_nothing_else_here(served):
    """Other paths are a 404 problem, health and metrics among them."""
    for path in ("/", "/healthz", "/readyz", "/metrics", "/docs", f"{DELIVERIES}/", f"/{DELIVERIES}"):
        assert fault_of(await served.get(path), 404, "not_found") == ""


TOKENS = ("first-token-long-enough", "second-token-long-enough")


BAD_AUTHORIZATIONS = (
    None,
    "",
    "Bearer",
    "Bearer x",
    TOKENS[0],
    f"Basic {TOKENS[0]}",
    f"Bearer {TOKENS[0]}x",
    f"Bearer {TOKENS[0][:-1]}",
    f"Bearer {' '.join(TOKENS)}",
)


async def test_without_a_token_nothing_is_told(serve, dsn):
    """Every path, known or not, answers one and the same 401 to who has no valid token."""
    served = await serve(MAIL_INTERNAL_HTTP_TOKENS=" ".join(TOKENS))
    answers = []
    for authorization in BAD_AUTHORIZATIONS:
        headers = {} if authorization is None else {"authorization": authorization}
        answers += [
            await served.post(DELIVERIES, command(), **headers),
            await served.post(DELIVERIES, b"{", **headers),
            await served.client.get(DELIVERIES, headers=headers),
            await served.client.get("/healthz", headers=headers),
        ]
    assert len({answer.content for answer in answers}) == 1
    assert {answer.headers["www-authenticate"] for answer in answers} == {'Bearer realm="mailkeep"'}
    await check_refused(answers[0], dsn, 401, "unauthorized")


async def test_each_of_two_tokens_opens(serve):
    """While tokens rotate both are valid; the scheme's letter case does not matter."""
    served = await serve(MAIL_INTERNAL_HTTP_TOKENS=" ".join(TOKENS))
    for authorization in (f"Bearer {TOKENS[0]}", f"bearer {TOKENS[1]}"):
        answer = await served.post(DELIVERIES, command(), authorization=authorization)
        assert answer.status_code == 202
        assert (
            await served.client.get(DELIVERIES, headers={"authorization": authorization})
        ).status_code == 200
