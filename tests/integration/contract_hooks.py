"""What schemathesis is told of this API beside its document: see `test_contract_conformance.py`.

Loaded by the command line of schemathesis (`SCHEMATHESIS_HOOKS`), not by pytest.
"""

from collections import Counter

import schemathesis
from hypothesis import strategies as st

BATCH = "POST /api/v1/internal/deliveries/batch"
BEYOND_SCHEMA = {
    ("invalid_address", "recipient"),
}
"""Refusals of what fits the document: (code, field). No schema can say these; the document does in words."""

mailboxes = st.builds(
    "{}{}@{}{}".format,
    st.sampled_from(("", "Ann <", '"Ann, B." <')),
    st.from_regex(r"[a-z]{1,9}(\.[a-z]{1,9})?", fullmatch=True),
    st.sampled_from(("example.org", "mail.example.com", "xn--bcher-kva.example.org")),
    st.just(""),
).map(lambda text: f"{text}>" if "<" in text else text)
schemathesis.openapi.format("mailbox", mailboxes)


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Drop what the document can't promise."""
    if type(failure).__name__ == "RejectedPositiveData":
        problem = response.json()
        print(
            "REJECTED",
            response.status_code,
            problem["code"],
            problem.get("field"),
            problem["detail"],
            repr(case.body)[:300],
            case.query,
        )
        return (problem["code"], problem.get("field")) not in BEYOND_SCHEMA
    return True


@schemathesis.check
class EveryOperationWasMet:
    """Each operation took something that fits, and refused something that does not."""

    def __init__(self):
        self.met = Counter()

    def after_response(self, ctx, response, case):
        mode = case.meta.generation.mode.value if case.meta else "none"
        self.met[case.operation.label, mode, response.status_code // 100] += 1

    def after_run(self, ctx):
        for key, count in sorted(self.met.items()):
            print(*key, count)
