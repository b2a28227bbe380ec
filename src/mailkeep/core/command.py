"""The command: what a producer asks for, validated once into the form that all intakes share.

`DeliveryRequest` is the shape on the wire (contract section 4.3, the same for HTTP, stream and SQL); `parse_request`
turns it into a `Command` or raises `CommandError`, which names the field and carries one of the contract's failure codes.
A `Command` is canonical: two requests that mean the same give equal commands, whatever their spelling, and the
idempotency fingerprint is taken over it.
"""

import re
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import msgspec

from mailkeep.core.address import (
    AddressError,
    Mailbox,
    is_reserved,
    is_sinkhole,
    parse_mailbox,
)
from mailkeep.core.delivery import DeliveryClass, Guarantee, Source
from mailkeep.core.ids import read_id

ID_DRIFT_S: Final = 86_400.0
"""How far the instant in a producer's delivery id may be from now: the store keeps a partition for each day around now."""
MAX_KEY_CHARS: Final = 255
MAX_SUPERSEDE_KEY_CHARS: Final = 255
KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
UUID_V7: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE
)
TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
CONTENT_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}")
CONTENT_ID: Final = re.compile(r"[!-;=?-~]{1,128}")  # stands in angle brackets
TEMPLATE_ID: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MAX_URL_CHARS: Final = 800  # a header can't fold it and still has to fit 998 octets (RFC 5322 section 2.1.1)
UNSUBSCRIBE_URL: Final = re.compile(
    r"https://[A-Za-z0-9][A-Za-z0-9.-]{0,252}(?::[0-9]{1,5})?"
    r"(?:[/?](?:=*(?:[A-Za-z0-9._~!$&'()*+,;:@/-]|%[0-9A-Fa-f]{2})|\?)*=*)?"
)
"""RFC 3986, without a user, a fragment, and the `=?` in which a reader could see an encoded word (RFC 2047)."""
LOCALE: Final = re.compile(r"[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8}){0,4}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BODY_CONTROL: Final = re.compile(r"[\x00\ud800-\udfff]")
EPOCH_MS_MAX: Final = (
    253_402_300_799_000  # the end of year 9999, the last instant PostgreSQL and Python agree on
)


class FailureCode(StrEnum):
    """Why a command can't be taken (contract section 4.3)."""

    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    INVALID_FIELD = "invalid_field"
    INVALID_JSON = "invalid_json"
    INVALID_ADDRESS = "invalid_address"
    INVALID_LOCALE = "invalid_locale"
    UNSUPPORTED_PAYLOAD_MODE = "unsupported_payload_mode"
    UNSUPPORTED_SOURCE = "unsupported_source"
    UNKNOWN_TEMPLATE = "unknown_template"
    MISSING_VARIABLE = "missing_variable"
    TOO_LARGE = "too_large"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    RESERVED_DOMAIN = "reserved_domain"


class CommandError(ValueError):
    """A command that can't be taken. `field` is a path such as `payload.to[1]`; the message holds no personal data."""

    def __init__(self, code: FailureCode, field: str, message: str) -> None:
        super().__init__(message)
        self.code, self.field, self.message = code, field, message


class PayloadMode(StrEnum):
    """Whether the content comes ready or from a template."""

    RENDERED = "rendered"
    TEMPLATE = "template"


class Limits(msgspec.Struct, frozen=True):
    """Bounds on what one command may carry; each has a `MAIL_LIMIT_*` setting of its name."""

    recipients: int = 100
    subject_chars: int = 500
    body_bytes: int = 2 * 1024 * 1024  # text and html, each
    attachments: int = 20
    attachment_bytes: int = 15 * 1024 * 1024
    message_bytes: int = 25 * 1024 * 1024  # the finished message
    variables_bytes: int = 64 * 1024
    variables_depth: int = 8


class Attachment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A file that goes with the mail; `content` is base64 on the wire. With `content_id` it is inline (`cid:`)."""

    filename: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    content: bytes
    content_type: str = "application/octet-stream"
    content_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What to send and to whom: `subject` with `text` and/or `html`, or `template_id` with `locale` and `variables`."""

    to: tuple[str, ...]
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    reply_to: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    template_id: str | None = None
    locale: str | None = None
    variables: dict[str, Any] | None = None
    list_unsubscribe: str | None = None


EpochMs = Annotated[int, msgspec.Meta(ge=0, le=EPOCH_MS_MAX)]


class DeliveryRequest(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"delivery_class": "class"}
):
    """A command as it comes in. Instants are Unix milliseconds."""

    payload: Payload
    payload_mode: str
    source: str = Source.API
    idempotency_key: str | None = None
    delivery_id: str | None = None
    requested_at_ms: EpochMs | None = None
    delivery_class: str | None = None
    guarantee: str | None = None
    expires_at_ms: EpochMs | None = None
    send_at_ms: EpochMs | None = None
    supersede_key: str | None = None
    traceparent: str | None = None


