"""Pages about templates: each as its examples render, in any locale."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mailkeep.console.deliveries import mail_html
from mailkeep.console.desk import Desk, asked, missing
from mailkeep.core.command import CommandError, Limits
from mailkeep.templates.compile import Template
from mailkeep.templates.locale import DEFAULT_LOCALE
from mailkeep.templates.render import Rendered


class CatalogPages:
    """The pages about templates."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @property
    def routes(self) -> list[BaseRoute]:
        """What they answer."""
        return [
            Route("/templates", self.templates),
            Route("/templates/{id}", self.template),
            Route("/templates/{id}/html", self.html),
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
