"""Accept: the one use case in which every intake meets.

validate (the caller did) -> render -> sign -> reserve the idempotency key and store, in one commit -> answer. What is
answered is durable; what could not be stored reserved nothing. A delivery for which this replica's workers have a free place
is born claimed and handed to them in memory after the commit, so that the fast path needs no claim query.
"""

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec

from mailkeep.aside import LARGE_BYTES, aside, breathe
from mailkeep.core.address import Mailbox
from mailkeep.core.command import (
    EPOCH_MS_MAX,
    BounceContent,
    Command,
    CommandError,
    CommandRules,
    FailureCode,
    RenderedContent,
    TemplateContent,
)
from mailkeep.core.delivery import DeliveryClass, DeliveryStatus, RecipientState, Source
from mailkeep.core.idempotency import address_hash, fingerprint
from mailkeep.core.ids import id_text, new_id
from mailkeep.core.queue import Claim, KeyHolder, NewDelivery, Suppressed
from mailkeep.dispatch.replica import Replica
from mailkeep.dispatch.right_of_way import RightOfWay
from mailkeep.dispatch.worker import AttemptWorkerPool
from mailkeep.faults import FaultPoint, reach
from mailkeep.intake.signing import Signer
from mailkeep.smtp.routes import ReservedDomainError, Routes
from mailkeep.store.errors import StoreError, StoreRefusedError, StoreUnavailableError
from mailkeep.store.group_commit import MAX_BATCH, GroupCommit, OverloadedError
from mailkeep.store.postgres import Store, Stored
from mailkeep.telemetry import metrics
from mailkeep.templates.catalog import Catalog
from mailkeep.templates.message import MessageError, MessageParts, Report, build_message
from mailkeep.templates.render import Rendered

AUTOMATIC: Final = (("Auto-Submitted", "auto-generated"),)
"""RFC 3834: so that nobody's holiday notice answers a login code. Mail that people wrote (`relay`) has none."""
REPLIED: Final = (("Auto-Submitted", "auto-replied"),)
"""RFC 3834: a bounce answers a mail, and wants no answer."""
NULL_SENDER: Final = ""
"""The null reverse-path of a bounce (RFC 5321 section 4.5.5): nobody is told when it can't be delivered."""
MAILER: Final = "Mail Delivery System"
ONE_CLICK: Final = ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")
"""RFC 8058: that posting to the URL of List-Unsubscribe is enough."""
GATHER_S: Final = 0.002
"""How long callers wait for others under load, to share a commit with them; login codes don't."""
LARGE_LANES: Final = 2
"""Commits of large mail at a time, each of one: the driver copies it thrice, and one is encoded while another is being written."""
DOUBT_WAITS_S: Final = (0.1, 0.3, 1.0, 2.0)
"""Before PostgreSQL is asked what became of a commit whose answer was lost: a connection is made anew at once, a restart or a
switchover takes seconds. After that the caller is told to repeat."""
DOUBT_S: Final = 10.0
"""In all, also where the answer itself is slow to come: callers give up soon after."""


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """The answer: the delivery is ours now. `replayed`: it already was, under the same key."""

    delivery_id: UUID
    status: DeliveryStatus  # at birth, as the first caller was told
    replayed: bool = False

    @property
    def suppressed(self) -> bool:
        """Whether it ended at birth: stub mode, or nobody who is not on the suppression list."""
        return self.status is DeliveryStatus.SUPPRESSED


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """A delivery that is ready to be stored; `has_own_id`: its id came with the command."""

    new: NewDelivery
    has_own_id: bool

    def accepted(self, answer: Stored) -> Accepted:
        """Return what the store's `answer` means to the caller. Raises `CommandError` and `StoreError`."""
        if isinstance(answer, StoreRefusedError) and self.has_own_id:
            raise CommandError(FailureCode.INVALID_FIELD, "delivery_id", "belongs to another delivery")
        if isinstance(answer, StoreError):
            raise answer
        if isinstance(answer, KeyHolder):
            return _replay(answer, self.new.fingerprint)
        return Accepted(self.new.id, answer.status if isinstance(answer, Suppressed) else self.new.status)


