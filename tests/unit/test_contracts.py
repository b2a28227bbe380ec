"""The contracts of `api/`: the files follow the code, and the documents say of commands what validation says."""

import json
import re
import runpy
from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml

from mailkeep.contracts.asyncapi import asyncapi
from mailkeep.contracts.command_schema import command_schema
from mailkeep.contracts.examples import COMMANDS, DELIVERY_ID, REFUSALS, stream_entry, with_payload
from mailkeep.contracts.openapi import openapi_json
from mailkeep.contracts.schemas import schemas
from mailkeep.contracts.send_openapi import send_openapi
from mailkeep.contracts.truth import ADDED, MEMBERS, WHOLE
from mailkeep.core.command import (
    CommandError,
    CommandRules,
    DeliveryRequest,
    FailureCode,
    parse_delivery_id,
    parse_request,
)
from mailkeep.core.send_request import SendRequest, parse_send
from mailkeep.intake import http, send
from mailkeep.intake.body import decode_json
from mailkeep.intake.problems import HttpCode, make_problem
from mailkeep.intake.stream_entry import PAYLOAD, parse_entry
from mailkeep.operator.api import operator_api

API = Path(__file__).parents[2] / "api"
GENERATED = runpy.run_path(str(API / "generate.py"))["documents"]()
OPENAPI = json.loads(openapi_json())
SEND = json.loads(json.dumps(send_openapi()))
OPENAPIS = pytest.mark.parametrize("document", [OPENAPI, SEND], ids=["internal", "send"])
ASYNCAPI = asyncapi()
COMMAND = command_schema()
METHODS = {"get", "post", "put", "patch", "delete"}
ID_MADE_AT_S = int(DELIVERY_ID.replace("-", "")[:12], 16) / 1000


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_a_file_is_what_the_code_says(name):
    """The committed file equals the generated one; `make docs` writes it anew."""
    assert (API / name).read_text(encoding="utf-8") == GENERATED[name]


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("internal-openapi.yaml", OPENAPI),
        ("send-openapi.yaml", SEND),
        ("delivery-commands-asyncapi.yaml", ASYNCAPI),
    ],
)
def test_yaml_says_what_is_served(name, document):
    """Nothing is lost on the way to YAML."""
    assert yaml.safe_load(GENERATED[name]) == document


def parts(document):
    """Yield every object in `document`."""
    if isinstance(document, dict):
        yield document
    for part in document.values() if isinstance(document, dict) else document:
        if isinstance(part, dict | list):
            yield from parts(part)


@pytest.mark.parametrize(
    "document", [OPENAPI, SEND, ASYNCAPI, COMMAND], ids=["internal", "send", "asyncapi", "command"]
)
def test_references_lead_somewhere(document):
    """Each reference names a part of the same document."""
    references = {part["$ref"] for part in parts(document) if "$ref" in part}
    assert references
    for reference in references:
        found = document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]


def test_what_is_added_is_added_to_something():
    """Every type and member for which `truth` has words exists."""
    _, found = msgspec.json.schema_components([*MEMBERS, *WHOLE])
    for kind, members in MEMBERS.items():
        assert members.keys() <= found[kind.__name__]["properties"].keys(), kind


# -- routes and codes --------------------------------------------------------------------------------------------


def test_every_route_is_described_and_nothing_else():
    """The calls of intake and operators are the operations of the document, and the other way round."""
    intake = {
        ("post", path) for path in vars(http).values() if isinstance(path, str) and path.startswith("/api/")
    }
    operators = {
        (method.lower(), route.path)
        for route in operator_api(None, b"", {}).routes  # its routes are made without asking the store
        for method in route.methods - {"HEAD"}
    }
    described = {
        (method, path) for path, item in OPENAPI["paths"].items() for method in item.keys() & METHODS
    }
    assert described == intake | operators
    assert {(method, path) for path, item in SEND["paths"].items() for method in item} == {
        ("post", send.SEND)
    }


def problems(responses):
    """Return the (status, code) of the problem responses."""
    found = set()
    for response in responses.values():
        (content,) = response["content"].values()
        shape = content["schema"]["allOf"][1]["properties"]
        found |= {(shape["status"]["const"], code) for code in shape["code"]["enum"]}
    return found


