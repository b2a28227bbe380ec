"""The senders file: whose bearer may send from which addresses, by a claim of the access token (TOML).

A table for each claim, in it the value and what its bearer owns; where the claim is a list, each value counts:

    [client_id]
    billing = ["billing@example.org"]
    [groups]
    support = ["support@example.org", "@help.example.org"]
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from mailkeep.core.ownership import OwnershipError, parse_senders

MAX_FILE_BYTES: Final = 1024 * 1024


def read_senders(path: Path) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Return claim -> value -> addresses and domains. Raises ValueError, which says where the fault is."""
    try:
        text = path.read_bytes()[: MAX_FILE_BYTES + 1]
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
        tables = msgspec.convert(tomllib.loads(text.decode()), dict[str, dict[str, list[str]]])
    except OSError as fault:
        raise ValueError(f"can't be read: {fault.strerror}") from None
    except msgspec.ValidationError:
        raise ValueError("must have a table for each claim, with lists of addresses by its values") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as fault:
        raise ValueError(f"is not TOML: {fault}") from None
    return {
        claim: {value: _owned(claim, value, senders) for value, senders in values.items()}
        for claim, values in tables.items()
    }


def _owned(claim: str, value: str, senders: list[str]) -> tuple[str, ...]:
    try:
        return parse_senders(senders)
    except OwnershipError as fault:
        raise ValueError(f"[{claim}] {value}: {fault}") from None
