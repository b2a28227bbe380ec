"""The routes file: read whole, every problem at once, and what its hops become."""

import re
import tomllib
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from mailkeep.core.outcome import Phase
from mailkeep.settings import Endpoint, Settings, SettingsError, SmtpTls
from mailkeep.settings.routes import KEYS, MAX_HOPS, TIMERS, HopAuth
from mailkeep.smtp.configured import next_hops
from mailkeep.smtp.next_hop import AuthMechanism, HopAddress, Timers, TlsMode
from mailkeep.smtp.routes import DEFAULT_HOP, ReservedDomainError, Routes, may_leave

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "route-mail.md"
ONE = '[hop.one]\ndomains = ["example.org"]\n'
ADDRESS = 'addresses = ["mx.example.org:25"]\n'
PIN = "ab" * 32
LOGIN = 'username = "mail"\npassword_env = "ONE_PASSWORD"\n'
BASE = {"MAIL_SMTP_MODE": "smtp", "MAIL_SMTP_FROM_EMAIL": "mail@example.org", "ONE_PASSWORD": "canary1"}


@pytest.fixture(scope="module")
def files():
    """The files that routes files here name."""
    authority = trustme.CA()
    issued, other = authority.issue_cert("client.example.org"), authority.issue_cert("other.example.org")
    certificate, key = issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes()
    locked = serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    return {
        "ca.pem": authority.cert_pem.bytes(),
        "cert.pem": certificate,
        "key.pem": key,
        "both.pem": key + certificate,
        "other.pem": other.private_key_pem.bytes(),
        "locked.pem": locked,
        "password": b"canary-password\n",
        "empty": b"\n",
    }


