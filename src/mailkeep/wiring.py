"""The composition root: `Settings` -> running services. The only place that builds adapters and knows every room.

Start: the DKIM keys are read, Redis is pinged, PostgreSQL opened and migrated, the catalog parsed, and only then the
workers and the listeners begin; any failure ends the start with one clear line. Stop, bounded by `MAIL_SHUTDOWN_TIMEOUT`:
the listeners first, then attempts finish or are handed back, then clients close.
"""

import asyncio
import socket
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from starlette.types import ASGIApp

from mailkeep.contracts.openapi import openapi_json
from mailkeep.core.command import CommandRules
from mailkeep.dispatch.gauges import GaugeReader
from mailkeep.dispatch.recorder import Recorder
from mailkeep.dispatch.replica import Replica
from mailkeep.dispatch.retention import RetentionWorker
from mailkeep.dispatch.right_of_way import RightOfWay
from mailkeep.dispatch.scheduler import AttemptScheduler
from mailkeep.dispatch.takeover import TakeoverWorker
from mailkeep.dispatch.worker import AttemptWorkerPool
from mailkeep.dkim.keys import DkimKeysError, Keyring
from mailkeep.intake.accept import Accept, AcceptPolicy
from mailkeep.intake.api_keys import KeyHolders
from mailkeep.intake.bearer import Bearers, TokenJudge
from mailkeep.intake.bounces import BounceDispatcher
from mailkeep.intake.commands import CommandIntake
from mailkeep.intake.http import InternalHttpApp
from mailkeep.intake.listener import HttpListener
from mailkeep.intake.listener_tls import ListenerTls
from mailkeep.intake.rate import RateLimiter
from mailkeep.intake.send import SendHttpApp
from mailkeep.intake.signing import Signer
from mailkeep.intake.sql import EnqueuedConsumer
from mailkeep.operator.api import operator_api
from mailkeep.settings import Endpoint, Settings, SmtpMode
from mailkeep.settings.senders import read_senders
from mailkeep.smtp.configured import next_hops
from mailkeep.smtp.pool import Pool
from mailkeep.smtp.routes import Routes
from mailkeep.store.api_keys import ApiKeys
from mailkeep.store.bounces import OwedBounces
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.listener import DUE, ENQUEUED, PROBE, NotificationListener
from mailkeep.store.migrate import MigrationError
from mailkeep.store.postgres import Store
from mailkeep.store.retention import Retention
from mailkeep.store.sealing import PayloadKeys, PayloadKeysError
from mailkeep.templates.catalog import SHIPPED_CATALOG, Catalog, CatalogError

if TYPE_CHECKING:
    from mailkeep.intake.issuer import IssuerKeys

INTAKE_SHARE: Final = 0.5
ATTEMPT_SHARE: Final = 0.8
RECORD_SHARE: Final = 0.9
"""How much of the shutdown timeout is over when a stop gives up on commits of what was taken in, on attempts, on their
recording and the farewell."""
CLOSE_SHARE: Final = 0.04
"""For closing the connections to next hops, and again those to PostgreSQL."""


class Listening(msgspec.Struct, frozen=True):
    """Sockets that are bound already, shared by the processes of one service; one that is None is made."""

    internal: socket.socket | None = None
    send: socket.socket | None = None
    console: socket.socket | None = None


_NONE_BOUND: Final = Listening()


class StartError(Exception):
    """The service can't start. `unavailable`: a server it needs is away, so that trying again later may help."""

    def __init__(self, message: str, *, unavailable: bool) -> None:
        super().__init__(message)
        self.unavailable = unavailable


