"""What needs no network of webhooks: their file, the signature, the ladder, and which addresses are public."""

import pytest

from mailkeep.core.duration import parse_duration
from mailkeep.core.webhook import JITTER, LADDER_S, next_try_s, parse_secret, sign
from mailkeep.dispatch.webhook_post import is_public
from mailkeep.settings import Settings, SettingsError
from mailkeep.settings.webhooks import read_webhooks

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
GOOD = f'[webhook.shop]\nurl = "https://shop.example/hook"\nsecrets = ["{SECRET}"]\n'


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:2800:21f:cb07::1", "::ffff:93.184.215.14", "64:ff9b::5db8:d70e"]
)
def test_public_addresses(address):
    """Plain ones, and those that wrap a public one."""
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2001:0:7f00:1::", "64:ff9b:1::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    """Loopback, private, link-local with the metadata service, carrier-grade NAT, reserved, multicast; wrapped or not."""
    assert not is_public(address)


def test_the_signature_is_that_of_the_standard():
    """The example of the Standard Webhooks specification."""
    key = parse_secret(SECRET)
    signature = sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert sign([key, b"x" * 24], "m", 1, b"").split()[0] == sign([key], "m", 1, b"")


def test_the_ladder_takes_about_three_days():
    """Each failure has its wait, jittered, until the last one; then the event is given up."""
    assert parse_duration("2d12h") < sum(LADDER_S) < parse_duration("4d")
    for tries, wait_s in enumerate(LADDER_S, 1):
        assert next_try_s(tries, 0.5) == wait_s
        assert (
            wait_s * (1 - JITTER)
            <= next_try_s(tries, 0.0)
            < next_try_s(tries, 0.999)
            <= wait_s * (1 + JITTER)
        )
    assert next_try_s(len(LADDER_S) + 1, 0.5) is None


def test_a_file_of_webhooks(tmp_path):
    """Each table is a webhook; several secrets are a rotation."""
    path = tmp_path / "webhooks.toml"
    more = f'[webhook.log]\nurl = "http://10.0.0.1:8000/"\nsecrets = ["{SECRET}", "{SECRET}"]\nevents = ["delivery.failed"]\nallow_private = true\nconcurrency = 2\n'
    path.write_text(GOOD + more)
    shop, log = Settings.load({"MAIL_WEBHOOKS_FILE": str(path)}).webhooks
    assert (shop.name, shop.place, shop.events, shop.allow_private) == (
        "shop",
        "https://shop.example",
        (),
        False,
    )
    assert (log.place, len(log.secrets), log.events, log.concurrency) == (
        "http://10.0.0.1:8000",
        2,
        ("delivery.failed",),
        2,
    )
    assert SECRET not in repr(shop)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("x", "is not TOML"),
        ("[hook.shop]", "must have tables [webhook.NAME]"),
        ("[webhook]", "must have 1 to 50 webhooks"),
        ("[webhook.Shop]", "'Shop' is no name for a webhook"),
        ("[webhook.shop]", "webhook.shop: it missing required field `url`"),
        (GOOD + "when = 1", "unknown field `when`"),
        (GOOD.replace(f'"{SECRET}"', ""), "secrets must be a list of 1 to 4"),
        (GOOD.replace(SECRET, "hunter2"), "secrets: must be whsec_"),
        (GOOD.replace(SECRET, "whsec_c2hvcnQ="), "secrets: must be whsec_"),
        (GOOD.replace("https://", "http://"), "url: must be an https URL"),
        (GOOD.replace("https://", "https://ann:hunter2@"), "url: must be an https URL"),
        (GOOD.replace("https://shop.example", "file:///etc/passwd"), "url: must be an https URL"),
        (GOOD.replace("shop.example", "shop.example:99999"), "url: must be an https URL"),
        (GOOD + 'events = ["delivery.born"]', "events: 'delivery.born' is none of"),
        (GOOD + "concurrency = 0", "concurrency"),
        (GOOD + 'ca_file = "none.pem"', "ca_file: "),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, text, told):
    """Where it is and what; never a secret."""
    path = tmp_path / "webhooks.toml"
    path.write_text(text)
    (problem,) = read_webhooks(path)[1]
    assert told in problem
    assert SECRET not in problem
    assert "hunter2" not in problem
    with pytest.raises(SettingsError, match="MAIL_WEBHOOKS_FILE"):
        Settings.load({"MAIL_WEBHOOKS_FILE": str(path)})
