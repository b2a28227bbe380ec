"""Routes on the whole service: each domain's mail goes its own way, and none of it the wrong one."""

import pytest
from http_kit import DELIVERIES
from queue_kit import accepted
from smtp_servers import scripted_peer
from test_http_operator import accept


@pytest.fixture
async def partner():
    """Run the next hop of a partner's domains."""
    async with scripted_peer() as peer:
        yield peer


@pytest.fixture
async def routed(serve, next_hop, partner, tmp_path):
    """Run a service with a default next hop and one for a partner."""
    file = tmp_path / "routes.toml"
    file.write_text(
        f'[hop.partner]\ndomains = ["partner.org", "*.partner.org"]\naddresses = ["127.0.0.1:{partner.port}"]\n'
        'tls = "none"\n'
    )
    return await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
        MAIL_ROUTES_FILE=str(file),
    )


def mail_to(*recipients):
    """Return the member of a command that says to whom."""
    return {"payload": {"to": list(recipients), "subject": "s", "text": "t"}}


async def test_each_domain_goes_its_own_way(routed, partner):
    """The partner's domain and those below it reach the partner's server, all others the default one."""
    ours = await accept(routed, **mail_to("ann@example.org"))
    theirs = [await accept(routed, **mail_to(f"bob@{domain}")) for domain in ("partner.org", "a.partner.org")]
    assert (await routed.settled(ours, "sent"))["next_hop"] == "default"
    for delivery_id in theirs:
        assert (await routed.settled(delivery_id, "sent"))["next_hop"] == "partner"
    assert len(partner.bodies) == 2


async def test_recipients_of_two_ways_are_refused(routed):
    """One delivery is one transaction with one server: mixed recipients are refused by name instead of misled."""
    command = {"payload_mode": "rendered", **mail_to("ann@example.org", "bob@partner.org")}
    answer = await routed.post(DELIVERIES, command)
    assert (answer.status_code, answer.json()["field"]) == (422, "payload.to")
    assert "default, partner" in answer.json()["detail"]


async def test_mail_of_a_next_hop_that_is_gone_is_told(serve, store, log_lines):
    """A start says which next hops mail waits for that the configuration no longer has."""
    await accepted(store, next_hop="gone")
    await serve()
    told = [line for line in log_lines if line["event"] == "mail waits for a next hop that is not configured"]
    assert [line["next_hop"] for line in told] == ["gone"]
