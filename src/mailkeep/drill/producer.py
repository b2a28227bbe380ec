"""The producer: the mails that drills and acceptance tests submit, and how one is put to a replica over HTTP.

Recipients are unique, so that no encoding on the way can hide whose copy arrived. One call is one try: whatever came of
it, also a cut connection, is an answer that the ledger keeps; who wants to repeat does so under the same key.
"""

import http.client
import json
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

from mailkeep.drill.ledger import Answer, Submission

API: Final = "/api/v1/internal"
DELIVERIES: Final = f"{API}/deliveries"
LOGIN_CODES: Final = f"{API}/login-code-deliveries"
DOMAIN: Final = "sinkhole.test"


def mail(number: int, *, script: str = "", domain: str = DOMAIN, **fields: Any) -> Submission:  # noqa: ANN401 - any JSON
    """Return the `number`th mail of a mixture: a login code, a rendered one, one to four recipients, a template.

    `script` is put before a recipient (`defer-1x` makes the sinkhole defer the first attempt), except in login codes;
    `fields` are more fields of the command.
    """
    tag = uuid4().hex[:10]
    match number % 4:
        case 0:
            return login_code(f"code-{tag}@{domain}")
        case 1:
            return rendered([f"{script}{tag}@{domain}"], **fields)
        case 2:
            to = [f"{script}to-{tag}@{domain}", f"too-{tag}@{domain}"]
            return rendered(to, cc=[f"cc-{tag}@{domain}"], bcc=[f"bcc-{tag}@{domain}"], **fields)
        case _:
            return template([f"{script}order-{tag}@{domain}"], **fields)


def rendered(
    to: Sequence[str],
    *,
    cc: Sequence[str] = (),
    bcc: Sequence[str] = (),
    **fields: Any,  # noqa: ANN401 - any JSON
) -> Submission:
    """Return a mail that comes rendered, with a dot at the start of a line and letters beyond ASCII in it."""
    payload = {"to": to, "cc": cc, "bcc": bcc, "subject": "Hello", "text": "Grüße.\n.\n..dots\n"}
    body = {"payload_mode": "rendered", "payload": payload, **fields}
    return Submission(uuid4().hex, DELIVERIES, body, (*to, *cc, *bcc))


def template(to: Sequence[str], **fields: Any) -> Submission:  # noqa: ANN401 - any JSON
    """Return a mail that the catalog renders."""
    variables = {
        "order_number": "A-10042",
        "ordered_at": "2026-03-14T15:09:26+01:00",
        "items": [{"name": "Coffee beans, 1 kg", "quantity": 2, "amount": 37.80}],
        "currency": "EUR",
        "total": 37.80,
    }
    payload = {"to": to, "template_id": "order-confirmation", "locale": "en", "variables": variables}
    body = {"source": "notification", "payload_mode": "template", "payload": payload, **fields}
    return Submission(uuid4().hex, DELIVERIES, body, tuple(to))


def login_code(email: str, **fields: Any) -> Submission:  # noqa: ANN401 - any JSON
    """Return a login code."""
    body = {"email": email, "code": "493817", "locale": "en", **fields}
    return Submission(uuid4().hex, LOGIN_CODES, body, (email,))


def post(connection: http.client.HTTPConnection, submission: Submission) -> Answer | None:
    """Put `submission` to a replica once; None if no whole answer came."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": submission.key}
    try:
        connection.request("POST", submission.path, json.dumps(submission.body), headers)
        response = connection.getresponse()
        content = json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException):
        connection.close()  # opened again by the next request
        return None
    return Answer(
        response.status,
        content.get("delivery_id") if response.status < http.HTTPStatus.MULTIPLE_CHOICES else None,
        is_replayed=response.getheader("Idempotent-Replayed") == "true",
        retry_after=response.getheader("Retry-After"),
    )
