"""Pages about what comes in: templates as their examples render, in any locale, and commands that could not be taken.

Of a malformed command the fields that hold no content are shown; `mailkeep malformed show --raw` has the rest.
"""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mailkeep.console.deliveries import mail_html
from mailkeep.console.desk import PAGE_ROWS, Desk, asked, id_in, id_of_page, missing, query_of
from mailkeep.core.command import CommandError, FailureCode, Limits
from mailkeep.core.delivery import Source
from mailkeep.operator.malformed import MalformedPage
from mailkeep.templates.compile import Template
from mailkeep.templates.locale import DEFAULT_LOCALE
from mailkeep.templates.render import Rendered

PLAIN_FIELDS: Final = frozenset(
    {
        b"delivery_id",
        b"source",
        b"payload_mode",
        b"requested_at_ms",
        b"class",
        b"expires_at_ms",
        b"send_at_ms",
        b"traceparent",
    }
)
"""Fields of a command that hold neither content nor addresses."""
MAX_FIELDS: Final = 100
MAX_VALUE_CHARS: Final = 200
_NO_PAGE: Final = MalformedPage((), None)


class CatalogPages:
    """The pages about templates and malformed commands."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @property
    def routes(self) -> list[BaseRoute]:
        """What they answer."""
        return [
            Route("/templates", self.templates),
            Route("/templates/{id}", self.template),
            Route("/templates/{id}/html", self.html),
            Route("/malformed", self.list_malformed),
            Route("/malformed/{id}", self.show_malformed),
        ]

    async def templates(self, request: Request) -> Response:
        """List the templates."""
        catalog = self._desk.catalog
        listed = [
            {
                "id": template.template_id,
                "description": template.declaration.description,
                "locales": template.locales,
                "variables": list(template.declaration.variables),
                "sensitive": template.declaration.sensitive,
            }
            for _, template in sorted(catalog.templates.items())
        ]
        return self._desk.page(request, "templates", templates=listed, catalog_version=catalog.version)

    async def template(self, request: Request) -> Response:
        """Show what one template makes of its examples."""
        template = self._template(request)
        locale, rendered, fault = asked(request, "locale") or DEFAULT_LOCALE, None, None
        try:
            rendered = self._render(template, locale)
        except CommandError as refused:
            fault = f"{refused.field}: {refused.message}"
        variables = [
            {
                "name": name,
                "type": each.type,
                "required": each.required,
                "sensitive": each.sensitive,
                "description": each.description,
            }
            for name, each in template.declaration.variables.items()
        ]
        return self._desk.page(
            request,
            "template",
            status=400 if fault else 200,
            template_id=template.template_id,
            description=template.declaration.description,
            locales=template.locales,
            locale=locale,
            rendered=rendered,
            variables=variables,
            fault=fault,
        )

    async def html(self, request: Request) -> Response:
        """Return the HTML alone, for its frame."""
        try:
            rendered = self._render(self._template(request), asked(request, "locale") or DEFAULT_LOCALE)
        except CommandError:
            raise missing("such locale") from None
        if rendered.html is None:
            raise missing("HTML part")
        return mail_html(rendered.html)

    def _template(self, request: Request) -> Template:
        template = self._desk.catalog.templates.get(request.path_params["id"])
        if template is None:
            raise missing("template")
        return template

    def _render(self, template: Template, locale: str) -> Rendered:
        examples = template.declaration.samples()["the examples"]
        return self._desk.catalog.render(template.template_id, locale, examples, Limits())

    async def list_malformed(self, request: Request) -> Response:
        """List commands that could not be taken."""
        fault, found = None, _NO_PAGE
        code, source = asked(request, "code"), asked(request, "source")
        try:
            cursor = id_of_page(asked(request, "cursor"))
            found = await self._desk.malformed.page(PAGE_ROWS, cursor, code=code, source=source)
        except CommandError as refused:
            fault = f"{refused.field}: {refused.message}"
        return self._desk.page(
            request,
            "malformed",
            status=400 if fault else 200,
            records=found.malformed_commands,
            older=query_of({"code": code, "source": source, "cursor": found.cursor})
            if found.cursor
            else None,
            code=code or "",
            source=source or "",
            codes=list(FailureCode),
            sources=list(Source),
            fault=fault,
        )

    async def show_malformed(self, request: Request) -> Response:
        """Show one of them."""
        record_id = id_in(request, "malformed command")
        record = await self._desk.malformed.get(record_id)
        if record is None:
            raise missing("malformed command")
        raw = await self._desk.malformed.raw_fields(record_id)
        fields = [
            {
                "name": name.decode("utf-8", "backslashreplace")[:MAX_VALUE_CHARS],
                "value": value.decode("utf-8", "backslashreplace")[:MAX_VALUE_CHARS]
                if name in PLAIN_FIELDS
                else None,
                "size_bytes": len(value),
            }
            for name, value in sorted(raw.items())[:MAX_FIELDS]
        ]
        return self._desk.page(request, "malformed_one", record=record, fields=fields)