class Service:
    """One serving process: a replica with its intake, its dispatch and its workers."""

    def __init__(self, settings: Settings, store: Store, catalog: Catalog, keyring: Keyring | None) -> None:
        self._settings = settings
        self._store = store
        self._log = structlog.get_logger("service")
        self._running: list[asyncio.Task[None]] = []
        self._intakes: list[asyncio.Task[None]] = []
        self._hops = hops = next_hops(settings)
        self.replica = Replica(store, heartbeat_s=settings.replica_heartbeat_s, ttl_s=settings.replica_ttl_s)
        right_of_way = RightOfWay()
        self._recorder = Recorder(store, right_of_way, suppression_ttl_s=settings.suppression_ttl_s)
        self._smtp = Pool(*hops.values())
        self._workers = AttemptWorkerPool(
            store=store,
            replica=self.replica,
            recorder=self._recorder,
            smtp=self._smtp,
            hops=hops,
            ladders=settings.ladders,
            concurrency=settings.attempt_worker_concurrency,
            right_of_way=right_of_way,
        )
        self._scheduler = AttemptScheduler(
            store=store, replica=self.replica, pool=self._workers, right_of_way=right_of_way
        )
        self._signer = Signer(keyring, self.replica.now_s) if keyring else None
        self._accept = Accept(
            store=store,
            replica=self.replica,
            pool=self._workers,
            catalog=catalog,
            routes=Routes(hops),
            policy=accept_policy(settings),
            on_waiting=self._scheduler.announce,
            right_of_way=right_of_way,
            signer=self._signer,
        )
        self._issuer_keys: IssuerKeys | None = None
        self._listener: HttpListener | None = None
        self._send_listener: HttpListener | None = None
        self._catalog = catalog
        self._console_listener: HttpListener | None = None

    @classmethod
    async def start(
        cls, settings: Settings, listening: Listening = _NONE_BOUND, *, with_gauges: bool = False
    ) -> "Service":
        """Start everything and return when mail can be handed in. Raises `StartError`.

        `with_gauges`: read what gauges show, since metrics are exported.
        """
        keyring = load_keyring(settings)
        await ping_redis(settings)
        store = await open_store(settings)
        catalog = load_catalog(settings)
        service = cls(settings, store, catalog, keyring)
        try:
            await service._begin(listening)
            if with_gauges:
                webhooks = [webhook.name for webhook in settings.webhooks]
                gauges = GaugeReader(store, service.replica, service._workers.breakers, webhooks)
                service._spawn(gauges.run(), "gauge reader")
        except BaseException:
            await service.stop()
            raise
        return service

    async def _begin(self, listening: Listening) -> None:
        try:
            await self.replica.start()
        except StoreUnavailableError as fault:
            raise StartError(str(fault), unavailable=True) from fault
        await self._warn_of_orphans()
        settings = self._settings
        retention = Retention(
            self._store,
            delivery_s=settings.delivery_retention_s,
            payload_s=settings.payload_retention_s,
            key_s=settings.idempotency_ttl_s,
            malformed_s=settings.malformed_retention_s,
        )
        takeover = TakeoverWorker(
            store=self._store,
            replica=self.replica,
            interval_s=settings.replica_heartbeat_s,
            ttl_s=settings.replica_ttl_s,
        )
        assert settings.postgres_dsn is not None
        commands = CommandIntake(self._accept, self._store, self.replica.now_s)
        enqueued = EnqueuedConsumer(self._store, commands)
        listener = NotificationListener(
            settings.postgres_dsn.reveal(),
            {DUE: self._scheduler.wake, ENQUEUED: enqueued.wake, PROBE: self._scheduler.probe},
        )
        self._spawn(listener.run(), "notification listener")
        self._spawn(self._scheduler.run(), "attempt scheduler")
        self._spawn(takeover.run(), "takeover worker")
        if settings.webhooks:
            self._dispatch_webhooks()
        self._spawn(RetentionWorker(retention, settings.cleanup_interval_s).run(), "retention worker")
        self._intakes.append(asyncio.create_task(enqueued.run(), name="enqueued consumer"))
        bounces = BounceDispatcher(OwedBounces(self._store), self._accept)
        self._intakes.append(asyncio.create_task(bounces.run(), name="bounce dispatcher"))
        if settings.has_redis:
            self._consume_stream(commands)
        await self._listen(listening.internal)
        if settings.send_http_addr is not None:
            await self._listen_for_sends(settings.send_http_addr, listening.send)
        if settings.console_addr is not None:
            await self._open_console(settings.console_addr, listening.console)

    def _consume_stream(self, commands: CommandIntake) -> None:
        from mailkeep.intake.redis_client import redis_connector  # noqa: PLC0415 - as in `ping_redis`
        from mailkeep.intake.stream import CommandConsumer  # noqa: PLC0415 - likewise

        consumer = CommandConsumer(redis_connector(self._settings), commands, str(self.replica.id))
        self._intakes.append(asyncio.create_task(consumer.run(), name="command consumer"))

    def _dispatch_webhooks(self) -> None:
        from mailkeep.dispatch.webhooks import WebhookDispatcher  # noqa: PLC0415 - its HTTP client is loaded where it is used

        dispatcher = WebhookDispatcher(self._settings.webhooks, self._store, self.replica)
        self._spawn(dispatcher.run(), "webhook dispatcher")

    async def _warn_of_orphans(self) -> None:
        """Say which next hops mail waits for that this configuration does not have: nobody would claim it, in silence."""
        try:
            waiting = {row["name"] for row in await self._store.fetch("read_waiting_hops")}
        except StoreUnavailableError as fault:
            raise StartError(str(fault), unavailable=True) from fault
        for hop in sorted(waiting - self._hops.keys()):
            self._log.warning("mail waits for a next hop that is not configured", next_hop=hop)

    async def _listen(self, listening: socket.socket | None) -> None:
        settings = self._settings
        app = InternalHttpApp(
            accept=self._accept,
            operator=operator_api(self._store, openapi_json(), settings.ladders),
            tokens=tuple(token.reveal() for token in settings.internal_http_tokens),
            for_this_machine=settings.is_for_this_machine,
        )
        tls = listener_tls(settings, "internal_http")
        self._listener = await _started(
            app,
            settings.internal_http_addr,
            listening,
            "internal HTTP listener",
            "MAIL_INTERNAL_HTTP_ADDR",
            tls=tls,
        )
        self._log.info("internal http listener started", port=self._listener.port, tls=tls is not None)

    async def _listen_for_sends(self, address: Endpoint, listening: socket.socket | None) -> None:
        keys = KeyHolders(ApiKeys(self._store))
        tokens = None if self._settings.send_oidc_issuer is None else self._access_tokens()
        app = SendHttpApp(
            accept=self._accept, bearers=Bearers(keys, tokens), rate=RateLimiter(self._settings.send_rate)
        )
        tls = listener_tls(self._settings, "send_http")
        self._send_listener = await _started(
            app, address, listening, "send HTTP listener", "MAIL_SEND_HTTP_ADDR", tls=tls
        )
        self._log.info("send http listener started", port=self._send_listener.port, tls=tls is not None)

    def _access_tokens(self) -> TokenJudge:
        # Loaded only where an issuer is configured.
        from mailkeep.intake.access_tokens import AccessTokens, TokenRules  # noqa: PLC0415
        from mailkeep.intake.issuer import IssuerKeys  # noqa: PLC0415

        settings = self._settings
        assert settings.send_oidc_issuer is not None
        path = settings.send_oidc_senders_file
        try:
            senders = {} if path is None else read_senders(path)
        except ValueError as fault:  # it was sound when the settings were read
            raise StartError(f"the file of MAIL_SEND_OIDC_SENDERS_FILE {fault}", unavailable=False) from fault
        rules = TokenRules(
            issuer=settings.send_oidc_issuer,
            audiences=frozenset(settings.send_oidc_audiences),
            scope=settings.send_oidc_scope,
            sender_claim=settings.send_oidc_sender_claim,
            senders=senders,
        )
        self._issuer_keys = IssuerKeys(settings.send_oidc_issuer, settings.send_oidc_keys_url)
        return AccessTokens(rules, self._issuer_keys)

    async def _open_console(self, address: Endpoint, listening: socket.socket | None) -> None:
        from mailkeep.console.app import Console  # noqa: PLC0415 - loaded only where there is one

        console = Console(self._store, self._settings, self._catalog)
        self._spawn(console.traffic.run(), "traffic sampler")
        tls = listener_tls(self._settings, "console")
        self._console_listener = await _started(
            console, address, listening, "console", "MAIL_CONSOLE_ADDR", tls=tls
        )
        self._log.info("console started", port=self._console_listener.port, tls=tls is not None)

    @property
    def http_address(self) -> Endpoint:
        """Where the internal listener listens."""
        assert self._listener is not None
        return Endpoint(self._settings.internal_http_addr.host, self._listener.port)

    @property
    def send_address(self) -> Endpoint | None:
        """Where the send listener listens, None if it does not."""
        address, listener = self._settings.send_http_addr, self._send_listener
        return Endpoint(address.host, listener.port) if address and listener else None

    @property
    def console_address(self) -> Endpoint | None:
        """Where the console listens, None if it does not."""
        address, listener = self._settings.console_addr, self._console_listener
        return Endpoint(address.host, listener.port) if address and listener else None

    async def wait(self) -> None:
        """Wait until one of the workers ends, which none of them should."""
        workers = [*self._running, *self._intakes]
        await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        for worker in workers:
            if worker.done() and not worker.cancelled():
                worker.result()

    async def stop(self) -> None:
        """Stop in order, within the shutdown timeout; what a silent PostgreSQL holds up then is left to others."""
        timeout_s = self._settings.shutdown_timeout_s
        begun_s = time.monotonic()

        def left_s(share: float) -> float:
            return max(begun_s + timeout_s * share - time.monotonic(), 0.0)

        await asyncio.gather(
            *(
                _stopped(listener, timeout_s / 3)
                for listener in (self._listener, self._send_listener, self._console_listener)
            )
        )
        if self._console_listener is not None:
            self._log.info("console stopped")
        if self._send_listener is not None:
            self._log.info("send http listener stopped")
        if self._listener is not None:
            self._log.info("internal http listener stopped")
        if self._issuer_keys is not None:
            await self._issuer_keys.close()
        await _cancel(self._intakes, left_s(INTAKE_SHARE))
        await _settle([asyncio.create_task(self._accept.drain())], left_s(INTAKE_SHARE))
        await _cancel(self._running, left_s(INTAKE_SHARE))
        await self._workers.stop(left_s(ATTEMPT_SHARE))
        await _settle([asyncio.create_task(self._recorder.drain())], left_s(RECORD_SHARE))
        await _settle([asyncio.create_task(self._scheduler.give_back_rest())], left_s(RECORD_SHARE))
        await _settle([asyncio.create_task(self.replica.stop())], left_s(RECORD_SHARE))
        if self._signer is not None:
            self._signer.close()
        await self._smtp.close(timeout_s * CLOSE_SHARE)
        await self._store.close(timeout_s * CLOSE_SHARE)

    def _spawn(self, running: Coroutine[Any, Any, None], name: str) -> None:
        self._running.append(asyncio.create_task(running, name=name))


