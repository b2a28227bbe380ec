"""Sealed payloads: opened by their key and for their delivery only; old keys open, the newest seals; files judged whole."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailkeep.store.sealing import (
    Content,
    PayloadKey,
    PayloadKeys,
    PayloadKeysError,
    SealedError,
    new_key,
    sealed_by,
)

OWNER = UUID("0197f3c2-0000-7000-8000-000000000001")
OTHER = UUID("0197f3c2-0000-7000-8000-000000000002")
MESSAGE = b"Subject: hello\r\n\r\nhello\r\n"


def keys_of(tmp_path, *lines):
    """Load keys from a file with `lines`."""
    path = tmp_path / "keys"
    path.write_text("\n".join(lines))
    return PayloadKeys.load(path)


@given(content=st.binary(max_size=2000))
def test_what_is_sealed_opens_to_itself(content):
    """Every content comes back, and none of it can be read meanwhile."""
    keys = PayloadKeys((PayloadKey("a", bytes(range(32))),))
    sealed = keys.seal(OWNER, Content.MESSAGE, content)
    assert keys.open(OWNER, Content.MESSAGE, sealed) == content
    assert sealed_by(sealed) == "a"
    assert len(content) < 16 or content not in sealed


def test_a_row_can_not_stand_in_for_another(tmp_path):
    """Sealed for one delivery it opens for no other, nor as another kind of content, nor changed in any byte."""
    keys = keys_of(tmp_path, new_key("a"))
    sealed = keys.seal(OWNER, Content.MESSAGE, MESSAGE)
    for owner, kind in ((OTHER, Content.MESSAGE), (OWNER, Content.COMMAND)):
        with pytest.raises(SealedError):
            keys.open(owner, kind, sealed)
    for index in range(3, len(sealed)):
        changed = bytearray(sealed)
        changed[index] ^= 1
        with pytest.raises(SealedError):
            keys.open(OWNER, Content.MESSAGE, bytes(changed))


def test_what_was_cut_or_garbled_is_told_as_such(tmp_path):
    """Nothing but `SealedError` comes of an envelope that is cut anywhere, or of text that is no base64."""
    keys = keys_of(tmp_path, new_key("a"))
    sealed = keys.seal(OWNER, Content.MESSAGE, MESSAGE)
    for length in range(2, len(sealed)):
        with pytest.raises(SealedError):
            keys.open(OWNER, Content.MESSAGE, sealed[:length])
    for text in ("sealed:?", "sealed:AWE=", "sealed:AWF"):
        with pytest.raises(SealedError):
            keys.open_text(OWNER, Content.RECIPIENT, text)


def test_keys_rotate(tmp_path):
    """The first key of the file seals; those behind it open what they sealed; one that is gone is named."""
    old, new = new_key("old"), new_key("new")
    sealed = keys_of(tmp_path, old).seal(OWNER, Content.MESSAGE, MESSAGE)
    both = keys_of(tmp_path, "# newest first", new, "", old)
    assert both.open(OWNER, Content.MESSAGE, sealed) == MESSAGE
    assert sealed_by(both.seal(OWNER, Content.MESSAGE, MESSAGE)) == "new"
    with pytest.raises(SealedError, match="old"):
        keys_of(tmp_path, new).open(OWNER, Content.MESSAGE, sealed)
    with pytest.raises(SealedError, match="another key"):
        keys_of(tmp_path, new_key("old")).open(OWNER, Content.MESSAGE, sealed)


def test_what_is_not_sealed_stays_as_it_is(tmp_path):
    """Without keys nothing is sealed; with keys rows from before them open."""
    none, some = PayloadKeys(), keys_of(tmp_path, new_key("a"))
    assert none.seal(OWNER, Content.MESSAGE, MESSAGE) == MESSAGE
    assert some.open(OWNER, Content.MESSAGE, MESSAGE) == MESSAGE
    assert some.open_text(OWNER, Content.RECIPIENT, "sealed:x@example.org") == "sealed:x@example.org"
    address = "sealed:ann@example.org"
    assert (
        some.open_text(OWNER, Content.RECIPIENT, some.seal_text(OWNER, Content.RECIPIENT, address)) == address
    )
    with pytest.raises(SealedError):
        none.open(OWNER, Content.MESSAGE, some.seal(OWNER, Content.MESSAGE, MESSAGE))


SECRET = new_key("a")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["# nothing"],
        ["a"],
        ["a:"],
        ["a:c2hvcnQ="],
        [SECRET.replace("a:", "A:", 1)],
        [SECRET + "!"],
        [SECRET, new_key("a")],
        [SECRET, SECRET.replace("a:", "b:", 1)],
        [new_key(f"k{number}") for number in range(101)],
        ["\x00" * 100],
    ],
)
def test_a_file_that_is_wrong_is_refused_without_showing_a_key(tmp_path, lines):
    """Empty, short, doubled, misnamed or too many: one clear fault that repeats no key."""
    with pytest.raises(PayloadKeysError) as caught:
        keys_of(tmp_path, *lines)
    for line in lines:
        assert line.partition(":")[2] not in str(caught.value) or ":" not in line or line.endswith(":")


def test_keys_do_not_show_themselves(tmp_path):
    """A key's text form, and that of all of them, holds no secret."""
    line = new_key("a")
    keys = keys_of(tmp_path, line)
    assert repr(keys.newest) == "PayloadKey('a')"
    assert line.partition(":")[2] not in repr(keys) + str(keys.newest)


def test_a_name_is_short_and_plain():
    """Names stand in every envelope and in the database."""
    with pytest.raises(PayloadKeysError):
        new_key("a key")
