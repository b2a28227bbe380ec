"""`mailkeep sinkhole`: run an SMTP server whose answers are chosen at run time, choose them, and look at what came.

Exit codes: 0 done, 1 it can't run, can't be asked, or the mode can't be read or written, 2 wrong usage.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from typer.core import TyperGroup

from mailkeep.cli.output import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailkeep.settings import Endpoint
    from mailkeep.sinkhole.certificates import Certificates
    from mailkeep.sinkhole.client import SinkholeClient
    from mailkeep.sinkhole.mode_source import ModeSource
    from mailkeep.sinkhole.script import Mode
    from mailkeep.sinkhole.server import Sinkhole
    from mailkeep.sinkhole.session import Credentials
    from mailkeep.sinkhole.transcripts import Line

T = TypeVar("T")

USUAL_HTTP: Final = "127.0.0.1:8025"
OFF: Final = "off"
STOP_HTTP_S: Final = 2.0  # its answers are small


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
ModeSsm = Annotated[
    str | None,
    typer.Option(
        envvar="MAIL_SINKHOLE_MODE_SSM", help="AWS SSM parameter that holds the mode; needs mailkeep[aws]."
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="MAIL_SINKHOLE_URL",
        help=f"A sinkhole's HTTP API (default: that of `mailkeep dev`, or http://{USUAL_HTTP}).",
    ),
]
TokenFile = Annotated[Path | None, typer.Option(help="File with its bearer token.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="How many to show.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


@app.command()
def run(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 2525,
    http: Annotated[
        str | None,
        typer.Option(
            help="Where its HTTP API listens: inbox, transcripts, mode; 'off' for none.",
            show_default=f"{USUAL_HTTP}, or a free port where that is taken",
        ),
    ] = None,
    http_token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token of the HTTP API; needed off loopback.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="Mode to begin with, e.g. accept, defer-3x, drop@dot.")
    ] = None,
    mode_file: ModeFile = None,
    mode_redis: ModeRedis = None,
    mode_ssm: ModeSsm = None,
    seed: Annotated[int, typer.Option(help="Seed of what a mode like tempfail~25% leaves to chance.")] = 0,
    greylist_window: Annotated[
        str, typer.Option(help="How long greylist lets through whom it has put off once.")
    ] = "30m",
    capture_file: Annotated[
        Path | None, typer.Option(help="Append a JSON line for each message taken.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain; offers STARTTLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    tls_ca_file: Annotated[
        Path | None,
        typer.Option(
            help="Offer STARTTLS with a certificate made here; its authority is written to this file."
        ),
    ] = None,
    implicit_tls: Annotated[
        bool, typer.Option("--implicit-tls", help="TLS from the first octet instead of STARTTLS.")
    ] = False,
    username: Annotated[str | None, typer.Option(help="Offer AUTH, and ask for this login.")] = None,
    password_file: Annotated[Path | None, typer.Option(help="File with its password.")] = None,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Take messages with bare CR, bare LF or NUL.")
    ] = False,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let a non-loopback host be listened on.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer mail as the mode says (defer unless the mode file or --mode says otherwise) until interrupted.

    For example `mailkeep sinkhole --mode accept`, `mailkeep sinkhole --mode stall@dot --tls-ca-file ca.pem`.
    """
    import sys

    import uvloop

    from mailkeep.sinkhole import report
    from mailkeep.sinkhole.capture import Capture
    from mailkeep.sinkhole.server import Sinkhole, SinkholeRefusedError, refuse_in_production
    from mailkeep.sinkhole.session import Limits
    from mailkeep.sinkhole.transcripts import Transcripts

    as_json = as_json or not sys.stdout.isatty()
    render = report.as_json if as_json else report.readable
    limits = Limits(is_strict=not lenient, greylist_window_s=_duration(greylist_window), seed=seed)
    try:
        refuse_in_production(_environment())
        endpoint, token = _http(http or _usual_http(), http_token_file, allow_remote=allow_remote)
        tls = _tls(host, tls_cert, tls_key, tls_ca_file, implicit_tls=implicit_tls)
        credentials = _credentials(username, password_file)
        sinkhole = Sinkhole(
            _source(mode, mode_file, mode_redis, mode_ssm, as_json=as_json),
            Capture(capture_file),
            environment=_environment(),
            allow_remote=allow_remote,
            limits=limits,
            tls=tls,
            implicit_tls=implicit_tls,
            credentials=credentials,
            transcripts=Transcripts() if endpoint else None,
            observe=lambda exchange: print(render(exchange), flush=True),
            notice=lambda text: _print_event("sinkhole_notice", text, as_json=as_json),
        )
        uvloop.run(_serve(sinkhole, host, port, endpoint, token, as_json=as_json))
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
    mode_ssm: ModeSsm = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Show the mode, or change it for every sinkhole that follows the file, the Redis key or the SSM parameter.

    With --url, or while `mailkeep dev` runs, the sinkhole there is asked, which changes it where it follows it. For example
    `mailkeep sinkhole mode defer-3x`, `mailkeep sinkhole mode drop@dot --url http://127.0.0.1:8025`.
    """
    from mailkeep.sinkhole import mode_source
    from mailkeep.sinkhole.client import SinkholeAwayError, SinkholeClient
    from mailkeep.sinkhole.script import UnknownModeError, describe, parse_mode

    wanted = _parsed(mode) if mode is not None else None
    if not (mode_file or mode_redis or mode_ssm):
        url = url or _url_of_running_dev()
    path = mode_file or _default_mode_file()
    place, delay_s, read, write = _place(path, mode_redis, mode_ssm)
    try:
        if url:
            place, delay_s, client = f"the sinkhole at {url}", 0.0, SinkholeClient(url, _token(token_file))
            before: Mode | None = parse_mode(client.mode().mode)
            if wanted:
                client.put_mode(str(wanted))
        else:
            before = _present(read, is_replaced=wanted is not None)
            if wanted:
                write(wanted)
    except SinkholeAwayError as fault:
        fail(str(fault))
    except (OSError, UnknownModeError) as fault:
        fail(f"{place}: {fault}")
    present = wanted or before
    if present is None:
        fail(f"{place} holds no mode yet; a sinkhole that follows it {mode_source.DEFAULT_MODE}s")
    text = f"{present}  ({describe(present)})  in {place}"
    if wanted:
        when = f"within {delay_s:g} s" if delay_s else "at once"
        text = (
            f"{before or 'no mode'} -> {text}\n"
            f"Sinkholes that follow it answer so {when}: new connections, and open ones from their next MAIL or RCPT on."
        )
    fields = {"before": str(before) if before else None, "mode": str(present), "in_force_within_s": delay_s}
    _print_event("sinkhole_mode", text, as_json=as_json, place=place, **fields)


@app.command()
def inbox(
    *,
    recipient: Annotated[str | None, typer.Option(help="Only what this address got.")] = None,
    limit: Limit = 50,
    clear: Annotated[bool, typer.Option("--clear", help="Empty it instead.")] = False,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """List the messages that a running sinkhole took, the newest first.

    They are in its memory: the newest 50,000 or 128 MB of them, and none after it ended. For example
    `mailkeep sinkhole inbox --recipient ann@sinkhole.test`.
    """
    from mailkeep.cli.output import print_json, table

    if clear:
        count = _asking(url, token_file, lambda client: client.forget())
        if as_json:
            print_json({"forgotten": count})
        else:
            print(f"{count} messages forgotten")
        return
    found = _asking(url, token_file, lambda client: client.inbox(recipient=recipient, limit=limit))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each.id,
            f"{each.received_at:%Y-%m-%d %H:%M:%S}",
            each.size_bytes,
            each.sender or "<>",
            f"{each.recipients[0]}{f' +{len(each.recipients) - 1}' if len(each.recipients) > 1 else ''}",
            each.connection_id,
            each.subject,
        )
        for each in found.messages
    ]
    if rows:
        print(table(("ID", "RECEIVED", "SIZE", "FROM", "TO", "CONNECTION", "SUBJECT"), rows))
    dropped = f"; the oldest {found.dropped} made room for newer ones" if found.dropped else ""
    print(f"-- {len(rows)} shown, {found.kept} in memory, {found.taken} taken{dropped}")


@app.command()
def show(
    message_id: Annotated[str, typer.Argument(metavar="ID", help="A message's id, as `inbox` lists it.")],
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Print its octets and nothing else.")] = False,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Show one message with its envelope. For example `mailkeep sinkhole show m1`, `… show m1 --raw > m1.eml`."""
    import sys

    from mailkeep.cli.output import print_json, printable

    if raw:
        sys.stdout.buffer.write(_asking(url, token_file, lambda client: client.raw_message(message_id)))
        return
    found = _asking(url, token_file, lambda client: client.message(message_id))
    if as_json:
        print_json(found)
        return
    message = found.message
    how = [words for words, holds in (("TLS", message.is_tls), ("login", message.is_authenticated)) if holds]
    for name, value in (
        ("id", message.id),
        ("received", f"{message.received_at:%Y-%m-%d %H:%M:%S} UTC from {message.client}"),
        ("connection", ", with ".join(filter(None, (message.connection_id, " and ".join(how))))),
        ("from", message.sender or "<>"),
        *(("to", recipient) for recipient in message.recipients),
        ("size", f"{message.size_bytes} bytes"),
        ("answered", "250" if message.is_answered else "no: the reply was lost"),
        *(("anomaly", anomaly) for anomaly in message.anomalies),
    ):
        print(f"{name:<11} {printable(value)}")
    print()
    for line in found.text.split("\r\n"):
        print(printable(line))


