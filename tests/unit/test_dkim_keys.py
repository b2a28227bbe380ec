"""The keys that sign: judged whole, taking turns, and shown without their private half."""

import base64
import json
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
    load_pem_private_key,
)
from typer.testing import CliRunner

from mailkeep.cli.dkim import app
from mailkeep.dkim.keys import (
    DkimKeysError,
    Keyring,
    KeyState,
    as_pem,
    new_private_key,
    record_line,
    record_name,
    record_value,
)
from mailkeep.dkim.signature import Algorithm, SigningKey
from mailkeep.settings import Settings
from mailkeep.wiring import StartError, load_keyring

RSA, ED25519 = new_private_key(Algorithm.RSA), new_private_key(Algorithm.ED25519)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def pem(key, encryption=None):
    """Return a key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


@pytest.fixture
def folder(tmp_path):
    """A folder with key files, good and bad."""
    files = {
        "rsa.pem": as_pem(RSA),
        "rsa-old.pem": RSA.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        "ed.pem": as_pem(ED25519),
        "small.pem": pem(rsa.generate_private_key(65537, 1024)),
        "ec.pem": pem(ec.generate_private_key(ec.SECP256R1())),
        "locked.pem": pem(ED25519, BestAvailableEncryption(b"secret")),
        "public.pem": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def keys_file(folder, *entries, text=None):
    """Write a keys file."""
    path = folder / "keys.toml"
    tables = (
        "[[key]]\n" + "".join(f"{name} = {value}\n" for name, value in entry.items()) for entry in entries
    )
    path.write_text("\n".join(tables) if text is None else text)
    return path


def entry(domain="example.org", selector="a", key_file="ed.pem", **more):
    """Return one entry as it is written."""
    return {"domain": f'"{domain}"', "selector": f'"{selector}"', "key_file": f'"{key_file}"', **more}


def problems(path):
    """Return the problems of a keys file."""
    with pytest.raises(DkimKeysError) as refusal:
        Keyring.load(path)
    return [str(problem) for problem in refusal.value.problems]


def test_every_problem_is_told_at_once(folder):
    """Each bad entry is named by its number, with what is wrong and nothing of the key."""
    path = keys_file(
        folder,
        entry(),
        entry(domain="no domain", selector="b"),
        entry(domain="x@example.org", selector="b"),
        entry(selector="b.-c"),
        entry(selector="b", key_file="away.pem"),
        entry(selector="b", key_file="small.pem"),
        entry(selector="b", key_file="ec.pem"),
        entry(selector="b", key_file="locked.pem"),
        entry(selector="b", key_file="public.pem"),
        entry(selector="b", not_before="2026-01-01T00:00:00"),
        entry(selector="b", active="true"),
        {"domain": '"example.org"'},
    )
    assert problems(path) == [
        "key 2: domain is not the domain of a sender",
        "key 3: domain is not the domain of a sender",
        "key 4: selector must be letters, digits and hyphens, like 2026a",
        "key 5: key_file can't be read: No such file or directory",
        "key 6: key_file holds an RSA key of 1024 bits; use 2048 to 4096",
        "key 7: key_file holds a key that is neither RSA nor Ed25519",
        "key 8: key_file has a passphrase; give the key without one",
        "key 9: key_file holds no private key in PEM",
        "key 10: Expected `datetime` with a timezone component - at `$.not_before`",
        "key 11: Object contains unknown field `active`",
        "key 12: Object missing required field `selector`",
    ]


def test_keys_that_can_not_be_told_apart_are_refused(folder):
    """Two keys of one DNS record, and two of an algorithm that begin together, are problems."""
    begin = {"not_before": "2026-01-01T00:00:00Z"}
    path = keys_file(folder, entry(), entry(selector="A", key_file="rsa.pem"), entry(selector="b"))
    assert problems(path) == [
        "a._domainkey.example.org: stands for 2 keys; give each a selector of its own",
        "example.org: 2 ed25519-sha256 keys begin together; give the newer a later not_before",
    ]
    Keyring.load(keys_file(folder, entry(), entry(selector="b", **begin), entry(domain="sub.example.org")))


@pytest.mark.parametrize("text", ["", "key = 1", "[[key", "[other]\na = 1", "key = []", "\0"])
def test_what_is_no_list_of_keys_is_one_problem(folder, text):
    """A file of another kind is refused as a whole."""
    assert len(problems(keys_file(folder, text=text))) == 1


def test_a_missing_file_is_a_problem(tmp_path):
    """What can't be read is told like everything else."""
    assert problems(tmp_path / "away.toml") == ["can't be read: No such file or directory"]


def test_domains_are_compared_as_a_labels(folder):
    """A domain in any case or script is the domain of the sender that intake knows."""
    keyring = Keyring.load(
        keys_file(folder, entry(domain="Example.ORG"), entry(domain="bücher.example", key_file="rsa-old.pem"))
    )
    assert [key.domain for key in keyring.keys] == ["example.org", "xn--bcher-kva.example"]
    assert keyring.signing("sub.example.org", NOW) == ()


