"""From a catalog folder to engines and templates, with every fault that shows without rendering.

The layout it expects is in the manual of `catalog`, its only caller.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec
from babel import Locale, UnknownLocaleError
from minijinja import Environment, TemplateError

from mailkeep.core.command import TEMPLATE_ID, CommandError, check_locale
from mailkeep.templates.declaration import Declaration, parse_declaration
from mailkeep.templates.folder import CatalogProblem, Folder
from mailkeep.templates.locale import DEFAULT_LOCALE, negotiate
from mailkeep.templates.render import build_environment

DECLARATION: Final = "template.toml"
PARTS: Final = ("subject", "text", "html")
REQUIRED_PARTS: Final = ("subject", "text")

_SHARED: Final = re.compile(r"_[a-z0-9][a-z0-9_-]{0,63}")
_EVERY_LOCALE: Final = ""
_COMMENT: Final = re.compile(r"{#.*?#}", re.DOTALL)
_REFERENCE: Final = re.compile(r"{%[-+]?\s*(?:extends|include|import|from)\s+(?:\"([^\"]*)\"|'([^']*)')?")


class Template(msgspec.Struct, frozen=True):
    """One parsed template. `locales` are sorted; `html_locales` are those that have an html part."""

    template_id: str
    declaration: Declaration
    locales: tuple[str, ...]
    html_locales: frozenset[str]


class Compiled(msgspec.Struct, frozen=True):
    """What came of a folder: usable only if `problems` is empty. `environments` are by locale."""

    templates: dict[str, Template]
    environments: dict[str, Environment]
    problems: frozenset[CatalogProblem]
    warnings: frozenset[CatalogProblem]


def compile_folder(folder: Folder) -> Compiled:
    """Compile every file of `folder` for each locale that uses it and check them against each other."""
    compiler = _Compiler()
    compiler.problems.update(folder.problems)
    compiler.sort_in(folder)
    compiler.check_complete()
    for locale in sorted({locale for locales in compiler.parts.values() for locale in locales}):
        compiler.compile(locale)
    templates = compiler.templates()
    for template in templates.values():
        compiler.check_names(template)
    return Compiled(
        templates, compiler.environments, frozenset(compiler.problems), frozenset(compiler.warnings)
    )


class _Unit(msgspec.Struct, frozen=True):
    """One compiled file: where it is, the names it needs and the files it refers to."""

    path: str
    needs: set[str]
    references: tuple[str, ...]


class _Compiler:
    """Collects the catalog, and every problem on the way."""

    __slots__ = ("declarations", "environments", "parts", "problems", "shared", "units", "warnings")

    def __init__(self) -> None:
        self.problems: set[CatalogProblem] = set()
        self.warnings: set[CatalogProblem] = set()
        self.declarations: dict[str, Declaration] = {}
        self.parts: dict[str, dict[str, dict[str, str]]] = {}  # template id -> locale -> part -> source
        self.shared: dict[str, dict[str, str]] = {}  # name in templates -> locale or _EVERY_LOCALE -> source
        self.environments: dict[str, Environment] = {}
        self.units: dict[str, dict[str, _Unit]] = {}  # locale -> name in templates -> unit

    def sort_in(self, folder: Folder) -> None:
        for path in folder.folders:
            self._sort_folder(path)
        for path, text in folder.texts.items():
            self._sort_text(path, text)

    def check_complete(self) -> None:
        if not self.parts and not self.problems:
            self._report(
                ".", "holds no template; add <template_id>/template.toml and <template_id>/en/{subject,text}"
            )
        for template_id, locales in self.parts.items():
            if template_id not in self.declarations:
                self._report_missing(f"{template_id}/{DECLARATION}")
            if DEFAULT_LOCALE not in locales:
                self._report(template_id, f"has no default locale; add {template_id}/{DEFAULT_LOCALE}")
            for locale, parts in locales.items():
                for part in REQUIRED_PARTS:
                    if part not in parts:
                        self._report_missing(f"{template_id}/{locale}/{part}")
                if "html" in locales.get(DEFAULT_LOCALE, ()) and "html" not in parts:
                    self._warn(
                        f"{template_id}/{locale}/html", f"is missing although {DEFAULT_LOCALE} has one"
                    )
        for name, sources in self.shared.items():
            if DEFAULT_LOCALE not in sources and _EVERY_LOCALE not in sources:
                self._report(
                    _shared_path(name, DEFAULT_LOCALE), "is missing; it is the default of the others"
                )
            if _EVERY_LOCALE in sources and len(sources) > 1:
                self._report(name, "stands both beside the locale folders and in them; keep one")

    def compile(self, locale: str) -> None:
        """Build the engine of `locale` from the shared files nearest to it and its own parts."""
        self.environments[locale] = build_environment(locale)
        self.units[locale] = {}
        for name, sources in self.shared.items():
            chosen = _EVERY_LOCALE
            if chosen not in sources:
                chosen = negotiate(locale, tuple(sorted({*sources, DEFAULT_LOCALE})))[-1]
            self._add(locale, name, _shared_path(name, chosen), sources.get(chosen, ""))
        for template_id, locales in self.parts.items():
            for part, source in locales.get(locale, {}).items():
                text = source.strip() if part == "subject" else source
                self._add(locale, f"{template_id}/{part}", f"{template_id}/{locale}/{part}", text)

    def templates(self) -> dict[str, Template]:
        """Return the templates whose declaration could be read."""
        return {
            template_id: Template(
                template_id,
                self.declarations[template_id],
                tuple(sorted(locales)),
                frozenset(locale for locale, parts in locales.items() if "html" in parts),
            )
            for template_id, locales in self.parts.items()
            if template_id in self.declarations
        }

    def check_names(self, template: Template) -> None:
        """Hold the names that a template and its shared files use against those it declares."""
        path = f"{template.template_id}/{DECLARATION}"
        declared, used = set(template.declaration.variables), set[str]()
        for locale in template.locales:
            own = set(self.environments[locale].globals)
            for name in declared & own:
                self._report(path, f"declares `{name}`, which every template already has; name it otherwise")
            known = declared | own
            for part in self.parts[template.template_id][locale]:
                for unit in self._reached(locale, f"{template.template_id}/{part}"):
                    used |= unit.needs
                    for name in unit.needs - known:
                        self._report(unit.path, f"uses `{name}`, which {path} does not declare")
        for name in declared - used:
            self._warn(path, f"declares `{name}`, which no part uses")

    def _report(self, path: str, message: str) -> None:
        self.problems.add(CatalogProblem(path, message))

    def _report_missing(self, path: str) -> None:
        if not any(problem.path == path for problem in self.problems):  # it may be there and faulty
            self._report(path, "is missing")

    def _warn(self, path: str, message: str) -> None:
        self.warnings.add(CatalogProblem(path, message))

    def _sort_folder(self, path: str) -> None:
        top, *below = path.split("/")
        if not below and TEMPLATE_ID.fullmatch(top):
            self.parts[top] = {}
        elif not below and not _SHARED.fullmatch(top):
            self._report(
                path, "is no template id; use a-z, 0-9, - and _, and a leading _ for shared files only"
            )
        elif below:
            fault = _locale_fault(below[0])
            if fault:
                self._report(path, fault)
            elif top in self.parts:
                self.parts[top][below[0]] = {}

    def _sort_text(self, path: str, text: str) -> None:
        match path.split("/"):
            case [_]:
                self._report(path, "is not part of a catalog, whose top holds folders only; remove it")
            case [top, *locale, file] if _SHARED.fullmatch(top):
                if not locale or not _locale_fault(locale[0]):
                    self.shared.setdefault(f"{top}/{file}", {})["".join(locale) or _EVERY_LOCALE] = text
            case [top, *_] if top not in self.parts:
                pass  # reported with its folder
            case [template_id, file] if file == DECLARATION:
                self._declare(template_id, path, text)
            case [template_id, locale, part] if part in PARTS:
                self.parts[template_id].get(locale, {})[part] = text
            case _:
                self._report(
                    path, "is unknown; a template has template.toml, and a locale subject, text and html"
                )

    def _declare(self, template_id: str, path: str, text: str) -> None:
        declaration, messages = parse_declaration(text)
        for message in messages:
            self._report(path, message)
        if declaration:
            self.declarations[template_id] = declaration

    def _add(self, locale: str, name: str, path: str, source: str) -> None:
        environment = self.environments[locale]
        try:
            environment.add_template(name, source)
            needs = environment.undeclared_variables_in_template(name)
        except TemplateError as fault:
            self._report(path, f"line {fault.line}: {fault.detail or fault.kind}")
            needs = set()
        self.units[locale][name] = _Unit(path, needs, tuple(self._references(path, source)))

    def _references(self, path: str, source: str) -> Iterator[str]:
        for match in _REFERENCE.finditer(_COMMENT.sub("", source)):
            name = match[1] or match[2]
            if name:
                yield name
            else:
                self._report(path, f"`{match[0].strip()}` needs the name of a shared file in quotes")

    def _reached(self, locale: str, name: str) -> Iterator[_Unit]:
        """Yield the unit of `name` and, once each, those it reaches; report references to nothing."""
        units, waiting, seen = self.units[locale], [name], {name}
        while waiting:
            unit = units[waiting.pop()]
            yield unit
            for reference in unit.references:
                if reference not in units:
                    self._report(unit.path, f"refers to `{reference}`, which the catalog does not have")
                elif reference not in seen:
                    seen.add(reference)
                    waiting.append(reference)


def _shared_path(name: str, locale: str) -> str:
    top, file = name.split("/")
    return f"{top}/{locale}/{file}" if locale else name


def _locale_fault(name: str) -> str | None:
    try:
        canonical = check_locale(name)
        Locale.parse(canonical, sep="-")
    except (CommandError, UnknownLocaleError, ValueError):
        return "is not a locale that CLDR knows; name it like en, pt-BR or zh-Hant"
    return None if canonical == name else f"is not written canonically; name it {canonical}"
