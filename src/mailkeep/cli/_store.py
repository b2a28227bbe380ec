"""Where verbs that look at the queue find it, and how they end when they can't."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mailkeep.operator.queue import OperatorQueue
    from mailkeep.settings import Dsn
    from mailkeep.store.postgres import Store
    from mailkeep.store.sealing import PayloadKeys

T = TypeVar("T")


@asynccontextmanager
async def open_store() -> AsyncIterator["Store"]:
    """Open the store of this environment; leave with one clear line if there is none. Raises `StoreUnavailableError`."""
    from mailkeep.cli.output import fail
    from mailkeep.store.migrate import MigrationError
    from mailkeep.store.postgres import Store

    dsn, keys = _dsn(), _payload_keys()
    try:
        store = await Store.open(
            dsn.reveal(), pool_size=2, application_name="mailkeep queue", payload_keys=keys
        )
    except MigrationError as fault:
        fail(str(fault))
    try:
        yield store
    finally:
        await store.close()


def ask(question: Callable[["OperatorQueue"], Awaitable[T]]) -> T:
    """Return the answer of the queue to `question`; leave with one clear line when it can't answer."""
    from mailkeep.operator.queue import OperatorQueue

    return ask_store(lambda store: question(OperatorQueue(store)))


def ask_store(question: Callable[["Store"], Awaitable[T]]) -> T:
    """Return the answer of the store to `question`; leave with one clear line when it can't answer."""
    import asyncio

    import typer

    from mailkeep.cli.output import EXIT_UNAVAILABLE, fail
    from mailkeep.core.command import CommandError
    from mailkeep.store.errors import StoreUnavailableError

    async def run() -> T:
        async with open_store() as store:
            return await question(store)

    try:
        return asyncio.run(run())
    except CommandError as fault:
        raise typer.BadParameter(f"{fault.field} {fault.message}") from fault
    except StoreUnavailableError as fault:
        fail(f"can't reach {_dsn()}: {fault}", EXIT_UNAVAILABLE)


def _payload_keys() -> "PayloadKeys":
    from mailkeep.cli.output import EXIT_CONFIG, fail, load_settings
    from mailkeep.store.sealing import PayloadKeys, PayloadKeysError

    path = load_settings(find_dev=True).payload_keys_file
    try:
        return PayloadKeys() if path is None else PayloadKeys.load(path)
    except PayloadKeysError as fault:
        fail(f"MAIL_PAYLOAD_KEYS_FILE {fault}", EXIT_CONFIG)


def _dsn() -> "Dsn":
    from mailkeep.cli.output import EXIT_CONFIG, fail, load_settings

    dsn = load_settings(find_dev=True).postgres_dsn
    if dsn is None:
        fail(
            "MAIL_POSTGRES_DSN is not set and no `mailkeep dev` runs; it names the database that holds the queue",
            EXIT_CONFIG,
        )
    return dsn
