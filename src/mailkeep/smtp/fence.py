"""The fence: what the SMTP client asks its caller before it commits to anything (see "fencing token" in the contract)."""

from collections.abc import Awaitable, Callable
from typing import Protocol


class Fence(Protocol):
    """Guards one attempt. All but `commit_dot` answer at once, from memory."""

    def may_open_transaction(self) -> bool:
        """Whether the caller still holds its claim: asked just before MAIL is written."""

    def dot_allowed(self) -> bool:
        """Whether the final dot may leave: asked at the last moment, after `commit_dot`."""

    @property
    def commit_dot(self) -> Callable[[], Awaitable[bool]] | None:
        """For `at_most_once`: record durably that the dot is about to leave; False, or a failure, forbids it.

        None where no such mark is needed; the body then leaves in one write with its dot.
        """

    def dot_left(self) -> None:
        """Take note that the dot is leaving now: from here on, an attempt cut short has an unknown outcome."""