async def _started(
    app: ASGIApp,
    address: Endpoint,
    listening: socket.socket | None,
    name: str,
    setting: str,
    *,
    tls: ListenerTls | None = None,
) -> HttpListener:
    """Return a listener that listens. Raises `StartError`."""
    listener = HttpListener(app, address.host, address.port, listening=listening, tls=tls)
    try:
        await listener.start()
    except OSError as fault:
        raise StartError(
            f"the {name} can't use {address.host}:{address.port}: {fault.strerror or fault}; "
            f"free the port or set {setting}",
            unavailable=False,
        ) from fault
    return listener


async def _stopped(listener: HttpListener | None, timeout_s: float) -> None:
    if listener is not None:
        await listener.stop(timeout_s)


async def _cancel(tasks: list[asyncio.Task[None]], timeout_s: float) -> None:
    for task in tasks:
        task.cancel()
    await _settle(tasks, timeout_s)


async def _settle(tasks: list[asyncio.Task[None]], timeout_s: float) -> None:
    """Wait for `tasks`, and cut what takes longer without waiting for it: a silent PostgreSQL could hold that up, too."""
    if tasks:
        ended, late = await asyncio.wait(tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)


async def ping_redis(settings: Settings) -> None:
    """Ping the configured Redis, if any. Raises `StartError`."""
    if not settings.has_redis:
        return
    from redis.exceptions import RedisError  # noqa: PLC0415 - takes a third of a start; only those who use Redis load it

    from mailkeep.intake.redis_client import redis_connector  # noqa: PLC0415 - likewise

    try:
        async with redis_connector(settings)() as client:
            await client.ping()
    except (RedisError, OSError) as fault:
        where = settings.redis_master_addr or "the sentinels"
        raise StartError(f"can't reach Redis at {where}: {fault}", unavailable=True) from fault