@app.command()
def transcript(
    connection_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]", help="A connection's or a message's id; without it connections are listed."
        ),
    ] = None,
    *,
    limit: Limit = 50,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Show what was said on a connection, or list the newest connections. Logins are masked, messages a size.

    For example `mailkeep sinkhole transcript`, `mailkeep sinkhole transcript c7`, `mailkeep sinkhole transcript m1`.
    """
    from mailkeep.cli.output import print_json, printable, table

    if connection_id is None:
        listed = _asking(url, token_file, lambda client: client.connections(limit=limit))
        if as_json:
            print_json(listed)
            return
        rows = [
            (
                each.id,
                f"{each.began_at:%Y-%m-%d %H:%M:%S}",
                f"{each.ended_at:%H:%M:%S}" if each.ended_at else "open",
                each.client,
                each.mode,
                each.lines,
            )
            for each in listed.connections
        ]
        if rows:
            print(table(("ID", "BEGAN", "ENDED", "CLIENT", "MODE", "LINES"), rows))
        dropped = f"; the oldest {listed.dropped} made room for newer ones" if listed.dropped else ""
        print(f"-- {len(rows)} shown, {listed.taken} taken{dropped}")
        return

    def read(client: "SinkholeClient") -> Any:  # noqa: ANN401 - `Transcript`, imported late
        is_message = connection_id.startswith("m")
        return client.transcript(
            client.message(connection_id).message.connection_id if is_message else connection_id
        )

    found = _asking(url, token_file, read)
    if as_json:
        print_json(found)
        return
    connection = found.connection
    print(f"{connection.id} from {connection.client}, mode {connection.mode} at its beginning")
    for line in found.lines:
        print(printable(_spoken(line)))
    if found.left_out:
        print(f"-- and {found.left_out} lines more")


def _spoken(line: "Line") -> str:
    mark = {"client": "->", "server": "<-"}.get(line.by, "--")
    return f"{line.at_s:>9.3f} s  {mark} {line.text}"


def _asking(url: str | None, token_file: Path | None, question: "Callable[[SinkholeClient], T]") -> T:
    """Return the running sinkhole's answer to `question`; leave with one clear line when there is none."""
    from mailkeep.sinkhole.client import SinkholeAwayError, SinkholeClient

    try:
        client = SinkholeClient(url or _url_of_running_dev() or f"http://{USUAL_HTTP}", _token(token_file))
        return question(client)
    except (SinkholeAwayError, OSError) as fault:
        fail(str(fault))


