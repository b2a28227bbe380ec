"""What ends a call without success. No message holds an address, a token or anything of a mail.

    MailkeepError
    ├── RejectedError      Mailkeep said no: the same call will be refused again; change it
    ├── UnavailableError   no settling answer came in time: the outcome is unknown, repeating with the same key is safe
    └── BatchError         not every mail of `send_many` was accepted: `answers` tells for each

Arguments that can't even be sent (a naive datetime, a key with a line break) raise `ValueError` before anything leaves.
Every error can be pickled, as workers of other processes do.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailkeep.client.answers import Accepted


class MailkeepError(Exception):
    """Every error of this client."""


class RejectedError(MailkeepError):
    """Mailkeep refused the request (HTTP 4xx) and reserved nothing.

    `status`, `problem_type` (a stable URN), `code`, `field` and `detail` are the problem document's (RFC 9457); all but
    the status are empty where something on the way, such as a proxy, answered in its place.
    """

    def __init__(
        self, status: int, problem_type: str = "", code: str = "", field: str = "", detail: str = ""
    ) -> None:
        super().__init__(status, problem_type, code, field, detail)
        self.status, self.problem_type, self.code, self.field, self.detail = self.args

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.code else f"refused with HTTP {self.status}"


class UnavailableError(MailkeepError):
    """No answer settled the call in time; `reason` is the last thing that went wrong, `tries` how often it did.

    A mail may have been taken all the same. Repeat the call with the `idempotency_key` of this error: then there is one
    delivery, whether it was or not.
    """

    def __init__(self, reason: str, tries: int, idempotency_key: str | None = None) -> None:
        super().__init__(reason, tries, idempotency_key)
        self.reason, self.tries, self.idempotency_key = reason, tries, idempotency_key

    def __str__(self) -> str:
        what = f"no settling answer in {self.tries} tries ({self.reason})"
        if self.idempotency_key is None:
            return what
        return (
            f"{what}; whether the mail was taken is unknown, repeating with the same idempotency_key is safe"
        )


class BatchError(MailkeepError):
    """At least one mail of a batch was not accepted; `answers` has one entry for each mail, in order."""

    def __init__(self, answers: "tuple[Accepted | RejectedError | UnavailableError, ...]") -> None:
        super().__init__(answers)
        self.answers = answers

    @property
    def errors(self) -> tuple[RejectedError | UnavailableError, ...]:
        """The entries that are no acceptances."""
        return tuple(answer for answer in self.answers if isinstance(answer, MailkeepError))

    def __str__(self) -> str:
        errors = self.errors
        return f"{len(errors)} of {len(self.answers)} mails were not accepted; the first: {errors[0]}"