@pytest.fixture
def load(tmp_path, files):
    """Return a function that loads the settings of an environment with this routes file."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def load_routes(text, **environ):
        file = tmp_path / "routes.toml"
        file.write_text(text)
        return Settings.load({"MAIL_ROUTES_FILE": str(file), **environ})

    return load_routes


@pytest.fixture
def problems(load):
    """Return a function that lists the problems of a routes file."""

    def problems_of(text, **environ):
        with pytest.raises(SettingsError) as caught:
            load(text, **environ)
        return [str(problem).removeprefix("MAIL_ROUTES_FILE: ") for problem in caught.value.problems]

    return problems_of


def test_a_hop_has_what_the_file_says(load):
    """Each key comes out typed in the next hop that the SMTP client is given."""
    settings = load(
        """
        [hop.one]
        domains = ["Example.org", "*.Bücher.de", "*.org"]
        addresses = ["mx1.example.org:25", { addr = "[::1]:26", priority = 10, weight = 3 }]
        tls = "implicit"
        tls_ca_file = "ca.pem"
        tls_client_certificate = "cert.pem"
        tls_client_key = "key.pem"
        username = "mail"
        password_file = "password"
        auth = ["login", "cram-md5"]
        auth_without_tls = true
        max_connections = 3
        messages_per_connection = 7
        messages_per_s = 2
        source_address = "192.0.2.1"
        helo_name = "out.example.org"
        timers = { connect = "2s", dot = "20m" }
        """,
        MAIL_SMTP_ADDR="mx.example.net:25",
        MAIL_SMTP_TIMEOUT="15s",
    )
    hops = next_hops(settings)
    hop = hops["one"]
    folder = settings.routes_file.parent
    assert list(hops) == ["one", DEFAULT_HOP]
    assert hop.domains == ("example.org", "*.xn--bcher-kva.de", "*.org")
    assert hop.addresses == (HopAddress("mx1.example.org", 25), HopAddress("::1", 26, 10, 3))
    assert (hop.tls, hop.verify, hop.ca_file) == (TlsMode.IMPLICIT, True, str(folder / "ca.pem"))
    assert (hop.client_certificate, hop.client_key) == (str(folder / "cert.pem"), str(folder / "key.pem"))
    assert (hop.username, hop.password) == ("mail", "canary-password")
    assert hop.auth == (AuthMechanism.LOGIN, AuthMechanism.CRAM_MD5)
    assert hop.auth_without_tls
    assert (hop.max_connections, hop.messages_per_connection, hop.messages_per_s) == (3, 7, 2)
    assert (hop.source_address, hop.helo_name) == ("192.0.2.1", "out.example.org")
    limits = hop.timers.by_phase()
    assert (limits[Phase.CONNECT], limits[Phase.MAIL], limits[Phase.DOT]) == (2, 15, 1200)


def test_a_token_command_and_a_pin(load):
    """The other way to log in, and the other way to know a server."""
    hop = next_hops(
        load(
            ONE
            + ADDRESS
            + f"""
            username = "mail"
            token_command = ["print-token", "--for", "mail"]
            token_ttl = "10m"
            tls_fingerprints = ["{":".join(["AB"] * 32)}"]
            """
        )
    )["one"]
    assert (hop.token_command, hop.token_ttl_s) == (("print-token", "--for", "mail"), 600)
    assert (hop.fingerprints, hop.proves_itself) == ((PIN,), True)
    assert hop.tls is TlsMode.STARTTLS


def test_what_a_hop_does_not_say_comes_from_the_environment(load):
    """Limits, HELO name and timers are those of MAIL_SMTP_*; its login and TLS are its own."""
    settings = load(
        ONE + ADDRESS,
        MAIL_SMTP_ADDR="mx.example.net:25",
        MAIL_SMTP_USERNAME="mail",
        MAIL_SMTP_PASSWORD="canary",
        MAIL_SMTP_MAX_CONNECTIONS="9",
        MAIL_SMTP_HELO_NAME="out.example.org",
        MAIL_SMTP_TIMEOUT="3s",
    )
    hops = next_hops(settings)
    assert (hops["one"].max_connections, hops["one"].helo_name) == (9, "out.example.org")
    assert hops["one"].timers == hops[DEFAULT_HOP].timers == Timers().capped(3, 600)
    assert hops["one"].username is None
    assert hops[DEFAULT_HOP].password == "canary"


def test_the_file_may_give_the_default_hop(load):
    """Then MAIL_SMTP_ADDR is not needed, and not looked at where it is given."""
    text = "[hop.default]\n" + ADDRESS
    for environ in ({}, {"MAIL_SMTP_ADDR": "mx.example.net:25"}):
        hops = next_hops(load(text, **BASE, **environ))
        assert [hop.addresses for hop in hops.values()] == [(HopAddress("mx.example.org", 25),)]


def test_tls_is_off_by_itself_only_towards_loopback(load):
    """As with MAIL_SMTP_ADDR, and only if every address is on this machine."""
    for addresses, tls in (
        ('["127.0.0.1:25", "[::1]:25"]', SmtpTls.NONE),
        ('["127.0.0.1:25", "10.0.0.1:25"]', SmtpTls.STARTTLS),
    ):
        settings = load(f"{ONE}addresses = {addresses}\n")
        assert settings.routes[0].tls is tls


def test_the_pace_bounds_the_connections(load):
    """No more connections than would get a turn within half a minute: who waits for one holds a worker."""
    for per_s, most in (("0.01", 1), ("0.1", 3), ("1", 30), ("100", 50)):
        assert next_hops(load(f"{ONE}{ADDRESS}messages_per_s = {per_s}\n"))["one"].max_connections == most


def test_every_problem_of_the_file_is_reported_at_once(problems):
    """Bad values, unknown keys and broken rules of every hop, beside those of the environment."""
    found = problems(
        """
        [hop.one]
        domains = ["example.org", "no domain"]
        addresses = ["mx.example.org"]
        max_conections = 5
        helo_name = "a b"
        [hop.two]
        domains = ["example.net"]
        addresses = ["mx.example.net:25"]
        username = "mail"
        [hop.default]
        domains = ["example.net"]
        """,
        MAIL_LOG_LEVEL="loud",
    )
    assert [problem.split(": ")[0] for problem in found] == [
        "MAIL_LOG_LEVEL",
        "hop.one.domains",
        "hop.one.addresses",
        "hop.one.max_conections",
        "hop.one.helo_name",
        "hop.two.username",
        "hop.default.addresses",
        "hop.default.domains",
        "hop.default.domains",
    ]
    assert found[3].endswith("did you mean max_connections?")
    assert found[-1].endswith("example.net is one of hop.two already")


@pytest.mark.parametrize(
    "lines",
    [
        "domains = []",
        'domains = "example.org"',
        "domains = [5]",
        'domains = ["*"]',
        'domains = ["ann@example.org"]',
        'domains = ["y <x@example.org>"]',
        'domains = ["*.*.org"]',
        'domains = ["sinkhole.test"]',
        'domains = ["*.sinkhole.test"]',
        'domains = ["corp.test"]',
        'domains = ["*.invalid"]',
        'addresses = "mx.example.org:25"',
        "addresses = [25]",
        'addresses = ["mx.example.org:0"]',
        'addresses = [{ addr = "mx.example.org:25", wait = 1 }]',
        "addresses = [{ priority = 1 }]",
        'addresses = [{ addr = "mx.example.org:25", weight = 0 }]',
        'addresses = [{ addr = "mx.example.org:25", priority = -1 }]',
        'addresses = [{ addr = "mx.example.org:25", weight = true }]',
        'tls = "maybe"',
        'tls_verify = "yes"',
        'tls_ca_file = "missing.pem"',
        'tls_ca_file = "password"',
        f'tls_fingerprints = ["{PIN[2:]}"]',
        'tls_client_certificate = "missing.pem"',
        'tls_client_certificate = "cert.pem"',
        'tls_client_key = "key.pem"',
        'username = "a\\u0000b"',
        'password_file = "missing"',
        'password_file = "empty"',
        'password_env = "NOT_THERE"',
        "token_command = []",
        'token_ttl = "5m"',
        'auth = ["gssapi"]',
        'auth = ["plain"]',
        "auth_without_tls = 1",
        "max_connections = 0",
        'max_connections = "5"',
        "max_connections = true",
        "messages_per_connection = 1.5",
        "messages_per_s = 0",
        "messages_per_s = nan",
        'source_address = "localhost"',
        'helo_name = "a\\r\\nb"',
        'timers = { lunch = "1h" }',
        'timers = { mail = "0s" }',
        "timers = { mail = 5 }",
        'timers = "5s"',
    ],
)
def test_a_key_that_can_not_be_is_one_problem(problems, lines):
    """Each is reported under its own name, once."""
    key = lines.split(" ")[0]
    rest = "".join(line for line in (f"{ONE}{ADDRESS}").splitlines(keepends=True) if not line.startswith(key))
    # A login that is half there is a problem of its own, so that the key under test has its other half.
    other = 'username = "mail"\n' if key in {"password_file", "password_env", "token_command"} else ""
    other = 'password_env = "ONE_PASSWORD"\n' if key == "username" else other
    (problem,) = problems(f"{rest}{other}{lines}\n", ONE_PASSWORD="canary")
    assert problem.startswith(f"hop.one.{key}: ")


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ('username = "mail"', "username"),
        ('password_env = "ONE_PASSWORD"', "username"),
        (f'{LOGIN}password_file = "password"', "password_file"),
        (f'{LOGIN}auth = ["xoauth2"]', "auth"),
        ('username = "mail"\ntoken_command = ["x"]\nauth = ["oauthbearer", "plain"]', "auth"),
        (f'{LOGIN}tls = "none"', "auth_without_tls"),
        (f'{LOGIN}tls = "opportunistic"', "auth_without_tls"),
        (f"{LOGIN}tls_verify = false", "auth_without_tls"),
        ('tls = "none"\ntls_ca_file = "ca.pem"', "tls"),
        (f'tls_fingerprints = ["{PIN}"]\ntls_ca_file = "ca.pem"', "tls_fingerprints"),
        (f'tls_fingerprints = ["{PIN}"]\ntls_verify = false', "tls_fingerprints"),
        ('tls_ca_file = "ca.pem"\ntls_verify = false', "tls_ca_file"),
        ('tls_client_certificate = "cert.pem"\ntls_client_key = "locked.pem"', "tls_client_certificate"),
        ('tls_client_certificate = "cert.pem"\ntls_client_key = "other.pem"', "tls_client_certificate"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(problems, lines, key):
    """Each rule between keys is broken by one example, and reports the key to change."""
    (problem,) = problems(f"{ONE}{ADDRESS}{lines}\n", ONE_PASSWORD="canary")
    assert problem.startswith(f"hop.one.{key}: ")


@pytest.mark.parametrize(
    "lines",
    [
        LOGIN,
        f'{LOGIN}tls = "none"\nauth_without_tls = true',
        f"{LOGIN}tls_verify = false\nauth_without_tls = true",
        f'{LOGIN}tls_fingerprints = ["{PIN}"]',
        'tls_client_certificate = "cert.pem"\ntls_client_key = "key.pem"',
        'tls_client_certificate = "both.pem"',
    ],
)
def test_explicit_choices_are_accepted(load, lines):
    """What a rule asks to be said is accepted once it is said."""
    load(f"{ONE}{ADDRESS}{lines}\n", ONE_PASSWORD="canary")


def test_a_login_in_clear_on_loopback_needs_no_word(load):
    """As with MAIL_SMTP_ADDR."""
    load(f'{ONE}addresses = ["127.0.0.1:25"]\n{LOGIN}', ONE_PASSWORD="canary")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[hop]",
        "hop = 5",
        "not toml",
        "[hops.one]",
        f"{ONE}{ADDRESS}[other]",
        f'[hop.sinkhole]\ndomains = ["example.org"]\n{ADDRESS}',
        f'[hop."a b"]\ndomains = ["example.org"]\n{ADDRESS}',
        f'[hop.{"a" * 33}]\ndomains = ["example.org"]\n{ADDRESS}',
        "[hop]\none = 5",
        "".join(f"[hop.h{number}]\n" for number in range(MAX_HOPS + 1)),
        "#" * 1024 * 1024 + "\n",
    ],
)
def test_a_file_that_is_no_routes_file_is_one_problem(problems, text):
    """Whatever is wrong with the whole is said once."""
    assert len(problems(text)) == 1


def test_a_default_hop_that_can_not_be_read_is_not_missed_twice(problems):
    """MAIL_SMTP_ADDR is not asked for because the file has a fault."""
    (problem,) = problems("[hop.default]\n", **BASE)
    assert problem.startswith("hop.default.addresses: is required")
    assert problems(ONE + ADDRESS, **BASE)[0].startswith("MAIL_SMTP_ADDR: is required")


def test_no_secret_of_a_hop_is_ever_shown(load, problems):
    """Neither `mailkeep config` nor a problem repeats a password or the words of a token command."""
    text = (
        f"{ONE}{ADDRESS}{LOGIN}"
        """
        [hop.two]
        domains = ["example.net"]
        addresses = [{ addr = "mx.example.net:25", priority = 10, weight = 3 }]
        username = "mail"
        token_command = ["curl", "-d", "secret=canary2"]
        messages_per_s = 0.5
        timers = { dot = "20m" }
    """
    )
    settings = load(text, ONE_PASSWORD="canary1")
    rows = {row.name: row for row in settings.describe()}
    assert "canary" not in f"{settings!r} {settings} {list(rows.values())} {next_hops(settings)}"
    assert rows["hop.one.password_env"].value == "ONE_PASSWORD"
    assert rows["hop.two.addresses"].value == "mx.example.net:25 (10/3)"
    assert (rows["hop.two.messages_per_s"].value, rows["hop.two.timers"].value) == ("0.5", "dot 20m")
    assert rows["hop.two.messages_per_s"].source == "routes file"
    assert "hop.one.tls" not in rows
    assert "canary" not in "".join(problems(f"{ONE}{ADDRESS}{LOGIN}", ONE_PASSWORD="canary\0"))


def test_both_rooms_have_the_same_words():
    """The file's ways to log in and its timers are those of the SMTP client."""
    assert [AuthMechanism(way.upper()) for way in HopAuth] == list(AuthMechanism)
    assert tuple(f"{name}_s" for name in TIMERS) == Timers.__struct_fields__


