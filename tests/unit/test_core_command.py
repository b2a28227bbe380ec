"""Commands: each way in which one can't be taken has its code and names its field; what is taken is canonical."""

from typing import Any

import msgspec
import pytest

from mailkeep.core.address import Mailbox
from mailkeep.core.command import (
    EPOCH_MS_MAX,
    MAX_EXPIRES_IN_S,
    Attachment,
    Command,
    CommandError,
    CommandRules,
    DeliveryRequest,
    FailureCode,
    Limits,
    LoginCodeRequest,
    Payload,
    RenderedContent,
    TemplateContent,
    check_key,
    check_locale,
    parse_login_code,
    parse_request,
)
from mailkeep.core.delivery import DeliveryClass, Guarantee, Source
from mailkeep.core.idempotency import fingerprint

RULES = CommandRules(
    limits=Limits(
        recipients=3,
        subject_chars=20,
        body_bytes=40,
        attachments=2,
        attachment_bytes=10,
        variables_bytes=100,
        variables_depth=3,
    )
)


def rendered(payload: dict[str, Any] | None = None, **fields: Any) -> DeliveryRequest:
    """Build a request with ready content; `payload` overrides its fields, None removes one."""
    content = {"to": ("ann@example.org",), "subject": "Hello", "text": "Hi"} | (payload or {})
    return DeliveryRequest(
        payload=Payload(**{name: value for name, value in content.items() if value is not None}),
        payload_mode="rendered",
        **fields,
    )


def template(payload: dict[str, Any] | None = None, **fields: Any) -> DeliveryRequest:
    """Build a request with a template; `payload` overrides its fields, None removes one."""
    content = {"to": ("ann@example.org",), "template_id": "welcome", "locale": "en"} | (payload or {})
    return DeliveryRequest(
        payload=Payload(**{name: value for name, value in content.items() if value is not None}),
        payload_mode="template",
        **fields,
    )


def file(**fields: Any) -> Attachment:
    """Build an attachment."""
    return Attachment(**{"filename": "a.pdf", "content": b"x"} | fields)