class RenderedContent(msgspec.Struct, frozen=True, tag="rendered", gc=False):
    """Content that comes ready: at least one of `text` and `html`."""

    subject: str
    text: str | None
    html: str | None


class TemplateContent(msgspec.Struct, frozen=True, tag="template", gc=False):
    """Content that the catalog renders; `variables` is plain JSON data."""

    template_id: str
    locale: str
    variables: dict[str, Any]


class BounceContent(msgspec.Struct, frozen=True, tag="bounce"):
    """What a sender is told of the delivery `original_id`: in words, as delivery status fields, and its header."""

    original_id: UUID
    subject: str
    text: str
    status: str  # RFC 3464: lines ending in LF, groups parted by an empty one
    head: bytes  # CRLF lines
    about: tuple[str, ...] = ()  # addresses that these words and this header are about


class Command(msgspec.Struct, frozen=True, gc=False):
    """A validated request. Everything in it means the same whichever intake it came through.

    `sender`: who sends it, if not the deployment's own address.
    """

    source: Source
    delivery_class: DeliveryClass
    guarantee: Guarantee
    content: RenderedContent | TemplateContent | BounceContent
    to: tuple[Mailbox, ...]
    cc: tuple[Mailbox, ...] = ()
    bcc: tuple[Mailbox, ...] = ()
    reply_to: tuple[Mailbox, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    expires_at_ms: int | None = None
    expires_in_s: int | None = None  # from acceptance on, so that a repeated request means the same
    send_at_ms: int | None = None
    supersede_key: str | None = None
    list_unsubscribe: str | None = None
    sender: Mailbox | None = None

    @property
    def size_bytes(self) -> int:
        """The size of what it carries: attachments, and content that comes ready."""
        size = sum([len(file.content) for file in self.attachments]) if self.attachments else 0
        if isinstance(self.content, RenderedContent):
            size += len(self.content.text or "") + len(self.content.html or "")
        return size

    @property
    def recipients(self) -> tuple[Mailbox, ...]:
        """Every address of the envelope once, in the order to, cc, bcc; an ordinal is an index into this."""
        unique: dict[str, Mailbox] = {}
        for mailbox in (*self.to, *self.cc, *self.bcc):
            unique.setdefault(mailbox.address, mailbox)
        return tuple(unique.values())


class CommandRules(msgspec.Struct, frozen=True):
    """What this deployment allows: bounds, and whether the sinkhole's domain has a route."""

    limits: Limits = Limits()
    sinkhole_enabled: bool = False
    guarantees: dict[DeliveryClass, Guarantee] = msgspec.field(default_factory=dict)


INTAKE_SOURCES: Final = frozenset({Source.AUTHSESSION, Source.NOTIFICATION, Source.API, Source.SQL})
"""Sources a producer may name; the others are set by the service itself."""

_CLASS_OF_SOURCE: Final = {
    Source.AUTHSESSION: DeliveryClass.AUTH,
    Source.SEND: DeliveryClass.RELAY,
    Source.SMTP: DeliveryClass.RELAY,
}


MAX_EXPIRES_IN_S: Final = 7 * 86400


class LoginCodeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A login code for one person (contract section 4.1). A newer one with the same purpose supersedes it."""

    email: str
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    locale: str
    expires_in_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_EXPIRES_IN_S)] | None = None
    purpose: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "login"


LOGIN_CODE_TEMPLATE: Final = "login-code"


def parse_login_code(request: LoginCodeRequest, rules: CommandRules, default_expiry_s: int) -> Command:
    """Validate a login code request and return its canonical command. Raises `CommandError`."""
    for name in ("code", "purpose"):
        if _CONTROL.search(getattr(request, name)):
            raise CommandError(FailureCode.INVALID_FIELD, name, "contains a control character")
    try:
        mailbox = parse_mailbox(request.email)
    except AddressError as fault:
        raise CommandError(FailureCode.INVALID_ADDRESS, "email", str(fault)) from None
    expires_in_s = request.expires_in_s or default_expiry_s
    command = Command(
        source=Source.AUTHSESSION,
        delivery_class=DeliveryClass.AUTH,
        guarantee=rules.guarantees.get(DeliveryClass.AUTH, Guarantee.AT_LEAST_ONCE),
        content=TemplateContent(
            LOGIN_CODE_TEMPLATE,
            check_locale(request.locale, "locale"),
            {"code": request.code, "expires_in_minutes": max(1, expires_in_s // 60)},
        ),
        to=(mailbox,),
        expires_in_s=expires_in_s,
        supersede_key=f"{LOGIN_CODE_TEMPLATE}:{request.purpose}",
    )
    check_recipients(command, rules, "email")
    return command


def parse_request(request: DeliveryRequest, rules: CommandRules) -> Command:
    """Validate `request` whole and return its canonical command. Raises `CommandError`."""
    source = _member(Source, request.source, "source", FailureCode.UNSUPPORTED_SOURCE)
    if source not in INTAKE_SOURCES:
        raise CommandError(
            FailureCode.UNSUPPORTED_SOURCE, "source", f"{source} is not a source a producer may name"
        )
    return command_of(request, source, rules)


def command_of(request: DeliveryRequest, source: Source, rules: CommandRules) -> Command:
    """Validate all of `request` but its source, which is `source`. Raises `CommandError`."""
    default_class = _CLASS_OF_SOURCE.get(source, DeliveryClass.TRANSACTIONAL)
    delivery_class = _member(DeliveryClass, _or(request.delivery_class, default_class), "class")
    default_guarantee = rules.guarantees.get(delivery_class, Guarantee.AT_LEAST_ONCE)
    if request.idempotency_key is not None:
        check_key(request.idempotency_key)
    if request.traceparent is not None and not TRACEPARENT.fullmatch(request.traceparent):
        raise CommandError(FailureCode.INVALID_FIELD, "traceparent", "must be a W3C traceparent")
    payload = request.payload
    command = Command(
        source=source,
        delivery_class=delivery_class,
        guarantee=_member(Guarantee, _or(request.guarantee, default_guarantee), "guarantee"),
        content=_content(request.payload_mode, payload, rules.limits),
        to=_mailboxes(payload.to, "payload.to"),
        cc=_mailboxes(payload.cc, "payload.cc"),
        bcc=_mailboxes(payload.bcc, "payload.bcc"),
        reply_to=_mailboxes(payload.reply_to, "payload.reply_to"),
        attachments=_attachments(payload.attachments, rules.limits),
        expires_at_ms=request.expires_at_ms,
        send_at_ms=request.send_at_ms,
        supersede_key=_supersede_key(request.supersede_key),
        list_unsubscribe=_list_unsubscribe(payload.list_unsubscribe),
    )
    check_recipients(command, rules)
    _check_times(command)
    return command


def parse_delivery_id(text: str, now_s: float, max_age_s: float = ID_DRIFT_S) -> UUID:
    """Return a producer's own delivery id. Raises `CommandError` unless it is a UUIDv7 and at most `max_age_s` old."""
    delivery_id = read_id(text) if UUID_V7.fullmatch(text) else UUID(int=0)
    age_s = now_s - (delivery_id.int >> 80) / 1000
    if not delivery_id.int or not -ID_DRIFT_S <= age_s <= max_age_s:
        days = round(max_age_s / 86_400)
        made = "today" if days == 1 else f"in the last {days} days"
        raise CommandError(FailureCode.INVALID_FIELD, "delivery_id", f"must be a UUIDv7 made {made}")
    return delivery_id


def check_key(key: str) -> None:
    """Raise `CommandError` unless `key` is 1 to 255 visible ASCII characters."""
    if not KEY.fullmatch(key):
        raise CommandError(
            FailureCode.INVALID_FIELD,
            "idempotency_key",
            f"must be 1 to {MAX_KEY_CHARS} visible ASCII characters",
        )


def _or(given: str | None, default: str) -> str:
    return default if given is None else given  # an empty text is given, and wrong


E = TypeVar("E", bound=StrEnum)


def _member(kind: type[E], value: str, field: str, code: FailureCode = FailureCode.INVALID_FIELD) -> E:
    member: E | None = _members(kind).get(value)
    if member is None:
        raise CommandError(code, field, f"must be one of: {', '.join(kind)}")
    return member


@cache
def _members(kind: type[E]) -> dict[str, E]:
    return {member.value: member for member in kind}


def _content(mode: str, payload: Payload, limits: Limits) -> RenderedContent | TemplateContent:
    match mode:
        case PayloadMode.RENDERED:
            return _rendered(payload, limits)
        case PayloadMode.TEMPLATE:
            return _template(payload, limits)
        case _:
            raise CommandError(
                FailureCode.UNSUPPORTED_PAYLOAD_MODE, "payload_mode", "must be one of: rendered, template"
            )


def _rendered(payload: Payload, limits: Limits) -> RenderedContent:
    _forbid(payload, ("template_id", "locale", "variables"), PayloadMode.RENDERED)
    if payload.subject is None:
        raise CommandError(FailureCode.MISSING_FIELD, "payload.subject", "is required")
    if payload.text is None and payload.html is None:
        raise CommandError(FailureCode.MISSING_FIELD, "payload.text", "text or html is required")
    check_subject(payload.subject, limits, "payload.subject")
    for name, body in (("text", payload.text), ("html", payload.html)):
        if body is not None:
            check_body(body, limits, f"payload.{name}")
    return RenderedContent(payload.subject, payload.text, payload.html)


def _template(payload: Payload, limits: Limits) -> TemplateContent:
    _forbid(payload, ("subject", "text", "html"), PayloadMode.TEMPLATE)
    if payload.template_id is None:
        raise CommandError(FailureCode.MISSING_FIELD, "payload.template_id", "is required")
    if not TEMPLATE_ID.fullmatch(payload.template_id):
        raise CommandError(FailureCode.UNKNOWN_TEMPLATE, "payload.template_id", "is not the id of a template")
    if payload.locale is None:
        raise CommandError(FailureCode.MISSING_FIELD, "payload.locale", "is required")
    variables = payload.variables or {}
    _check_depth(variables, limits.variables_depth)
    if len(msgspec.json.encode(variables)) > limits.variables_bytes:
        raise CommandError(
            FailureCode.TOO_LARGE, "payload.variables", f"is larger than {limits.variables_bytes} bytes"
        )
    return TemplateContent(payload.template_id, check_locale(payload.locale), variables)


def check_locale(locale: str, field: str = "payload.locale") -> str:
    """Return `locale` in canonical BCP 47 letter case (`pt-br` is `pt-BR`). Raises `CommandError`."""
    if not LOCALE.fullmatch(locale):
        raise CommandError(FailureCode.INVALID_LOCALE, field, "is not a BCP 47 language tag such as pt-BR")
    language, *rest = locale.split("-")
    subtags = [language.lower()]
    for subtag in rest:
        # What follows a singleton (RFC 5646 section 2.1.1: extensions, private use) is written in lower case.
        extension = any(len(before) == 1 for before in subtags)
        subtags.append(subtag.lower() if extension else _canonical_subtag(subtag))
    return "-".join(subtags)


def _canonical_subtag(subtag: str) -> str:
    match len(subtag):
        case 2:
            return subtag.upper()
        case 4 if subtag.isalpha():
            return subtag.title()
        case _:
            return subtag.lower()


def check_subject(subject: str, limits: Limits, field: str) -> None:
    """Raise `CommandError` unless `subject` is one line of bounded length that cannot break a header."""
    if len(subject) > limits.subject_chars:
        raise CommandError(FailureCode.TOO_LARGE, field, f"is longer than {limits.subject_chars} characters")
    check_line(subject, field)


def check_line(text: str, field: str) -> None:
    """Raise `CommandError` unless `text` is one line without control characters."""
    if _CONTROL.search(text):
        raise CommandError(FailureCode.INVALID_FIELD, field, "contains a control character or line break")


def check_body(body: str, limits: Limits, field: str) -> None:
    """Raise `CommandError` unless `body` is bounded text without NUL or lone surrogates."""
    try:
        size_bytes = len(body.encode())  # cheaper than a search for surrogates, and the size is wanted anyway
    except UnicodeEncodeError:
        size_bytes = -1
    if size_bytes < 0 or "\0" in body:
        raise CommandError(FailureCode.INVALID_FIELD, field, "contains NUL or a lone surrogate")
    if size_bytes > limits.body_bytes:
        raise CommandError(FailureCode.TOO_LARGE, field, f"is larger than {limits.body_bytes} bytes")


def _forbid(payload: Payload, names: tuple[str, ...], mode: PayloadMode) -> None:
    for name in names:
        if getattr(payload, name) is not None:
            raise CommandError(
                FailureCode.UNKNOWN_FIELD, f"payload.{name}", f"does not belong to payload_mode {mode}"
            )


def _mailboxes(texts: tuple[str, ...], field: str) -> tuple[Mailbox, ...]:
    if not texts:
        return ()
    mailboxes = []
    for index, text in enumerate(texts):
        try:
            mailboxes.append(parse_mailbox(text))
        except AddressError as fault:
            raise CommandError(FailureCode.INVALID_ADDRESS, f"{field}[{index}]", str(fault)) from None
    return tuple(mailboxes)


def _attachments(attachments: tuple[Attachment, ...], limits: Limits) -> tuple[Attachment, ...]:
    if len(attachments) > limits.attachments:
        raise CommandError(
            FailureCode.TOO_LARGE, "payload.attachments", f"more than {limits.attachments} attachments"
        )
    for index, attachment in enumerate(attachments):
        field = f"payload.attachments[{index}]"
        if len(attachment.content) > limits.attachment_bytes:
            raise CommandError(
                FailureCode.TOO_LARGE, f"{field}.content", f"is larger than {limits.attachment_bytes} bytes"
            )
        if not CONTENT_TYPE.fullmatch(attachment.content_type):
            raise CommandError(
                FailureCode.INVALID_FIELD, f"{field}.content_type", "must be like application/pdf"
            )
        for name in ("filename", "content_id"):
            text = getattr(attachment, name)
            if text is not None and (
                _CONTROL.search(text) or (name == "content_id" and not CONTENT_ID.fullmatch(text))
            ):
                raise CommandError(
                    FailureCode.INVALID_FIELD, f"{field}.{name}", "contains a forbidden character"
                )
    return attachments


def _supersede_key(key: str | None) -> str | None:
    if key is not None and (not key or len(key) > MAX_SUPERSEDE_KEY_CHARS or _CONTROL.search(key)):
        raise CommandError(
            FailureCode.INVALID_FIELD,
            "supersede_key",
            f"must be 1 to {MAX_SUPERSEDE_KEY_CHARS} printable characters",
        )
    return key


def _list_unsubscribe(url: str | None) -> str | None:
    if url is not None and len(url) > MAX_URL_CHARS:
        raise CommandError(
            FailureCode.TOO_LARGE, "payload.list_unsubscribe", f"is longer than {MAX_URL_CHARS} characters"
        )
    if url is not None and not UNSUBSCRIBE_URL.fullmatch(url):
        raise CommandError(
            FailureCode.INVALID_FIELD,
            "payload.list_unsubscribe",
            "must be a URL like https://example.org/u?t=1",
        )
    return url


def check_recipients(command: Command, rules: CommandRules, field: str = "payload.to") -> None:
    """Raise `CommandError` unless `command` has recipients, not too many, all of which mail may leave to."""
    if not command.to:
        raise CommandError(FailureCode.MISSING_FIELD, field, "needs at least one recipient")
    if len(command.reply_to) > rules.limits.recipients:
        raise CommandError(
            FailureCode.TOO_LARGE, "payload.reply_to", f"more than {rules.limits.recipients} addresses"
        )
    mailboxes = (*command.to, *command.cc, *command.bcc)
    if len(mailboxes) > rules.limits.recipients:
        raise CommandError(FailureCode.TOO_LARGE, field, f"more than {rules.limits.recipients} recipients")
    for mailbox in mailboxes:
        if is_reserved(mailbox.domain) and not (rules.sinkhole_enabled and is_sinkhole(mailbox.domain)):
            raise CommandError(
                FailureCode.RESERVED_DOMAIN,
                field,
                f"the domain {mailbox.domain} is reserved (RFC 2606) and has no route here",
            )
    if len({is_sinkhole(mailbox.domain) for mailbox in mailboxes}) > 1:
        raise CommandError(
            FailureCode.RESERVED_DOMAIN,
            field,
            "recipients of the sinkhole can't be mixed with others in one delivery",
        )


def _check_times(command: Command) -> None:
    if command.expires_at_ms is None or command.send_at_ms is None:
        return
    if command.expires_at_ms <= command.send_at_ms:
        raise CommandError(FailureCode.INVALID_FIELD, "expires_at_ms", "must be later than send_at_ms")


def _check_depth(value: object, left: int) -> None:
    if left < 0:
        raise CommandError(FailureCode.TOO_LARGE, "payload.variables", "is nested too deeply")
    children: tuple[object, ...] = ()
    match value:
        case dict():
            children = (*value.keys(), *value.values())
        case list() | tuple():
            children = tuple(value)
        case int() if not -(2**63) <= value < 2**64:
            raise CommandError(
                FailureCode.INVALID_FIELD, "payload.variables", "contains a number beyond 64 bits"
            )
        case str() if _BODY_CONTROL.search(value):
            raise CommandError(
                FailureCode.INVALID_FIELD, "payload.variables", "contains NUL or a lone surrogate"
            )
    for child in children:
        _check_depth(child, left - 1)
