"""HTTP/1.1 as far as this client needs it (RFC 9112): requests to bytes, bytes to answers, no I/O.

Both clients speak through this, so that they differ in nothing but how they wait, and so that the time of a whole answer
can be bounded, not only of one read. No redirects (a token must not follow them), no compression, no proxies.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

DEFAULT_URL: Final = "http://127.0.0.1:8080"
MAX_IDLE_S: Final = 50.0
"""After so long a connection is not used again: less than servers and proxies keep it (60 s and more)."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""As much as a listener of Mailkeep takes itself."""
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""Far above the largest answer: the attempts of a delivery with their steps."""
MAX_INTERIM: Final = 8
"""Interim answers (1xx) before the answer; there is no use for even one."""

MAX_TRAILERS: Final = 64
"""Fields behind a chunked body; they say nothing that is needed here."""

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: .*)?")
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")
_DIGITS: Final = re.compile(r"[0-9]{1,10}")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


class MalformedAnswerError(Exception):
    """What came is not HTTP/1.1, too large, or ended too early."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where Mailkeep is: from a base URL such as `https://mail.internal:8443/keep`."""

    host: str
    port: int
    is_tls: bool
    authority: str  # for the Host header
    prefix: str  # before every path


@dataclass(frozen=True, slots=True, repr=False)
class Request:
    """One request; `body` is JSON."""

    method: str
    path: str
    body: bytes | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer; names of headers are lower case. `reusable`: the connection can take another request."""

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    reusable: bool


def parse_origin(base_url: str) -> Origin:
    """Return where `base_url` points. Raises ValueError, without repeating it: it may hold a secret."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        raise ValueError("base_url is not a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("base_url must be like http://127.0.0.1:8080")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("base_url must hold no user, query or fragment; give a token as token")
    if not _VISIBLE.fullmatch(parts.netloc + parts.path):
        raise ValueError("base_url holds a character that is not visible ASCII")
    is_tls = parts.scheme == "https"
    return Origin(
        parts.hostname, port or (443 if is_tls else 80), is_tls, parts.netloc, parts.path.rstrip("/")
    )


def check_token(token: str | None) -> str | None:
    """Return `token`. Raises ValueError, without repeating it, unless it is visible ASCII."""
    if token is not None and not _VISIBLE.fullmatch(token):
        raise ValueError("token must be visible ASCII characters")
    return token


def encode_request(request: Request, origin: Origin, token: str | None) -> bytes:
    """Return `request` as it goes on the wire."""
    lines = [
        f"{request.method} {origin.prefix}{request.path} HTTP/1.1",
        f"Host: {origin.authority}",
        "User-Agent: mailkeep-client",
        "Accept: application/json, application/problem+json",
    ]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if request.idempotency_key is not None:
        lines.append(f"Idempotency-Key: {request.idempotency_key}")
    if request.body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(request.body)}"]
    return "\r\n".join((*lines, "", "")).encode("ascii") + (request.body or b"")


_Reading = Generator[None, None, "Answer"]


class AnswerReader:
    """Makes one answer of what comes in."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ended = False
        self._steps = self._answer()
        next(self._steps)

    def feed(self, data: bytes) -> Answer | None:
        """Take what the connection gave, b"" for its end; return the answer when it is whole.

        Raises `MalformedAnswerError`.
        """
        self._ended = not data
        self._buffer += data
        try:
            next(self._steps)
        except StopIteration as done:
            answer: Answer = done.value
            return answer
        return None

    def _answer(self) -> _Reading:
        yield  # until the first bytes are there
        for _ in range(MAX_INTERIM):
            head = yield from self._until(b"\r\n\r\n", MAX_HEAD_BYTES)
            version, status, headers = _parse_head(head)
            if status >= 200:
                break
        else:
            raise MalformedAnswerError("too many interim answers")
        keeps = version == 1 and "close" not in headers.get("connection", "").lower()
        if status in {204, 304}:
            body = b""
        elif "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked":
                raise MalformedAnswerError("an unknown transfer coding")
            body = yield from self._chunks()
        elif "content-length" in headers:
            body = yield from self._exactly(_body_length(headers["content-length"]))
        else:
            keeps = False
            body = yield from self._rest()
        return Answer(status, headers, body, keeps and not self._buffer)

    def _until(self, mark: bytes, max_bytes: int) -> Generator[None, None, bytes]:
        while (at := self._buffer.find(mark)) < 0:
            yield from self._more(max_bytes)
        if at > max_bytes:
            raise MalformedAnswerError("a head that is too large")
        found = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return found

    def _exactly(self, size_bytes: int) -> Generator[None, None, bytes]:
        while len(self._buffer) < size_bytes:
            yield from self._more(MAX_BODY_BYTES)
        found = bytes(self._buffer[:size_bytes])
        del self._buffer[:size_bytes]
        return found

    def _rest(self) -> Generator[None, None, bytes]:
        while not self._ended:
            if len(self._buffer) > MAX_BODY_BYTES:
                raise MalformedAnswerError("an answer that is too large")
            yield
        found = bytes(self._buffer)
        self._buffer.clear()
        return found

    def _chunks(self) -> Generator[None, None, bytes]:
        body = bytearray()
        while True:
            line = yield from self._until(b"\r\n", MAX_HEAD_BYTES)
            size = _CHUNK_SIZE.fullmatch(line)
            if not size:
                raise MalformedAnswerError("a chunk without a size")
            size_bytes = int(size[1], 16)
            if len(body) + size_bytes > MAX_BODY_BYTES:
                raise MalformedAnswerError("an answer that is too large")
            if size_bytes == 0:
                break
            body += yield from self._exactly(size_bytes)
            if (yield from self._exactly(2)) != b"\r\n":
                raise MalformedAnswerError("a chunk longer than its size")
        for _ in range(MAX_TRAILERS):
            if not (yield from self._until(b"\r\n", MAX_HEAD_BYTES)):
                return bytes(body)
        raise MalformedAnswerError("too many trailers")

    def _more(self, max_bytes: int) -> Generator[None, None, None]:
        if self._ended:
            raise MalformedAnswerError("the connection was cut")
        if len(self._buffer) > max_bytes + 4:
            raise MalformedAnswerError("an answer that is too large")
        yield


def _parse_head(head: bytes) -> tuple[int, int, dict[str, str]]:
    status_line, *lines = head.split(b"\r\n")
    found = _STATUS_LINE.fullmatch(status_line)
    if not found:
        raise MalformedAnswerError("not an answer of HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not _FIELD_NAME.fullmatch(name):
            raise MalformedAnswerError("a malformed header")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return int(found[1]), int(found[2]), headers


def _body_length(text: str) -> int:
    if not _DIGITS.fullmatch(text) or int(text) > MAX_BODY_BYTES:
        raise MalformedAnswerError("a malformed length, or one that is too large")
    return int(text)
