"""What the tests of the send intake share: a service that takes sends, a key, a mail, and an issuer of tokens that misbehaves."""

import asyncio
import json
import time
from contextlib import asynccontextmanager

import httpx2
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from http_kit import DELIVERIES

from mailkeep.intake.send import SEND
from mailkeep.operator.keys import OperatorKeys
from mailkeep.store.postgres import Store

SENDER = "ann@example.org"
AUDIENCE = "mailkeep"


def mail(**fields):
    """Return a mail that can be taken."""
    return {"from": SENDER, "to": ["bo@example.net"], "subject": "Hello", "text": "It works."} | fields


class Sends:
    """A service with a send listener, and a client that calls it."""

    def __init__(self, served, client):
        self.served = served
        self.client = client

    async def post(self, token, body=None, key=None, path=SEND, **headers):
        """POST a mail with a token; None: without one."""
        content = body if isinstance(body, bytes) else json.dumps(mail() if body is None else body).encode()
        headers = {"content-type": "application/json", **headers}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        if key is not None:
            headers["idempotency-key"] = key
        return await self.client.post(path, content=content, headers=headers)

    async def delivery(self, answer):
        """Return the delivery that an answer names."""
        return (await self.served.get(f"{DELIVERIES}/{answer.json()['delivery_id']}")).json()


@asynccontextmanager
async def calling(served):
    """Yield a client of the send listener of `served`."""
    url = f"http://{served.service.send_address}"
    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        yield Sends(served, client)


async def new_key(dsn, *senders, name="program", **options):
    """Make an API key as an operator does."""
    store = await Store.open(dsn, pool_size=1)
    try:
        return await OperatorKeys(store).create(name, senders or (SENDER,), actor="test", **options)
    finally:
        await store.close()


def problem(answer):
    """Return (status, code) of a problem document."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert answer.json()["status"] == answer.status_code
    return answer.status_code, answer.json()["code"]


MAKERS = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "PS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


class SigningKey:
    """A key of an issuer."""

    def __init__(self, kid, algorithm="ES256", private=None):
        self.kid, self.algorithm = kid, algorithm
        self.private = private or MAKERS[algorithm]()

    @property
    def public(self):
        """As it stands in the issuer's key set."""
        kind = jwt.get_algorithm_by_name(self.algorithm)
        told = kind.to_jwk(self.private.public_key(), as_dict=True)
        return {**told, "kid": self.kid, "use": "sig", "alg": self.algorithm}


class Issuer:
    """An OpenID Connect issuer: what it answers is chosen by the test, and what it was asked is counted."""

    def __init__(self):
        self.keys = [SigningKey("first")]
        self.answer = None  # bytes to answer the key set with, as they stand
        self.stalled = None  # an event to wait for before answering
        self.asked = 0
        self.url = ""
        self._server = None

    async def start(self):
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self):
        """Be away from now on."""
        self._server.close()

    async def _serve(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if self.stalled is not None:
                await self.stalled.wait()
            writer.write(self._answered(head.split(b" ")[1].decode()))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answered(self, path):
        if path == "/.well-known/openid-configuration":
            return _http(json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}/keys"}).encode())
        self.asked += 1
        if self.answer is not None:
            return self.answer
        return _http(json.dumps({"keys": [key.public for key in self.keys]}).encode())

    def token(self, key=None, *, header=None, without=(), **claims):
        """Return an access token."""
        key = key or self.keys[0]
        now = int(time.time())
        usual = {
            "iss": self.url,
            "sub": "u-1",
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + 600,
            "email": SENDER,
            "email_verified": True,
        }
        told = {name: value for name, value in (usual | claims).items() if name not in without}
        return jwt.encode(told, key.private, key.algorithm, headers={"kid": key.kid, **(header or {})})


def _http(body, status="200 OK"):
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


GARBAGE = {
    "no JSON": _http(b"<html>it works</html>"),
    "no keys": _http(b'{"keys": []}'),
    "another kind": _http(b'{"keys": "all of them"}'),
    "keys that are none": _http(b'{"keys": [{"kid": "first", "kty": "RSA", "n": 7}]}'),
    "a fault": _http(b"{}", "500 Internal Server Error"),
    "a redirect": b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    "endless": _http(b'{"keys": [' + b" " * 300_000),
    "no HTTP": b"220 mail.example.org ESMTP\r\n",
    "nothing": b"",
}
