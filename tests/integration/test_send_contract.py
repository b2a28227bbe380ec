"""The contract of the send listener against the live service: each example is executed, schemathesis drives it."""

import asyncio
import sys

import pytest
import yaml
from send_kit import calling, new_key
from test_contract_conformance import API, ENVIRON, Executed, examples

RUN_S = 120
UNPROVOKED = {"internal_error", "unavailable", "issuer_unavailable", "rate_limited", "too_large"}
"""Answers that nobody can ask for here, or only with many megabytes; other tests bring them about."""


@pytest.fixture
async def sends(serve, next_hop):
    """Run a service that takes sends."""
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
        MAIL_SEND_HTTP_ADDR="127.0.0.1:0",
        MAIL_SEND_RATE="1000000",
    )
    async with calling(served) as calls:
        yield calls


async def test_every_example_is_answered_as_documented(sends, dsn):
    """Each example gets the documented answer, and what is taken is answered alike under its key."""
    document = yaml.safe_load((API / "send-openapi.yaml").read_text(encoding="utf-8"))
    executed = Executed(sends, (await new_key(dsn, "billing@example.org")).token)
    met = set()
    for example in examples(document):
        if not example.path:
            assert example.answer["code"] in UNPROVOKED
            continue
        answer = await executed.execute(example)
        met.add(answer.status_code)
        if example.status == 200:
            again = await executed.send(example)
            assert (again.content, again.headers["idempotent-replayed"]) == (answer.content, "true")
    assert met == {200, 400, 401, 403, 404, 405, 415, 422}


@pytest.mark.timeout(RUN_S + 30)
@pytest.mark.long
async def test_schemathesis_finds_nothing(sends, dsn, tmp_path):
    """What fits the document is taken or, for its sender, forbidden; what does not is refused; no answer is undocumented."""
    token = (await new_key(dsn, "@example.org", "@mail.example.com")).token
    command = [
        *(
            sys.executable,
            "-m",
            "schemathesis.cli",
            "--config-file",
            API.parent / "tests/integration/schemathesis.toml",
        ),
        *("run", API / "send-openapi.yaml", "--url", str(sends.client.base_url)),
        *("--header", f"Authorization: Bearer {token}"),
    ]
    run = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, env=ENVIRON, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(RUN_S):
            output, _ = await run.communicate()
    finally:
        if run.returncode is None:
            run.kill()
            await run.wait()
    assert run.returncode == 0, output.decode()[-6000:]