class AcceptPolicy(msgspec.Struct, frozen=True):
    """What this deployment decides for every delivery."""

    sender: Mailbox
    rules: CommandRules
    stub: bool
    auth_expiry_s: int


class Accept:
    """Makes commands durable. Used by every intake, from any number of requests at once."""

    def __init__(
        self,
        *,
        store: Store,
        replica: Replica,
        pool: AttemptWorkerPool,
        catalog: Catalog,
        routes: Routes,
        policy: AcceptPolicy,
        on_waiting: Callable[[], None],
        right_of_way: RightOfWay,
        signer: Signer | None = None,
    ) -> None:
        self._store = store
        self._replica = replica
        self._pool = pool
        self._catalog = catalog
        self._routes = routes
        self._on_waiting = on_waiting
        self._signer = signer
        self.right_of_way = right_of_way
        # Login codes have commits of their own: theirs never waits behind a batch of the rest, nor this behind large mail.
        self._login_codes = GroupCommit(self._commit)
        self._others = GroupCommit(
            self._commit, gather_s=GATHER_S, max_batch=lambda: right_of_way.rows_at_most(MAX_BATCH)
        )
        self._large = GroupCommit(self._commit, lanes=LARGE_LANES, max_batch=lambda: 1)
        self.policy = policy

    async def accept(
        self,
        command: Command,
        *,
        key: str | None,
        delivery_id: UUID | None = None,
        traceparent: str | None = None,
    ) -> Accepted:
        """Store `command` under its idempotency key and return when it is durable.

        Without a key every call is a delivery of its own. Raises `CommandError` when it can't be taken,
        `StoreUnavailableError` or `OverloadedError` when it can't be stored now: then nothing is reserved, or the same
        call under the same key finds what was.
        """
        if command.delivery_class is DeliveryClass.AUTH:
            with self.right_of_way.passing():
                return await self._accept(command, key, delivery_id, traceparent)
        await self.right_of_way.let_pass()
        return await self._accept(command, key, delivery_id, traceparent)

    async def _accept(
        self, command: Command, key: str | None, delivery_id: UUID | None, traceparent: str | None
    ) -> Accepted:
        try:
            if command.size_bytes > LARGE_BYTES:
                prepared = await self.prepare_aside(
                    command, key=key, delivery_id=delivery_id, traceparent=traceparent
                )
            else:
                prepared = self.prepare(command, key=key, delivery_id=delivery_id, traceparent=traceparent)
        except CommandError:
            replay = await self.find(command, key) if key else None
            if replay is None:
                raise
            return replay
        await self.sign((prepared,))
        return prepared.accepted(await self.store(prepared))

    def prepare(
        self,
        command: Command,
        *,
        key: str | None,
        delivery_id: UUID | None = None,
        traceparent: str | None = None,
    ) -> "Prepared":
        """Return the delivery that `command` makes, rendered; nothing is stored. Raises `CommandError`."""
        new, parts = self._deliverable(command, key, delivery_id, traceparent)
        self._fix(new, command, parts)
        return Prepared(new, has_own_id=delivery_id is not None)

    async def prepare_aside(
        self,
        command: Command,
        *,
        key: str | None,
        delivery_id: UUID | None = None,
        traceparent: str | None = None,
    ) -> "Prepared":
        """Return what `prepare` returns, for large mail: the passes over its content are made aside."""
        new, parts = self._deliverable(command, key, delivery_id, traceparent)
        await aside(self._fix, new, command, parts)
        return Prepared(new, has_own_id=delivery_id is not None)

    async def sign(self, prepared: Sequence["Prepared"]) -> None:
        """Sign messages (DKIM), once and before they are stored. Raises `OverloadedError`."""
        if self._signer is not None:
            await asyncio.gather(*(self._signer.sign(ready.new) for ready in prepared))

    def store(self, prepared: "Prepared") -> asyncio.Future[Stored]:
        """Hand a delivery to the next commit; `Prepared.accepted` reads the answer. Raises `OverloadedError`."""
        new = prepared.new
        new.status = self._birth_status(new)
        try:
            return self._lane(new).submit(new)
        except OverloadedError:
            self._withdraw(new)
            raise

    def _lane(self, new: NewDelivery) -> "GroupCommit[NewDelivery, Stored]":
        if new.size_bytes > LARGE_BYTES:
            return self._large
        return self._login_codes if new.delivery_class is DeliveryClass.AUTH else self._others

    async def find(self, command: Command, key: str) -> Accepted | None:
        """Return what `command` was answered before under `key`, None if never.

        The catalog may have changed since: what was accepted then is still answered alike. Raises `CommandError` when the
        key belongs to another command.
        """
        holder = (await self._store.find_keys([(command.source, key)])).get((command.source, key))
        if holder is None:
            return None
        if command.size_bytes > LARGE_BYTES:
            return _replay(holder, await aside(fingerprint, command, self._store.hash_key))
        return _replay(holder, fingerprint(command, self._store.hash_key))

    def now_s(self) -> float:
        """Return the database's clock in Unix seconds: that of this machine decides nothing."""
        return self._replica.now_s()

    async def drain(self) -> None:
        """Wait until every commit under way is done."""
        for commits in (self._login_codes, self._others, self._large):
            await commits.drain()

    # -- from command to delivery ------------------------------------------------------------------------------

    def _deliverable(
        self,
        command: Command,
        key: str | None,
        delivery_id: UUID | None,
        traceparent: str | None,
    ) -> tuple[NewDelivery, MessageParts]:
        """Return the delivery but for what `_fix` gives it, and what its message is made of."""
        now_s = self.now_s()
        new_delivery_id = delivery_id or new_id(now_s)
        content = self._render(command)
        rendered = content if isinstance(content, Rendered) else None
        send_at = _instant(command.send_at_ms)
        parts = self._parts(command, content, new_delivery_id, send_at or datetime.fromtimestamp(now_s, UTC))
        recipients = command.recipients
        recipient_hashes = tuple(
            address_hash(mailbox.address, self._store.hash_key) for mailbox in recipients
        )
        author = command.sender or self.policy.sender
        new = NewDelivery(
            id=new_delivery_id,
            source=command.source,
            delivery_class=command.delivery_class,
            guarantee=command.guarantee,
            status=DeliveryStatus.RENDERED,
            next_hop=self._next_hop(recipients),
            idempotency_key=key or id_text(new_delivery_id),
            fingerprint=b"",
            sender=NULL_SENDER if command.source is Source.BOUNCE else author.address,
            recipients=tuple(mailbox.address for mailbox in recipients),
            recipient_hashes=recipient_hashes,
            named_hashes=self._named(command, recipient_hashes),
            recipient_domain=recipients[0].domain,
            message=None,
            sensitive=command.delivery_class is DeliveryClass.AUTH
            or (rendered is not None and rendered.sensitive),
            send_at=send_at,
            expires_at=self._expires_at(command, now_s),
            template_id=rendered.template_id if rendered else None,
            catalog_version=rendered.catalog_version if rendered else None,
            locale=rendered.locale if rendered else None,
            locale_chain=" ".join(rendered.locale_chain)
            if rendered and len(rendered.locale_chain) > 1
            else None,
            supersede_hash=self._supersede_hash(command),
            parent_id=content.original_id if isinstance(content, BounceContent) else None,
            traceparent=traceparent,
            author_domain=author.domain,
        )
        return new, parts

    def _fix(self, new: NewDelivery, command: Command, parts: MessageParts) -> None:
        """Fix the bytes of `new`, which nobody else has yet, and what it is known by: every pass over the content is here."""
        try:
            new.message = build_message(parts, boundary_seed=id_text(new.id))
        except MessageError as fault:
            # The second wall: what validation let through and a header could not carry safely.
            raise CommandError(FailureCode.INVALID_FIELD, "payload", str(fault)) from None
        if len(new.message) > self.policy.rules.limits.message_bytes:
            raise CommandError(
                FailureCode.TOO_LARGE,
                "payload",
                f"makes a message larger than {self.policy.rules.limits.message_bytes} bytes",
            )
        breathe()
        new.fingerprint = fingerprint(command, self._store.hash_key)

    def _named(self, command: Command, recipients: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return the hashes of whom the content names beside its recipients; the deployment's own address is nobody."""
        named = [mailbox.address for mailbox in command.reply_to]
        if command.sender is not None:
            named.append(command.sender.address)
        if isinstance(command.content, BounceContent):
            named += command.content.about
        if not named:
            return ()
        hashes = dict.fromkeys(address_hash(address, self._store.hash_key) for address in named)
        return tuple(digest for digest in hashes if digest not in recipients)

    def _render(self, command: Command) -> RenderedContent | BounceContent | Rendered:
        match command.content:
            case TemplateContent(template_id=template_id, locale=locale, variables=variables):
                rendered = self._catalog.render(template_id, locale, variables, self.policy.rules.limits)
                if len(rendered.locale_chain) > 1:
                    metrics.count(metrics.LOCALE_FALLBACK, ((template_id, rendered.locale),))
                return rendered
            case RenderedContent() | BounceContent() as ready:
                return ready

    def _parts(
        self,
        command: Command,
        content: RenderedContent | BounceContent | Rendered,
        delivery_id: UUID,
        date: datetime,
    ) -> MessageParts:
        sender, report = command.sender or self.policy.sender, None
        if isinstance(content, BounceContent):
            sender = msgspec.structs.replace(sender, display=MAILER)
            report = Report(content.status, content.head)
        return MessageParts(
            message_id=f"{id_text(delivery_id)}@{sender.domain}",
            date=date,
            sender=sender,
            to=command.to,
            cc=command.cc,
            reply_to=command.reply_to,
            subject=content.subject,
            text=content.text,
            html=None if isinstance(content, BounceContent) else content.html,
            attachments=command.attachments,
            headers=_headers(command),
            report=report,
        )

    def _expires_at(self, command: Command, now_s: float) -> datetime | None:
        if command.expires_at_ms is not None:
            if command.expires_at_ms <= now_s * 1000:
                raise CommandError(FailureCode.INVALID_FIELD, "expires_at_ms", "is in the past")
            return _instant(command.expires_at_ms)
        expires_in_s = command.expires_in_s
        if expires_in_s is None and command.delivery_class is DeliveryClass.AUTH:
            expires_in_s = self.policy.auth_expiry_s
        if expires_in_s is None:
            return None
        begins_s = max(now_s, (command.send_at_ms or 0) / 1000)
        return _instant(min(int((begins_s + expires_in_s) * 1000), EPOCH_MS_MAX))

    def _next_hop(self, recipients: Sequence[Mailbox]) -> str:
        try:
            hops = {self._routes.next_hop(mailbox.domain) for mailbox in recipients}
        except ReservedDomainError as fault:
            # The second wall: validation and routes are built from the same settings, and must not part ways.
            raise CommandError(
                FailureCode.RESERVED_DOMAIN,
                "payload.to",
                f"the domain {fault} is reserved and has no route here",
            ) from None
        if len(hops) > 1:
            # A transaction is with one server: sending these by the way of the first would take them to the wrong one.
            raise CommandError(
                FailureCode.INVALID_FIELD,
                "payload.to",
                f"the routes lead to different next hops ({', '.join(sorted(hops))}); make a delivery for each",
            )
        return hops.pop()

    def _supersede_hash(self, command: Command) -> bytes | None:
        if command.supersede_key is None:
            return None
        subject = "\n".join((command.supersede_key, *(mailbox.address for mailbox in command.recipients)))
        return hashlib.blake2b(subject.encode(), digest_size=16, key=self._store.hash_key).digest()

    def _birth_status(self, new: NewDelivery) -> DeliveryStatus:
        if self.policy.stub:
            return DeliveryStatus.SUPPRESSED
        # The same command twice at once has one id; only the first takes a place for it.
        if (
            new.send_at is None
            and new.id not in self._pool.held
            and self._pool.reserve(new.id, new.next_hop, new.delivery_class, new.size_bytes)
        ):
            return DeliveryStatus.SENDING
        return DeliveryStatus.RENDERED

    # -- commit ------------------------------------------------------------------------------------------------

    async def _commit(self, batch: list[NewDelivery]) -> Sequence[Stored]:
        # Runs in the group commit's own task: a caller that went away can't keep a stored claim from its worker.
        replica_id = self._replica.id
        reach(FaultPoint.ACCEPT_BEFORE_COMMIT)
        try:
            answers = await self._store_surely(replica_id, batch)
        except BaseException:
            # Still in doubt, some may be stored all the same: the scheduler gives claims without a holder back.
            for new in batch:
                self._withdraw(new)
            raise
        reach(FaultPoint.ACCEPT_AFTER_COMMIT)
        _count(zip(batch, answers, strict=True))
        for new, answer in zip(batch, answers, strict=True):
            states = _states_left(new, answer)
            if RecipientState.OPEN not in states:
                self._withdraw(new)
            elif new.status is DeliveryStatus.SENDING:
                self._pool.hand_over(_claim_at_birth(replica_id, new, states), reserved=True)
            elif new.status is DeliveryStatus.RENDERED:
                self._on_waiting()
        reach(FaultPoint.HANDED_OVER)
        return answers

    async def _store_surely(self, replica_id: UUID, batch: list[NewDelivery]) -> Sequence[Stored]:
        try:
            if batch[0].delivery_class is DeliveryClass.AUTH:
                return await self._store.accept(replica_id, batch)
            async with self.right_of_way.in_turn():
                return await self._store.accept(replica_id, batch)
        except StoreUnavailableError as fault:
            if not fault.in_doubt:
                raise
            doubt = fault
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DOUBT_S):
                for wait_s in DOUBT_WAITS_S:
                    await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
                    with contextlib.suppress(StoreUnavailableError):
                        return await self._store.accept_again(replica_id, batch)
        raise doubt

    def _withdraw(self, new: NewDelivery) -> None:
        if new.status is DeliveryStatus.SENDING and self._pool.held.get(new.id, new) is None:
            self._pool.cancel(new.id, new.next_hop, new.delivery_class, new.size_bytes)