def test_every_problem_code_is_described_under_its_status():
    """Each code stands in a response with the status that it has in the code; only requests have others too."""
    found = problems(OPENAPI["components"]["responses"]) | problems(SEND["components"]["responses"])
    usual = {(make_problem(code, "").status, str(code)) for code in (*FailureCode, *HttpCode)}
    assert usual <= found
    assert found - usual == {
        (400, "unknown_field"),
        (400, "invalid_field"),
        (400, "missing_field"),
        (413, "too_large"),
    }


@OPENAPIS
def test_every_response_is_used(document):
    """No operation lacks the answers that all give, and no answer stands for nothing."""
    used = {part["$ref"] for part in parts(document["paths"]) if "$ref" in part}
    anywhere = {"MethodNotAllowed", "NotFound"} if document is SEND else {"MethodNotAllowed"}
    for name in document["components"]["responses"]:
        assert name in anywhere or f"#/components/responses/{name}" in used, name
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert {"401", "500"} <= operation["responses"].keys(), (method, path)


def test_every_failure_code_is_shown_on_the_stream():
    """The stream's document has an entry for each code, and no other."""
    assert set(ASYNCAPI["x-malformed-commands"]) == set(FailureCode)


# -- examples ----------------------------------------------------------------------------------------------------


def faults(instance, schema, document):
    """Return what `document` has against `instance`, which is to fit its part `schema`."""
    validator = jsonschema.Draft202012Validator({**document, "$ref": schema} if schema else document)
    return [fault.message for fault in validator.iter_errors(instance)]


def openapi_faults(instance, schema, document=OPENAPI):
    """Return what an OpenAPI document has against `instance`."""
    validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    return [fault.message for fault in validator.iter_errors(instance)]


def test_schemas_are_schemas():
    """Each schema of the documents is one of JSON Schema 2020-12."""
    shapes = [
        *OPENAPI["components"]["schemas"].values(),
        *SEND["components"]["schemas"].values(),
        *ASYNCAPI["components"]["schemas"].values(),
        COMMAND,
    ]
    for shape in shapes:
        jsonschema.Draft202012Validator.check_schema(shape)


@OPENAPIS
def test_examples_fit_their_schemas(document):
    """Each example of a request or an answer fits the schema beside it."""
    shown = [part for part in parts(document) if "schema" in part and "examples" in part]
    assert len(shown) > 10
    for content in shown:
        for name, example in content["examples"].items():
            assert openapi_faults(example["value"], content["schema"], document) == [], name


def test_examples_of_parameters_fit():
    """The example of a parameter fits its schema."""
    for parameter in (part for part in parts(OPENAPI["paths"]) if "in" in part and "example" in part):
        assert openapi_faults(parameter["example"], parameter["schema"]) == [], parameter["name"]


def test_command_examples_fit_and_are_valid():
    """The examples of the JSON Schema fit it, and validation takes them."""
    for example in COMMAND["examples"]:
        assert verdict(example) is None
        assert faults(example, "", COMMAND) == []


def test_stream_examples_fit_and_are_valid():
    """The entries that are shown fit their schema, text in them too, and parse."""
    reference = "#/components/schemas/DeliveryCommandEntry"
    for example in ASYNCAPI["components"]["messages"]["deliveryCommand"]["examples"]:
        entry = example["payload"]
        assert faults(entry, reference, ASYNCAPI) == []
        payload = f"#/components/schemas/{entry['payload_mode'].title()}Payload"
        assert faults(json.loads(entry[PAYLOAD]), payload, ASYNCAPI) == []
        parse_entry({name.encode(): value.encode() for name, value in entry.items()}, 1000)
        parse_delivery_id(entry["delivery_id"], ID_MADE_AT_S)


# -- truth -------------------------------------------------------------------------------------------------------

RENDERED, TEMPLATE = COMMANDS["rendered"], COMMANDS["template"]


def verdict(command):
    """Return the code with which validation refuses `command`, None if it is taken."""
    try:
        decoded = decode_json(json.dumps(command).encode(), msgspec.json.Decoder(DeliveryRequest))
        if decoded.delivery_id is not None:
            parse_delivery_id(decoded.delivery_id, ID_MADE_AT_S)
        parse_request(decoded, CommandRules())
    except CommandError as fault:
        return fault.code
    return None


