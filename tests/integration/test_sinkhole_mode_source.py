"""Where the sinkhole learns its mode: a real file, a real Redis."""

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import redis

from mailkeep.sinkhole.mode_source import (
    MAX_MODE_AGE_S,
    REDIS_MODE_KEY,
    FileModeSource,
    RedisModeSource,
    read_mode_file,
    read_redis_mode,
    write_mode_file,
    write_redis_mode,
)
from mailkeep.sinkhole.script import UnknownModeError, parse_mode
from mailkeep.store.embedded import start_redis

ACCEPT, BOUNCE = parse_mode("accept"), parse_mode("bounce")
WAIT_S = 60


@pytest.fixture
def data_dir():
    """Make a data folder that other users can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="mk-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(data_dir):
    """Run an embedded Redis."""
    server = start_redis(data_dir)
    if server is None:
        pytest.skip("there is no Redis here")
    yield server
    server.stop()


@pytest.fixture
async def followed(server):
    """Follow the key of the embedded Redis, closely; give the source and its notices."""
    notices: list[str] = []
    source = RedisModeSource(f"unix://{server.socket}", notices.append, poll_s=0.02)
    await source.start()
    yield source, notices
    await source.stop()


async def until(condition):
    """Wait until `condition` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_file_is_obeyed_at_once(tmp_path):
    """Each change of the file is seen by the next look, also one of equal length within a clock tick."""
    path, notices, now_ns = tmp_path / "mode", [], time.time_ns()
    source = FileModeSource(path, notices.append)
    for mode in (ACCEPT, BOUNCE, ACCEPT):
        path.write_text(f"{mode}\n")
        os.utime(path, ns=(now_ns, now_ns))
        assert source.current() == mode
    assert notices == []


def test_an_old_file_is_read_again_when_it_changes(tmp_path):
    """A file whose stat is trusted is not missed when another takes its place."""
    path = tmp_path / "mode"
    write_mode_file(path, ACCEPT)
    os.utime(path, (1, 1))
    source = FileModeSource(path, print)
    assert [str(source.current()), str(source.current())] == ["accept", "accept"]
    write_mode_file(path, BOUNCE)
    assert source.current() == BOUNCE


@pytest.mark.parametrize("text", ["defr", "", "x" * 1000, "accept\nbounce", "\x1b"])
def test_an_unknown_word_leaves_the_last_mode_and_is_said_once(tmp_path, text):
    """What is no mode changes nothing, and the notice comes once and holds no control character."""
    path, notices = tmp_path / "mode", []
    source = FileModeSource(path, notices.append)
    write_mode_file(path, ACCEPT)
    assert source.current() == ACCEPT
    path.write_text(text)
    assert [source.current() for _ in range(3)] == [ACCEPT] * 3
    assert len(notices) == 1
    assert notices[0].endswith("is not a mode; the mode stays accept")
    assert notices[0].isprintable()
    write_mode_file(path, BOUNCE)
    assert source.current() == BOUNCE


def test_a_missing_or_unreadable_file_leaves_the_last_mode_and_is_said_once(tmp_path):
    """Without a file the first mode stays in force; it is said again only after the file was there."""
    path, notices = tmp_path / "mode", []
    source = FileModeSource(path, notices.append, initial=BOUNCE)
    assert [source.current(), source.current()] == [BOUNCE, BOUNCE]
    path.write_bytes(b"\xff\xfe")
    assert [source.current(), source.current()] == [BOUNCE, BOUNCE]
    write_mode_file(path, ACCEPT)
    assert source.current() == ACCEPT
    path.unlink()
    assert source.current() == ACCEPT
    assert notices == [
        f"{path}: can't be read (FileNotFoundError); the mode stays bounce",
        f"{path}: can't be read (UnicodeDecodeError); the mode stays bounce",
        f"{path}: can't be read (FileNotFoundError); the mode stays accept",
    ]


