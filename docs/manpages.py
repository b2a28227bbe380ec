"""Write the manual pages of `docs/man`, one for each verb of the command line: `make docs`.

They follow from what the verbs declare and from nothing else, so that `tests/unit/test_docs.py` can hold the committed ones
against it. A wheel puts them into `share/man/man1`. Roff as mandoc and groff alike take it (man(7)).
"""
# ruff: noqa: INP001  # a script beside the pages it writes, no package

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer.main

from mailkeep.cli import EXAMPLES, app
from mailkeep.cli.output import EXIT_CODES
from mailkeep.version import __version__

MAN: Final = Path(__file__).parent / "man"
RELEASED: Final = re.compile(rf"^## {re.escape(__version__)} \((\d{{4}}-\d\d-\d\d)\)$", re.MULTILINE)


_KINDS: Final = {
    "number": ("int", "integer", "integer range", "float", "float range"),
    "text": ("str", "string"),
    "id": ("uuid",),
}


def pages() -> dict[str, str]:
    """Return the text of each page by its file's name."""
    return {f"{'-'.join(path)}.1": _page(path, verb) for path, verb in _verbs(("mailkeep",), _root())}


def _root() -> Any:  # noqa: ANN401 - typer's own command types are private
    return typer.main.get_command(app)


def _verbs(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401 - likewise
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _verbs((*path, name), below)


def _page(path: tuple[str, ...], command: Any) -> str:  # noqa: ANN401 - likewise
    summary, description = _help(path, command)
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    below = getattr(command, "commands", {})
    synopsis = " ".join(
        [
            *(["[options]"] if options else []),
            *(_it(_metavar(each)) for each in arguments),
            *([f"{_it('command')} ..."] if below else []),
        ]
    )
    released = RELEASED.search((MAN.parents[1] / "CHANGELOG.md").read_text(encoding="utf-8"))
    lines = [
        f'.TH "{_roff("-".join(path)).upper()}" 1 "{released[1] if released else ""}" "Mailkeep {__version__}" "Mailkeep"',
        ".SH NAME",
        f"{_roff('-'.join(path))} \\- {_roff(summary)}",
        ".SH SYNOPSIS",
        f".B {_roff(' '.join(path))}",
        *([synopsis] if synopsis else []),
        ".SH DESCRIPTION",
        *(_paragraphs(description) or [_roff(summary)]),
    ]
    described = [(_it(_metavar(each)), each.help) for each in arguments if each.help]
    for title, listed in (
        ("ARGUMENTS", described),
        ("OPTIONS", [(_option(each), _said(each)) for each in options]),
        (
            "COMMANDS",
            [(f"\\fB{_roff(name)}\\fR", _help((*path, name), verb)[0]) for name, verb in below.items()],
        ),
    ):
        if listed:
            lines.append(f".SH {title}")
            lines += [line for name, text in listed for line in (".TP", name, _line(text))]
    lines += _environment(path)
    lines += [
        ".SH EXIT STATUS",
        *(line for code, meaning in EXIT_CODES for line in (".TP", f"\\fB{code}\\fR", _line(meaning))),
    ]
    near = ["-".join((*path, name)) for name in below] + ["-".join(path[:-1])] * (len(path) > 1)
    if near:
        lines += [
            ".SH SEE ALSO",
            *(f".BR {_roff(name)} (1)," for name in near[:-1]),
            f".BR {_roff(near[-1])} (1)",
        ]
    return "\n".join(lines) + "\n"


def _environment(path: tuple[str, ...]) -> list[str]:
    if len(path) > 1:
        return []
    said = "Mailkeep is configured by variables that begin with MAIL_; mailkeep config \\-\\-reference shows each."
    return [
        ".SH ENVIRONMENT",
        said,
        ".SH EXAMPLES",
        *_paragraphs(EXAMPLES.partition("Exit codes")[0].replace("Examples:\n", "")),
    ]


def _help(path: tuple[str, ...], command: Any) -> tuple[str, str]:  # noqa: ANN401 - likewise
    """Return the first sentence of a verb's help, without its stop, and the help."""
    text = (command.help or "").partition("\f")[0].strip()
    first = " ".join(text.partition("\n\n")[0].split())
    return (re.split(r"[.:](?: |$)", first)[0] or path[-1]), text


def _paragraphs(text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\x08)", text.replace("\\b\n", "\x08\n").strip("\n")):
        is_kept = "\x08" in paragraph  # a paragraph that is not to be filled
        body = paragraph.replace("\x08\n", "").replace("\x08", "").strip("\n")
        if not body.strip():
            continue
        lines.append(".PP")
        lines += (
            [".nf", *map(_line, body.splitlines()), ".fi"] if is_kept else [_line(" ".join(body.split()))]
        )
    return lines[1:] if lines[:1] == [".PP"] else lines


def _option(option: Any) -> str:  # noqa: ANN401 - likewise
    names = ", ".join(f"\\fB{_roff(name)}\\fR" for name in (*option.opts, *option.secondary_opts))
    return names if option.is_flag else f"{names} {_it(_metavar(option))}"


def _said(option: Any) -> str:  # noqa: ANN401 - likewise
    """Return what an option does and what it is without being given."""
    shown = option.show_default if isinstance(option.show_default, str) else option.default
    usual = "" if option.is_flag or shown in (None, "", (), []) or callable(shown) else f" [default: {shown}]"
    return f"{option.help or ''}{usual}{' [required]' if option.required else ''}"


def _metavar(parameter: Any) -> str:  # noqa: ANN401 - likewise
    choices = getattr(parameter.type, "choices", ())
    kind = parameter.type.name.lower()
    usual = "|".join(map(str, choices)) or next((said for said, of in _KINDS.items() if kind in of), kind)
    return str(parameter.metavar or (parameter.name if parameter.param_type_name == "argument" else usual))


def _it(text: str) -> str:
    return f"\\fI{_roff(text)}\\fR"


def _roff(text: str) -> str:
    """Return text that stands for itself in roff."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "").replace("'", "\\(aq")
    return "".join(letter if ord(letter) < 128 else f"\\[u{ord(letter):04X}]" for letter in plain)


def _line(text: str) -> str:
    """Return a line of text; one that begins like a request is kept from being one."""
    plain = _roff(" ".join(text.split()) if not text.startswith(" ") else text.rstrip())
    return f"\\&{plain}" if plain.startswith((".", "\\(aq")) else plain


def main() -> None:
    """Write every page anew, and none that is no longer one."""
    MAN.mkdir(exist_ok=True)
    for old in MAN.glob("*.1"):
        old.unlink()
    for name, text in pages().items():
        (MAN / name).write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