def test_the_guide_names_every_key_and_its_example_can_be_read(load, tmp_path):
    """docs/how-to/route-mail.md has a row for each key and no other; its first TOML block is a valid file."""
    page = HOW_TO.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(KEYS)
    example = re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1]
    assert {"default"} < tomllib.loads(example)["hop"].keys()
    load(example.replace("/etc/mailkeep", str(tmp_path)), **BASE)


# -- which hop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "hop"),
    [
        ("example.org", "exact"),
        ("mail.example.org", "below"),
        ("a.b.example.org", "below"),
        ("a.deep.example.org", "deep"),
        ("deep.example.org", "below"),
        ("example.net", "default"),
        ("notexample.org", "default"),
        ("org", "default"),
        ("sinkhole.test", "sinkhole"),
        ("a.sinkhole.test", "sinkhole"),
        ("mail.museum", "tld"),
    ],
)
def test_the_exact_domain_wins_then_the_longest_wildcard(load, domain, hop):
    """A wildcard takes what is below it, never itself; the sinkhole's domain has its own hop."""
    domains = {
        "exact": "example.org",
        "below": "*.example.org",
        "deep": "*.deep.example.org",
        "tld": "*.museum",
    }
    tables = "".join(f'[hop.{name}]\ndomains = ["{one}"]\n{ADDRESS}' for name, one in domains.items())
    settings = load(tables, MAIL_SINKHOLE_ADDR="127.0.0.1:2525", MAIL_SMTP_ADDR="mx.example.net:25")
    assert Routes(next_hops(settings)).next_hop(domain) == hop


