"""The text that is made from html when there is none."""

import pytest

from mailkeep.templates.plaintext import MAX_SOURCE_CHARS, text_from_html


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<h1>Hi &amp; welcome</h1><p>One\n two.<br>Three</p>", "Hi & welcome\n\nOne two.\nThree\n"),
        (
            '<p>Go <a href="https://a.example/?x=1&amp;y=2">there</a>.</p>',
            "Go there <https://a.example/?x=1&y=2>.\n",
        ),
        ("<a href='https://a.example'>https://a.example</a>", "https://a.example\n"),
        ('<a href="mailto:a@b.example">a@b.example</a>', "a@b.example\n"),
        ('<a href="javascript:alert(1)">press</a>', "press\n"),
        ("<ul><li>one</li><li>two</li></ul>", "- one\n- two\n"),
        ("<tr><td>Total</td><td>3 €</td></tr>", "Total 3 €\n"),
        ('<img alt="Our logo" src="cid:x"> says', "Our logo says\n"),
        ("<head><title>T</title></head><style>p{}</style><script>x<y</script>seen<!-- not -->", "seen\n"),
        ("1 < 2 &lt;b&gt; <b>bold", "1 < 2 <b> bold\n"),
        ("<script>never closed", "\n"),
        ("", "\n"),
    ],
)
def test_words_and_links_are_kept(source: str, text: str) -> None:
    """The words come out in lines, links with their address, and nothing that a reader would not see."""
    assert text_from_html(source) == text


@pytest.mark.parametrize(
    "piece", ["<a\n", "<a ", "<a b='", "<!--", "</", '<a href="', "<script><", "</script", "&#9", "<!", "<p>"]
)
def test_hostile_html_ends(piece: str) -> None:
    """Half a megabyte made to be slow is read to the bound all the same (the suite's timeout is the claim)."""
    text_from_html(piece * (512 * 1024 // len(piece)))


def test_the_text_ends_at_its_bound() -> None:
    """What stands behind the bound is left out."""
    assert text_from_html("<p>seen</p>" + " " * MAX_SOURCE_CHARS + "unseen") == "seen\n"


def test_endless_numeric_references_are_text() -> None:
    """A reference with more digits than Python converts stays as it is."""
    assert text_from_html("&#" + "9" * 5000 + ";").startswith("&#999")
