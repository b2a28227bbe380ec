"""What schemathesis is told of this API beside the document: addresses, what no schema can say, what a run must have met.

Loaded by its command line, see `schemathesis.toml`.
"""

import ast
import sys
import threading
import time
from collections import defaultdict
from uuid import uuid4

import schemathesis
from http_kit import BATCH
from hypothesis import strategies as st

from mailkeep.core.command import EPOCH_MS_MAX
from mailkeep.core.ids import new_id

KEY = "Idempotency-Key"
BEYOND_SCHEMA = {
    # Whether a text is an address is judged part by part (RFC 5321, IDNA), and no pattern says that.
    *(
        ("invalid_address", name)
        for name in ("email", "from", "to[0]", "cc[0]", "bcc[0]", "reply_to[0]", "recipient")
    ),
    ("invalid_field", "recipient"),  # likewise, of a query
    ("invalid_field", "domain"),  # likewise, of a domain
    ("idempotency_conflict", "idempotency_key"),  # a case that breaks something else may have used the key
    ("live_mail", None),  # other cases sent mail to the address, and this one may not cancel it
    ("too_large", "payload.attachments"),  # their decoded sizes are bounded, each and in sum
}
"""Refusals of what fits the document, (code, field): it says them in words."""
NO_WHOLE_NUMBER = "got `float`"
"""JSON Schema takes 1.0 for an integer; the document says that Mailkeep does not."""
CHANGES = ("/hold", "/release", "/cancel", "/confirm", "/delete", "/resend", "/suppressions/{suppression_id}")
CONTENT = {"template_id": "welcome", "variables": {"product": "Notes", "start_url": "https://example.com"}}

MAILBOXES = [
    form.format(f"{name}@{domain}")
    for form in ("{}", "Ann <{}>", '"Ann, B." <{}>')
    for name in ("a", "ann", "ann.b+c", "x" * 64)
    for domain in ("example.org", "mail.example.com", "bücher.example.org")
]
"""Written out: made anew for each case they would cost most of the time of a run."""

if sys.version_info < (3, 12):
    # CPython 3.11 keeps one count of the depth of its trees for all threads: two that parse at once fail with "AST
    # constructor recursion depth mismatch". Hypothesis parses lambdas to describe them, in each worker.
    _parse, _one_at_a_time = ast.parse, threading.RLock()

    def _parse_alone(*args, **kwargs):
        with _one_at_a_time:
            return _parse(*args, **kwargs)

    ast.parse = _parse_alone

schemathesis.openapi.format("mailbox", st.sampled_from(MAILBOXES))
_keys = set()


@schemathesis.hook
def before_call(_context, case, _kwargs):
    """Put right what no schema can say, so that what fits the document can be taken."""
    if case.meta is None or not case.meta.generation.mode.is_positive or not isinstance(case.body, dict):
        return
    if KEY in (case.headers or {}):
        case.body.pop("idempotency_key", None)  # both must be equal
        case.headers[KEY] = _unused(case.headers[KEY])
    for command in case.body.get("commands", [case.body]):
        _put_right(command)


def _put_right(command):
    if command.get("idempotency_key"):
        command["idempotency_key"] = _unused(command["idempotency_key"])
    if command.get("delivery_id"):
        command["delivery_id"] = str(new_id(time.time()))
    if command.get("expires_at_ms") is not None:
        command["expires_at_ms"] = EPOCH_MS_MAX
        command["send_at_ms"] = None
    if "template_id" in command.get("payload", {}) and command["payload_mode"] == "template":
        command["payload"] |= CONTENT


def _unused(key):
    """Return `key`, or another one if it was used, however it was spelled."""
    bare = key.strip('"').replace("\\", "")
    if bare in _keys:
        return f"key-{uuid4()}"
    _keys.add(bare)
    return key


@schemathesis.hook
def filter_failure(_context, failure, case, response):
    """Drop what the document does not promise."""
    match type(failure).__name__:
        case "RejectedPositiveData":
            problem = response.json()
            known = (problem["code"], problem.get("field")) in BEYOND_SCHEMA
            return not known and NO_WHOLE_NUMBER not in problem["detail"]
        case "AcceptedNegativeData":
            return not _is_refused(response)
    return True


def _is_refused(response):
    if response.request.url.endswith(BATCH) and response.status_code == 200:
        return any("problem" in answer for answer in response.json()["answers"])
    return 400 <= response.status_code < 500


@schemathesis.check
class EveryOperationWasMet:
    """Each operation took what fits the document and refused what does not; changes by hand take what stands in one status."""

    def __init__(self):
        self._met = defaultdict(lambda: {"taken": 0, "refused": 0})
        self._responses = 0

    def after_response(self, _ctx, response, case):
        """Count."""
        self._responses += 1
        if case.meta is None:
            return
        met = self._met[case.operation.label]
        met["taken"] += case.meta.generation.mode.is_positive and response.status_code < 300
        met["refused"] += case.meta.generation.mode.is_negative and _is_refused(response)

    def after_run(self, _ctx):
        """Judge."""
        print(f"{self._responses} responses checked")  # noqa: T201 - part of the report
        for label, met in sorted(self._met.items()):
            print(f"{label}: taken {met['taken']}, refused {met['refused']}")  # noqa: T201 - part of the report
            assert met["refused"], f"{label} refused nothing"
            assert met["taken"] or label.endswith(CHANGES), f"{label} took nothing"
