"""The contracts of `api/` against the live service: every example is executed, and schemathesis drives it by the document."""

import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis
import yaml
from http_kit import DELIVERIES, command
from stream_kit import PATIENCE_S

from mailkeep.core.command import FailureCode
from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.ids import new_id
from mailkeep.intake.problems import HttpCode
from mailkeep.intake.stream import STREAM
from mailkeep.store.embedded import start_redis

HERE = Path(__file__).parent
API = HERE.parents[1] / "api"
TOKEN = "0123456789abcdef0123456789abcdef"
MEASURES = {"after", "timestamp", "host", "in_flight", "pid", "silent_s", "size_bytes", "steps", "version"}
"""Members that differ from run to run in more than ids (`*_id`) and instants (`*_at`); a reused connection has fewer steps."""
AT_BIRTH = {DeliveryStatus.RENDERED, DeliveryStatus.SENDING}
"""Statuses that stand for each other: whether a worker is free at that moment decides."""
UNPROVOKED = {
    HttpCode.INTERNAL_ERROR,
    HttpCode.LIVE_MAIL,
    HttpCode.MISDIRECTED,
    HttpCode.OVERLOADED,
    HttpCode.UNAVAILABLE,
}
"""Answers that nobody can ask for; other tests bring them about."""
OF_SENDS = {HttpCode.FORBIDDEN, HttpCode.RATE_LIMITED, HttpCode.ISSUER_UNAVAILABLE}
"""Answers of the send listener alone."""
RUN_S = 400
ENVIRON = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
"""Nothing of the user's: a proxy that is set there would get every request."""


@dataclass
class Example:
    """One example of an answer in the OpenAPI document, and the request for it."""

    name: str
    method: str
    path: str
    request: dict[str, Any]
    status: int
    answer: Any


def examples(document):
    """Return the examples in the order of the document."""
    found = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            bodies = operation.get("requestBody", {"content": {"application/json": {}}})["content"]
            parameters = operation.get("parameters", ())
            filled = path.format(
                **{each["name"]: each["example"] for each in parameters if each["in"] == "path"}
            )
            for status, response in operation["responses"].items():
                for name, example in shown(response).items():
                    body = bodies["application/json"].get("examples", {}).get(name, {})
                    request = {"body": body.get("value"), **example.get("x-request", {})}
                    asked = request.get("path", filled)
                    found.append(Example(name, method, asked, request, int(status), example["value"]))
    for response in document["components"]["responses"].values():
        for name, example in shown(response).items():
            request = example.get("x-request", {})
            method, path = request.get("method", ""), request.get("path", "")
            found.append(Example(name, method, path, request, example["value"]["status"], example["value"]))
    return found


def shown(response):
    """Return the examples of one response; those of a reference stand elsewhere."""
    (content,) = response.get("content", {"": {}}).values()
    return content.get("examples", {})


class Executed:
    """Executes examples; `ids` are those of the document -> those of this run."""

    def __init__(self, served, token=TOKEN):
        self.served = served
        self.token = token
        self.ids = {}

    async def execute(self, example):
        """Send the request of `example` until it is answered as documented; what changes nothing may have to wait for that."""
        changes = example.method.lower() != "get" and example.status < 400
        ends_at = time.monotonic() + (0 if changes else PATIENCE_S)
        while True:
            answer = await self.send(example)
            differences = list(self.differences(example.answer, answer.json()))
            if answer.status_code == example.status and not differences:
                return answer
            assert time.monotonic() < ends_at, (example, answer.text, differences)
            await asyncio.sleep(0.05)

    async def send(self, example):
        """Send the request of `example` with the ids of this run."""
        text = json.dumps([example.path, example.request])
        for documented, actual in self.ids.items():
            text = text.replace(documented, actual)
        path, request = json.loads(text)
        body = request.get("body")
        content = request.get("text", "") if body is None else json.dumps(body)
        headers = {"authorization": f"Bearer {self.token}"} | {
            name.lower(): value for name, value in request.get("headers", {}).items()
        }
        if content:
            headers.setdefault("content-type", "application/json")
        return await self.served.client.request(
            example.method.upper(),
            path,
            content=content.ljust(request.get("size_bytes", 0)).encode(),
            headers=headers,
            params=request.get("query"),
        )

    def differences(self, documented, actual, name=""):
        """Yield where `actual` is not what is documented."""
        match documented, actual:
            case str(), str() if name == "status" and {documented, actual} == AT_BIRTH:
                return
            case _ if name in MEASURES and type(documented) is type(actual):
                return
            case dict(), dict() if documented.keys() == actual.keys():
                for member, value in documented.items():
                    yield from self.differences(value, actual[member], member)
            case list(), list() if len(documented) == len(actual):
                for value, found in zip(documented, actual, strict=True):
                    yield from self.differences(value, found, name)
            case str(), str() if name.endswith("_id"):
                if self.ids.setdefault(documented, actual) != actual:
                    yield name, documented, actual
            case str(), str() if name.endswith("_at"):
                datetime.fromisoformat(actual)
            case _ if documented != actual:
                yield name, documented, actual


@pytest.fixture
async def guarded(serve, next_hop):
    """Run a service that wants a token and sends to `next_hop`."""
    return await serve(
        MAIL_INTERNAL_HTTP_TOKENS=TOKEN,
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
    )