@pytest.mark.parametrize("domain", ["a.test", "test", "x.example", "mx.invalid", "localhost", "db.localhost"])
def test_no_reserved_domain_has_a_route(load, domain):
    """Neither the default hop nor any other takes mail for a reserved domain, with a sinkhole or without."""
    for environ in ({}, {"MAIL_SINKHOLE_ADDR": "127.0.0.1:2525"}):
        routes = Routes(next_hops(load(ONE + ADDRESS, MAIL_SMTP_ADDR="127.0.0.1:25", **environ)))
        with pytest.raises(ReservedDomainError):
            routes.next_hop(domain)
        assert [may_leave(domain, hop) for hop in (*routes.hops, "sinkhole")] == [False] * (
            len(routes.hops) + 1
        )


@pytest.mark.parametrize(
    ("domain", "hop", "may"),
    [
        ("sinkhole.test", "sinkhole", True),
        ("eu.sinkhole.test", "sinkhole", True),
        ("sinkhole.test", DEFAULT_HOP, False),
        ("example.com", DEFAULT_HOP, True),
        ("latest", DEFAULT_HOP, True),
        ("mytest.org", DEFAULT_HOP, True),
    ],
)
def test_only_the_sinkhole_takes_what_is_its_own(domain, hop, may):
    """The sinkhole's domain may go to its hop alone; what only looks reserved may go anywhere."""
    assert may_leave(domain, hop) is may


def test_without_a_sinkhole_nothing_leads_there(load):
    """Intake refuses its domain then, and so do the routes: it never goes by the default one."""
    settings = load(ONE + ADDRESS, MAIL_SMTP_ADDR="127.0.0.1:25")
    with pytest.raises(ReservedDomainError):
        Routes(next_hops(settings)).next_hop("sinkhole.test")
    assert settings.hops[1].addresses[0].endpoint == Endpoint("127.0.0.1", 25)
