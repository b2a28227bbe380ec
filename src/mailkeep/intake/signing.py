"""DKIM signatures put on at acceptance, on threads: an RSA signature costs most of a millisecond.

A message is signed once, before it is stored, so that each attempt sends the same bytes (invariant I9). cryptography lets go
of the interpreter while it signs: the event loop goes on, and each thread has a core to itself. Messages go to a thread in
batches, since for Ed25519 going there costs as much as signing. Login codes have a lane of their own and never wait behind a
flood; large messages are signed aside. Called by `mailkeep.intake.accept`.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Final

from mailkeep.aside import LARGE_BYTES, aside
from mailkeep.core.delivery import DeliveryClass
from mailkeep.core.queue import NewDelivery
from mailkeep.dkim.keys import Keyring
from mailkeep.dkim.signature import SigningKey, signatures
from mailkeep.store.group_commit import GroupCommit

MAX_LANES: Final = 4  # together they sign more messages than one process takes in


class Signer:
    """Signs what domains with keys send; mail of others stays as it is."""

    def __init__(self, keyring: Keyring, now_s: Callable[[], float]) -> None:
        lanes = min(MAX_LANES, os.cpu_count() or 1)
        self._keyring = keyring
        self._now_s = now_s
        self._threads = ThreadPoolExecutor(lanes + 1, "dkim")
        self._login_codes = GroupCommit(self._sign)
        self._others = GroupCommit(self._sign, lanes=lanes)

    async def sign(self, new: NewDelivery) -> None:
        """Put the signatures of its sender's domain before the message of `new`.

        Raises `OverloadedError` when too many wait already.
        """
        domain = new.author_domain or new.sender.rpartition("@")[2]
        keys = self._keyring.signing(domain, datetime.fromtimestamp(self._now_s(), UTC))
        if keys:
            assert new.message is not None
            if len(new.message) > LARGE_BYTES:
                new.message = await aside(_signed, new.message, keys, int(self._now_s()))
                return
            lanes = self._login_codes if new.delivery_class is DeliveryClass.AUTH else self._others
            new.message = await lanes.submit((new.message, keys))

    async def _sign(self, batch: list[tuple[bytes, tuple[SigningKey, ...]]]) -> Sequence[bytes]:
        signed_at_s = int(self._now_s())

        def sign_all() -> list[bytes]:
            return [_signed(message, keys, signed_at_s) for message, keys in batch]

        return await asyncio.get_running_loop().run_in_executor(self._threads, sign_all)

    def close(self) -> None:
        """Let the threads end; what waits is dropped, nobody waits for it any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _signed(message: bytes, keys: tuple[SigningKey, ...], signed_at_s: int) -> bytes:
    return signatures(message, keys, signed_at_s) + message
