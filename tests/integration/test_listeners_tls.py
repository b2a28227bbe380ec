"""TLS of the send listener and of the console: who may call, over real handshakes; and no start off loopback without it."""

import ssl

import httpx2
import pytest
from send_kit import mail, new_key
from test_http_mtls import PATIENCE_S, TOKEN, papers, service  # noqa: F401 - fixtures

from mailkeep.settings import Settings, SettingsError

LISTENERS = {"SEND_HTTP": ("send_address", "POST", "/send"), "CONSOLE": ("console_address", "GET", "/")}


def environ_of(listener, papers, **more):  # noqa: F811 - the fixture
    """Settings of a listener that wants the certificate of `orders.internal`."""
    names = {
        "ADDR": "127.0.0.1:0",
        "TLS_CERT": papers.server,
        "TLS_CLIENT_CA": papers.ca,
        "TLS_CLIENT_NAMES": "dns:orders.internal",
        **more,
    }
    return {f"MAIL_{listener}_{name}": value for name, value in names.items()}


async def ask(running, listener, context, *, scheme="https", **options):
    """Make the listener's own request."""
    where, method, path = LISTENERS[listener]
    url = f"{scheme}://localhost:{getattr(running, where).port}{path}"
    verify = {} if scheme == "http" else {"verify": context}
    async with httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=False, **verify) as client:
        return await client.request(method, url, **options)


@pytest.mark.parametrize("listener", LISTENERS)
async def test_only_a_wanted_certificate_may_call(service, papers, listener, dsn):  # noqa: F811 - fixtures
    """A wanted name is served; none, a stranger's, another name's certificate and plain HTTP are not."""
    running = await service(**environ_of(listener, papers))
    token = (await new_key(dsn)).token
    told = (
        {"json": mail(), "headers": {"authorization": f"Bearer {token}"}} if listener == "SEND_HTTP" else {}
    )
    wanted = papers.context(papers.issue("orders", "orders.internal"))
    assert (await ask(running, listener, wanted, **told)).status_code == 200
    for unwanted in (papers.context(), papers.context(papers.stranger)):
        with pytest.raises((httpx2.TransportError, ssl.SSLError)):
            await ask(running, listener, unwanted, **told)
    other = papers.context(papers.issue("other", "other.internal"))
    assert (await ask(running, listener, other, **told)).status_code == 403
    with pytest.raises(httpx2.TransportError):
        await ask(running, listener, None, scheme="http", **told)


def problems(**environ):
    """Return what is wrong with settings."""
    try:
        Settings.load(environ)
    except SettingsError as fault:
        return {problem.name for problem in fault.problems}
    return set()


@pytest.mark.parametrize("listener", LISTENERS)
def test_no_start_off_loopback_without_tls(papers, listener):  # noqa: F811 - the fixture
    """TLS, or the word that something else ends it, is needed where callers show tokens; the files must fit each other."""
    tokens = {"MAIL_INTERNAL_HTTP_TOKENS": TOKEN}
    address, cert = f"MAIL_{listener}_ADDR", f"MAIL_{listener}_TLS_CERT"
    off = {**tokens, address: "0.0.0.0:8443"}
    assert problems(**off) == {address}
    assert problems(**off, **{f"MAIL_{listener}_PLAIN": "true"}) == set()
    assert problems(**off, **{cert: papers.server}) == set()
    assert problems(**tokens | {address: "127.0.0.1:8443"}) == set()
    assert problems(**off, **{cert: papers.ca}) == {cert}
    assert problems(**tokens, **{cert: papers.server}) == {cert}
    whole = environ_of(listener, papers, ADDR="0.0.0.0:8443")
    assert problems(**tokens, **whole) == set()
    assert problems(**whole) == set()
    assert cert in problems(**tokens, **whole | {cert: ""})
    names = f"MAIL_{listener}_TLS_CLIENT_NAMES"
    assert problems(**tokens, **whole | {f"MAIL_{listener}_TLS_CLIENT_CA": ""}) == {names}
