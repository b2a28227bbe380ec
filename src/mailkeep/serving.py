"""Runs the service in this process until it is told to stop, or supervises several processes that do.

Exit codes: 0 stopped in order, 69 (EX_UNAVAILABLE) a server it needs is away, 78 (EX_CONFIG) the configuration can't be
used, 1 a worker failed.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
from typing import Final

import structlog
import uvloop

from mailkeep.processes import Supervisor
from mailkeep.settings import Settings
from mailkeep.telemetry import log, otel, tracing
from mailkeep.wiring import Listening, Service, StartError

EXIT_FAILED: Final = 1
EXIT_UNAVAILABLE: Final = 69
EXIT_CONFIG: Final = 78
BACKLOG: Final = 2048
ORPHAN_LOOK_S: Final = 1.0
COLLECT_AFTER: Final = (20_000, 20, 50)
"""Objects that came beyond those that went, and collections of younger generations, before Python looks for cycles: it looked
after 700, which under load is some mails, of which hardly anything is ever in a cycle."""


def serve(
    settings: Settings,
    *,
    processes: int = 1,
    listen_fd: int | None = None,
    send_fd: int | None = None,
    console_fd: int | None = None,
    supervisor: int | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code.

    A child of a supervisor is given its sockets and its process number, and ends when that is no longer its parent.
    """
    # What a core dump would hold is other people's mail and our passwords; children inherit this.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log.configure(settings.log_level, settings.log_format, trace_ids=otel.trace_ids)
    if processes > 1:
        return _supervise(settings, processes)
    listening = Listening(
        internal=_inherited(listen_fd), send=_inherited(send_fd), console=_inherited(console_fd)
    )
    try:
        telemetry = otel.start()
    except otel.TelemetryError as fault:
        structlog.get_logger("service").error("can't start", error=str(fault))
        return EXIT_CONFIG
    if telemetry.traces:
        tracing.turn_on()
    try:
        return uvloop.run(_serve(settings, listening, supervisor, with_gauges=bool(telemetry.metrics)))
    finally:
        telemetry.stop()


def _supervise(settings: Settings, processes: int) -> int:
    addresses = {
        "--listen-fd": settings.internal_http_addr,
        "--send-fd": settings.send_http_addr,
        "--console-fd": settings.console_addr,
    }
    sockets: dict[str, socket.socket] = {}
    for option, address in addresses.items():
        if address is None:
            continue
        try:
            sockets[option] = socket.create_server((address.host, address.port), backlog=BACKLOG)
        except OSError as fault:
            structlog.get_logger("supervisor").error(
                "can't listen", host=address.host, port=address.port, error=fault.strerror
            )
            return EXIT_CONFIG
    return Supervisor(processes, sockets, settings.shutdown_timeout_s).run()


def _inherited(number: int | None) -> socket.socket | None:
    return None if number is None else socket.socket(fileno=number)


async def _serve(
    settings: Settings, listening: Listening, supervisor: int | None, *, with_gauges: bool
) -> int:
    logger = structlog.get_logger("service")
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        service = await Service.start(settings, listening, with_gauges=with_gauges)
    except StartError as fault:
        logger.error("can't start", error=str(fault))  # noqa: TRY400 - one clear line, no traceback
        return EXIT_UNAVAILABLE if fault.unavailable else EXIT_CONFIG
    # What lives now lives for ever: the collector need not look at it again. What comes later goes by itself, but for the few
    # cycles of exceptions and tasks, which may wait.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    waits = [asyncio.create_task(stopping.wait()), asyncio.create_task(service.wait())]
    if supervisor is not None:
        waits.append(asyncio.create_task(_until_orphaned(supervisor)))
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    failed = waits[1].done()
    for wait in waits:
        wait.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        if failed:
            logger.critical("a worker failed; stopping", exc_info=waits[1].exception())
    await service.stop()
    logger.info("service stopped")
    return EXIT_FAILED if failed else 0


async def _until_orphaned(supervisor: int) -> None:
    while os.getppid() == supervisor:  # noqa: ASYNC110 - nothing tells a process that its parent died
        await asyncio.sleep(ORPHAN_LOOK_S)
