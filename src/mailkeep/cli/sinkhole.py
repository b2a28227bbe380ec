"""`mailkeep sinkhole`: run an SMTP server whose answers are chosen at run time, and choose them.

Exit codes: 0 done, 1 it can't run or the mode can't be read or written, 2 wrong usage.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mailkeep.cli.output import fail

if TYPE_CHECKING:
    import ssl

    from mailkeep.sinkhole.mode_source import ModeSource
    from mailkeep.sinkhole.script import Mode
    from mailkeep.sinkhole.server import Sinkhole


class _RunUnlessNamed(TyperGroup):
    """Takes `mailkeep sinkhole --port 2525` for `mailkeep sinkhole run --port 2525`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own context type is private
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunUnlessNamed, help="An SMTP server for development, drills and tests, whose answers you choose."
)

ModeFile = Annotated[
    Path | None,
    typer.Option(envvar="MAIL_SINKHOLE_MODE_FILE", help="File that holds the mode (default: one a user)."),
]
ModeRedis = Annotated[
    str | None,
    typer.Option(envvar="MAIL_SINKHOLE_MODE_REDIS", help="Redis URL; the mode is in its mail:sinkhole:mode."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


@app.command()
def run(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 2525,
    mode: Annotated[
        str | None, typer.Option(help="Mode to begin with, e.g. accept, defer-3x, drop@dot.")
    ] = None,
    mode_file: ModeFile = None,
    mode_redis: ModeRedis = None,
    capture_file: Annotated[
        Path | None, typer.Option(help="Append a JSON line for each message taken.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain; offers STARTTLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    implicit_tls: Annotated[
        bool, typer.Option("--implicit-tls", help="TLS from the first octet instead of STARTTLS.")
    ] = False,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Take messages with bare CR, bare LF or NUL.")
    ] = False,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let a non-loopback host be listened on.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer mail as the mode says (defer unless the mode file or --mode says otherwise) until interrupted."""
    import sys

    import uvloop

    from mailkeep.sinkhole import report
    from mailkeep.sinkhole.capture import Capture
    from mailkeep.sinkhole.server import Sinkhole, SinkholeRefusedError, refuse_in_production
    from mailkeep.sinkhole.session import Limits

    as_json = as_json or not sys.stdout.isatty()
    render = report.as_json if as_json else report.readable
    try:
        refuse_in_production(_environment())
        sinkhole = Sinkhole(
            _source(mode, mode_file, mode_redis, as_json=as_json),
            Capture(capture_file),
            environment=_environment(),
            allow_remote=allow_remote,
            limits=Limits(is_strict=not lenient),
            tls=_tls(tls_cert, tls_key, implicit_tls=implicit_tls),
            implicit_tls=implicit_tls,
            observe=lambda exchange: print(render(exchange), flush=True),
            notice=lambda text: _print_event("sinkhole_notice", text, as_json=as_json),
        )
        uvloop.run(_serve(sinkhole, host, port, as_json=as_json))
    except SinkholeRefusedError as refusal:
        fail(str(refusal))
    except OSError as fault:
        fail(f"the sinkhole can't run: {fault}")


@app.command()
def mode(
    mode: Annotated[
        str | None, typer.Argument(help="The new mode; without it the present one is shown.")
    ] = None,
    *,
    mode_file: ModeFile = None,
    mode_redis: ModeRedis = None,
    as_json: Json = False,
) -> None:
    """Show the mode, or change it for every sinkhole that follows the file or the Redis key."""
    import asyncio

    from mailkeep.sinkhole import mode_source
    from mailkeep.sinkhole.script import UnknownModeError, describe

    wanted = _parsed(mode) if mode is not None else None
    path = mode_file or _default_mode_file()
    place = f"the Redis key {mode_source.REDIS_MODE_KEY}" if mode_redis else str(path)
    delay_s = mode_source.REDIS_POLL_S + mode_source.REDIS_TIMEOUT_S if mode_redis else 0.0
    try:
        before = _present(path, mode_redis, is_replaced=wanted is not None)
        if wanted and mode_redis:
            asyncio.run(mode_source.write_redis_mode(mode_redis, wanted))
        elif wanted:
            mode_source.write_mode_file(path, wanted)
    except (OSError, UnknownModeError) as fault:
        fail(f"{place}: {fault}")
    present = wanted or before
    if present is None:
        fail(f"{place} holds no mode yet; a sinkhole that follows it defers")
    text = f"{present}  ({describe(present)})  in {place}"
    if wanted:
        when = f"within {delay_s:g} s" if delay_s else "at once"
        text = (
            f"{before or 'no mode'} -> {text}\n"
            f"Sinkholes that follow it answer so {when}: new connections, and open ones from their next MAIL or RCPT on."
        )
    fields = {"before": str(before) if before else None, "mode": str(present), "in_force_within_s": delay_s}
    _print_event("sinkhole_mode", text, as_json=as_json, place=place, **fields)


async def _serve(sinkhole: "Sinkhole", host: str, port: int, *, as_json: bool) -> None:
    import asyncio
    import signal

    from mailkeep.sinkhole.script import describe

    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await sinkhole.start(host, port)
    mode = sinkhole.source.current()
    text = f"sinkhole on {host}:{sinkhole.port}, mode {mode} ({describe(mode)}); it delivers nothing. Stop with Ctrl-C."
    _print_event("sinkhole_started", text, as_json=as_json, host=host, port=sinkhole.port, mode=str(mode))
    await stopping.wait()
    await sinkhole.stop()
    count = sinkhole.capture.total_count
    _print_event("sinkhole_stopped", f"stopped; {count} messages taken", as_json=as_json, message_count=count)


def _source(
    mode: str | None, mode_file: Path | None, mode_redis: str | None, *, as_json: bool
) -> "ModeSource":
    """Return what the sinkhole follows; a mode given by name is written there first."""
    import asyncio

    from mailkeep.sinkhole import mode_source

    def notice(text: str) -> None:
        _print_event("sinkhole_notice", text, as_json=as_json)

    wanted = _parsed(mode) if mode is not None else None
    if mode_redis:
        if wanted:
            asyncio.run(mode_source.write_redis_mode(mode_redis, wanted))
        return mode_source.RedisModeSource(mode_redis, notice)
    path = mode_file or _default_mode_file()
    if wanted or not path.exists():
        mode_source.write_mode_file(path, wanted or mode_source.DEFAULT_MODE)
    return mode_source.FileModeSource(path, notice)


def _present(path: Path, mode_redis: str | None, *, is_replaced: bool) -> "Mode | None":
    """Return the mode that is written now; a word that is no mode counts as none if it `is_replaced`."""
    import asyncio

    from mailkeep.sinkhole import mode_source
    from mailkeep.sinkhole.script import UnknownModeError

    try:
        if mode_redis:
            return asyncio.run(mode_source.read_redis_mode(mode_redis))
        return mode_source.read_mode_file(path) if path.exists() else None
    except UnknownModeError:
        if not is_replaced:
            raise
        return None


def _parsed(mode: str) -> "Mode":
    from mailkeep.sinkhole.script import UnknownModeError, parse_mode

    try:
        return parse_mode(mode)
    except UnknownModeError as fault:
        raise typer.BadParameter(str(fault)) from fault


def _tls(certificate: Path | None, key: Path | None, *, implicit_tls: bool) -> "ssl.SSLContext | None":
    from mailkeep.sinkhole.server import server_tls

    if bool(certificate) != bool(key) or (implicit_tls and not certificate):
        raise typer.BadParameter("--tls-cert and --tls-key go together, and --implicit-tls needs them")
    return server_tls(certificate, key) if certificate and key else None


def _environment() -> str:
    return os.environ.get("MAIL_ENVIRONMENT", "development")


def _default_mode_file() -> Path:
    import platformdirs

    return platformdirs.user_state_path("mailkeep", ensure_exists=True) / "sinkhole.mode"


def _print_event(event: str, text: str, *, as_json: bool, **fields: object) -> None:
    import msgspec

    print(
        msgspec.json.encode({"event": event, **(fields or {"message": text})}).decode() if as_json else text,
        flush=True,
    )
