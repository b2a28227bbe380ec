"""Which producer sends commands that can't be taken, and what is wrong with them. Pure; of raw fields only names are looked at."""

from collections.abc import Iterable
from typing import Final

import msgspec

from mailkeep.core.command import FailureCode
from mailkeep.core.malformed import raw_fields
from mailkeep.doctor.causes import Cause, Severity
from mailkeep.doctor.findings import Check, Finding, ago, finding, skipped, times
from mailkeep.doctor.symptoms import Symptoms, Unread
from mailkeep.intake.stream_entry import PAYLOAD, REQUIRED, REQUIRED_OF_STREAM
from mailkeep.store.diagnosis import MalformedGroup

CRITICAL_COUNT: Final = 10
MAX_FINDINGS: Final = 20
"""Producer and cause; beyond it the rest is counted."""
PAYLOAD_PREFIX: Final = "payload."
BY_CODE: Final = {
    FailureCode.MISSING_FIELD: Cause.FIELD_MISSING,
    FailureCode.UNKNOWN_FIELD: Cause.FIELD_UNKNOWN,
    FailureCode.INVALID_FIELD: Cause.FIELD_INVALID,
    FailureCode.INVALID_JSON: Cause.JSON_INVALID,
    FailureCode.INVALID_ADDRESS: Cause.ADDRESS_INVALID,
    FailureCode.INVALID_LOCALE: Cause.LOCALE_INVALID,
    FailureCode.UNSUPPORTED_PAYLOAD_MODE: Cause.FIELD_INVALID,
    FailureCode.UNSUPPORTED_SOURCE: Cause.FIELD_INVALID,
    FailureCode.UNKNOWN_TEMPLATE: Cause.TEMPLATE_UNKNOWN,
    FailureCode.MISSING_VARIABLE: Cause.VARIABLE_MISSING,
    FailureCode.TOO_LARGE: Cause.COMMAND_TOO_LARGE,
    FailureCode.IDEMPOTENCY_CONFLICT: Cause.KEY_REUSED,
    FailureCode.RESERVED_DOMAIN: Cause.DOMAIN_RESERVED,
}
_WANTED_IN_PAYLOAD: Final = {
    "rendered": (("to", "cc", "bcc"), ("subject",), ("text", "html")),
    "template": (("to", "cc", "bcc"), ("template_id",), ("locale",)),
}
"""Members of which a command needs one each."""


def malformed(symptoms: Symptoms) -> list[Check]:
    """Run the checks of malformed commands."""
    database = symptoms.database
    if isinstance(database, Unread):
        down = finding(Cause.DATABASE_UNREACHABLE, Severity.CRITICAL, database.why)
        return [Check("commands of producers", database.why, (down,))]
    groups = database.malformed
    if isinstance(groups, Unread):
        return [skipped("commands of producers", groups.why, failed=groups.missing)]
    by_cause: dict[tuple[Cause, str], list[MalformedGroup]] = {}
    for group in groups:
        by_cause.setdefault((_cause(group), group.source or "unknown"), []).append(group)
    count = sum(group.count for group in groups)
    found = tuple(_found(cause, source, alike) for (cause, source), alike in by_cause.items())[:MAX_FINDINGS]
    return [Check("commands of producers", f"{times(count, 'command')} not taken in the window", found)]


def _cause(group: MalformedGroup) -> Cause:
    if group.failure_code in (FailureCode.MISSING_FIELD, FailureCode.UNKNOWN_FIELD) and _renamed(group):
        return Cause.FIELD_RENAMED
    return BY_CODE.get(FailureCode(group.failure_code), Cause.FIELD_INVALID)


def _found(cause: Cause, source: str, alike: list[MalformedGroup]) -> Finding:
    count = sum(group.count for group in alike)
    severity = Severity.CRITICAL if count >= CRITICAL_COUNT else Severity.WARNING
    evidence = (
        f"{source}, by {group.intake}: {times(group.count, 'command')}, {group.failure_code}, field {group.field or '-'}:"
        f" {group.message}; the last {ago(group.last_s)}{_rename_told(group)}"
        for group in alike
    )
    return finding(cause, severity, *evidence, about=source)


def _rename_told(group: MalformedGroup) -> str:
    renamed = _renamed(group)
    return f"; {renamed[0]} is sent, {renamed[1]} is missing" if renamed else ""


def _renamed(group: MalformedGroup) -> tuple[str, str] | None:
    """Return the unknown name and the missing one where a command has the one instead of the other."""
    if group.raw is None:
        return None
    fields = raw_fields(group.raw)
    if not group.field.startswith(PAYLOAD_PREFIX):
        required = REQUIRED_OF_STREAM if group.intake == "stream" else REQUIRED
        names = [name.decode("ascii", "backslashreplace") for name in fields]
        return _pair(group, group.field, [name for name in required if name not in names])
    members = _members(fields.get(PAYLOAD.encode(), b""))
    mode = fields.get(b"payload_mode", b"").decode("ascii", "replace")
    wanted = _WANTED_IN_PAYLOAD.get(mode, ())
    missing = [names[0] for names in wanted if not members.intersection(names)]
    return _pair(group, group.field.removeprefix(PAYLOAD_PREFIX), missing)


def _pair(group: MalformedGroup, name: str, missing: list[str]) -> tuple[str, str] | None:
    if group.failure_code == FailureCode.UNKNOWN_FIELD and missing:
        return name, missing[0]
    return None


def _members(payload: bytes) -> set[str]:
    try:
        found: Iterable[str] = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return set()
    return set(found)
