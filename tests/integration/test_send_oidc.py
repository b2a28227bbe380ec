"""`POST /send` with access tokens of a real issuer, which rotates its keys, stalls, answers garbage and goes away."""

import asyncio
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from send_kit import AUDIENCE, GARBAGE, MAKERS, SENDER, Issuer, SigningKey, calling, mail, problem

from mailkeep.core.ownership import Owner
from mailkeep.intake import issuer as issuing
from mailkeep.intake.access_tokens import AccessTokens, TokenRules
from mailkeep.intake.bearer import IssuerUnavailableError, ScopeMissingError, TokenRefusedError
from mailkeep.intake.issuer import IssuerKeys

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    """A proxy of the user's must not be asked for the issuer of a test."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
async def issuer():
    """Run an issuer."""
    running = Issuer()
    await running.start()
    yield running
    await running.stop()


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    """The clock by which keys are fetched anew."""
    return Clock()


@pytest.fixture
async def keys(issuer, clock):
    """The keys of the issuer."""
    held = IssuerKeys(issuer.url, monotonic=clock)
    yield held
    await held.close()


@pytest.fixture
def tokens(issuer, keys):
    """What judges tokens of the issuer."""
    return AccessTokens(TokenRules(issuer.url, frozenset({AUDIENCE})), keys)


# -- on the whole service -------------------------------------------------------------------------------------------


async def test_a_person_sends_with_an_access_token(serve, issuer, tmp_path):
    """The verified address of the token is owned, and what the senders file gives; other addresses are 403, garbage 401."""
    senders = tmp_path / "senders.toml"
    senders.write_text('[client_id]\nbilling = ["billing@example.org", "@news.example.org"]\n')
    served = await serve(
        MAIL_SEND_HTTP_ADDR="127.0.0.1:0",
        MAIL_SEND_OIDC_ISSUER=issuer.url,
        MAIL_SEND_OIDC_AUDIENCES=AUDIENCE,
        MAIL_SEND_OIDC_SCOPE="mail:send",
        MAIL_SEND_OIDC_SENDERS_FILE=str(senders),
    )
    async with calling(served) as sends:
        token = issuer.token(scope="openid mail:send")
        answer = await sends.post(token, key="k")
        assert answer.status_code == 200, answer.text
        later = issuer.token(scope="openid mail:send", jti="another")  # of the same person: the same mail
        assert (await sends.post(later, key="k")).headers["idempotent-replayed"] == "true"
        assert problem(await sends.post(token, mail(**{"from": "bo@example.org"}))) == (403, "forbidden")
        machine = issuer.token(scp=["mail:send"], client_id="billing", without=("email",))
        for sender in ("billing@example.org", "x@news.example.org"):
            assert (await sends.post(machine, mail(**{"from": sender}))).status_code == 200
        assert problem(await sends.post(machine)) == (403, "forbidden")
        unscoped = await sends.post(issuer.token(scope="openid"))
        assert problem(unscoped) == (403, "forbidden")
        assert 'error="insufficient_scope"' in unscoped.headers["www-authenticate"]
        expired = await sends.post(issuer.token(scope="mail:send", exp=int(time.time()) - 60))
        assert problem(expired) == (401, "unauthorized")
        assert 'error="invalid_token"' in expired.headers["www-authenticate"]


async def test_an_issuer_that_is_away_stops_no_start(serve, issuer):
    """The service starts without it; tokens are answered 503 until it is there."""
    await issuer.stop()
    served = await serve(
        MAIL_SEND_HTTP_ADDR="127.0.0.1:0",
        MAIL_SEND_OIDC_ISSUER=issuer.url,
        MAIL_SEND_OIDC_AUDIENCES=AUDIENCE,
    )
    async with calling(served) as sends:
        answer = await sends.post(issuer.token())
        assert problem(answer) == (503, "issuer_unavailable")
        assert answer.headers["retry-after"] == "1"


# -- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", MAKERS)
async def test_each_algorithm_proves(issuer, tokens, algorithm):
    """RSA, elliptic curves and Edwards curves are taken, with and without `alg` in the key."""
    issuer.keys = [SigningKey("k", algorithm)]
    assert await tokens.owner_of(issuer.token()) == Owner("oidc:u-1", frozenset({SENDER}))


def unsigned(issuer):
    """Return a token that claims to need no signature."""
    signed = issuer.token()
    head = jwt.utils.base64url_encode(b'{"alg":"none","kid":"first"}').decode()
    return f"{head}.{signed.split('.')[1]}."


def confused(issuer):
    """Return a token signed with HMAC, the public key of the issuer being the secret."""
    public = issuer.keys[0].private.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signer = jwt.get_algorithm_by_name("HS256")
    claims = issuer.token().split(".")[1]
    head = jwt.utils.base64url_encode(b'{"alg":"HS256","kid":"first"}').decode()
    signature = signer.sign(f"{head}.{claims}".encode(), pem)
    return f"{head}.{claims}.{jwt.utils.base64url_encode(signature).decode()}"


def tampered(issuer):
    """Return a token whose claims were changed after it was signed."""
    head, _, signature = issuer.token().split(".")
    return f"{head}.{issuer.token(sub='u-2').split('.')[1]}.{signature}"


NOW = int(time.time())
REFUSED = {
    "no signature": unsigned,
    "HMAC with the public key": confused,
    "changed claims": tampered,
    "another key under its name": lambda issuer: issuer.token(SigningKey("first")),
    "an unknown key": lambda issuer: issuer.token(SigningKey("other")),
    "another algorithm than the key's": lambda issuer: issuer.token(SigningKey("first", "RS256")),
    "another issuer": lambda issuer: issuer.token(iss="https://login.example.org"),
    "no issuer": lambda issuer: issuer.token(without=("iss",)),
    "another audience": lambda issuer: issuer.token(aud=["someone", "else"]),
    "no audience": lambda issuer: issuer.token(without=("aud",)),
    "another audience, our client id": lambda issuer: issuer.token(aud="else", client_id=AUDIENCE),
    "an audience that is no text": lambda issuer: issuer.token(aud=[1, None]),
    "another client id": lambda issuer: issuer.token(client_id="else", without=("aud",)),
    "expired": lambda issuer: issuer.token(exp=NOW - 60),
    "without an end": lambda issuer: issuer.token(without=("exp",)),
    "an end that is no number": lambda issuer: issuer.token(exp="soon"),
    "an end beyond all numbers": lambda issuer: issuer.token(exp=float("inf")),
    "not yet valid": lambda issuer: issuer.token(nbf=NOW + 3600),
    "made tomorrow": lambda issuer: issuer.token(iat=NOW + 86_400),
    "of nobody": lambda issuer: issuer.token(without=("sub",)),
    "of another type": lambda issuer: issuer.token(header={"typ": "logout+jwt"}),
    "critical and unknown": lambda issuer: issuer.token(header={"crit": ["x"], "x": 1}),
    "no token": lambda _: "a.b.c",
    "nothing": lambda _: "..",
    "one part": lambda _: "token",
    "a deep header": lambda _: jwt.utils.base64url_encode(b"[" * 10_000).decode() + ".e30.e30",
    "a header that is no object": lambda _: jwt.utils.base64url_encode(b"7").decode() + ".e30.e30",
}


async def test_what_proves_nothing_is_refused(issuer, tokens):
    """Each of these tokens is refused, and a good one between them is taken."""
    for name, make in REFUSED.items():
        try:
            owner = await tokens.owner_of(make(issuer))
        except TokenRefusedError:
            owner = None
        assert owner is None, name
        assert (await tokens.owner_of(issuer.token())).name == "oidc:u-1"


async def test_a_client_id_stands_for_a_missing_audience(issuer, tokens):
    """An issuer that gives no `aud` names us by `client_id`."""
    assert await tokens.owner_of(issuer.token(client_id=AUDIENCE, without=("aud",)))


@pytest.mark.parametrize(
    ("claims", "owned"),
    [
        ({}, {SENDER}),
        ({"email_verified": "true"}, {SENDER}),
        ({"email": "Ann@EXAMPLE.org"}, {SENDER}),
        ({"email_verified": False}, set()),
        ({"email_verified": None}, set()),
        ({"email": "@example.org"}, set()),
        ({"email": "no address"}, set()),
        ({"email": 7}, set()),
        ({"groups": ["a", "support"]}, {SENDER, "help@example.org"}),
        ({"groups": "support", "email_verified": False}, {"help@example.org"}),
        ({"groups": {"support": 1}}, {SENDER}),
    ],
)
async def test_what_a_token_owns(issuer, keys, claims, owned):
    """A verified address, and what the senders file gives to values of claims."""
    senders = {"groups": {"support": ("help@example.org",)}}
    tokens = AccessTokens(TokenRules(issuer.url, frozenset({AUDIENCE}), senders=senders), keys)
    assert (await tokens.owner_of(issuer.token(**claims))).senders == owned


async def test_another_claim_may_hold_the_address(issuer, keys):
    """A configured claim counts by itself; then `email` does not."""
    rules = TokenRules(issuer.url, frozenset({AUDIENCE}), scope="send", sender_claim="upn")
    tokens = AccessTokens(rules, keys)
    owner = await tokens.owner_of(issuer.token(upn=["bo@example.org"], scp="read send"))
    assert owner.senders == {"bo@example.org"}
    with pytest.raises(ScopeMissingError):
        await tokens.owner_of(issuer.token(upn="bo@example.org", scope="sender"))


# -- the issuer's keys -----------------------------------------------------------------------------------------------


async def test_a_new_key_is_fetched_when_it_is_used(issuer, tokens, clock):
    """Rotation costs one fetch; unknown keys cost no more than one in each pause, however many callers make them up."""
    await tokens.owner_of(issuer.token())
    assert issuer.asked == 1
    issuer.keys = [SigningKey("second")]
    clock.now_s += issuing.REFRESH_S
    await asyncio.gather(*(tokens.owner_of(issuer.token()) for _ in range(20)))
    assert issuer.asked == 2
    for number in range(20):
        with pytest.raises(TokenRefusedError):
            await tokens.owner_of(issuer.token(SigningKey(f"made-up-{number}")))
    assert issuer.asked == 2


async def test_a_key_that_was_taken_back_is_forgotten(issuer, tokens, keys, clock):
    """After a while keys are fetched anew beside the requests, and a token of a withdrawn key is refused."""
    old = issuer.token()
    await tokens.owner_of(old)
    issuer.keys = [SigningKey("second")]
    clock.now_s += issuing.MAX_AGE_S + 1
    await tokens.owner_of(old)  # still by the old keys, while the new ones are fetched
    async with asyncio.timeout(PATIENCE_S):
        while issuer.asked < 2 or await keys.key("first", "ES256"):
            await asyncio.sleep(0.01)
    with pytest.raises(TokenRefusedError):
        await tokens.owner_of(old)


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_takes_no_key_away(issuer, tokens, clock, garbage):
    """Whatever the issuer answers, the keys that were fetched last stay in force; without any it is 503."""
    empty = IssuerKeys(issuer.url, monotonic=clock)
    await tokens.owner_of(issuer.token())
    issuer.answer = GARBAGE[garbage]
    clock.now_s += issuing.MAX_AGE_S + 1
    good = issuer.token()
    with pytest.raises(TokenRefusedError):
        await tokens.owner_of(issuer.token(SigningKey("second")))
    if garbage != "keys that are none":  # these are an answer, and the issuer's own
        await tokens.owner_of(good)
        with pytest.raises(IssuerUnavailableError):
            await empty.key("first", "ES256")


async def test_a_stalled_issuer_holds_nobody_with_a_known_key(issuer, tokens, clock, monkeypatch):
    """Known keys work while a fetch hangs; who needs it waits for its bound, and one fetch is under way at a time."""
    await tokens.owner_of(issuer.token())
    monkeypatch.setattr(issuing, "FETCH_TIMEOUT_S", 0.5)
    issuer.stalled = asyncio.Event()
    clock.now_s += issuing.MAX_AGE_S + 1
    waiting = [asyncio.create_task(tokens.owner_of(issuer.token(SigningKey("new")))) for _ in range(5)]
    await asyncio.sleep(0)
    assert (await tokens.owner_of(issuer.token())).name == "oidc:u-1"
    assert not any(task.done() for task in waiting)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [TokenRefusedError] * 5
    issuer.stalled.set()


async def test_an_issuer_that_is_away_is_said_once(issuer, tokens, clock, log_lines):
    """Away: one warning, its keys stay; back: one line."""
    await tokens.owner_of(issuer.token())
    issuer.answer = b""
    for _ in range(3):
        clock.now_s += issuing.MAX_AGE_S + 1
        with pytest.raises(TokenRefusedError):
            await tokens.owner_of(issuer.token(SigningKey("second")))
    issuer.answer = None
    clock.now_s += issuing.MAX_AGE_S + 1
    with pytest.raises(TokenRefusedError):
        await tokens.owner_of(issuer.token(SigningKey("second")))
    assert [line["event"] for line in log_lines] == [
        "keys of the issuer can't be fetched",
        "keys of the issuer are fetched again",
    ]


async def test_keys_may_have_a_place_of_their_own(issuer, clock):
    """A configured place is asked without discovery; keys of another issuer's document are not taken."""
    configured = IssuerKeys("https://login.example.org", f"{issuer.url}/keys", monotonic=clock)
    assert await configured.key("first", "ES256")
    assert await configured.key(None, "ES256")
    issuer.keys.append(SigningKey("second"))
    clock.now_s += issuing.MAX_AGE_S + 1
    await configured.key("second", "ES256")
    assert await configured.key(None, "ES256") is None
    astray = IssuerKeys(f"{issuer.url}/", monotonic=clock)  # its document says it has no slash
    with pytest.raises(IssuerUnavailableError):
        await astray.key("first", "ES256")