async def open_store(settings: Settings) -> Store:
    """Open and migrate the store. Raises `StartError` with one clear line."""
    if settings.postgres_dsn is None:
        raise StartError(
            "MAIL_POSTGRES_DSN is not set; set it, or run `mailkeep dev` for an embedded server",
            unavailable=False,
        )
    keys = load_payload_keys(settings)
    try:
        store = await Store.open(
            settings.postgres_dsn.reveal(), pool_size=settings.postgres_pool_size, payload_keys=keys
        )
        try:
            await store.use_payload_keys()
        except BaseException:
            await store.close()
            raise
        return store
    except PayloadKeysError as fault:
        raise StartError(f"MAIL_PAYLOAD_KEYS_FILE {fault}", unavailable=False) from fault
    except StoreUnavailableError as fault:
        raise StartError(f"can't open {settings.postgres_dsn.place}: {fault}", unavailable=True) from fault
    except MigrationError as fault:
        raise StartError(str(fault), unavailable=False) from fault


def load_payload_keys(settings: Settings) -> PayloadKeys:
    """Read the keys that seal payloads; none: they are not sealed. Raises `StartError`."""
    path = settings.payload_keys_file
    try:
        return PayloadKeys() if path is None else PayloadKeys.load(path)
    except PayloadKeysError as fault:
        raise StartError(f"MAIL_PAYLOAD_KEYS_FILE {fault}", unavailable=False) from fault