async def _serve(
    sinkhole: "Sinkhole", host: str, port: int, http: "Endpoint | None", token: str | None, *, as_json: bool
) -> None:
    import asyncio
    import signal

    from mailkeep.intake.listener import HttpListener
    from mailkeep.sinkhole.api import SinkholeApi
    from mailkeep.sinkhole.script import describe

    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    listener = HttpListener(SinkholeApi(sinkhole, token), http.host, http.port) if http else None
    if listener and http:
        try:
            await listener.start()
        except OSError as fault:
            raise OSError(
                f"its HTTP API can't use {http.host}:{http.port}: {fault.strerror}; "
                f"name another address with --http, or --http {OFF}"
            ) from fault
    try:
        await sinkhole.start(host, port)
        mode = sinkhole.source.current()
        url = f"http://{_in_url(http.host)}:{listener.port}" if listener and http else None
        text = f"sinkhole on {host}:{sinkhole.port}, mode {mode} ({describe(mode)}); it delivers nothing. Stop with Ctrl-C."
        if url:
            text += f"\nInbox, transcripts and mode: {url}"
        fields = {"host": host, "port": sinkhole.port, "url": url, "mode": str(mode)}
        _print_event("sinkhole_started", text, as_json=as_json, **fields)
        await stopping.wait()
    finally:
        if listener:
            await listener.stop(STOP_HTTP_S)
        await sinkhole.stop()
    count = sinkhole.capture.total_count
    _print_event("sinkhole_stopped", f"stopped; {count} messages taken", as_json=as_json, message_count=count)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _usual_http() -> str:
    """Return where the HTTP API listens if nobody says; several sinkholes may run side by side."""
    import socket

    host, _, port = USUAL_HTTP.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return f"{host}:0"
    return USUAL_HTTP


