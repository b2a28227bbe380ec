"""The catalog: every template of a deployment, parsed whole at start and immutable afterwards.

    <template_id>/template.toml               its description and variables (see `declaration`)
    <template_id>/<locale>/subject            one line
    <template_id>/<locale>/text
    <template_id>/<locale>/html               optional
    _<name>/<file>                            shared by all: {% extends "_layout/base.html" %}
    _<name>/<locale>/<file>                   likewise, chosen by locale under the name "_layout/footer.html"

Each template, and each shared file that is kept by locale, has `en`. A shared file may use `locale`, `dir`
and the variables that every template using it declares; other values reach it as blocks or arguments of
macros. `*.html` and `html` are escaped, the rest is not.

`Catalog.load` raises one `CatalogError` with every problem there is; there is no hot reload. Ids and locales
are looked up in what was parsed, never joined to a path. Called by `wiring` at start, by intake and the
attempt worker for each mail, and by `mailkeep templates`.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec
from minijinja import Environment, TemplateError

from mailkeep.core.command import CommandError, FailureCode, Limits
from mailkeep.templates.compile import Template, compile_folder
from mailkeep.templates.folder import CatalogProblem, read_folder
from mailkeep.templates.locale import negotiate
from mailkeep.templates.render import Rendered, render_body, render_subject

SHIPPED_CATALOG: Final = Path(__file__).parent / "catalog_default"
"""The templates that come with Mailkeep, to use as they are or to copy."""
VERSION_CHARS: Final = 16


class CatalogError(ValueError):
    """A catalog that can't be used; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: tuple[CatalogProblem, ...]) -> None:
        lines = "".join(f"\n  {problem.path}: {problem.message}" for problem in problems)
        super().__init__(f"the template catalog has {len(problems)} problem(s):{lines}")
        self.problems = problems


class Catalog(msgspec.Struct, frozen=True):
    """All templates. `version` is a hash of the files' contents; `warnings` are faults one can live with."""

    version: str
    templates: Mapping[str, Template]
    warnings: tuple[CatalogProblem, ...]
    environments: Mapping[str, Environment]

    @classmethod
    def load(cls, directory: Path) -> "Catalog":
        """Parse the catalog in `directory` and render every part with its examples. Raises `CatalogError`."""
        folder = read_folder(directory)
        compiled = compile_folder(folder)
        catalog = cls(
            version=_version(folder.texts),
            templates=MappingProxyType(compiled.templates),
            warnings=tuple(sorted(compiled.warnings)),
            environments=MappingProxyType(compiled.environments),
        )
        problems = {*compiled.problems, *_sample_problems(catalog, compiled.problems)}
        if problems:
            raise CatalogError(tuple(sorted(problems)))
        return catalog

    def render(self, template_id: str, locale: str, variables: Mapping[str, Any], limits: Limits) -> Rendered:
        """Render a template in the nearest locale it has.

        Raises `CommandError`: `unknown_template`, `invalid_locale`, `missing_variable`, `unknown_field` (not
        a variable of it), `invalid_field` (wrong type, or a subject of more than one line), `too_large`. No
        message holds a value.
        """
        template = self.templates.get(template_id)
        if template is None:
            raise CommandError(
                FailureCode.UNKNOWN_TEMPLATE, "payload.template_id", "is not the id of a template"
            )
        chain = negotiate(locale, template.locales)
        used = chain[-1]
        context = template.declaration.bind(variables, limits.variables_depth)
        environment, has_html = self.environments[used], used in template.html_locales
        return Rendered(
            subject=render_subject(environment, template_id, context, limits),
            text=render_body(environment, template_id, "text", context, limits),
            html=render_body(environment, template_id, "html", context, limits) if has_html else None,
            template_id=template_id,
            locale=used,
            locale_chain=chain,
            catalog_version=self.version,
            sensitive=template.declaration.sensitive,
        )


def _version(texts: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(digest_size=VERSION_CHARS // 2)
    for path, text in sorted(texts.items()):
        content = text.encode()
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _sample_problems(catalog: Catalog, known: frozenset[CatalogProblem]) -> Iterator[CatalogProblem]:
    """Render all templates that have no problem yet; one in a shared folder concerns every template."""
    faulty = {problem.path.split("/")[0] for problem in known}
    if any(top.startswith("_") for top in faulty):
        return
    for template_id, template in catalog.templates.items():
        for locale in template.locales if template_id not in faulty else ():
            for what, variables in template.declaration.samples().items():
                try:
                    catalog.render(template_id, locale, variables, Limits())
                except CommandError as fault:
                    message = f"does not render with {what}: {fault.message}{_detail(fault)}"
                    yield CatalogProblem(f"{template_id}/{locale}", message)
                    break


def _detail(fault: CommandError) -> str:
    """Return the engine's own words, which may show values and so are for examples only."""
    cause = fault.__context__
    return f": {cause.detail}" if isinstance(cause, TemplateError) and cause.detail else ""