MANY = tuple(f"a{number}@example.org" for number in range(4))
DEEP = {"a": {"b": {"c": {"d": 1}}}}
REFUSED = [
    (rendered(source="imap"), "unsupported_source", "source"),
    (rendered(source="send"), "unsupported_source", "source"),
    (rendered(source="smtp"), "unsupported_source", "source"),
    (rendered(source="operator_resend"), "unsupported_source", "source"),
    (rendered(delivery_class="bulk"), "invalid_field", "class"),
    (rendered(guarantee="exactly_once"), "invalid_field", "guarantee"),
    (rendered(idempotency_key=""), "invalid_field", "idempotency_key"),
    (rendered(idempotency_key="a b"), "invalid_field", "idempotency_key"),
    (rendered(idempotency_key="k" * 256), "invalid_field", "idempotency_key"),
    (rendered(idempotency_key="schlüssel"), "invalid_field", "idempotency_key"),
    (rendered(idempotency_key="k\n"), "invalid_field", "idempotency_key"),
    (rendered(traceparent="00-xyz"), "invalid_field", "traceparent"),
    (rendered(traceparent=f"00-{'A' * 32}-{'b' * 16}-01"), "invalid_field", "traceparent"),
    (rendered(supersede_key=""), "invalid_field", "supersede_key"),
    (rendered(supersede_key="a\nb"), "invalid_field", "supersede_key"),
    (rendered(supersede_key="k" * 256), "invalid_field", "supersede_key"),
    (rendered(send_at_ms=2000, expires_at_ms=2000), "invalid_field", "expires_at_ms"),
    (rendered(send_at_ms=2000, expires_at_ms=1999), "invalid_field", "expires_at_ms"),
    (msgspec.structs.replace(rendered(), payload_mode="raw"), "unsupported_payload_mode", "payload_mode"),
    (msgspec.structs.replace(rendered(), payload_mode=""), "unsupported_payload_mode", "payload_mode"),
    (rendered({"subject": None}), "missing_field", "payload.subject"),
    (rendered({"text": None}), "missing_field", "payload.text"),
    (rendered({"to": ()}), "missing_field", "payload.to"),
    (rendered({"to": (), "cc": ("ann@example.org",)}), "missing_field", "payload.to"),
    (rendered({"template_id": "welcome"}), "unknown_field", "payload.template_id"),
    (rendered({"locale": "en"}), "unknown_field", "payload.locale"),
    (rendered({"variables": {}}), "unknown_field", "payload.variables"),
    (rendered({"subject": "s" * 21}), "too_large", "payload.subject"),
    (rendered({"subject": "a\r\nBcc: e@a.org"}), "invalid_field", "payload.subject"),
    (rendered({"subject": "a\x85b"}), "invalid_field", "payload.subject"),
    (rendered({"subject": "a\u2028b"}), "invalid_field", "payload.subject"),
    (rendered({"subject": "a\ud800b"}), "invalid_field", "payload.subject"),
    (rendered({"text": "a\0b"}), "invalid_field", "payload.text"),
    (rendered({"html": "a\udfffb"}), "invalid_field", "payload.html"),
    (rendered({"text": "é" * 21}), "too_large", "payload.text"),
    (rendered({"html": "h" * 41}), "too_large", "payload.html"),
    (rendered({"to": ("ann",)}), "invalid_address", "payload.to[0]"),
    (rendered({"to": ("ann@example.org", "b\n@example.org")}), "invalid_address", "payload.to[1]"),
    (rendered({"cc": ("",)}), "invalid_address", "payload.cc[0]"),
    (rendered({"bcc": ("a,b@example.org",)}), "invalid_address", "payload.bcc[0]"),
    (rendered({"reply_to": ("a@b",)}), "invalid_address", "payload.reply_to[0]"),
    *(
        (rendered({"list_unsubscribe": url}), "invalid_field", "payload.list_unsubscribe")
        for url in (
            "",
            "http://example.org/u",
            "mailto:leave@example.org",
            "https:///u",
            "https://me@example.org/u",
            "https://example.org/u#f",
            "https://example.org/a b",
            "https://example.org/u>,<https://example.net/",
            "https://example.org/u\r\nBcc: e@a.org",
            "https://example.org/u\n",
            "https://example.org/%4",
            "https://example.org/=?utf-8?q?a?=",
            "https://bücher.example/u",
        )
    ),
    (
        rendered({"list_unsubscribe": "https://example.org/" + "u" * 800}),
        "too_large",
        "payload.list_unsubscribe",
    ),
    (rendered({"to": MANY}), "too_large", "payload.to"),
    (rendered({"to": MANY[:2], "cc": MANY[2:3], "bcc": MANY[3:]}), "too_large", "payload.to"),
    (rendered({"reply_to": MANY * 1000}), "too_large", "payload.reply_to"),
    (rendered({"to": ("ann@a.test",)}), "reserved_domain", "payload.to"),
    (rendered({"bcc": ("ann@a.invalid",)}), "reserved_domain", "payload.to"),
    (rendered({"cc": ("ann@a.localhost",)}), "reserved_domain", "payload.to"),
    (rendered({"to": ("ann@sinkhole.test",)}), "reserved_domain", "payload.to"),
    (rendered({"to": ("ann@ⓔ.example",)}), "reserved_domain", "payload.to"),
    (rendered({"attachments": (file(),) * 3}), "too_large", "payload.attachments"),
    (rendered({"attachments": (file(content=b"x" * 11),)}), "too_large", "payload.attachments[0].content"),
    (
        rendered({"attachments": (file(), file(content_type="pdf"))}),
        "invalid_field",
        "payload.attachments[1].content_type",
    ),
    (
        rendered({"attachments": (file(content_type="a/b\r\nX: y"),)}),
        "invalid_field",
        "payload.attachments[0].content_type",
    ),
    (rendered({"attachments": (file(filename="a\nb"),)}), "invalid_field", "payload.attachments[0].filename"),
    (
        rendered({"attachments": (file(content_id="a b"),)}),
        "invalid_field",
        "payload.attachments[0].content_id",
    ),
    (template({"template_id": None}), "missing_field", "payload.template_id"),
    (template({"template_id": "../etc"}), "unknown_template", "payload.template_id"),
    (template({"template_id": ""}), "unknown_template", "payload.template_id"),
    (template({"template_id": "a" * 65}), "unknown_template", "payload.template_id"),
    (template({"locale": None}), "missing_field", "payload.locale"),
    (template({"locale": "e"}), "invalid_locale", "payload.locale"),
    (template({"locale": "en_US"}), "invalid_locale", "payload.locale"),
    (template({"locale": "../en"}), "invalid_locale", "payload.locale"),
    (template({"locale": "en-"}), "invalid_locale", "payload.locale"),
    (template({"subject": "s"}), "unknown_field", "payload.subject"),
    (template({"text": "s"}), "unknown_field", "payload.text"),
    (template({"html": "s"}), "unknown_field", "payload.html"),
    (template({"variables": DEEP}), "too_large", "payload.variables"),
    (template({"variables": {"a": [[[[]]]]}}), "too_large", "payload.variables"),
    (template({"variables": {"a": "x" * 100}}), "too_large", "payload.variables"),
    (template({"variables": {"a": ["b\0"]}}), "invalid_field", "payload.variables"),
]


