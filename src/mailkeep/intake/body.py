"""JSON bodies: refused unless they mean one thing only, decoded into value types, faults named by field.

Stricter than JSON parsers are by themselves: UTF-8 and nothing else, no member twice, no NaN, no lone surrogates, nesting
bounded. Faults come out as `CommandError`s whose field is a path such as `payload.to[1]`. Pure; called by
`intake.application`, `intake.stream_entry` and `operator.api`, each with bytes it read within a bound of its own.

Large bodies are nearly all base64, of files. A parser takes that for one text, in one call that lasts tens of milliseconds, and
copies it twice. So `decode_large` takes files out beforehand, decoded piece by piece, with a mark in the place of each; the rest is
small, is read like any body, and gets its files back. A body for which that does not work out, whatever the reason, is read as it is.
"""

import binascii
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import msgspec

from mailkeep.aside import PIECE_BYTES, breathe
from mailkeep.core.command import Attachment, CommandError, FailureCode, Payload
from mailkeep.intake.problems import HttpCode, ProblemError, make_problem

T = TypeVar("T")
Files: TypeAlias = dict[bytes, bytes]
"""Contents of files by the marks that stand in their places."""

MIN_FILE_CHARS: Final = 64 * 1024
"""Of base64 that is taken out of a large body; what is shorter costs a parser less."""
MARK_BYTES: Final = 18  # random, so that no file has it; base64 without padding
_BASE64: Final = msgspec.json.Decoder(bytes)  # three times as fast as binascii where it is strict
_CONTENT: Final = b'"content"'
_VALUE: Final = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*"')

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


def decode_large(
    body: bytes | bytearray,
    decoder: "msgspec.json.Decoder[T]",
    give_back: Callable[[T, Files], T | None],
) -> T:
    """Return what `check_json` and `decode_json` make of a large `body`; to be called aside. Raises `CommandError`.

    `give_back` returns a value with its files in the place of their marks, None where they do not all belong to it.
    """
    files: Files = {}
    rest = b"".join(_without_files(body, files))
    if files:
        try:
            check_json(rest)
            whole = give_back(decode_json(rest, decoder), files)
        except CommandError:
            whole = None  # what is wrong, and where, the whole body tells
        if whole is not None:
            return whole
    check_json(body)
    return decode_json(body, decoder)


def with_files(attachments: tuple[Attachment, ...], files: Files) -> tuple[Attachment, ...] | None:
    """Return `attachments` with `files` in the places of their marks, None where there are others."""
    if not files.keys() <= {attachment.content for attachment in attachments}:
        return None
    return tuple(
        msgspec.structs.replace(attachment, content=files.get(attachment.content, attachment.content))
        for attachment in attachments
    )


def payload_with_files(payload: Payload, files: Files) -> Payload | None:
    """Return `payload` with the files that were taken out of it, None if they are not all its own."""
    attachments = with_files(payload.attachments, files)
    return None if attachments is None else msgspec.structs.replace(payload, attachments=attachments)


def _without_files(body: bytes | bytearray, files: Files) -> Iterator[bytes | bytearray]:
    """Yield `body` in pieces with marks in the place of large members `content`, which go to `files`."""
    done = at = 0
    while (at := body.find(_CONTENT, at)) >= 0:
        at += len(_CONTENT)
        value = _VALUE.match(body, at)
        if value is None:
            continue
        end = body.find(b'"', value.end())
        content = _file(body, value.end(), end) if end - value.end() >= MIN_FILE_CHARS else None
        if content is not None:
            mark = os.urandom(MARK_BYTES)
            files[mark] = content
            yield body[done : value.end()] + binascii.b2a_base64(mark, newline=False)
            done = at = end
    yield body[done:]


def _file(body: bytes | bytearray, start: int, end: int) -> bytes | None:
    """Return what stands in base64 between `start` and `end`, None if that is not base64 throughout."""
    if body.find(b"=", start, end - 2) >= 0:
        return None
    pieces, rest = [], b""
    try:
        for at in range(start, end, PIECE_BYTES):
            # Some encoders escape slashes. The last character stays for the next piece: it may begin an escape.
            piece = rest + body[at : min(at + PIECE_BYTES, end)]
            if b"\\" in piece:
                piece = piece.replace(b"\\/", b"/")
            whole = (len(piece) - 1) // 4 * 4
            pieces.append(_BASE64.decode(b'"%b"' % piece[:whole]))
            rest = piece[whole:]
            breathe()
        pieces.append(_BASE64.decode(b'"%b"' % rest))
    except msgspec.DecodeError:
        return None
    return b"".join(pieces)


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