def _http(http: str, token_file: Path | None, *, allow_remote: bool) -> "tuple[Endpoint | None, str | None]":
    """Return where the HTTP API listens, None for nowhere, and its token. Raises `SinkholeRefusedError` and OSError."""
    from mailkeep.settings.notation import LISTEN
    from mailkeep.sinkhole.server import SinkholeRefusedError, refuse_remote

    if http == OFF:
        return None, None
    try:
        endpoint: Endpoint = LISTEN.read(http)
    except ValueError as fault:
        raise typer.BadParameter(f"--http {fault}, or '{OFF}'") from fault
    token = _token(token_file)
    if not token:
        try:
            refuse_remote(endpoint.host)
        except SinkholeRefusedError:
            raise SinkholeRefusedError(
                f"{endpoint.host} is not a loopback address; --http-token-file keeps strangers from the inbox"
            ) from None
    elif not allow_remote:
        refuse_remote(endpoint.host)
    return endpoint, token


def _source(
    mode: str | None, mode_file: Path | None, mode_redis: str | None, mode_ssm: str | None, *, as_json: bool
) -> "ModeSource":
    """Return what the sinkhole follows; a mode given by name is written there first."""
    from mailkeep.sinkhole import mode_source

    def notice(text: str) -> None:
        _print_event("sinkhole_notice", text, as_json=as_json)

    wanted = _parsed(mode) if mode is not None else None
    path = mode_file or _default_mode_file()
    _, _, _, write = _place(path, mode_redis, mode_ssm)
    if wanted:
        write(wanted)
    if mode_redis:
        return mode_source.RedisModeSource(mode_redis, notice)
    if mode_ssm:
        return mode_source.SsmModeSource(mode_ssm, notice)
    if not path.exists():
        write(mode_source.DEFAULT_MODE)
    return mode_source.FileModeSource(path, notice)


