"""A build that is broken on purpose: its queue does not outlive the start of a process."""

import sys

import asyncpg

from mailkeep.cli import main
from mailkeep.wiring import Service

begin = Service.start.__func__


async def start_and_forget(cls, settings, listening=None, *, with_gauges=False):
    """Start, and drop what was queued."""
    service = await begin(cls, settings, listening, with_gauges=with_gauges)
    connection = await asyncpg.connect(settings.postgres_dsn.reveal())
    await connection.execute("DELETE FROM mail.deliveries")
    await connection.close()
    return service


Service.start = classmethod(start_and_forget)
sys.argv[1:] = ["serve"]
main()
