"""One replica's internal HTTP listener, as the drill asks it: plain requests with short limits, no retries of its own."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any, Final

ROOT: Final = "/api/v1/internal"
TIMEOUT_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 1024 * 1024


class ReplicaError(Exception):
    """A replica is away, or answers with a refusal; the message says which."""


class ReplicaApi:
    """The API at `url`; `token` goes along as a bearer token."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        # Straight to the replica: a proxy that is set in the environment knows nothing of it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> Any:  # noqa: ANN401 - whatever JSON it is
        """Return the answer to GET. Raises `ReplicaError`."""
        return self._ask("GET", path, None, {})

    def post(self, path: str, body: object, *, key: str | None = None) -> Any:  # noqa: ANN401 - whatever JSON it is
        """Return the answer to POST. Raises `ReplicaError`."""
        headers = {"Idempotency-Key": key} if key else {}
        return self._ask("POST", path, json.dumps(body).encode(), headers)

    def delivery(self, delivery_id: str) -> dict[str, Any]:
        """Return one delivery. Raises `ReplicaError`."""
        found: dict[str, Any] = self.get(f"/deliveries/{delivery_id}")
        return found

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Any:  # noqa: ANN401
        request = urllib.request.Request(  # noqa: S310 - an address that the operator gave
            f"{self.url}{ROOT}{path}", body, self._headers | headers, method=method
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                return json.loads(answer.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as fault:
            with fault:
                detail = _detail(fault.read(MAX_ANSWER_BYTES))
            raise ReplicaError(f"{self.url} answers {fault.code} {detail}".rstrip()) from fault
        except (OSError, ValueError, http.client.HTTPException) as fault:
            raise ReplicaError(f"{self.url} does not answer: {fault}") from fault


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body).get("detail", ""))
    except (ValueError, AttributeError):
        return ""
