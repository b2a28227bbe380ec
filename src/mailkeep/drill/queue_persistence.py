"""The drill of queue persistence: a mail outlives a killed replica, is seen by every replica meanwhile, and arrives once.

Park the sinkhole in `defer`; send; see the mail with the same id and its `421` on every replica; kill one replica and wait for its
replacement; see it again everywhere; let the sinkhole accept; flush; see it delivered exactly once and the queue empty; and
park the sinkhole in `defer` again, always, also after a failure or Ctrl-C. Whatever does not hold ends the drill there.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol
from uuid import uuid4

from mailkeep.drill.replica_api import ReplicaApi, ReplicaError
from mailkeep.drill.report import Report, Tell
from mailkeep.drill.steps import SECOND_LOOK_S, DrillError, Steps

NAME: Final = "queue-persistence"
STEPS: Final = (
    "replicas answer",
    "sinkhole parked in defer",
    "mail accepted",
    "deferred on every replica",
    "replica killed",
    "replacement answers",
    "still there on every replica",
    "sinkhole accepts, flushed",
    "delivered exactly once",
    "queue empty",
    "sinkhole parked again",
)
LOOK_S: Final = 0.2
"""Between two questions to a replica over HTTP: a person who watches sees each step at once, and a busy replica is not pestered."""


class Deployment(Protocol):
    """What the drill does to a deployment. Verbs raise `DrillError` where they can't."""

    @property
    def replicas(self) -> Sequence[ReplicaApi]:
        """The replicas, in an order that stays."""

    def set_mode(self, mode: str) -> None:
        """Let the sinkhole answer so."""

    def kill(self, index: int) -> None:
        """Kill a replica without a word of warning (SIGKILL)."""

    def replace(self, index: int) -> None:
        """Start its replacement, where nobody else does."""

    def copies(self, recipient: str) -> int | None:
        """Return how many messages the sinkhole took for `recipient`; None where it can't be asked."""


