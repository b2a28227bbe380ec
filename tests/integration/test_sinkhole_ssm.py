"""The sinkhole's mode in AWS SSM: against moto, and against endpoints that are away, silent or something else."""

import asyncio
import builtins
import socket
import threading

import boto3
import pytest
from moto import mock_aws
from typer.testing import CliRunner

from mailkeep.cli.sinkhole import app
from mailkeep.sinkhole import mode_source
from mailkeep.sinkhole.mode_source import MAX_MODE_AGE_S, SsmModeSource, read_ssm_mode, write_ssm_mode
from mailkeep.sinkhole.script import UnknownModeError, parse_mode

PARAMETER = "/mailkeep/sinkhole/mode"
ACCEPT, BOUNCE = parse_mode("accept"), parse_mode("bounce")
WAIT_S = 60


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    """Give credentials that are none, and nobody's own configuration."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "a-canary-secret",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def aws():
    """Stand in for AWS."""
    with mock_aws():
        yield boto3.client("ssm")


async def until(condition):
    """Wait until `condition` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_parameter_is_followed(aws):
    """The first look comes before the first connection, changes are followed, and `put` changes it for all."""
    await asyncio.to_thread(write_ssm_mode, PARAMETER, ACCEPT)
    notices = []
    source = SsmModeSource(PARAMETER, notices.append, poll_s=0.02)
    await source.start()
    try:
        assert source.current() == ACCEPT
        aws.put_parameter(Name=PARAMETER, Value="bounce", Overwrite=True)
        await until(lambda: source.current() == BOUNCE)
        await source.put(parse_mode("defer-3x"))
        assert str(source.current()) == "defer-3x"
        assert aws.get_parameter(Name=PARAMETER)["Parameter"]["Value"] == "defer-3x"
        assert await asyncio.to_thread(read_ssm_mode, PARAMETER) == parse_mode("defer-3x")
        assert notices == []
        aws.put_parameter(Name=PARAMETER, Value="defr", Overwrite=True)
        await until(lambda: notices)
        assert str(source.current()) == "defer-3x"
        aws.delete_parameter(Name=PARAMETER)
        await until(lambda: len(notices) == 2)
    finally:
        await source.stop()
    assert notices == [
        f"SSM parameter {PARAMETER}: 'defr' is not a mode; the mode stays defer-3x",
        f"SSM parameter {PARAMETER}: can't be read (ParameterNotFound); the mode stays defer-3x",
    ]


def test_a_missing_parameter_and_a_wrong_word(aws):
    """Where there is no parameter there is no mode; a word that is no mode says so."""
    assert read_ssm_mode(PARAMETER) is None
    aws.put_parameter(Name=PARAMETER, Value="defr", Type="String")
    with pytest.raises(UnknownModeError):
        read_ssm_mode(PARAMETER)


def test_the_command_shows_and_changes_it(aws):
    """`mode --mode-ssm` writes and shows the parameter and says when it is in force."""
    ran = CliRunner().invoke(app, ["mode", "accept", "--mode-ssm", PARAMETER])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith(f"no mode -> accept  (accepts everything)  in the SSM parameter {PARAMETER}")
    assert "within 15 s" in ran.stdout
    shown = CliRunner().invoke(app, ["mode"], env={"MAIL_SINKHOLE_MODE_SSM": PARAMETER})
    assert shown.stdout.startswith("accept  (accepts everything)")


def test_without_boto3_one_line_says_what_to_install(monkeypatch):
    """boto3 is wanted only where SSM is used; where it is missing the fault names the extra."""
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "boto3":
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    ran = CliRunner().invoke(app, ["mode", "accept", "--mode-ssm", PARAMETER])
    assert ran.exit_code == 1
    assert "pip install 'mailkeep[aws]'" in ran.stderr


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "SSM can't be used"),  # nobody listens
        (b"", "SSM can't be used"),  # a listener that hangs up
        (b"220 mail.example ESMTP\r\n", "SSM can't be used"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "SSM can't be used"),
        (
            b'HTTP/1.1 400 Bad Request\r\ncontent-length: 39\r\n\r\n{"__type": "AccessDeniedException"}    \n',
            "SSM refuses: AccessDeniedException",
        ),
        ("silence", "SSM can't be used: Read timeout"),
    ],
)
def test_endpoints_that_are_none(monkeypatch, answer, words):
    """Whatever answers in the place of AWS, it ends in one line, in bounded time, without the credentials."""
    monkeypatch.setattr(mode_source, "SSM_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSM", f"http://127.0.0.1:{listening.getsockname()[1]}")
        if answer is None:
            listening.close()
        elif answer != "silence":
            threading.Thread(target=_answer_once, args=(listening, answer), daemon=True).start()
        ran = CliRunner().invoke(app, ["mode", "--mode-ssm", PARAMETER])
    assert ran.exit_code == 1
    assert words in ran.stderr
    assert "Traceback" not in ran.output
    assert "canary" not in ran.output


def _answer_once(listening, answer):
    connection, _ = listening.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


def test_the_poll_keeps_the_promise():
    """A poll that could let a mode grow older than promised is refused."""
    with pytest.raises(ValueError, match="MAX_MODE_AGE_S"):
        SsmModeSource(PARAMETER, print, poll_s=MAX_MODE_AGE_S - 9)