_TAKEN: Final = (UUID, Suppressed)


def _count(stored: Iterable[tuple[NewDelivery, Stored]]) -> None:
    accepted = [(new, answer) for new, answer in stored if isinstance(answer, _TAKEN)]
    metrics.count(metrics.ACCEPTED, ((new.source,) for new, _ in accepted))
    metrics.count(
        metrics.SUPPRESSED,
        (
            (new.source,)
            for new, answer in accepted
            if DeliveryStatus.SUPPRESSED
            in (new.status, answer.status if isinstance(answer, Suppressed) else None)
        ),
    )


def _replay(holder: KeyHolder, mark: bytes) -> Accepted:
    if holder.fingerprint != mark:
        raise CommandError(
            FailureCode.IDEMPOTENCY_CONFLICT, "idempotency_key", "was used before for a different command"
        )
    return Accepted(holder.delivery_id, holder.first_status, replayed=True)


def _states_left(new: NewDelivery, answer: Stored) -> str:
    """Return the states of the recipients of a delivery, empty where it was not stored."""
    match answer:
        case Suppressed(recipient_states=states):
            return states
        case UUID():
            return RecipientState.OPEN * len(new.recipients)
        case _:
            return ""


def _claim_at_birth(replica_id: UUID, new: NewDelivery, states: str) -> Claim:
    return Claim(
        replica_id=replica_id,
        id=new.id,
        token=1,
        source=new.source,
        delivery_class=new.delivery_class,
        guarantee=new.guarantee,
        next_hop=new.next_hop,
        attempts=0,
        rungs_used=0,
        recipient_states=states,
        size_bytes=new.size_bytes,
        sensitive=new.sensitive,
        expires_at=new.expires_at,
        sender=new.sender,
        recipients=new.recipients,
        message=new.message,
        traceparent=new.traceparent,
    )


def _headers(command: Command) -> tuple[tuple[str, str], ...]:
    if command.source is Source.BOUNCE:
        return REPLIED
    automatic = () if command.delivery_class is DeliveryClass.RELAY else AUTOMATIC
    if command.list_unsubscribe is None:
        return automatic
    return (*automatic, ("List-Unsubscribe", f"<{command.list_unsubscribe}>"), ONE_CLICK)


def _instant(epoch_ms: int | None) -> datetime | None:
    return None if epoch_ms is None else datetime.fromtimestamp(epoch_ms / 1000, UTC)