def load_catalog(settings: Settings) -> Catalog:
    """Parse the template catalog. Raises `StartError` listing every problem."""
    try:
        return Catalog.load(settings.template_dir or SHIPPED_CATALOG)
    except CatalogError as fault:
        problems = "; ".join(f"{problem.path}: {problem.message}" for problem in fault.problems)
        raise StartError(f"the template catalog can't be used: {problems}", unavailable=False) from fault


def load_keyring(settings: Settings) -> Keyring | None:
    """Read the keys that sign mail; None: mail is not signed. Raises `StartError` listing every problem."""
    path = settings.dkim_keys_file
    if path is None:
        return None
    try:
        keyring = Keyring.load(path)
    except DkimKeysError as fault:
        raise StartError(
            f"the keys of MAIL_DKIM_KEYS_FILE can't be used: {fault}", unavailable=False
        ) from fault
    domain = settings.smtp_from.domain
    if domain not in {key.domain for key in keyring.keys}:
        raise StartError(
            f"MAIL_DKIM_KEYS_FILE has no key for {domain}, the domain of MAIL_SMTP_FROM_EMAIL",
            unavailable=False,
        )
    return keyring


def listener_tls(settings: Settings, listener: str) -> ListenerTls | None:
    """Return the TLS of `internal_http`, `send_http` or `console`, None: it speaks HTTP. Raises `StartError`."""
    files = settings.tls_of(listener)
    if files is None:
        return None
    try:
        return ListenerTls(
            files.certificate,
            files.key,
            client_ca=files.client_ca,
            client_names=files.client_names,
            name=listener,
        )
    except OSError as fault:
        raise StartError(
            f"the files of MAIL_{listener.upper()}_TLS_* can't be used: {fault.strerror}", unavailable=False
        ) from fault


def accept_policy(settings: Settings) -> AcceptPolicy:
    """Return what this deployment decides for every delivery."""
    return AcceptPolicy(
        sender=settings.smtp_from,
        rules=CommandRules(
            limits=settings.limits,
            sinkhole_enabled=settings.sinkhole_addr is not None,
            guarantees=settings.guarantees,
        ),
        stub=settings.smtp_mode is SmtpMode.STUB,
        auth_expiry_s=int(settings.auth_expiry_s),
    )