@pytest.mark.parametrize(
    ("request_", "code", "field"), REFUSED, ids=lambda value: value if type(value) is str else ""
)
def test_refuses_with_code_and_field(request_, code, field):
    """A command that can't be taken says why, by the contract's code, and where."""
    with pytest.raises(CommandError) as caught:
        parse_request(request_, RULES)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert caught.value.message


def test_every_code_of_the_core_is_seen():
    """The table above leaves out no code; the three others come from the decoder, the catalog and the store."""
    elsewhere = {FailureCode.INVALID_JSON, FailureCode.MISSING_VARIABLE, FailureCode.IDEMPOTENCY_CONFLICT}
    assert {code for _, code, _ in REFUSED} == set(FailureCode) - elsewhere


def test_the_error_holds_no_personal_data():
    """Neither an address nor a body nor a variable is repeated."""
    for request in (
        rendered({"to": ("secret-ann@exa mple.org",)}),
        rendered({"subject": "secret\n"}),
        rendered({"text": "secret\0"}),
        template({"variables": {"a": "secret\0"}}),
    ):
        with pytest.raises(CommandError) as caught:
            parse_request(request, RULES)
        assert "secret" not in f"{caught.value} {caught.value.field}"


@pytest.mark.parametrize(
    "member",
    [
        {"to": 5},
        {"to": "ann@example.org"},
        {"to": [None]},
        {"attachments": [{"filename": ""}]},
        {"colour": 1},
    ],
    ids=str,
)
def test_the_shape_is_checked_by_the_decoder(member):
    """A payload of another shape, or with a field nobody knows, does not decode."""
    document = {"payload_mode": "rendered", "payload": {"to": ["ann@example.org"]} | member}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document, DeliveryRequest)


