"""Suppressions as a file: CSV with a line of titles, bare addresses one a line, or JSON Lines (one object a line).

Members: `address`, and where wanted `reason`, `evidence`, `expires_at`; others are passed over, so that lists of other
services can be taken as they are. What `write_csv` and `json_line` write, `read_suppressions` reads. Pure; a fault names its line
and never repeats what stands there.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, TextIO, TypeAlias

import msgspec

from mailkeep.core.command import CommandError
from mailkeep.core.suppression import MAX_EVIDENCE_CHARS, NewSuppression, SuppressionReason
from mailkeep.operator.suppressions import parse_address, parse_reason
from mailkeep.store.suppressions import Suppression

MAX_LINES: Final = 500_000
"""Of one file: its suppressions are held in memory, some 100 MB, until all of it is known to be good."""
MAX_LINE_CHARS: Final = 8192
MAX_FAULTS: Final = 20
"""Told of one file: who must mend more than that mends what made it."""
TITLES: Final = ("address", "reason", "evidence", "expires_at")

_INSTANT: Final = Annotated[datetime, msgspec.Meta(tz=True)]


class SuppressionFileError(ValueError):
    """The file can't be taken; nothing of it was. Each of `faults` names its line."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def read_suppressions(
    lines: Iterable[str], *, json: bool, reason: SuppressionReason, evidence: str
) -> list[NewSuppression]:
    """Return the suppressions in `lines`; `reason` and `evidence` are of those that have none. Raises `SuppressionFileError`."""
    read: list[NewSuppression] = []
    faults: list[str] = []
    records = _json_records(lines) if json else _csv_records(lines)
    for number, record in records:
        try:
            read.append(_suppression(record, reason, evidence))
        except CommandError as fault:
            faults.append(f"line {number}: {fault.field}: {fault}")
        except ValueError as fault:
            faults.append(f"line {number}: {fault}")
        if len(read) > MAX_LINES:
            faults.append(f"line {number}: more than {MAX_LINES} addresses; split the file")
            break
        if len(faults) == MAX_FAULTS:
            faults.append("there may be more")
            break
    if faults:
        raise SuppressionFileError(faults)
    return read


def lines_of(file: TextIO) -> Iterator[str]:
    """Yield the lines of `file`; one that is too long comes in pieces, which are no good lines and fill no memory."""
    while line := file.readline(MAX_LINE_CHARS + 1):
        yield line


def write_csv(suppressions: Iterable[Suppression], out: TextIO, *, titles: bool) -> None:
    """Write `suppressions` as CSV, the titles first where wanted."""
    writer = csv.writer(out, lineterminator="\n")
    if titles:
        writer.writerow(TITLES)
    for suppression in suppressions:
        expires_at = suppression.expires_at.isoformat() if suppression.expires_at else ""
        writer.writerow((suppression.address, suppression.reason, suppression.evidence, expires_at))


def json_line(suppression: Suppression) -> str:
    """Return all that is known of a suppression as one line."""
    return msgspec.json.encode(suppression).decode()


_Record: TypeAlias = Mapping[str, Any] | ValueError
"""What a line says, or why it can't be read."""


def _json_records(lines: Iterable[str]) -> Iterator[tuple[int, _Record]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _json_record(line)


def _json_record(line: str) -> _Record:
    if len(line) > MAX_LINE_CHARS:
        return ValueError(f"is longer than {MAX_LINE_CHARS} characters")
    try:
        record: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError:
        return ValueError("is not a JSON object")
    return record


def _csv_records(lines: Iterable[str]) -> Iterator[tuple[int, _Record]]:
    rows = csv.reader(lines)
    titles: list[str] = []
    try:
        for row in rows:
            cells = [
                cell.strip().lstrip("\ufeff") for cell in row
            ]  # a spreadsheet begins with a byte order mark
            if not titles:
                named = [cell.lower() for cell in cells]
                titles = named if "address" in named else ["address"]
                if titles is named:
                    continue
            if any(cells):
                yield rows.line_num, _csv_record(titles, cells)
    except csv.Error:
        yield rows.line_num, ValueError("is not CSV")


def _csv_record(titles: list[str], cells: list[str]) -> _Record:
    if len(cells) > len(titles):
        return ValueError("has more cells than there are titles")
    return dict(zip(titles, cells, strict=False))  # cells at the end may be left out


def _suppression(record: _Record, reason: SuppressionReason, evidence: str) -> NewSuppression:
    if isinstance(record, ValueError):
        raise record
    members = {name: record.get(name) or "" for name in TITLES}
    if not all(isinstance(text, str) for text in members.values()):
        raise ValueError("has a member that is not a text")
    said = members["evidence"] or evidence
    if len(said) > MAX_EVIDENCE_CHARS or not said.isprintable():
        raise ValueError(f"evidence: must be at most {MAX_EVIDENCE_CHARS} printable characters")
    return NewSuppression(
        address=parse_address(members["address"], "address"),
        reason=parse_reason(members["reason"]) if members["reason"] else reason,
        evidence=said,
        expires_at=_instant(members["expires_at"]),
    )


def _instant(text: str) -> datetime | None:
    if not text:
        return None
    try:
        instant: datetime = msgspec.convert(text, _INSTANT)
    except msgspec.ValidationError:
        raise ValueError("expires_at: is not an instant such as 2026-12-31T00:00:00Z") from None
    return instant
