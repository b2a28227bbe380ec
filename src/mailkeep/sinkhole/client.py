"""A client of the sinkhole's HTTP API, for the CLI: plain requests with short limits, no retries.

What comes back is decoded strictly, so that a server which is no sinkhole is told as one.
"""

import http.client
import urllib.error
import urllib.request
from typing import Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from mailkeep.sinkhole.api import Connections, Forgotten, Inbox, MessageAnswer, ModeAnswer, Transcript

USUAL_URL: Final = "http://127.0.0.1:8025"
TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024  # a message of the largest kind, each octet escaped

A = TypeVar("A")


class SinkholeAwayError(Exception):
    """It does not answer, or refuses; the message says which."""


class SinkholeClient:
    """The API at `url`; `token` goes along as a bearer token. Every verb raises `SinkholeAwayError`."""

    def __init__(self, url: str = USUAL_URL, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        # Straight to the sinkhole: a proxy that is set in the environment knows nothing of it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def mode(self) -> ModeAnswer:
        """Return the mode in force."""
        return self._ask("GET", "/mode", ModeAnswer)

    def put_mode(self, mode: str) -> ModeAnswer:
        """Change the mode."""
        return self._ask("PUT", "/mode", ModeAnswer, msgspec.json.encode({"mode": mode}))

    def inbox(self, *, recipient: str | None, limit: int) -> Inbox:
        """Return the newest messages, those for one `recipient` where it is given."""
        wanted = {"limit": str(limit)} | ({"recipient": recipient} if recipient else {})
        return self._ask("GET", f"/messages?{urlencode(wanted)}", Inbox)

    def forget(self) -> int:
        """Empty the inbox and return how many messages were in it."""
        return self._ask("DELETE", "/messages", Forgotten).forgotten

    def message(self, message_id: str) -> MessageAnswer:
        """Return one message."""
        return self._ask("GET", f"/messages/{quote(message_id, safe='')}", MessageAnswer)

    def raw_message(self, message_id: str) -> bytes:
        """Return the octets of one message."""
        return self._octets("GET", f"/messages/{quote(message_id, safe='')}/raw")

    def connections(self, *, limit: int) -> Connections:
        """Return the newest connections."""
        return self._ask("GET", f"/connections?{urlencode({'limit': limit})}", Connections)

    def transcript(self, connection_id: str) -> Transcript:
        """Return what was said on one connection."""
        return self._ask("GET", f"/connections/{quote(connection_id, safe='')}", Transcript)

    def _ask(self, method: str, path: str, kind: type[A], body: bytes | None = None) -> A:
        try:
            return msgspec.json.decode(self._octets(method, path, body), type=kind)
        except msgspec.DecodeError as fault:
            raise SinkholeAwayError(f"what answers at {self.url} is no sinkhole: {fault}") from fault

    def _octets(self, method: str, path: str, body: bytes | None = None) -> bytes:
        try:
            request = urllib.request.Request(self.url + path, body, self._headers, method=method)  # noqa: S310 - an address that the operator gave
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                octets: bytes = answer.read(MAX_ANSWER_BYTES)
                return octets
        except urllib.error.HTTPError as fault:
            with fault:
                detail = _detail(fault.read(MAX_ANSWER_BYTES))
            raise SinkholeAwayError(
                f"the sinkhole at {self.url} answers {fault.code} {detail}".rstrip()
            ) from fault
        except (OSError, ValueError, http.client.HTTPException) as fault:
            raise SinkholeAwayError(
                f"no sinkhole answers at {self.url}: {getattr(fault, 'reason', None) or fault}; "
                "start one with `mailkeep sinkhole`, or name another with --url"
            ) from fault


def _detail(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""
