"""JSON bodies: refused unless they mean one thing only, decoded into value types, faults named by field.

Stricter than JSON parsers are by themselves: UTF-8 and nothing else, no member twice, no NaN, no lone surrogates, nesting
bounded. Faults come out as `CommandError`s whose field is a path such as `payload.to[1]`. Pure; called by
`intake.application` and `operator.api`, each with bytes it read within a bound of its own.
"""

import json
import re
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from mailkeep.core.command import CommandError, FailureCode
from mailkeep.intake.problems import HttpCode, ProblemError, make_problem

T = TypeVar("T")

_JSON: Final = b"application/json"
_CONTENT_TYPE: Final = re.compile(
    rb'application/json[ \t]*(?:;[ \t]*charset="?utf-8"?[ \t]*)?', re.IGNORECASE
)
_AT: Final = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def check_content_type(headers: dict[bytes, bytes]) -> None:
    """Raise `ProblemError` unless the body is announced as plain JSON: another charset or a coding is not read."""
    content_type = headers.get(b"content-type", b"")
    plain = content_type == _JSON or _CONTENT_TYPE.fullmatch(content_type)
    if not plain or headers.get(b"content-encoding", b"identity") != b"identity":
        raise ProblemError(
            make_problem(
                HttpCode.UNSUPPORTED_MEDIA_TYPE, "send UTF-8 JSON as application/json, not compressed"
            )
        )


def check_json(body: bytes | bytearray) -> None:
    """Raise `CommandError` unless `body` is one JSON text that every parser reads alike (RFC 8259, RFC 7493)."""
    try:
        _STRICT.decode(body.decode())
    except CommandError:
        raise
    except json.JSONDecodeError as fault:
        raise _malformed(f"{fault.msg} at character {fault.pos}") from None
    except UnicodeDecodeError as fault:
        raise _malformed(f"not UTF-8 at byte {fault.start}") from None
    except RecursionError:
        raise _malformed("nested too deeply") from None
    except ValueError:
        raise _malformed("a number has too many digits") from None


def decode_json(data: bytes | bytearray | msgspec.Raw, decoder: "msgspec.json.Decoder[T]") -> T:
    """Return what `decoder` makes of `data`. Raises `CommandError`."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as fault:
        raise field_error(fault) from None
    except msgspec.DecodeError as fault:
        raise _malformed(str(fault)) from None
    except RecursionError:
        raise _malformed("nested too deeply") from None


def field_error(fault: msgspec.ValidationError) -> CommandError:
    """Return the decoder's complaint as a `CommandError` that names the field and repeats no value."""
    text = str(fault)
    at = _AT.search(text)
    path = at[1].replace("[...]", "[]") if at else ""
    words = text[: at.start()] if at else text
    if missing := _MISSING.fullmatch(words):
        return CommandError(FailureCode.MISSING_FIELD, _join(path, missing[1]), "is required")
    if unknown := _UNKNOWN.fullmatch(words):
        return CommandError(FailureCode.UNKNOWN_FIELD, _join(path, unknown[1]), "is not a field here")
    if words.startswith("Invalid enum value"):
        words = "Is not one of the known values"  # the decoder's own words repeat it
    return CommandError(FailureCode.INVALID_FIELD, path, words[:1].lower() + words[1:])


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _malformed(why: str) -> CommandError:
    return CommandError(FailureCode.INVALID_JSON, "", f"is not valid JSON: {why}")


def _once_each(members: list[tuple[str, Any]]) -> None:
    if len(dict(members)) != len(members):
        raise _malformed("an object has a member twice")


def _no_constant(_name: str) -> NoReturn:
    raise _malformed("NaN and Infinity are no numbers of JSON")


_STRICT: Final = json.JSONDecoder(object_pairs_hook=_once_each, parse_constant=_no_constant)
