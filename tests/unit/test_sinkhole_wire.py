"""The sinkhole's reading of SMTP text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailkeep.sinkhole.wire import (
    MAX_TEXT_LINE_OCTETS,
    Path,
    anomalies_of,
    header_section,
    message_id_of,
    parse_path,
    unstuff,
)


@pytest.mark.parametrize(
    ("keyword", "argument", "path"),
    [
        (b"FROM", b"FROM:<ann@example.test>", Path("ann@example.test", {})),
        (b"FROM", b"from:<>", Path("", {})),
        (
            b"FROM",
            b"FROM:<a@b.test> SIZE=12 body=8BITMIME SMTPUTF8",
            Path("a@b.test", {"SIZE": "12", "BODY": "8BITMIME", "SMTPUTF8": ""}),
        ),
        (b"TO", b'TO:<"a b>@c"@d.test>', Path('"a b>@c"@d.test', {})),
        (b"TO", "TO:<jörg@example.test>".encode(), Path("jörg@example.test", {})),
        (b"TO", b"TO:<>", None),
        (b"TO", b"FROM:<a@b.test>", None),
        (b"TO", b"TO: <a@b.test>", None),
        (b"TO", b"TO:a@b.test", None),
        (b"TO", b"TO:<a@b.test> ", None),
        (b"TO", b"TO:<a@b.test>  X=1", None),
        (b"TO", b"TO:<a b@c.test>", None),
        (b"TO", b"TO:<@hop.test:a@b.test>", None),
        (b"TO", b"TO:<a@b.test\n>", None),
        (b"TO", b"TO:<\xff@b.test>", None),
        (b"TO", b"TO:<" + b"a" * 250 + b"@b.test>", None),
    ],
)
def test_parse_path(keyword: bytes, argument: bytes, path: Path | None) -> None:
    """The argument of MAIL and RCPT is read as RFC 5321 writes it, and no other way."""
    assert parse_path(keyword, argument) == path


@pytest.mark.parametrize(
    ("stuffed", "message"),
    [
        (b"\r\n", b""),
        (b"\r\na\r\n", b"a\r\n"),
        (b"\r\n..\r\n", b".\r\n"),
        (b"\r\n..a\r\n...\r\nb.\r\n", b".a\r\n..\r\nb.\r\n"),
    ],
)
def test_unstuff(stuffed: bytes, message: bytes) -> None:
    """One dot is taken from each line that begins with one."""
    assert unstuff(stuffed) == message


@given(st.lists(st.binary().filter(lambda line: b"\r" not in line and b"\n" not in line)))
def test_unstuffing_undoes_stuffing(lines: list[bytes]) -> None:
    """Whatever the lines, what a client stuffed comes out as it was."""
    stuffed = b"".join(b"\r\n" + (b"." if line.startswith(b".") else b"") + line for line in lines) + b"\r\n"
    assert unstuff(stuffed) == b"".join(line + b"\r\n" for line in lines)


@pytest.mark.parametrize(
    ("message", "anomalies"),
    [
        (b"", ()),
        (b"a: b\r\n\r\ntext\r\n", ()),
        (b"a\n.\r\n", ("bare_lf",)),
        (b"a\r.\r\n", ("bare_cr",)),
        (b"a\r\r\n", ("bare_cr",)),
        (b"a\n\rb\r\n", ("bare_cr", "bare_lf")),
        (b"a\0\r\n", ("nul",)),
        (b"a" * MAX_TEXT_LINE_OCTETS + b"\r\n", ()),
        (b"a" * (MAX_TEXT_LINE_OCTETS + 1) + b"\r\n", ("long_line",)),
        (b"\xe4\r\n", ("undeclared_8bit",)),
    ],
)
def test_anomalies(message: bytes, anomalies: tuple[str, ...]) -> None:
    """Each fault of the octets is named."""
    assert anomalies_of(message, is_8bit_declared=False) == anomalies


def test_declared_8bit_is_no_anomaly() -> None:
    """BODY=8BITMIME makes octets above 127 right."""
    assert anomalies_of(b"\xe4\r\n", is_8bit_declared=True) == ()


@pytest.mark.parametrize(
    ("message", "message_id"),
    [
        (b"Message-ID: <1@a.test>\r\nA: b\r\n\r\n", "<1@a.test>"),
        (b"A: b\r\nmessage-id:\r\n <2@a.test>\r\n\r\n", "<2@a.test>"),
        (b"A: b\r\n\r\nMessage-ID: <3@a.test>\r\n", ""),
        (b"X-Message-ID: <4@a.test>\r\n\r\n", ""),
        (b"Message-ID: <\xff@a.test>\r\n\r\n", "<\\xff@a.test>"),
        (b"", ""),
    ],
)
def test_message_id(message: bytes, message_id: str) -> None:
    """The Message-ID is found in the header section, folded or not, and only there."""
    assert message_id_of(message) == message_id


def test_header_section() -> None:
    """The header section ends before the first empty line."""
    assert header_section(b"A: b\r\nC: d\r\n\r\nE: f\r\n\r\n") == b"A: b\r\nC: d"
