"""Log lines: JSON for machines, coloured text for people, and one choke point that keeps secrets out of both.

Every line, also those of libraries that use the standard `logging` (warnings and worse), passes `_finish`: it puts
`timestamp`, `level`, `logger`, `event` first, adds `otel_trace_id` and `otel_span_id` where there are any, and lets
through only what may be read by anybody. Whatever looks like an address is masked; a key that names personal data keeps
its numbers and loses its text; control characters are escaped, so that no reply of a server can forge a line (CWE-117).

Rooms log by `structlog.get_logger("attempt_scheduler")` and `.info("attempt scheduler started", key=value)`. The events
are declared in `mailkeep.telemetry.names`. A line that can't be written is dropped: mail goes on when a disk is full.
"""

import logging
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from mailkeep.core.redact import mask_addresses
from mailkeep.settings import LogFormat, LogLevel

MAX_TEXT_CHARS: Final = 2_000  # a reply of a server may have 20 MB
MAX_TRACEBACK_CHARS: Final = 10_000  # the innermost frames of a deep one
MAX_ENTRIES: Final = 50  # of a list or mapping in one line
MAX_DEPTH: Final = 4  # of lists and mappings in one another

REFUSED_KEYS: Final = frozenset(
    {
        *("address", "bcc", "cc", "email", "from", "recipient", "recipients", "reply_to", "sender", "to"),
        *(
            "attachments",
            "body",
            "content",
            "html",
            "payload",
            "payload_json",
            "subject",
            "text",
            "variables",
        ),
        *("authorization", "code", "login_code", "password", "secret", "token", "tokens"),
    }
)
"""Their text is never written. Their numbers are: `recipients=3` is a count and `code=421` a reply code."""

_LEVELS: Final = {"exception": "error", "warn": "warning"}
_SHOWN_DSN: Final = re.compile(r"[a-z]+://[^:@/\s]*:\*\*\*@[^@\uff20%\s]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_BUT_NEWLINE: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def configure(
    level: str = LogLevel.INFO,
    log_format: str = LogFormat.AUTO,
    stream: BinaryIO | None = None,
    *,
    trace_ids: Callable[[], tuple[str, str] | None] = lambda: None,
) -> None:
    """Send log lines of `level` and above to `stream` (standard error unless given), for the whole process.

    `trace_ids` returns the ids of the current trace and span, if there is one.
    """
    stream = stream or sys.stderr.buffer
    console = log_format == LogFormat.CONSOLE or (log_format == LogFormat.AUTO and stream.isatty())
    structlog.configure(
        processors=[
            structlog.processors.format_exc_info,
            _finisher(trace_ids),
            _console(colors=stream.isatty()) if console else _json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(_Tolerant(stream)),  # type: ignore[arg-type]  # write and flush are all it calls
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Bridge)]:
        root.removeHandler(handler)
    root.addHandler(_Bridge(logging.WARNING))


def _finisher(trace_ids: Callable[[], tuple[str, str] | None]) -> Processor:
    def _finish(logger: WrappedLogger, method: str, fields: EventDict) -> EventDict:
        line: dict[str, Any] = {
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": _LEVELS.get(method, method),
            "logger": getattr(logger, "name", None) or "mailkeep",
            "event": _text(str(fields.pop("event", ""))),
        }
        ids = trace_ids()
        if ids:
            line["otel_trace_id"], line["otel_span_id"] = ids
        traceback = fields.pop("exception", None)
        for key, value in fields.items():
            line[key] = _safe(key, value, MAX_DEPTH)
        if traceback:
            shown = mask_addresses(str(traceback)[-MAX_TRACEBACK_CHARS:], keep=_SHOWN_DSN)
            line["exception"] = _CONTROL_BUT_NEWLINE.sub(_escaped, shown)
        return line

    return _finish


def _safe(key: str, value: object, depth: int) -> object:  # noqa: PLR0911  # one return a kind of value
    """Return what may be written of `value`, as plain JSON data."""
    if value is None or isinstance(value, int | float):
        return value
    if key in REFUSED_KEYS or depth == 0:
        return "***"
    if isinstance(value, str):  # first, since nearly all are
        return _text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        pairs = list(value.items())[:MAX_ENTRIES]
        return {_text(str(name)): _safe(str(name), inner, depth - 1) for name, inner in pairs}
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe(key, inner, depth - 1) for inner in list(value)[:MAX_ENTRIES]]
    return _text(str(value))


def _text(text: str) -> str:
    if len(text) > MAX_TEXT_CHARS:
        text = f"{text[:MAX_TEXT_CHARS]}…"
    return _CONTROL.sub(_escaped, mask_addresses(text, keep=_SHOWN_DSN))


def _escaped(control: re.Match[str]) -> str:
    return ascii(control[0])[1:-1]


_ENCODER: Final = msgspec.json.Encoder()


def _json(_logger: WrappedLogger, _method: str, line: EventDict) -> bytes:
    return _ENCODER.encode(line)


def _console(*, colors: bool) -> Processor:
    renderer = structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False)

    def _render(logger: WrappedLogger, method: str, line: EventDict) -> bytes:
        return str(renderer(logger, method, line)).encode()

    return _render


class _Tolerant:
    """A stream on which a full disk or a closed pipe costs the line and nothing else."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, line: bytes) -> None:
        with suppress(OSError, ValueError):  # ValueError: closed
            self._stream.write(line)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


class _Bridge(logging.Handler):
    """Takes the records of libraries to the same choke point."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(record.name)
        say = logger.error if record.levelno >= logging.ERROR else logger.warning
        with suppress(TypeError, ValueError):  # a record whose arguments don't fit its format
            say(record.getMessage(), exc_info=record.exc_info)