ATTACHMENT = {"filename": "a.txt", "content": "YQ=="}
ALIKE = {
    "text alone": with_payload(RENDERED, html=None),
    "html alone": with_payload(RENDERED, text=None),
    "members of the other mode as null": {
        **RENDERED,
        "payload": {**RENDERED["payload"], "template_id": None, "locale": None, "variables": None},
    },
    "neither text nor html": with_payload(RENDERED, text=None, html=None),
    "text and html as null": {**RENDERED, "payload": {**RENDERED["payload"], "text": None, "html": None}},
    "no subject": with_payload(RENDERED, subject=None),
    "a subject of two lines": with_payload(RENDERED, subject="a\nb"),
    "NUL in a text": with_payload(RENDERED, text="a\0"),
    "nobody": with_payload(RENDERED, to=[]),
    "cc as null": {**RENDERED, "payload": {**RENDERED["payload"], "cc": None}},
    "an address without @": with_payload(RENDERED, to=["ann"]),
    "an address on two lines": with_payload(RENDERED, to=["ann@exam\nple.org"]),
    "an address in Unicode": with_payload(RENDERED, to=["Bö <bö@bücher.example.org>"]),
    "content of a template in rendered": with_payload(RENDERED, locale="en"),
    "a text in template": with_payload(TEMPLATE, text="a"),
    "no locale": with_payload(TEMPLATE, locale=None),
    "no template": with_payload(TEMPLATE, template_id=None),
    "no variables": with_payload(TEMPLATE, variables=None),
    "a locale with an underscore": with_payload(TEMPLATE, locale="pt_BR"),
    "a long locale": with_payload(TEMPLATE, locale="zh-Hant-TW-x-a"),
    "a template that can't be": with_payload(TEMPLATE, template_id="../welcome"),
    "an unknown mode": {**RENDERED, "payload_mode": "html"},
    "an empty class": {**RENDERED, "class": ""},
    "class as null": {**RENDERED, "class": None},
    "an empty guarantee": {**RENDERED, "guarantee": ""},
    "a source of the service's own": {**RENDERED, "source": "send"},
    "source as null": {**RENDERED, "source": None},
    "a key with a space": {**RENDERED, "idempotency_key": "a b"},
    "a long key": {**RENDERED, "idempotency_key": "k" * 255},
    "too long a key": {**RENDERED, "idempotency_key": "k" * 256},
    "an empty supersede_key": {**RENDERED, "supersede_key": ""},
    "a supersede_key on two lines": {**RENDERED, "supersede_key": "a\r"},
    "a traceparent": {**RENDERED, "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"},
    "a traceparent in capitals": {**RENDERED, "traceparent": f"00-{'A' * 32}-{'B' * 16}-01"},
    "a negative instant": {**RENDERED, "send_at_ms": -1},
    "an instant as text": {**RENDERED, "send_at_ms": "1"},
    "a delivery id": {**RENDERED, "delivery_id": DELIVERY_ID},
    "a delivery id in capitals": {**RENDERED, "delivery_id": DELIVERY_ID.upper()},
    "a delivery id without hyphens": {**RENDERED, "delivery_id": DELIVERY_ID.replace("-", "")},
    "a delivery id in braces": {**RENDERED, "delivery_id": f"{{{DELIVERY_ID}}}"},
    "a UUIDv4 as delivery id": {**RENDERED, "delivery_id": "4c56d3e0-2f2b-4f4e-9d5e-6f8a1b2c3d4e"},
    "an attachment": with_payload(RENDERED, attachments=[ATTACHMENT]),
    "an empty attachment": with_payload(RENDERED, attachments=[{**ATTACHMENT, "content": ""}]),
    "base64 without padding": with_payload(RENDERED, attachments=[{**ATTACHMENT, "content": "YQ"}]),
    "base64 for URLs": with_payload(RENDERED, attachments=[{**ATTACHMENT, "content": "-_8="}]),
    "a content type without a slash": with_payload(
        RENDERED, attachments=[{**ATTACHMENT, "content_type": "text"}]
    ),
    "an inline picture": with_payload(RENDERED, attachments=[{**ATTACHMENT, "content_id": "logo@a"}]),
    "a content_id in brackets": with_payload(RENDERED, attachments=[{**ATTACHMENT, "content_id": "<logo>"}]),
    "a file without a name": with_payload(RENDERED, attachments=[{**ATTACHMENT, "filename": ""}]),
    "a member that is not known": {**RENDERED, "priority": 1},
}
"""Commands of which the schema must say what validation says."""


