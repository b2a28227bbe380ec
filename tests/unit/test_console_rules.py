"""The console's own rules: sessions, charts, throughput, what is shown of a message."""

import time
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailkeep.console.charts import HEIGHT, WIDTH, stacked
from mailkeep.console.guard import SESSION_S, Guard, is_from_here
from mailkeep.console.preview import MAX_SHOWN_CHARS, preview
from mailkeep.console.traffic import Traffic
from mailkeep.console.view import ago, decoded, number, size, span
from mailkeep.core.ids import new_id
from mailkeep.settings import Settings, SettingsError
from mailkeep.store.reads import StoredReplica

KEY = b"k" * 32
TOKENS = ("the-first-of-the-tokens", "the-second-of-the-tokens")
BEGAN = datetime(2026, 11, 22, 12, tzinfo=UTC)


# -- sessions ------------------------------------------------------------------------------------------------------


def test_a_session_is_what_was_sealed():
    """A cookie opens to the session that was sealed, wherever the same deployment runs, and lets in after a login only."""
    guard, elsewhere = Guard(KEY, TOKENS), Guard(KEY, TOKENS[::-1])
    before, after = guard.begin(), guard.log_in(TOKENS[1], "Ann")
    assert elsewhere.opened(guard.sealed(before)) == before
    assert elsewhere.opened(guard.sealed(after)) == after
    assert (guard.lets_in(before), guard.lets_in(after), guard.lets_in(None)) == (False, True, False)
    assert after.actor == "console: Ann"
    assert not any(token in guard.sealed(after) for token in TOKENS)
    assert guard.csrf(before) != guard.csrf(after)


def test_a_session_ends_with_its_token_its_day_and_its_deployment():
    """A token that is no longer configured, an age of `SESSION_S` and another key each end it."""
    guard = Guard(KEY, TOKENS)
    session = guard.log_in(TOKENS[0], "")
    cookie = guard.sealed(session)
    assert guard.opened(cookie) is not None
    assert Guard(KEY, TOKENS[1:]).opened(cookie) is None
    assert Guard(KEY[::-1] + b"x", TOKENS).opened(cookie) is None
    old = msgspec.structs.replace(session, began_at=int(time.time()) - SESSION_S)
    assert guard.opened(guard.sealed(old)) is None


@given(st.text(max_size=200))
def test_no_other_text_is_a_session(text):
    """Whatever a cookie says, it is a session only if it was sealed here."""
    assert Guard(KEY, TOKENS).opened(text) is None
    assert Guard(KEY, ()).opened(f"{text}.{'0' * 64}") is None


@pytest.mark.parametrize(
    ("origin", "host", "ours"),
    [
        ("http://127.0.0.1:8081", "127.0.0.1:8081", True),
        ("https://mail.example.org", "mail.example.org", True),
        ("https://MAIL.example.org", "mail.example.org", True),
        ("http://127.0.0.1:8080", "127.0.0.1:8081", False),
        ("null", "127.0.0.1:8081", False),
        ("", "127.0.0.1:8081", False),
        ("http://", "", False),
        ("file://127.0.0.1:8081", "127.0.0.1:8081", False),
        ("http://evil.example@127.0.0.1:8081", "127.0.0.1:8081", False),
    ],
)
def test_an_origin_is_ours_when_it_names_the_host_that_was_asked(origin, host, ours):
    """Scheme http or https, and exactly the authority of the Host header."""
    assert is_from_here(SimpleNamespace(headers={"origin": origin, "host": host})) is ours


@pytest.mark.parametrize(
    ("environ", "faulty"),
    [
        ({"MAIL_CONSOLE_ADDR": "127.0.0.1:8081"}, False),
        ({"MAIL_CONSOLE_ADDR": "0.0.0.0:8081"}, True),
        ({"MAIL_CONSOLE_ADDR": "0.0.0.0:8081", "MAIL_INTERNAL_HTTP_TOKENS": TOKENS[0]}, True),
        (
            {
                "MAIL_CONSOLE_ADDR": "0.0.0.0:8081",
                "MAIL_INTERNAL_HTTP_TOKENS": TOKENS[0],
                "MAIL_CONSOLE_PLAIN": "true",
            },
            False,
        ),
        ({"MAIL_CONSOLE_ADDR": "0.0.0.0:8081", "MAIL_INTERNAL_HTTP_AUTH": "none"}, False),
        ({"MAIL_CONSOLE_ADDR": "127.0.0.1:8080"}, True),
        ({"MAIL_CONSOLE_ADDR": "127.0.0.1:0", "MAIL_INTERNAL_HTTP_ADDR": "127.0.0.1:0"}, False),
    ],
)
def test_the_console_is_open_to_others_only_with_tokens(environ, faulty):
    """Off loopback it needs tokens or an explicit word, TLS or an explicit word, and an address of its own."""
    if faulty:
        with pytest.raises(SettingsError, match="MAIL_CONSOLE_ADDR"):
            Settings.load(environ)
    else:
        assert Settings.load(environ).console_addr is not None


# -- charts and figures --------------------------------------------------------------------------------------------

_VALUES = st.lists(st.floats(0, 1e9, allow_nan=False), min_size=1, max_size=30)