class QueuePersistence:
    """One run. `patience_s` bounds each wait; `domain` is one that is routed to the sinkhole."""

    def __init__(
        self, deployment: Deployment, tell: Tell, *, patience_s: float = 60.0, domain: str = "sinkhole.test"
    ) -> None:
        self._deployment = deployment
        self._patience_s = patience_s
        self._recipient = f"drill-{uuid4().hex[:12]}@{domain}"
        self._steps = Steps(tell)
        self._delivery_id = ""
        self._victim = (
            len(deployment.replicas) - 1
        )  # takes the mail, too: what it alone knew would be lost with it
        self._known: set[str] = set()

    def run(self) -> Report:
        """Run all steps and return what came of them; the sinkhole is parked again whatever happens."""
        try:
            for name, step in zip(STEPS, self._ways(), strict=False):
                if not self._steps.take(name, step):
                    break
        finally:
            self._steps.skip(STEPS[len(self._steps.taken) : -1])
            self._steps.take(STEPS[-1], self._park)
        return Report(NAME, self._steps.taken)

    def _ways(self) -> tuple[Callable[[], str], ...]:
        return (
            self._await_all,
            self._park,
            self._send,
            self._see_everywhere,
            self._kill,
            self._await_replacement,
            self._see_everywhere,
            self._open,
            self._see_delivered_once,
            self._see_empty,
        )

    # -- the steps ---------------------------------------------------------------------------------------------

    def _await_all(self) -> str:
        for replica in self._deployment.replicas:
            self._await(replica)
        return f"{len(self._deployment.replicas)} replicas"

    def _await(self, replica: ReplicaApi) -> None:
        with self._waiting(f"{replica.url} answers") as look:
            while look():
                try:
                    replica.get("/replicas")
                    return
                except ReplicaError as fault:
                    self._last_fault = str(fault)

    def _park(self) -> str:
        self._deployment.set_mode("defer")
        return "it answers 421 4.3.2 at RCPT"

    def _send(self) -> str:
        payload = {"to": [self._recipient], "subject": "Drill", "text": "A drill of queue persistence.\n"}
        answer = self._deployment.replicas[self._victim].post(
            "/deliveries", {"payload_mode": "rendered", "payload": payload}, key=self._recipient
        )
        self._delivery_id = answer["delivery_id"]
        return f"id {self._delivery_id}, by replica {self._victim + 1}"

    def _see_everywhere(self) -> str:
        """Wait until every replica shows the same delivery waiting, with the deferral of the sinkhole as its reason."""
        reason = ""
        for replica in self._deployment.replicas:
            with self._waiting(f"{replica.url} shows it deferred") as look:
                while look():
                    delivery = self._ask(replica)
                    reason = delivery.get("reason") or ""
                    if delivery.get("status") == "rendered" and reason.startswith("421"):
                        break
                    if delivery.get("status") in ("sent", "failed", "dead_letter", "expired", "cancelled"):
                        raise DrillError(f"{replica.url} shows it {delivery['status']}: {reason}")
        return f"{len(self._deployment.replicas)} replicas: Deferred: {reason}"

    def _kill(self) -> str:
        replica = self._deployment.replicas[self._victim]
        self._known = {one["replica_id"] for one in replica.get("/replicas")["replicas"]}
        self._deployment.kill(self._victim)
        return f"SIGKILL to replica {self._victim + 1}, {replica.url}"

    def _await_replacement(self) -> str:
        """Wait for a live replica that was not there before: one that merely was not killed would prove nothing."""
        self._deployment.replace(self._victim)
        replica = self._deployment.replicas[self._victim]
        fresh: list[str] = []
        with self._waiting(f"a new replica answers at {replica.url}") as look:
            while not fresh and look():
                try:
                    known = replica.get("/replicas")["replicas"]
                except ReplicaError as fault:
                    self._last_fault = str(fault)
                else:
                    live = [one["replica_id"] for one in known if one["state"] == "live"]
                    fresh = [replica_id for replica_id in live if replica_id not in self._known]
        return f"replica {self._victim + 1} is a new one: {fresh[0]}"

    def _open(self) -> str:
        self._deployment.set_mode("accept")
        answer = self._deployment.replicas[0].post("/queue/flush", {"delivery_id": self._delivery_id})
        return f"{answer['flushed']} delivery made due now"

    def _see_delivered_once(self) -> str:
        for replica in self._deployment.replicas:
            with self._waiting(f"{replica.url} shows it sent") as look:
                while look() and self._ask(replica).get("status") != "sent":
                    pass
        time.sleep(SECOND_LOOK_S)
        copies = self._deployment.copies(self._recipient)
        if copies not in (1, None):
            raise DrillError(f"the sinkhole took {copies} copies")
        attempts = self._deployment.replicas[0].get(f"/deliveries/{self._delivery_id}/attempts")["attempts"]
        delivered = [one for one in attempts if one["certainty"] == "delivered"]
        unknown = [one for one in attempts if one["certainty"] == "unknown"]
        if len(delivered) != 1 or unknown:
            raise DrillError(f"{len(delivered)} attempts delivered it and {len(unknown)} may have")
        counted = "1 copy in the sinkhole" if copies else "copies in the sinkhole were not counted"
        return f"{counted}; attempt {delivered[0]['number']} of {len(attempts)} delivered it"

    def _see_empty(self) -> str:
        for replica in self._deployment.replicas:
            for status in ("waiting", "sending", "held"):
                page = replica.get(f"/deliveries?status={status}&recipient={self._recipient}")
                if page["deliveries"]:
                    raise DrillError(f"{replica.url} still shows it {status}")
        return f"{len(self._deployment.replicas)} replicas: nothing of the drill waits"

    # -- looking -----------------------------------------------------------------------------------------------

    def _ask(self, replica: ReplicaApi) -> dict[str, Any]:
        """Return the delivery, empty while the replica does not answer."""
        try:
            return replica.delivery(self._delivery_id)
        except ReplicaError as fault:
            self._last_fault = str(fault)
            return {}

    @contextmanager
    def _waiting(self, what: str) -> Iterator[Callable[[], bool]]:
        """Yield a function that is true once at once, then every `LOOK_S`, until patience is over: that is a failure."""
        ends_at, first = time.monotonic() + self._patience_s, True
        self._last_fault = ""

        def look() -> bool:
            nonlocal first
            if not first:
                if time.monotonic() > ends_at:
                    why = f": {self._last_fault}" if self._last_fault else ""
                    raise DrillError(f"waited {self._patience_s:g} s in vain until {what}{why}")
                time.sleep(LOOK_S)
            first = False
            return True

        yield look