def test_a_ready_message_becomes_a_command():
    """Everything a producer may say is in the command, in its canonical form."""
    command = parse_request(
        rendered(
            {
                "to": ("Ann <ann@EXAMPLE.org>",),
                "cc": ("bob@example.org",),
                "bcc": ("eve@example.org",),
                "reply_to": ("help@example.org",),
                "html": "<p>Hi</p>",
                "attachments": (file(content_id="logo"),),
                "list_unsubscribe": "https://example.org:8443/u/a,b?t=Zm9v%3D&n=1?",
            },
            source="notification",
            delivery_class="relay",
            guarantee="at_most_once",
            expires_at_ms=5000,
            send_at_ms=4000,
            supersede_key="k",
            idempotency_key="key",
            traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
            requested_at_ms=1,
        ),
        RULES,
    )
    assert command == Command(
        source=Source.NOTIFICATION,
        delivery_class=DeliveryClass.RELAY,
        guarantee=Guarantee.AT_MOST_ONCE,
        content=RenderedContent("Hello", "Hi", "<p>Hi</p>"),
        to=(Mailbox("ann", "example.org", "Ann"),),
        cc=(Mailbox("bob", "example.org"),),
        bcc=(Mailbox("eve", "example.org"),),
        reply_to=(Mailbox("help", "example.org"),),
        attachments=(file(content_id="logo"),),
        expires_at_ms=5000,
        send_at_ms=4000,
        supersede_key="k",
        list_unsubscribe="https://example.org:8443/u/a,b?t=Zm9v%3D&n=1?",
    )


def test_a_template_becomes_a_command():
    """A template command carries its id, the canonical locale and plain variables."""
    command = parse_request(template({"locale": "PT-br", "variables": {"name": "Ann"}}), RULES)
    assert command.content == TemplateContent("welcome", "pt-BR", {"name": "Ann"})


@pytest.mark.parametrize(
    ("source", "delivery_class"),
    [("authsession", "auth"), ("notification", "transactional"), ("api", "transactional")],
)
def test_the_class_follows_the_source(source, delivery_class):
    """Without a class a command gets that of its source."""
    assert parse_request(rendered(source=source), RULES).delivery_class == delivery_class


def test_the_guarantee_follows_the_class():
    """Without a guarantee a command gets that of its class, and `at_least_once` where none is configured."""
    rules = CommandRules(guarantees={DeliveryClass.AUTH: Guarantee.AT_MOST_ONCE})
    assert parse_request(rendered(delivery_class="auth"), rules).guarantee is Guarantee.AT_MOST_ONCE
    assert parse_request(rendered(), rules).guarantee is Guarantee.AT_LEAST_ONCE
    assert (
        parse_request(rendered(delivery_class="auth", guarantee="at_least_once"), rules).guarantee
        is Guarantee.AT_LEAST_ONCE
    )


def test_a_recipient_counts_once():
    """An address that is named twice has one place in the envelope, the first; the case of a domain does not matter."""
    command = parse_request(
        rendered({"to": ("Ann <ann@example.org>",), "cc": ("ann@EXAMPLE.org",), "bcc": ("bob@example.org",)}),
        RULES,
    )
    assert [mailbox.address for mailbox in command.recipients] == ["ann@example.org", "bob@example.org"]


@pytest.mark.parametrize(
    "limit", ["recipients", "subject_chars", "body_bytes", "attachments", "attachment_bytes"]
)
def test_what_is_exactly_at_a_limit_passes(limit):
    """A limit is the largest value that is still taken."""
    limits = RULES.limits
    payload = {
        "recipients": {"to": MANY[: limits.recipients]},
        "subject_chars": {"subject": "é" * limits.subject_chars},
        "body_bytes": {"text": "é" * (limits.body_bytes // 2)},
        "attachments": {"attachments": (file(),) * limits.attachments},
        "attachment_bytes": {"attachments": (file(content=b"x" * limits.attachment_bytes),)},
    }[limit]
    parse_request(rendered(payload), RULES)


def test_the_sinkhole_takes_its_own_where_it_is_enabled():
    """`sinkhole.test` is a recipient only where it has a route; other reserved names never are."""
    rules = CommandRules(sinkhole_enabled=True)
    parse_request(rendered({"to": ("ann@a.sinkhole.test", "bob@sinkhole.test")}), rules)
    for payload in ({"to": ("ann@a.test",)}, {"to": ("ann@sinkhole.test", "bob@example.org")}):
        with pytest.raises(CommandError) as caught:
            parse_request(rendered(payload), rules)
        assert caught.value.code == "reserved_domain"


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("EN", "en"),
        ("pt-br", "pt-BR"),
        ("zh-hant-hk", "zh-Hant-HK"),
        ("DE-1996", "de-1996"),
        ("es-419", "es-419"),
        ("sgn-BE-fr", "sgn-BE-FR"),
        ("EN-ca-X-CA", "en-CA-x-ca"),
        ("az-latn-x-latn", "az-Latn-x-latn"),
        ("de-de-u-CO-phonebk", "de-DE-u-co-phonebk"),
    ],
)
def test_a_locale_is_kept_in_canonical_case(written, canonical):
    """Letter case follows RFC 5646 section 2.1.1; its own examples are among these."""
    assert check_locale(written) == canonical


