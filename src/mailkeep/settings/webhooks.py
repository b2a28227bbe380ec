"""The webhooks file (`MAIL_WEBHOOKS_FILE`): who is told what becomes of deliveries, in TOML.

One table each, `[webhook.NAME]`. `read_webhooks` judges the file whole and returns every problem at once; no message
repeats a secret or a URL, which may hold one. Paths are relative to the file's own folder. Called by `mailkeep.settings`.
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec

from mailkeep.core.event import parse_types
from mailkeep.core.webhook import parse_secret
from mailkeep.settings.files import check_authorities, read_bounded
from mailkeep.settings.notation import Secret

MAX_FILE_BYTES: Final = 256 * 1024
MAX_WEBHOOKS: Final = 50
"""Each is looked at every second, and has connections of its own."""
MAX_SECRETS: Final = 4  # the newest, the one before, and room for a slip
MAX_URL_CHARS: Final = 2000
USUAL_CONCURRENCY: Final = 8
"""Posts to one webhook at a time, and its connections: what a small receiver takes with ease."""
MAX_CONCURRENCY: Final = 64
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")  # it stands in rows, metrics and log lines
_URL: Final = re.compile(r"[\x21-\x7e]+")


class WebhookSettings(msgspec.Struct, frozen=True):
    """One webhook. `secrets` are the newest first; `events` empty: all types; `ca_file` None: the system's authorities.

    `concurrency`: posts at a time.
    """

    name: str
    url: Secret
    secrets: tuple[Secret, ...]
    events: tuple[str, ...] = ()
    allow_private: bool = False
    ca_file: Path | None = None
    concurrency: int = USUAL_CONCURRENCY

    @property
    def place(self) -> str:
        """Where it is, without what may be secret in the URL."""
        parts = urlsplit(self.url.reveal())
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A webhook as the file has it."""

    url: str
    secrets: list[str]
    events: list[str] = []
    allow_private: bool = False
    ca_file: str | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=MAX_CONCURRENCY)] = USUAL_CONCURRENCY


def read_webhooks(path: Path) -> tuple[tuple[WebhookSettings, ...], list[str]]:
    """Return the webhooks that the file gives, and everything that is wrong with it."""
    try:
        tables = _tables(path)
    except ValueError as fault:
        return (), [str(fault)]
    webhooks, problems = [], []
    for name, table in tables.items():
        try:
            webhooks.append(_webhook(name, table, path.parent))
        except ValueError as fault:
            problems.append(f"webhook.{name}: {fault}")
    return tuple(webhooks), problems


def _tables(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(read_bounded(path, MAX_FILE_BYTES))
    except tomllib.TOMLDecodeError as fault:
        raise ValueError(f"is not TOML: {fault}") from None
    tables = document.get("webhook")
    if document.keys() != {"webhook"} or not isinstance(tables, dict):
        raise ValueError("must have tables [webhook.NAME] and nothing else")
    if not 0 < len(tables) <= MAX_WEBHOOKS:
        raise ValueError(f"must have 1 to {MAX_WEBHOOKS} webhooks")
    for name in tables:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a webhook: up to 32 of a-z, 0-9, _ and -")
    return tables


def _webhook(name: str, given: object, folder: Path) -> WebhookSettings:
    try:
        table = msgspec.convert(given, _Table)
    except msgspec.ValidationError as fault:
        raise ValueError(str(fault).replace("Object", "it").replace("`$", "`")) from None
    if not 0 < len(table.secrets) <= MAX_SECRETS:
        raise ValueError(f"secrets must be a list of 1 to {MAX_SECRETS}, the newest first")
    for secret in table.secrets:
        _said("secrets", parse_secret, secret)
    _said("events", parse_types, tuple(table.events))
    _said("url", lambda url: _check_url(url, allow_private=table.allow_private), table.url)
    ca_file = None if table.ca_file is None else folder / table.ca_file
    if ca_file is not None:
        _said("ca_file", check_authorities, ca_file)
    secrets = tuple(map(Secret, table.secrets))
    return WebhookSettings(
        name, Secret(table.url), secrets, tuple(table.events), table.allow_private, ca_file, table.concurrency
    )


def _said(key: str, check: Any, value: object) -> None:  # noqa: ANN401 - any check of any value
    try:
        check(value)
    except ValueError as fault:
        raise ValueError(f"{key}: {fault}") from None


def _check_url(url: str, *, allow_private: bool) -> None:
    schemes = ("https", "http") if allow_private else ("https",)
    try:
        parts = urlsplit(url)
        fits = bool(
            len(url) <= MAX_URL_CHARS
            and _URL.fullmatch(url)
            and parts.scheme in schemes
            and parts.hostname
            and parts.port != 0
            and not parts.username
            and not parts.fragment
        )
    except ValueError:
        fits = False
    if not fits:
        hint = "" if allow_private else "; plain http needs allow_private = true"
        raise ValueError(
            f"must be an https URL without user and fragment, up to {MAX_URL_CHARS} characters{hint}"
        )