@pytest.mark.parametrize("name", ALIKE)
def test_the_schema_says_what_validation_says(name):
    """A command fits the schema exactly if validation takes it."""
    assert (faults(ALIKE[name], "", COMMAND) == []) is (verdict(ALIKE[name]) is None)


SENT = {"from": "ann@example.org", "to": ["bo@example.org"], "subject": "s", "text": "t"}
SENDS = {
    "a mail": SENT,
    "body for text": {**SENT, "text": None, "body": "t"},
    "html alone": {**SENT, "text": None, "html": "<p>t</p>"},
    "no content": {**SENT, "text": None},
    "both names of the text": {**SENT, "body": "t"},
    "one address to reply to": {**SENT, "reply_to": "ann@example.org"},
    "several addresses to reply to": {**SENT, "reply_to": ["ann@example.org", "bo@example.org"]},
    "no address to reply to": {**SENT, "reply_to": "ann"},
    "nobody to reply to": {**SENT, "reply_to": None},
    "no sender": {name: value for name, value in SENT.items() if name != "from"},
    "a sender that is none": {**SENT, "from": "ann"},
    "nobody": {**SENT, "to": []},
    "one recipient as text": {**SENT, "to": "bo@example.org"},
    "a subject of two lines": {**SENT, "subject": "a\nb"},
    "no subject": {**SENT, "subject": None},
    "an attachment": {**SENT, "attachments": [ATTACHMENT]},
    "a member that is not known": {**SENT, "class": "auth"},
}


@pytest.mark.parametrize("name", SENDS)
def test_the_send_schema_says_what_validation_says(name):
    """A mail fits the schema exactly if validation takes it."""
    mail = SENDS[name]
    try:
        parse_send(decode_json(json.dumps(mail).encode(), msgspec.json.Decoder(SendRequest)), CommandRules())
        taken = True
    except CommandError:
        taken = False
    reference = {"$ref": "#/components/schemas/SendRequest"}
    assert (openapi_faults(mail, reference, SEND) == []) is taken


BEYOND_SCHEMA = {
    FailureCode.UNKNOWN_TEMPLATE,
    FailureCode.MISSING_VARIABLE,
    FailureCode.TOO_LARGE,
    FailureCode.IDEMPOTENCY_CONFLICT,
    FailureCode.RESERVED_DOMAIN,
}


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.code)
def test_a_refused_example_breaks_the_schema_if_a_schema_can_say_it(refusal):
    """Only what depends on the deployment or on other commands is beyond the schema."""
    fits = faults(refusal.command, "", COMMAND) == []
    assert fits is (refusal.code in BEYOND_SCHEMA)


def test_patterns_mean_the_same_to_every_engine():
    """No pattern uses what ECMA 262 does not know, and each is anchored."""
    patterns = {part["pattern"] for part in (*parts(OPENAPI), *parts(SEND)) if "pattern" in part}
    assert patterns
    for pattern in patterns:
        assert re.compile(pattern)
        assert pattern.startswith("^(?:")
        assert pattern.endswith(")$")
        assert not re.search(r"\\[AZz]|\(\?(?!:)", pattern), pattern


def test_the_shared_schemas_are_one():
    """Payload, attachment and address are the same in all three documents."""
    for name in ("RenderedPayload", "TemplatePayload", "Attachment", *ADDED):
        assert schemas((), "#/$defs/")[name] == COMMAND["$defs"][name]
        assert OPENAPI["components"]["schemas"][name] == ASYNCAPI["components"]["schemas"][name]


def test_an_entry_holds_what_the_command_held():
    """The flat form of an example parses to the same request."""
    entry = stream_entry(RENDERED, "k")
    parsed = parse_entry({name.encode(): value.encode() for name, value in entry.items()}, 10_000)
    members = {"delivery_id": DELIVERY_ID, "idempotency_key": "k", "requested_at_ms": parsed.requested_at_ms}
    assert parsed == msgspec.json.decode(json.dumps({**RENDERED, **members}), type=DeliveryRequest)
