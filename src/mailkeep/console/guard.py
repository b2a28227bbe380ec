"""Who may see and do what in the console: sessions, forms, and the headers of every answer.

A session is a signed cookie (HMAC-SHA-256), so that every replica knows it and none keeps it: when it began, who the person
says to be, and the fingerprint of the token that was given. Its key is derived from the deployment's own; it is over after
`SESSION_S`, and as soon as its token is no longer configured. Each form carries a value that only the pages of this session
know (a synchroniser token) and must come from our own origin. Never holds or answers a token itself. Pure but for the clock
and the random nonce; called by `console.app`.
"""

import hmac
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import msgspec
from starlette.requests import Request

from mailkeep.core.host import is_local

SESSION_S: Final = 12 * 3600
"""A working day: a stolen or forgotten session ends by itself."""
MAX_COOKIE_CHARS: Final = 1024
MAX_FORM_BYTES: Final = 32 * 1024
"""Two hundred ids and a reason."""
MAX_FIELDS: Final = 256
MAX_NAME_CHARS: Final = 60
CSRF_FIELD: Final = "csrf"

_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_MAIL_POLICY: Final = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'"
)
_COMMON_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
# Not `no-referrer`: under it browsers send `Origin: null` with forms, and the origin could not be checked.
PAGE_HEADERS: Final = _COMMON_HEADERS | {
    "content-security-policy": _PAGE_POLICY,
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
MAIL_HEADERS: Final = _COMMON_HEADERS | {
    "content-security-policy": _MAIL_POLICY,
    "referrer-policy": "no-referrer",
    "x-frame-options": "SAMEORIGIN",
    "cache-control": "no-store",
}
"""Of a mail's HTML in its frame: no script, no plugin, no form, nothing loaded from anywhere."""
STATIC_HEADERS: Final = PAGE_HEADERS | {"cache-control": "max-age=86400"}  # their URLs hold the version


class Session(msgspec.Struct, frozen=True, array_like=True):
    """What the cookie says. `token` is the fingerprint of the one that was given, empty before a login."""

    began_at: int
    nonce: str
    token: str = ""
    name: str = ""

    @property
    def actor(self) -> str:
        """Who is recorded with a change."""
        return f"console: {self.name}" if self.name else "console"


class FormError(Exception):
    """A form that must not be acted on; the message says why."""


_SESSION: Final = msgspec.json.Decoder(Session)


class Guard:
    """Sessions of one deployment. `tokens` are those of the internal API; without any, everybody is let in."""

    def __init__(self, hash_key: bytes, tokens: tuple[str, ...]) -> None:
        self._key = hmac.digest(hash_key, b"mailkeep console 1", "sha256")
        # Browsers keep cookies by host, not by port: consoles of two deployments on one machine must not share theirs.
        self.cookie = f"mailkeep_{self._mac(b'name', '')[:8]}"
        self._tokens = tuple(token.encode() for token in tokens)
        self._fingerprints = frozenset(map(self._fingerprint, self._tokens))

    @property
    def asks_for_token(self) -> bool:
        """Whether a login is needed."""
        return bool(self._tokens)

    def begin(self) -> Session:
        """Return a new session, of nobody yet."""
        return Session(int(time.time()), secrets.token_urlsafe(16))

    def log_in(self, token: str, name: str) -> Session | None:
        """Return a new session of the one who gave `token`; None if it is none of ours."""
        given = token.strip().encode()
        if not any([hmac.compare_digest(given, known) for known in self._tokens]):  # noqa: C419 - always all of them
            return None
        return msgspec.structs.replace(self.begin(), token=self._fingerprint(given), name=name)

    def sealed(self, session: Session) -> str:
        """Return the cookie's value."""
        body = urlsafe_b64encode(msgspec.json.encode(session)).decode()
        return f"{body}.{self._mac(b'cookie', body)}"

    def opened(self, value: str) -> Session | None:
        """Return the session in a cookie; None if it is not ours, too old, or of a token that is gone."""
        body, _, mac = value.rpartition(".")
        if len(value) > MAX_COOKIE_CHARS or not value.isascii():
            return None
        if not hmac.compare_digest(mac, self._mac(b"cookie", body)):
            return None
        try:
            session = _SESSION.decode(urlsafe_b64decode(body))
        except (Base64Error, msgspec.DecodeError):  # sealed by another version
            return None
        is_fresh = 0 <= time.time() - session.began_at < SESSION_S
        return session if is_fresh and (not session.token or session.token in self._fingerprints) else None

    def set_cookie(self, session: Session | None, host: str) -> str:
        """Return the `Set-Cookie` of `session`, None: of its end. Off this machine it is for TLS only, which is before us there."""
        value, max_age_s = (self.sealed(session), SESSION_S) if session else ("", 0)
        secure = "" if is_local(host) else "; Secure"
        return f"{self.cookie}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}"

    def lets_in(self, session: Session | None) -> bool:
        """Whether the pages may be seen."""
        return not self._tokens or (session is not None and bool(session.token))

    def csrf(self, session: Session) -> str:
        """Return what each form of this session carries."""
        return self._mac(b"form", session.nonce)

    def check_form(self, request: Request, session: Session | None, form: dict[str, list[str]]) -> None:
        """Raise `FormError` unless a page of this session made the request."""
        if not is_from_here(request):
            raise FormError("the form came from another site")
        given = form.get(CSRF_FIELD, [""])[0]
        if session is None or not given.isascii() or not hmac.compare_digest(given, self.csrf(session)):
            raise FormError("the page was too old, or cookies are refused; load it again")

    def _mac(self, purpose: bytes, text: str) -> str:
        return hmac.digest(self._key, purpose + b"\0" + text.encode(), "sha256").hex()

    def _fingerprint(self, token: bytes) -> str:
        return hmac.digest(self._key, b"token\0" + token, "sha256").hex()[:32]


def is_from_here(request: Request) -> bool:
    """Whether the browser says that a page of ours sent this; a proxy before us may have taken off TLS."""
    origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
    parts = urlsplit(origin)
    return bool(host) and parts.scheme in {"http", "https"} and parts.netloc.lower() == host.lower()


async def read_form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form. Raises `FormError` for what no page of ours sends."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise FormError("is no form")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM_BYTES:
            raise FormError("is too large")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:  # UnicodeDecodeError is one
        raise FormError("can't be read") from None
    form: dict[str, list[str]] = {}
    for name, value in pairs:
        form.setdefault(name, []).append(value)
    return form