def test_write_mode_file(tmp_path):
    """A mode is written as a word that others may read, in one step that leaves nothing else behind."""
    path = tmp_path / "mode"
    write_mode_file(path, parse_mode("defer-3x"))
    assert path.read_text() == "defer-3x\n"
    assert str(read_mode_file(path)) == "defer-3x"
    assert path.stat().st_mode & 0o777 == 0o644
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        write_mode_file(path, ACCEPT)
    assert list(tmp_path.iterdir()) == [path]


async def test_redis_is_followed(server, followed):
    """Without a key the first mode is in force; a mode that is written is followed."""
    (source, notices), url = followed, f"unix://{server.socket}"
    assert str(source.current()) == "defer"
    assert await read_redis_mode(url) is None
    await write_redis_mode(url, ACCEPT)
    await until(lambda: source.current() == ACCEPT)
    assert await read_redis_mode(url) == ACCEPT
    assert notices == []


async def test_the_first_look_comes_before_the_first_connection(server):
    """After `start` the mode is that of the key, not the first one."""
    url = f"unix://{server.socket}"
    await write_redis_mode(url, BOUNCE)
    source = RedisModeSource(url, print, poll_s=MAX_MODE_AGE_S / 2)
    await source.start()
    assert source.current() == BOUNCE
    await source.stop()


async def test_redis_away_and_back(server, followed, data_dir):
    """While Redis is away the last mode stays and that is said once; when it is back it is followed again."""
    (source, notices), url = followed, f"unix://{server.socket}"
    await write_redis_mode(url, ACCEPT)
    await until(lambda: source.current() == ACCEPT)
    server.stop()
    await until(lambda: notices)
    await asyncio.sleep(0.2)  # several polls
    assert source.current() == ACCEPT
    assert len(set(notices)) == len(notices)
    again = start_redis(data_dir)
    try:
        await write_redis_mode(url, BOUNCE)
        await until(lambda: source.current() == BOUNCE)
    finally:
        again.stop()


@pytest.mark.parametrize("value", [b"defr", b"\xff", b"x" * 1_000_000])
async def test_an_unknown_word_in_redis(server, followed, value):
    """What is no mode leaves the last one in force, is said once, and is not fetched whole."""
    source, notices = followed
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        client.set(REDIS_MODE_KEY, value)
        await until(lambda: notices)
        await asyncio.sleep(0.2)  # several polls
        assert str(source.current()) == "defer"
        assert [len(notices), len(notices[0]) < 200] == [1, True]
        client.delete(REDIS_MODE_KEY)
        client.lpush(REDIS_MODE_KEY, "accept")  # of another type
        await until(lambda: len(notices) == 2)
    assert str(source.current()) == "defer"


async def test_redis_that_never_was(tmp_path):
    """A source starts without Redis; reading and writing a mode fail with OSError, a malformed URL at once."""
    url, notices = f"unix://{tmp_path}/none", []
    source = RedisModeSource(url, notices.append, initial=ACCEPT)
    await source.start()
    assert (source.current(), len(notices)) == (ACCEPT, 1)
    await source.stop()
    for attempt in (
        read_redis_mode(url),
        write_redis_mode(url, ACCEPT),
        RedisModeSource("redis", print).start(),
    ):
        with pytest.raises(OSError, match="Redis can't be used"):
            await attempt


async def test_a_wrong_word_in_redis_is_no_fault_of_redis(server):
    """Reading a word that is no mode says so."""
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        client.set(REDIS_MODE_KEY, "defr")
    with pytest.raises(UnknownModeError):
        await read_redis_mode(f"unix://{server.socket}")


@pytest.mark.parametrize("poll_s", [0, -1, 30, 26.1])
def test_the_poll_keeps_the_promise(poll_s):
    """A poll that could let a mode grow older than promised is refused."""
    with pytest.raises(ValueError, match="MAX_MODE_AGE_S"):
        RedisModeSource("redis://127.0.0.1", print, poll_s=poll_s)
