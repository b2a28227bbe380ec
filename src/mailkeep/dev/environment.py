"""The development environment: embedded PostgreSQL and Redis, a sinkhole as next hop, the service.

Whatever the user's own `MAIL_*` variables say wins over what is set up here. A state file in the data directory tells the
other commands (`mailkeep queue`, `mailkeep send`) where the running environment is.
"""

import contextlib
import functools
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, TextIO

import msgspec

from mailkeep.dev.state import STATE_FILE, DevState
from mailkeep.intake.listener import HttpListener
from mailkeep.settings import Environment, Settings
from mailkeep.sinkhole.api import SinkholeApi
from mailkeep.sinkhole.mode_source import FileModeSource, write_mode_file
from mailkeep.sinkhole.report import Exchange, readable
from mailkeep.sinkhole.script import parse_mode
from mailkeep.sinkhole.server import Sinkhole
from mailkeep.sinkhole.transcripts import Transcripts
from mailkeep.store.embedded import start_postgres, start_redis
from mailkeep.wiring import Service

MODE_FILE: Final = "sinkhole-mode"
SINKHOLE_LOG: Final = "sinkhole.log"
SINKHOLE_PORT: Final = 2525
SINKHOLE_HTTP_PORT: Final = 8025
STOP_HTTP_S: Final = 2.0
HTTP_PORT: Final = 8080
SEND_PORT: Final = 8081
CONSOLE_PORT: Final = 8082
LADDER: Final = "1s, 3s, 10s, 1m, 5m"
"""Short waits: whoever tries things out wants to see a retry, not to wait half an hour for it."""


class DevEnvironment(msgspec.Struct, frozen=True):
    """A running development environment."""

    state: DevState
    settings: Settings
    service: Service
    sinkhole: Sinkhole


@asynccontextmanager
async def development(
    data_dir: Path, environ: Mapping[str, str], *, any_port: bool = False
) -> AsyncIterator[DevEnvironment]:
    """Run the development environment under `data_dir`; everything is stopped at the end.

    Ports: 8080, 8081, 8082, 2525 and 8025 unless they are taken or `any_port` is set; then free ones. Raises `EmbeddedError`,
    `SettingsError`, `StartError`.
    """
    async with AsyncExitStack() as stack:
        postgres = start_postgres(data_dir)
        stack.callback(postgres.stop)
        redis = start_redis(data_dir)
        if redis is not None:
            stack.callback(redis.stop)
        mode_file = data_dir / MODE_FILE
        write_mode_file(mode_file, parse_mode("accept"))
        answers = stack.enter_context((data_dir / SINKHOLE_LOG).open("a", encoding="utf-8"))
        sinkhole = Sinkhole(
            FileModeSource(mode_file, notice=lambda _text: None),
            transcripts=Transcripts(),
            observe=functools.partial(_write, answers),
        )
        await _start_sinkhole(sinkhole, 0 if any_port else SINKHOLE_PORT)
        stack.push_async_callback(sinkhole.stop)
        looks = HttpListener(
            SinkholeApi(sinkhole), "127.0.0.1", _free_port(0 if any_port else SINKHOLE_HTTP_PORT)
        )
        await looks.start()
        stack.push_async_callback(looks.stop, STOP_HTTP_S)
        settings = Settings.load(
            {
                "MAIL_POSTGRES_DSN": postgres.dsn,
                "MAIL_SMTP_MODE": "smtp",
                "MAIL_SMTP_ADDR": f"127.0.0.1:{sinkhole.port}",
                "MAIL_SMTP_TLS": "none",
                "MAIL_SMTP_FROM_EMAIL": "mailkeep@sinkhole.test",
                "MAIL_SMTP_FROM_NAME": "Mailkeep",
                "MAIL_SINKHOLE_ADDR": f"127.0.0.1:{sinkhole.port}",
                "MAIL_INTERNAL_HTTP_ADDR": f"127.0.0.1:{_free_port(0 if any_port else HTTP_PORT)}",
                "MAIL_SEND_HTTP_ADDR": f"127.0.0.1:{_free_port(0 if any_port else SEND_PORT)}",
                "MAIL_CONSOLE_ADDR": f"127.0.0.1:{0 if any_port else _free_port(CONSOLE_PORT)}",
                "MAIL_SINKHOLE_URL": f"http://127.0.0.1:{looks.port}",
                "MAIL_RETRY_LADDER_AUTH": LADDER,
                "MAIL_RETRY_LADDER_TRANSACTIONAL": LADDER,
                "MAIL_RETRY_LADDER_RELAY": LADDER,
                "MAIL_ENVIRONMENT": Environment.DEVELOPMENT,
                **({"MAIL_REDIS_MASTER_ADDR": str(redis.socket)} if redis else {}),
                **environ,
            }
        )
        service = await Service.start(settings)
        stack.push_async_callback(service.stop)
        address = service.http_address
        state = DevState(
            pid=os.getpid(),
            postgres_dsn=postgres.dsn,
            http_host=address.host,
            http_port=address.port,
            sinkhole_port=sinkhole.port,
            mode_file=str(mode_file),
            redis_socket=str(redis.socket) if redis else None,
            sinkhole_url=f"http://127.0.0.1:{looks.port}",
            send_url=f"http://{service.send_address}" if service.send_address else None,
            console_url=f"http://{service.console_address}" if service.console_address else None,
        )
        state_file = data_dir / STATE_FILE
        state_file.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        stack.callback(state_file.unlink, missing_ok=True)
        yield DevEnvironment(state, settings, service, sinkhole)


def _write(answers: TextIO, exchange: Exchange) -> None:
    answers.write(f"{readable(exchange)}\n")
    answers.flush()


async def _start_sinkhole(sinkhole: Sinkhole, port: int) -> None:
    with contextlib.suppress(OSError):
        await sinkhole.start(port=port)
        return
    await sinkhole.start(port=0)


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
