"""A few real mails that show the main job, and what must become of each."""

import base64
import csv
import io
from typing import Any, Final

import msgspec

API: Final = "/api/v1/internal"


class Example(msgspec.Struct, frozen=True):
    """One example: what is posted where, and in how many attempts it must be `sent`."""

    title: str
    path: str
    body: dict[str, Any]
    attempts: int = 1


def examples() -> tuple[Example, ...]:
    """Return the examples in the order in which they are sent."""
    return (
        Example(
            "login code, English",
            f"{API}/login-code-deliveries",
            {"email": "ann@sinkhole.test", "code": "493817", "locale": "en"},
        ),
        Example(
            "login code, German",
            f"{API}/login-code-deliveries",
            {"email": "bernd@sinkhole.test", "code": "720164", "locale": "de-AT"},
        ),
        Example("order confirmation, French, HTML", f"{API}/deliveries", _order()),
        Example("report with an attachment", f"{API}/deliveries", _report()),
        Example(
            "deferred twice, then accepted",
            f"{API}/deliveries",
            _rendered(
                "defer-2x+carol@sinkhole.test", "Worth waiting for", "The third attempt delivers this.\n"
            ),
            attempts=3,
        ),
    )


def _rendered(to: str, subject: str, text: str, **more: object) -> dict[str, Any]:
    return {
        "source": "notification",
        "payload_mode": "rendered",
        "payload": {"to": [to], "subject": subject, "text": text, **more},
    }


def _order() -> dict[str, Any]:
    return {
        "source": "notification",
        "payload_mode": "template",
        "payload": {
            "to": ["Claire Dubois <claire@sinkhole.test>"],
            "template_id": "order-confirmation",
            "locale": "fr",
            "variables": {
                "order_number": "A-10042",
                "ordered_at": "2026-03-14T15:09:26+01:00",
                "items": [
                    {"name": "Café en grains, 1 kg", "quantity": 2, "amount": 37.80},
                    {"name": "Filtres en papier", "quantity": 1, "amount": 4.95},
                ],
                "currency": "EUR",
                "shipping": 3.90,
                "total": 46.65,
            },
        },
    }


def _report() -> dict[str, Any]:
    table = io.StringIO()
    csv.writer(table).writerows([("day", "orders"), ("Monday", 41), ("Tuesday", 57)])
    attachment = {
        "filename": "orders.csv",
        "content_type": "text/csv",
        "content": base64.b64encode(table.getvalue().encode()).decode(),
    }
    return _rendered(
        "dora@sinkhole.test", "Orders of the week", "The figures are attached.\n", attachments=[attachment]
    )
