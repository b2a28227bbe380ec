"""What Mailkeep answers, as values. Readers raise KeyError, TypeError or ValueError for what is no answer of Mailkeep's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from mailkeep.client.errors import RejectedError
from mailkeep.client.http11 import Answer


@dataclass(frozen=True, slots=True)
class Accepted:
    """The mail is Mailkeep's now: it is durable. `replayed`: it already was, under the same key.

    `status` is the delivery's at birth, as the first call was told; None where the answer does not say it (batches).
    """

    delivery_id: UUID
    status: str | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class LoginCodeAccepted:
    """The code is durable. `outcome` is `sent` (it will be sent), or `suppressed`: no mail goes to this address."""

    delivery_id: UUID
    outcome: str
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where a delivery stands; `raw` is everything that was answered. Recipients are masked in it."""

    delivery_id: UUID
    status: str
    attempts: int
    accepted_at: datetime
    due_at: datetime | None
    finished_at: datetime | None
    reason: str | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        """Whether its status is its last."""
        return self.finished_at is not None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to hand a delivery to a next hop, with the hop's `code`, `enhanced` code and `reply`; `raw` is all of it."""

    number: int
    status: str
    started_at: datetime
    finished_at: datetime | None
    certainty: str | None
    code: int | None
    enhanced: str | None
    reply: str | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)


def read_accepted(answer: Answer) -> Accepted:
    """Return the acceptance of one mail."""
    members = _members(answer)
    return Accepted(UUID(str(members["delivery_id"])), str(members["status"]), _replayed(answer))


def read_login_code(answer: Answer) -> LoginCodeAccepted:
    """Return the acceptance of a login code."""
    members = _members(answer)
    return LoginCodeAccepted(UUID(str(members["delivery_id"])), str(members["outcome"]), _replayed(answer))


def read_batch(answer: Answer, count: int) -> list[Accepted | RejectedError | str]:
    """Return one entry for each of `count` commands; a word says why one is still open."""
    entries = _members(answer)["answers"]
    if len(entries) != count:
        raise ValueError("not one answer for each command")
    return [_batch_entry(entry) for entry in entries]


def read_delivery(answer: Answer) -> Delivery:
    """Return one delivery."""
    members = _members(answer)
    return Delivery(
        delivery_id=UUID(str(members["delivery_id"])),
        status=str(members["status"]),
        attempts=int(members["attempts"]),
        accepted_at=datetime.fromisoformat(members["accepted_at"]),
        due_at=_instant(members.get("due_at")),
        finished_at=_instant(members.get("finished_at")),
        reason=members.get("reason"),
        raw=members,
    )


def read_attempts(answer: Answer) -> tuple[Attempt, ...]:
    """Return a delivery's attempts in order."""
    return tuple(
        Attempt(
            number=int(members["number"]),
            status=str(members["status"]),
            started_at=datetime.fromisoformat(members["started_at"]),
            finished_at=_instant(members.get("finished_at")),
            certainty=members.get("certainty"),
            code=members.get("code"),
            enhanced=members.get("enhanced"),
            reply=members.get("reply"),
            raw=members,
        )
        for members in _members(answer)["attempts"]
    )


def read_refusal(answer: Answer) -> RejectedError:
    """Return the refusal in a 4xx answer, whoever gave it."""
    try:
        return _rejected(answer.status, _members(answer))
    except (TypeError, ValueError):
        return RejectedError(answer.status)


def _batch_entry(entry: Mapping[str, Any]) -> Accepted | RejectedError | str:
    status = int(entry["status"])
    if status >= 500:
        return f"HTTP {status}"
    if status >= 400:
        return _rejected(status, dict(entry["problem"]))
    return Accepted(UUID(str(entry["delivery_id"])), replayed=bool(entry.get("replayed")))


def _rejected(status: int, problem: Mapping[str, Any]) -> RejectedError:
    return RejectedError(
        status, *(str(problem.get(name, "")) for name in ("type", "code", "field", "detail"))
    )


def _members(answer: Answer) -> dict[str, Any]:
    try:
        members = json.loads(answer.body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(members, dict):
        raise TypeError("not a JSON object")
    return members


def _replayed(answer: Answer) -> bool:
    return answer.headers.get("idempotent-replayed") == "true"


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
