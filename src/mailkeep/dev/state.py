"""The state file of a running development environment: how other commands find it."""

import os
from pathlib import Path
from typing import Final

import msgspec

STATE_FILE: Final = "dev.json"


class DevState(msgspec.Struct, frozen=True):
    """Where a running development environment is."""

    pid: int
    postgres_dsn: str
    http_host: str
    http_port: int
    sinkhole_port: int
    mode_file: str
    redis_socket: str | None = None
    sinkhole_url: str | None = None  # of its HTTP API
    console_url: str | None = None
    send_url: str | None = None  # where `POST /send` is

    @property
    def environ(self) -> dict[str, str]:
        """What other commands need in their environment to find it."""
        redis = {"MAIL_REDIS_MASTER_ADDR": self.redis_socket} if self.redis_socket else {}
        sinkhole = {"MAIL_SINKHOLE_URL": self.sinkhole_url} if self.sinkhole_url else {}
        return {
            "MAIL_POSTGRES_DSN": self.postgres_dsn,
            **redis,
            **sinkhole,
            "MAIL_INTERNAL_HTTP_ADDR": f"{self.http_host}:{self.http_port}",
        }


def running_state(data_dir: Path) -> DevState | None:
    """Return where the development environment under `data_dir` runs, or None if none does."""
    try:
        state = msgspec.json.decode((data_dir / STATE_FILE).read_bytes(), type=DevState)
        os.kill(state.pid, 0)
    except (OSError, msgspec.DecodeError):
        return None
    return state
