"""HTTP/1.1 of the client: however an answer is cut into pieces it is read alike, and what is none is refused."""

import pytest

from mailkeep.client.http11 import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    MAX_INTERIM,
    MAX_TRAILERS,
    Answer,
    AnswerReader,
    MalformedAnswerError,
    Request,
    check_token,
    encode_request,
    parse_origin,
)

ORIGIN = parse_origin("http://127.0.0.1:8080")


def read(data, *, size=None, ends=True):
    """Feed `data` in pieces of `size`, then the end of the connection; return the answer."""
    reader = AnswerReader()
    size = size or max(1, len(data))
    for start in range(0, len(data), size):
        answer = reader.feed(data[start : start + size])
        if answer is not None:
            return answer
    return reader.feed(b"") if ends else None


@pytest.mark.parametrize(
    ("data", "status", "body", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", True),
        (b"HTTP/1.1 202 \r\ncontent-length:0\r\n\r\n", 202, b"", True),
        (b"HTTP/1.1 202\r\nX: a\r\nX: b\r\nContent-Length: 0\r\n\r\n", 202, b"", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", False),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, b"until the end", False),
        (
            (
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\n"
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
            ),
            200,
            b"x",
            True,
        ),
        (
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
                b"3;name=value\r\nabc\r\n0A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
            ),
            200,
            b"abc0123456789",
            True,
        ),
    ],
)
def test_an_answer_is_read_alike_however_it_is_cut(data, status, body, reusable):
    """Each form of answer gives the same value in one piece and in pieces of any size."""
    for size in range(1, len(data) + 1):
        answer = read(data, size=size)
        assert (answer.status, answer.body, answer.reusable) == (status, body, reusable), size


def test_headers_are_joined_under_lower_case_names():
    """Names lose their case, values their blanks; repeated ones are joined."""
    answer = read(b"HTTP/1.1 204 x\r\nRetry-After: \t1 \r\nX-A: b\r\nx-a: c\r\n\r\n")
    assert answer.headers == {"retry-after": "1", "x-a": "b, c"}


def test_what_comes_behind_an_answer_ends_the_connection():
    """Bytes that nobody asked for: the connection is not used again."""
    assert not read(b"HTTP/1.1 204 x\r\n\r\nHTTP/1.1").reusable


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize("data", [WHOLE, CHUNKED])
def test_a_cut_answer_is_never_taken_for_a_whole_one(data):
    """A connection that ends anywhere inside a framed answer is a fault."""
    for length in range(len(data)):
        with pytest.raises(MalformedAnswerError, match="cut"):
            read(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"220 mx.example.org ESMTP\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 999 What\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (MAX_BODY_BYTES + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * MAX_TRAILERS + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * MAX_INTERIM + b"HTTP/1.1 204 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_HEAD_BYTES + 10),
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_BODY_BYTES + 1),
    ],
)
def test_what_is_no_answer_is_a_fault(data):
    """Other protocols, broken framing and floods are refused, and before the connection ends where they are floods."""
    with pytest.raises(MalformedAnswerError) as refused:
        read(data + b"x", size=4096, ends=False)
    assert "cut" not in str(refused.value)


def test_a_request_is_written_with_everything_it_needs():
    """Head and body of a POST, byte by byte."""
    origin = parse_origin("https://Mail.Internal:8443/keep/")
    assert (origin.host, origin.port, origin.is_tls) == ("mail.internal", 8443, True)
    data = encode_request(Request("POST", "/api", b"{}", "key-1"), origin, "secret")
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /keep/api HTTP/1.1",
        b"Host: Mail.Internal:8443",
        b"User-Agent: mailkeep-client",
        b"Accept: application/json, application/problem+json",
        b"Authorization: Bearer secret",
        b"Idempotency-Key: key-1",
        b"Content-Type: application/json",
        b"Content-Length: 2",
    ]
    assert body == b"{}"


def test_a_read_carries_no_body_key_or_token():
    """What was not given is not sent."""
    head = encode_request(Request("GET", "/x"), ORIGIN, None).decode()
    assert head.endswith("\r\n\r\n")
    assert not {"authorization", "idempotency-key", "content-length"} & set(
        head.lower().replace(":", "").split()
    )


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1", 8080),
        ("http://mail.internal", "mail.internal", 80),
        ("https://mail.internal/", "mail.internal", 443),
        ("http://[::1]:8080", "::1", 8080),
    ],
)
def test_base_urls_are_understood(url, host, port):
    """Host and port, with the default of the scheme."""
    origin = parse_origin(url)
    assert (origin.host, origin.port, origin.prefix) == (host, port, "")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "ftp://secret.internal",
        "http://",
        "http://host:secret",
        "http://host:99999999",
        "http://user:secret@host",
        "http://host?token=secret",
        "http://host#secret",
        "http://host/a b\r\nX: secret",
        "http://münchen.secret",
        "http://[secret",
    ],
)
def test_a_base_url_that_is_none_is_refused_without_repeating_it(url):
    """Each fault is a ValueError that holds nothing of the URL."""
    with pytest.raises(ValueError, match="base_url") as refused:
        parse_origin(url)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize("token", ["", "a b", "secret\r\nX: y", "sécret"])
def test_a_token_that_would_break_the_head_is_refused_without_repeating_it(token):
    """Anything but visible ASCII."""
    with pytest.raises(ValueError, match="token must be visible ASCII") as refused:
        check_token(token)
    assert "secret" not in str(refused.value)


def test_no_repr_shows_content():
    """Requests and answers end in tracebacks and logs: without body, headers, key."""
    request = Request("POST", "/x", b"canary", "canary")
    answer = Answer(200, {"canary": "canary"}, b"canary", reusable=True)
    assert "canary" not in repr(request) + repr(answer)