@pytest.fixture
async def bounced(guarded, next_hop):
    """Have a mail server say once that an address of the examples does not exist."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    next_hop.reply = "550 5.1.1 No such user"
    gone = await guarded.post(DELIVERIES, command(payload={"to": ["gone@example.org"]}), **headers)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await guarded.client.get(f"{DELIVERIES}/{gone.json()['delivery_id']}", headers=headers)
            if found.json()["status"] == "failed":
                break
            await asyncio.sleep(0.02)
    next_hop.reply = "250 2.1.5 Ok"


async def test_every_http_example_is_answered_as_documented(guarded, bounced):
    """The served document is the file; each of its examples gets the documented answer, and under its key again."""
    served = await guarded.client.get("/openapi.json", headers={"authorization": f"Bearer {TOKEN}"})
    document = served.json()
    assert document == yaml.safe_load((API / "internal-openapi.yaml").read_text(encoding="utf-8"))
    executed, codes = Executed(guarded), set()
    for example in examples(document):
        if not example.path:
            assert example.answer["code"] in UNPROVOKED
            continue
        answer = await executed.execute(example)
        if example.status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            codes.add(example.answer["code"])
        elif "Idempotency-Key" in example.request.get("headers", {}):
            again = await executed.send(example)
            assert (again.status_code, again.content) == (answer.status_code, answer.content)
            assert again.headers["idempotent-replayed"] == "true"
    assert codes == {*FailureCode, *HttpCode} - UNPROVOKED - OF_SENDS


@pytest.fixture(scope="module")
def redis_socket():
    """Run a Redis; yields the path of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="mk-redis-"))
    folder.chmod(0o755)  # Redis may run as another user
    server = start_redis(folder)
    if server is None:
        pytest.skip("no Redis is installed")
    yield str(server.socket)
    server.stop()
    shutil.rmtree(folder)


async def test_every_stream_example_is_taken_or_kept_as_documented(serve, redis_socket, dsn):
    """Valid entries become deliveries; each failure code is met by its entry and kept with the documented field."""
    document = yaml.safe_load((API / "delivery-commands-asyncapi.yaml").read_text(encoding="utf-8"))
    served = await serve(MAIL_REDIS_MASTER_ADDR=redis_socket)
    wanted = {}
    with redis.Redis(unix_socket_path=redis_socket, decode_responses=True) as client:
        for example in document["components"]["messages"]["deliveryCommand"]["examples"]:
            entry = example["payload"] | {"delivery_id": str(new_id(time.time()))}
            client.xadd(document["channels"]["deliveryCommands"]["address"], entry)
            await there(served, entry["delivery_id"])
        for code, malformed in document["x-malformed-commands"].items():
            entry = malformed["example"] | {"delivery_id": str(new_id(time.time()))}
            wanted[client.xadd(STREAM, entry)] = (code, malformed["field"])
    assert set(document["x-malformed-commands"]) == set(FailureCode)
    async with asyncio.timeout(PATIENCE_S):
        while (kept := await malformed_commands(dsn)) != wanted:
            assert kept.items() <= wanted.items()
            await asyncio.sleep(0.05)


async def there(served, delivery_id):
    """Wait until a delivery is there."""
    async with asyncio.timeout(PATIENCE_S):
        while (await served.get(f"{DELIVERIES}/{delivery_id}")).status_code == 404:
            await asyncio.sleep(0.02)


async def malformed_commands(dsn):
    """Return the malformed commands, entry id -> (code, field)."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT entry_id, failure_code, field FROM mail.malformed_commands")
    finally:
        await connection.close()
    return {row["entry_id"]: (row["failure_code"], row["field"]) for row in rows}


async def test_every_command_example_is_taken_by_sql_and_http(served, dsn):
    """`mail.enqueue` makes a delivery of each, and so does HTTP."""
    schema = json.loads((API / "delivery-command.schema.json").read_text(encoding="utf-8"))
    connection = await asyncpg.connect(dsn)
    try:
        for example in schema["examples"]:
            delivery_id = await connection.fetchval("SELECT mail.enqueue($1::jsonb)", json.dumps(example))
            await there(served, delivery_id)
            assert (await served.post(DELIVERIES, example)).status_code == 202
    finally:
        await connection.close()
    assert await malformed_commands(dsn) == {}


@pytest.mark.timeout(RUN_S + 30)
@pytest.mark.long
async def test_schemathesis_finds_nothing(serve, tmp_path, record_property):
    """What fits the document is taken, what does not is refused, and every answer is a documented one."""
    served = await serve(MAIL_INTERNAL_HTTP_TOKENS=TOKEN)
    report = tmp_path / "report.json"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", HERE / "schemathesis.toml"),
        *("run", API / "internal-openapi.yaml", "--url", str(served.client.base_url)),
        *("--header", f"Authorization: Bearer {TOKEN}"),
        *("--report", "json", "--report-json-path", report),
    ]
    run = await asyncio.create_subprocess_exec(
        *command,
        cwd=tmp_path,
        env=ENVIRON,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(RUN_S):
            output, _ = await run.communicate()
    finally:
        if run.returncode is None:
            run.kill()
            await run.wait()
    assert run.returncode == 0, output.decode()
    told = json.loads(report.read_text())
    assert (told["complete"], told["failures"], told["errors"]) == (True, [], [])
    assert told["operations"]["tested"] == told["operations"]["total"]
    assert not any(told["warnings"].values())
    operation_count, case_count = told["operations"]["tested"], told["test_cases"]["generated"]
    record_property("cases", case_count)
    told_of = [
        line for line in output.decode().splitlines() if re.search(r"responses checked|: taken \d", line)
    ]
    print(f"{operation_count} operations, {case_count} cases", *told_of, sep="\n")  # noqa: T201 - the figures of the run
