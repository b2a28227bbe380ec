"""Dumps of a database, and what is found in them: as it is written, in hexadecimal and in base64."""

import base64
import subprocess

from mailkeep.store.embedded import _postgres_folder


def forms(canary):
    """Return how a canary may be written: as it is, in hexadecimal (bytea of a dump), in base64 at each of its three offsets."""
    raw = canary.encode()
    shifted = (base64.b64encode(b"\0" * offset + raw)[4 if offset else 0 : -4] for offset in range(3))
    return (raw, raw.hex().encode(), *shifted)


def found_in(haystack, canaries):
    """Return which canaries are in `haystack`, in any letter case and form."""
    lower = haystack.lower()
    return {
        canary
        for canary in canaries
        if any(
            (form if index > 1 else form.lower()) in (haystack if index > 1 else lower)
            for index, form in enumerate(forms(canary))
        )
    }


def dump_of_all(dsn, *options):
    """Return a full dump of a database."""
    done = subprocess.run(
        [str(_postgres_folder() / "pg_dump"), *options, "--dbname", dsn], capture_output=True, check=True
    )
    return done.stdout


def dump_of_tables(dsn, *tables):
    """Return the dump of these tables and their partitions alone."""
    chosen = (part for table in tables for part in ("--table", f"mail.{table}*"))
    return dump_of_all(dsn, *chosen, "--data-only")