@given(
    st.integers(1, 4).flatmap(
        lambda count: st.lists(_VALUES.filter(lambda v: len(v) >= 1), min_size=count, max_size=count)
    )
)
def test_a_chart_stays_within_its_frame(columns):
    """Whatever the values, every corner is inside, and the top is no less than the highest sum."""
    length = min(map(len, columns))
    cut = [values[:length] for values in columns]
    chart = stacked("t", "u", [(str(n), "blue", values) for n, values in enumerate(cut)], slots=30)
    assert chart.top >= max(map(sum, zip(*cut, strict=True))) * 0.999
    for series in chart.series:
        if series.path:
            corners = [corner.split() for corner in series.path[1:-1].split("L")]
            assert all(
                -0.1 <= float(x) <= WIDTH + 0.1 and -0.1 <= float(y) <= HEIGHT + 0.1 for x, y in corners
            )


def test_a_chart_of_nothing_is_empty():
    """Without values, or with zeros only, there is a scale and no area."""
    assert [series.path for series in stacked("t", "u", [("a", "blue", [])], slots=10).series] == [""]
    assert stacked("t", "u", [("a", "blue", [0.0, 0.0])], slots=10).top == 1


def test_figures_are_written_for_people():
    """Spans, sizes, numbers and headers read as people say them."""
    assert [span(each) for each in (0.02, 5, 90, 7200, 200_000)] == ["20 ms", "5 s", "2 min", "2 h", "2 d"]
    assert [size(each) for each in (None, 999, 12_300, 5_000_000, 7e12)] == [
        "",
        "999 bytes",
        "12.3 kB",
        "5 MB",
        "7e+03 GB",
    ]
    assert [number(each) for each in (0, 0.25, 7, 12_345.6)] == ["0", "0.2", "7", "12,346"]
    assert ago(datetime.now(UTC) + timedelta(minutes=5, seconds=1)) == "in 5 min"
    assert decoded("=?utf-8?q?Gr=C3=BC=C3=9Fe?=") == "Grüße"
    assert decoded("=?no-such?q?x?=") == "=?no-such?q?x?="


# -- throughput ----------------------------------------------------------------------------------------------------


class Reads:
    """What the sampler reads: replicas that a test sets, and an empty queue."""

    def __init__(self):
        self.now = ()

    async def schedule(self):
        return ()

    async def replicas(self):
        return self.now


def replica(id_, heard_s, accepted, **fields):
    """Return a replica that was heard of `heard_s` after the beginning and had accepted so many."""
    heard = BEGAN + timedelta(seconds=heard_s)
    usual = {
        "stopped_at": None,
        "lost_at": None,
        "silent_s": 0.0,
        "hops_out": {},
        "totals": {"accepted": accepted},
    }
    return StoredReplica(
        id=id_,
        host="h",
        pid=1,
        version="1",
        started_at=BEGAN,
        last_seen_at=heard,
        in_flight=0,
        **usual | fields,
    )


async def test_throughput_is_the_sum_of_what_heartbeats_tell():
    """Rates go by the time between heartbeats; one that is rarer than looks keeps its rate; who is gone counts no more."""
    first, second = new_id(0), new_id(0)
    reads = Reads()
    traffic = Traffic(reads)
    found = []
    for now in (
        (replica(first, 0, 1000), replica(second, 0, 50)),
        (replica(first, 4, 1040), replica(second, 6, 56)),
        (replica(first, 4, 1040), replica(second, 10, 56)),
        (replica(first, 9, 1045), replica(second, 10, 56, lost_at=BEGAN)),
        (replica(first, 9, 1045, stopped_at=BEGAN), replica(new_id(0), 1, 7)),
    ):
        reads.now = now
        await traffic.look()
        found.append(traffic.looks[-1].rates.get("accepted") if traffic.looks else None)
    assert found == [None, 11.0, 10.0, 1.0, None]


# -- messages ------------------------------------------------------------------------------------------------------


def test_a_message_is_taken_apart():
    """Headers, text, HTML and attachments come out as their author meant them."""
    message = EmailMessage()
    message["Subject"] = "Grüße"
    message["To"] = "Jörg <j@example.org>"
    message.set_content("Schön.\n")
    message.add_alternative("<p>Schön.</p>\n", subtype="html")
    message.add_attachment(b"\0" * 10, maintype="application", subtype="x-thing", filename="<b>.bin")
    shown = preview(message.as_bytes())
    assert dict(shown.headers) == {"Subject": "Grüße", "To": "Jörg <j@example.org>"}
    assert (shown.text, shown.html) == ("Schön.\n", "<p>Schön.</p>\n")
    assert [(each.name, each.size_bytes) for each in shown.attachments] == [("<b>.bin", 10)]


_SCRAPS = st.sampled_from(
    [b"Subject: =?x?q?y?=", b"To: <@,;:", b"Date: x", b"Content-Type: text/html; charset=none", b"Content-Type: multipart/mixed; boundary=b",
     b"Content-Type: message/rfc822", b"Content-Transfer-Encoding: base64", b"Content-Disposition: attachment; filename*=x''%ff", b"--b", b"--b--", b"", b"\xff\0", b"==="]
)  # fmt: skip


@given(st.one_of(st.binary(max_size=300), st.lists(_SCRAPS, max_size=20).map(b"\r\n".join)))
def test_no_octets_are_too_broken_to_be_looked_at(octets):
    """Whatever stands in a message, a look at it comes to an end without a fault."""
    shown = preview(octets)
    assert len(shown.source) <= 4 * MAX_SHOWN_CHARS
