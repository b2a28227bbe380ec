"""JSON Schemas (2020-12) of what goes over the wire: the types as msgspec sees them, and what `truth` adds to that."""

import inspect
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from mailkeep.contracts.truth import (
    ADDED,
    COMMAND,
    MEMBERS,
    PAYLOADS,
    WHOLE,
    Schema,
    having,
)
from mailkeep.core.command import DeliveryRequest, Payload, PayloadMode

_NULL: Final[Schema] = {"type": "null"}
_TEXT: Final[Schema] = {"type": "string"}


class _Content(msgspec.Struct, frozen=True):
    """The members of a payload that belong to one mode."""

    description: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    more: Schema

    @property
    def members(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.required, *self.optional)


_CONTENT: Final = {
    PayloadMode.RENDERED: _Content(
        "Content that comes ready: a subject with a text, an HTML page or both.",
        ("subject",),
        ("text", "html"),
        {"anyOf": [having("text", _TEXT), having("html", _TEXT)]},
    ),
    PayloadMode.TEMPLATE: _Content(
        "Content that a template of the catalog makes.", ("template_id", "locale"), ("variables",), {}
    ),
}


def schemas(kinds: Iterable[type], refs: str) -> dict[str, Schema]:
    """Return the schemas of the command, of `kinds`, and of what they are made of, by name; they will stand at `refs`."""
    wanted = [*kinds, DeliveryRequest]
    _, found = msgspec.json.schema_components(wanted, ref_template="{name}")
    told = {name: _told(name, schema) for name, schema in found.items()}
    payload = told.pop(Payload.__name__)
    told[COMMAND] = told.pop(DeliveryRequest.__name__)
    told |= ADDED | {name: _payload(payload, mode) for mode, name in PAYLOADS.items()}
    return {name: _placed(told[name], refs) for name in sorted(told)}


_MEMBERS: Final = {kind.__name__: members for kind, members in MEMBERS.items()}
_WHOLE: Final = {kind.__name__: whole for kind, whole in WHOLE.items()}


def _told(name: str, schema: Schema) -> Schema:
    """Return the schema of the type `name` with what is added to it."""
    told = {keyword: part for keyword, part in schema.items() if keyword != "title"}
    told["description"] = _for_callers(schema["description"])
    if "enum" in told:
        return {"type": "string", **told}
    added = _MEMBERS.get(name, {})
    told["properties"] = {
        member: _member(member, shape, added.get(member, {})) for member, shape in told["properties"].items()
    }
    return told | _WHOLE.get(name, {})


def _member(name: str, shape: Schema, added: Schema) -> Schema:
    """Return the schema of a member: of its one type, which may stand beside null; of several only what is added counts."""
    kind, *others = [option for option in shape.get("anyOf", [shape]) if option != _NULL]
    if others:
        return added
    if "$ref" in added or ("$ref" in kind and added):
        return added
    told = {**kind, **added}
    if name.endswith("_at") and kind.get("type") == "string":
        told["format"] = "date-time"
    if not told.get("default", True):
        del told["default"]  # what is empty says nothing
    return _or_null(told) if "anyOf" in shape else told


def _or_null(schema: Schema) -> Schema:
    if "type" not in schema:
        return {"anyOf": [schema, _NULL]}
    words = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [schema["type"], "null"], **words}


def not_null(schema: Schema) -> Schema:
    """Return the schema of a member without null."""
    words = {"enum": [word for word in schema["enum"] if word is not None]} if "enum" in schema else {}
    kind = schema.get("type")
    return {**schema, **({"type": kind[0]} if isinstance(kind, list) else {}), **words}


def _for_callers(docstring: str) -> str:
    """Return a docstring in the words of those who do not read the code."""
    text = re.sub(r" \(contract section [0-9.]+\)", "", inspect.cleandoc(docstring))
    return re.sub(r"\bNone\b", "null", text)


def _payload(payload: Schema, mode: PayloadMode) -> Schema:
    """Return the payload as validation knows it in `mode`: members of the other mode are null at most."""
    content = _CONTENT[mode]
    foreign = [name for other in _CONTENT if other is not mode for name in _CONTENT[other].members]
    members = payload["properties"] | dict.fromkeys(foreign, _NULL)
    members |= {name: not_null(members[name]) for name in content.required}
    required = [*payload["required"], *content.required]
    return {
        **payload,
        "description": content.description,
        "properties": members,
        "required": required,
        **content.more,
    }


def _placed(schema: Any, refs: str) -> Any:  # noqa: ANN401 - any part of a schema
    """Return `schema` with references that lead to `refs`."""
    if isinstance(schema, dict):
        return {
            name: f"{refs}{part}" if name == "$ref" else _placed(part, refs) for name, part in schema.items()
        }
    return [_placed(part, refs) for part in schema] if isinstance(schema, list) else schema