def test_the_key_that_began_last_signs():
    """The next key of an algorithm takes over at its `not_before`; the other algorithm goes on; none is ever missing."""
    old, next_one = SigningKey("a.org", "1", RSA), SigningKey("a.org", "2", RSA, NOW)
    other = SigningKey("a.org", "3", ED25519, NOW - DAY)
    keyring = Keyring([next_one, other, old])
    assert keyring.signing("a.org", NOW - 2 * DAY) == (old,)
    assert set(keyring.signing("a.org", NOW - DAY)) == {old, other}
    assert set(keyring.signing("a.org", NOW)) == {next_one, other}
    assert keyring.signing("b.org", NOW) == ()
    assert [keyring.state(key, NOW - DAY) for key in keyring.keys] == ["waiting", "signing", "signing"]
    assert [keyring.state(key, NOW) for key in keyring.keys] == ["signing", "signing", "retired"]
    assert keyring.state(other, NOW - 2 * DAY) is KeyState.WAITING


def test_records_hold_the_public_half():
    """RSA as SubjectPublicKeyInfo, Ed25519 as its 32 octets; a zone file's strings are of at most 255."""
    of_rsa, of_ed25519 = SigningKey("a.org", "1", RSA), SigningKey("a.org", "2", ED25519)
    public = record_value(of_rsa).removeprefix("v=DKIM1; k=rsa; p=")
    assert load_der_public_key(base64.b64decode(public, validate=True)) == RSA.public_key()
    raw = record_value(of_ed25519).removeprefix("v=DKIM1; k=ed25519; p=")
    assert base64.b64decode(raw, validate=True) == ED25519.public_key().public_bytes_raw()
    name, _, strings = record_line(of_rsa).partition(". IN TXT ")
    assert name == record_name(of_rsa) == "1._domainkey.a.org"
    assert "".join(strings.strip('"').split('" "')) == record_value(of_rsa)
    assert max(map(len, strings.strip('"').split('" "'))) == 255


def test_the_service_does_not_start_with_bad_keys(folder):
    """A start ends with every problem, or because the sender's domain has no key."""
    environ = {"MAIL_SMTP_FROM_EMAIL": "mail@example.org"}
    assert load_keyring(Settings.load(environ)) is None
    environ["MAIL_DKIM_KEYS_FILE"] = str(keys_file(folder, entry(), entry()))
    with pytest.raises(StartError, match=r"a\._domainkey\.example\.org.*; example\.org: 2 ed25519"):
        load_keyring(Settings.load(environ))
    keys_file(folder, entry(domain="sub.example.org"))
    with pytest.raises(StartError, match=r"no key for example\.org"):
        load_keyring(Settings.load(environ))
    keys_file(folder, entry())
    assert load_keyring(Settings.load(environ)) is not None


# -- mailkeep dkim -------------------------------------------------------------------------------------------------


def run(*arguments, **environ):
    """Run `mailkeep dkim`."""
    return CliRunner().invoke(app, list(arguments), env=environ)


@pytest.mark.parametrize(("options", "algorithm"), [((), Algorithm.RSA), (("--ed25519",), Algorithm.ED25519)])
def test_a_new_key_is_written_for_its_owner_alone(tmp_path, options, algorithm):
    """The file is 0600 and never overwritten; what is printed has the public record and not the private key."""
    path = tmp_path / "new.pem"
    arguments = ("keygen", "--domain", "Example.org", "--selector", "2026a", "--out", str(path), *options)
    done = run(*arguments)
    assert done.exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.read_bytes()
    key = SigningKey("example.org", "2026a", load_pem_private_key(written, None))
    assert key.algorithm is algorithm
    assert record_line(key) in done.stdout
    assert not any(line in done.stdout for line in written.decode().splitlines() if line)
    (tmp_path / "keys.toml").write_text(done.stdout[done.stdout.index("[[key]]") :])
    assert Keyring.load(tmp_path / "keys.toml").keys[0].domain == "example.org"
    again = run(*arguments)
    assert again.exit_code == 1
    assert "File exists" in again.stderr
    assert path.read_bytes() == written


def test_a_key_needs_a_good_name(tmp_path):
    """A wrong domain is refused before anything is written."""
    done = run("keygen", "--domain", "no domain", "--selector", "a", "--out", str(tmp_path / "k.pem"))
    assert done.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_list_shows_what_each_key_does(folder):
    """One line a key with its record; JSON for programs; nothing private in either."""
    waits = entry(selector="b", key_file="rsa.pem", not_before="2999-01-01T00:00:00Z")
    path = str(keys_file(folder, entry(), waits))
    text = run("list", MAIL_DKIM_KEYS_FILE=path)
    assert [line.split()[:4] for line in text.stdout.splitlines()[1:]] == [
        ["example.org", "a", "ed25519-sha256", "signing"],
        ["example.org", "b", "rsa-sha256", "waiting"],
    ]
    rows = json.loads(run("list", "--json", MAIL_DKIM_KEYS_FILE=path).stdout)
    assert rows[0] == {
        "domain": "example.org",
        "selector": "a",
        "algorithm": "ed25519-sha256",
        "state": "signing",
        "not_before": None,
        "record_name": "a._domainkey.example.org",
        "record_value": record_value(SigningKey("example.org", "a", ED25519)),
    }
    assert rows[1]["not_before"] == "2999-01-01T00:00:00Z"


def test_list_tells_what_is_wrong(folder):
    """Bad keys end it with 78 and every problem; without a keys file there is nothing to list."""
    bad = run(
        "list", MAIL_DKIM_KEYS_FILE=str(keys_file(folder, entry(selector=""), entry(key_file="ec.pem")))
    )
    assert bad.exit_code == 78
    assert "key 1: selector" in bad.stderr
    assert "key 2: key_file" in bad.stderr
    assert "MAIL_DKIM_KEYS_FILE is not set" in run("list").stderr