@pytest.mark.parametrize("key", ["k", "k" * 255, "!~", '"quoted"'])
def test_a_key_is_visible_ascii(key):
    """1 to 255 visible ASCII characters are a key."""
    check_key(key)


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**30, 1.5, -0.0])
def test_any_number_of_json_can_be_a_variable(number):
    """A number that JSON can hold is taken or refused by a code; it never breaks the intake."""
    try:
        command = parse_request(template({"variables": {"n": number}}), RULES)
    except CommandError as fault:
        assert fault.code in (FailureCode.INVALID_FIELD, FailureCode.TOO_LARGE)
    else:
        assert fingerprint(command, b"key")


def test_instants_are_bounded():
    """Instants past the year 9999, or before 1970, do not decode."""
    for instant in (-1, EPOCH_MS_MAX + 1):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(
                {"payload": {"to": []}, "payload_mode": "rendered", "send_at_ms": instant}, DeliveryRequest
            )


# -- login codes ------------------------------------------------------------------------------------------------


def login_code(**fields: Any) -> LoginCodeRequest:
    """Build a login code request."""
    return LoginCodeRequest(**{"email": "ann@example.org", "code": "123456", "locale": "en"} | fields)


def test_a_login_code_becomes_a_command():
    """It is a template command of class `auth` that supersedes the older code of its purpose and expires."""
    command = parse_login_code(login_code(purpose="signup", expires_in_s=600), CommandRules(), 900)
    assert command.source is Source.AUTHSESSION
    assert command.delivery_class is DeliveryClass.AUTH
    assert command.content == TemplateContent(
        "login-code", "en", {"code": "123456", "expires_in_minutes": 10}
    )
    assert command.expires_in_s == 600
    assert command.supersede_key == "login-code:signup"


def test_a_login_code_expires_by_default():
    """Without a time of its own it gets the deployment's."""
    assert parse_login_code(login_code(), CommandRules(), 900).expires_in_s == 900


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"email": "ann"}, "invalid_address", "email"),
        ({"email": "ann@a.test"}, "reserved_domain", "email"),
        ({"code": "12\r\n34"}, "invalid_field", "code"),
        ({"purpose": "a\0"}, "invalid_field", "purpose"),
        ({"locale": "en_US"}, "invalid_locale", "locale"),
    ],
)
def test_refuses_a_login_code_with_code_and_field(fields, code, field):
    """What can't be taken says why and where, in the names of its own call."""
    with pytest.raises(CommandError) as caught:
        parse_login_code(login_code(**fields), CommandRules(), 900)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert "12" not in caught.value.message


@pytest.mark.parametrize(
    "fields", [{"code": ""}, {"code": "1" * 65}, {"expires_in_s": 0}, {"purpose": ""}], ids=str
)
def test_bounds_a_login_code(fields):
    """Empty or endless fields do not decode."""
    document = {"email": "ann@example.org", "code": "1", "locale": "en"} | fields
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document, LoginCodeRequest)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document | {"expires_in_s": MAX_EXPIRES_IN_S + 1}, LoginCodeRequest)
