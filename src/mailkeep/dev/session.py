"""One session of `mailkeep dev` at a terminal: start, examples, how to go on, wait, stop."""

import asyncio
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console

from mailkeep.dev.environment import SINKHOLE_LOG, development
from mailkeep.dev.show import show_examples
from mailkeep.dev.state import DevState
from mailkeep.settings import Endpoint
from mailkeep.store.embedded import default_data_dir
from mailkeep.telemetry import log


async def run(data_dir: Path, *, examples: bool, once: bool) -> bool:
    """Run until Ctrl-C, or with `once` until the examples ended; answers whether they ended as expected."""
    console = Console()
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    console.print("Starting PostgreSQL, Redis, a sinkhole and Mailkeep …")
    with (data_dir / "mailkeep.log").open("ab", buffering=0) as stream:
        log.configure("info", "json", stream)
        async with development(data_dir, os.environ, any_port=once) as environment:
            _introduce(console, environment.state, data_dir)
            state = environment.state
            well = await show_examples(console, state.http_host, state.http_port) if examples else True
            if examples:
                console.print(
                    "[green]All examples ended as expected.[/]" if well else "[red]Not as expected.[/]"
                )
            if examples and once:
                console.print("`mailkeep dev` stays, for mail of your own.")
            if not once:
                _explain(console, environment.state, data_dir, environment.service.send_address)
                await interrupted.wait()
                console.print("\nStopping …")
    return well


def _introduce(console: Console, state: DevState, data_dir: Path) -> None:
    if state.console_url:
        console.print(f"  Console    [bold]{state.console_url}/inbox[/] (what arrives shows up here)")
    console.print(f"  HTTP API   http://{state.http_host}:{state.http_port}")
    console.print(
        f"  Sinkhole   127.0.0.1:{state.sinkhole_port} (takes all mail; nothing leaves this machine)"
    )
    console.print(f"  Its API    {state.sinkhole_url}/messages")
    console.print(f"  PostgreSQL {state.postgres_dsn}", markup=False, soft_wrap=True)
    console.print(f"  Redis      {state.redis_socket or 'not found: stream intake is off'}")
    console.print(f"  Data       {_from_home(data_dir)}", markup=False, soft_wrap=True)
    console.print(f"  Logs       mailkeep.log and {SINKHOLE_LOG} there\n")


def _from_home(path: Path) -> str:
    """Return a path as people write it: with ~ for their home."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _explain(console: Console, state: DevState, data_dir: Path, sends: Endpoint | None) -> None:
    found = "" if data_dir == default_data_dir() else "  export " + _shell(state.environ) + "\n\n"
    mailkeep = _as_typed()
    url = f"http://{state.http_host}:{state.http_port}/api/v1/internal/deliveries"
    console.print(
        f"\nSend one yourself, from another terminal:\n\n{found}"
        f"  {mailkeep} send --to you@sinkhole.test --subject Hello --text 'It works.' --wait\n\n"
        f"  curl {url} -H 'Idempotency-Key: my-first-mail' -H 'Content-Type: application/json' \\\n"
        '    -d \'{"payload_mode":"rendered","payload":'
        '{"to":["you@sinkhole.test"],"subject":"Hello","text":"It works."}}\'\n\n'
        "Or as a person's program, with a key of its own:\n\n"
        f"  TOKEN=$({mailkeep} keys create me --sender you@sinkhole.test)\n"
        f"  curl http://{sends}/send -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \\\n"
        '    -d \'{"from":"you@sinkhole.test","to":["friend@sinkhole.test"],"subject":"Hello","text":"It works."}\'\n\n'
        "Look at the queue, and make the next hop refuse mail for a while:\n\n"
        f"  {mailkeep} queue\n"
        f"  {mailkeep} sinkhole mode defer\n"
        f"  {mailkeep} sinkhole mode accept && {mailkeep} queue flush --all\n\n"
        "See what arrived:\n\n"
        f"  {mailkeep} sinkhole inbox\n\n"
        "Ctrl-C stops everything; what is queued is there again at the next start.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _as_typed() -> str:
    """Return how this command is called from here: by its name where the shell finds it, else by its path."""
    own = Path(sys.argv[0]).absolute()
    if own.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m mailkeep"
    found = shutil.which("mailkeep")
    if found is not None and Path(found).resolve() == own.resolve():
        return "mailkeep"
    return shlex.quote(str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own))


def _shell(environ: dict[str, str]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in environ.items())
