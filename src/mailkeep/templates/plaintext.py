r"""A readable text alternative for mail that came as html alone (RFC 2046 section 5.1.4 wants one).

Reads the tags with one expression that never looks at a character twice: the standard library's `HTMLParser`
takes 95 s for 64 KB of `<a\n` on Python 3.11.7, and this text comes from whoever may ask for a mail. Called
by `message`.
"""

import html
import re
from typing import Final

MAX_SOURCE_CHARS: Final = 256 * 1024
"""The text ends where this much html was read: mail programs show about 100 KB of it."""

_TOKEN: Final = re.compile(
    r"<!--.*?(?:-->|\Z)"
    r"|<(?P<hidden>script|style|head|title|template)\b.*?(?:</(?P=hidden)[^<>]*>|\Z)"
    r"|<(?P<end>/?)(?P<name>[a-z][a-z0-9]*)(?P<attributes>[^<>]*)>"
    r"|<[!?][^<>]*>",
    re.IGNORECASE | re.DOTALL,
)
_ATTRIBUTE: Final = re.compile(
    r"(?<![\w-])(?P<name>href|alt)\s*=\s*(?:\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)'|(?P<bare>[^\s\"'>]+))",
    re.IGNORECASE,
)
_LINES: Final = ("br", "div", "tr", "dt", "dd", "address", "section", "header", "footer")
_PARAGRAPHS: Final = (
    "p",
    "table",
    "ul",
    "ol",
    "dl",
    "blockquote",
    "pre",
    "hr",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
)
_BREAKS: Final = {
    **{f"{end}{name}": "\n" for name in _LINES for end in ("", "/")},
    **{f"{end}{name}": "\n\n" for name in _PARAGRAPHS for end in ("", "/")},
    "td": " ",
    "th": " ",
    "li": "\n- ",
}
_SHOWN_LINKS: Final = ("http://", "https://", "mailto:", "tel:")


def text_from_html(source: str) -> str:
    """Return the words of `source` in lines as its blocks end, each link followed by its address."""
    source = source[:MAX_SOURCE_CHARS]
    pieces: list[str] = []
    link, link_start, end = "", 0, 0
    for token in _TOKEN.finditer(source):
        pieces.append(_words(source[end : token.start()]))
        end = token.end()
        name, attributes = (token["name"] or "").lower(), token["attributes"] or ""
        if name == "a":
            pieces.append(_shown(link, "".join(pieces[link_start:])))
            link, link_start = "" if token["end"] else _attribute("href", attributes), len(pieces)
        elif name == "img":
            pieces.append(_attribute("alt", attributes))
        else:
            pieces.append(_BREAKS.get(f"{token['end'] or ''}{name}", ""))
    pieces.append(_words(source[end:]))
    return _tidy("".join(pieces))


def _words(raw: str) -> str:
    try:
        text = html.unescape(raw)
    except ValueError:  # a numeric reference beyond Python's limit of digits
        text = raw
    return re.sub(r"\s+", " ", text)


def _shown(link: str, words: str) -> str:
    shown = link.lower().startswith(_SHOWN_LINKS) and link.removeprefix("mailto:") not in words
    return f" <{link}>" if shown else ""


def _attribute(name: str, attributes: str) -> str:
    for match in _ATTRIBUTE.finditer(attributes):
        if match["name"].lower() == name:
            return _words(match["double"] or match["single"] or match["bare"] or "").strip()
    return ""


def _tidy(text: str) -> str:
    lines: list[str] = []
    for line in text.split("\n"):
        words = " ".join(line.split())
        if words or (lines and lines[-1]):
            lines.append(words)
    return "\n".join(lines).strip("\n") + "\n"