def _place(
    path: Path, mode_redis: str | None, mode_ssm: str | None
) -> "tuple[str, float, Callable[[], Mode | None], Callable[[Mode], None]]":
    """Return where the mode is written, in how many seconds it is in force, and how to read and write it there."""
    import asyncio

    from mailkeep.sinkhole import mode_source

    if mode_redis and mode_ssm:
        raise typer.BadParameter("--mode-redis and --mode-ssm name two places; give one")
    if mode_redis:
        return (
            f"the Redis key {mode_source.REDIS_MODE_KEY}",
            mode_source.REDIS_POLL_S + mode_source.REDIS_TIMEOUT_S,
            lambda: asyncio.run(mode_source.read_redis_mode(mode_redis)),
            lambda mode: asyncio.run(mode_source.write_redis_mode(mode_redis, mode)),
        )
    if mode_ssm:
        return (
            f"the SSM parameter {mode_ssm}",
            mode_source.SSM_POLL_S + mode_source.SSM_TIMEOUT_S,
            lambda: mode_source.read_ssm_mode(mode_ssm),
            lambda mode: mode_source.write_ssm_mode(mode_ssm, mode),
        )
    return (
        str(path),
        0.0,
        lambda: mode_source.read_mode_file(path) if path.exists() else None,
        lambda mode: mode_source.write_mode_file(path, mode),
    )


def _present(read: "Callable[[], Mode | None]", *, is_replaced: bool) -> "Mode | None":
    """Return the mode that is written now; a word that is no mode counts as none if it `is_replaced`."""
    from mailkeep.sinkhole.script import UnknownModeError

    try:
        return read()
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


def _duration(text: str) -> float:
    from mailkeep.core.duration import parse_duration

    try:
        return parse_duration(text)
    except ValueError as fault:
        raise typer.BadParameter(f"--greylist-window: {fault}") from fault


def _tls(
    host: str, certificate: Path | None, key: Path | None, ca_file: Path | None, *, implicit_tls: bool
) -> "Certificates | None":
    if bool(certificate) != bool(key) or (certificate and ca_file):
        raise typer.BadParameter("--tls-cert and --tls-key go together, without --tls-ca-file")
    if implicit_tls and not (certificate or ca_file):
        raise typer.BadParameter("--implicit-tls needs --tls-ca-file, or --tls-cert and --tls-key")
    if not (certificate or ca_file):
        return None
    from mailkeep.sinkhole.certificates import Certificates, load_context

    made = Certificates(load_context(certificate, key) if certificate and key else None, names=(host,))
    if ca_file:
        ca_file.write_bytes(made.authority.pem)
    return made


def _credentials(username: str | None, password_file: Path | None) -> "Credentials | None":
    if bool(username) != bool(password_file):
        raise typer.BadParameter("--username and --password-file go together")
    if not (username and password_file):
        return None
    from mailkeep.sinkhole.session import Credentials

    return Credentials(username, _secret(password_file))


def _token(path: Path | None) -> str | None:
    return _secret(path) if path else None


def _secret(path: Path) -> str:
    """Return the secret in a file. Raises OSError, also for a file that holds none."""
    from mailkeep.settings.files import read_secret

    try:
        return read_secret(path)
    except ValueError as fault:
        raise OSError(f"{path} {fault}") from fault


def _url_of_running_dev() -> str | None:
    from mailkeep.dev.state import running_state
    from mailkeep.store.embedded import default_data_dir

    state = running_state(default_data_dir())
    return state.sinkhole_url if state else None


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
