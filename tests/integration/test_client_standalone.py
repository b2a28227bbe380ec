"""The client and the Django backend work where nothing of the server is installed.

Each runs in a Python without any site-packages (`-S`): only the standard library, `mailkeep`, and for the backend Django
with what Django itself needs are in reach.
"""

import asyncio
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"
RUN_S = 60.0
BEGIN = """
import json, sys
path, url = sys.argv[1:]
sys.path += json.loads(path)
"""
END = """
import importlib.util
ours = {name for name in sys.modules if name.split(".")[0] == "mailkeep"}
assert {name.split(".")[1] for name in ours - {"mailkeep"}} <= {"client", "django"}, ours
assert importlib.util.find_spec("msgspec") is None
print("done")
"""
CLIENT = """
import asyncio
from mailkeep.client import *
mail = Mail(to="ann@example.org", subject="s", text="t", idempotency_key="k")

async def again():
    async with AsyncClient(url) as client:
        return await client.send(mail), await client.get(str((await client.send_many([mail]))[0].delivery_id))

with Client(url) as client:
    first = client.send(mail)
second, found = asyncio.run(again())
assert first.delivery_id == second.delivery_id == found.delivery_id
assert stream_fields(mail)["idempotency_key"] == "k"
"""
DJANGO = """
import django
from django.conf import settings
options = {"url": url}
if django.VERSION >= (6, 1):
    settings.configure(MAILERS={"default": {"BACKEND": "mailkeep.django.EmailBackend", "OPTIONS": options}})
else:
    settings.configure(EMAIL_BACKEND="mailkeep.django.EmailBackend", MAILKEEP=options)
django.setup()
from django.core.mail import send_mail
assert send_mail("s", "t", None, ["ann@example.org"]) == 1
"""


def test_an_installation_without_extras_brings_nothing_along():
    """Every requirement of the distribution belongs to an extra."""
    requirements = importlib.metadata.requires("mailkeep")
    assert requirements
    assert [each for each in requirements if "extra ==" not in each] == []


@pytest.mark.parametrize(
    ("code", "packages"),
    [(CLIENT, ()), (DJANGO, ("django", "asgiref", "sqlparse"))],
    ids=["client", "django"],
)
async def test_it_needs_nothing_of_the_server(served, tmp_path, code, packages):
    """A mail is sent, and no other part of Mailkeep was imported on the way."""
    for name in packages:
        (folder,) = importlib.util.find_spec(name).submodule_search_locations
        (tmp_path / name).symlink_to(folder)
    path = json.dumps([str(SOURCES), str(tmp_path)])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-W", "error", "-c", BEGIN + code + END, path),
        f"http://127.0.0.1:{served.port}",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(RUN_S):
        printed, complaints = await process.communicate()
    assert (process.returncode, printed) == (0, b"done\n"), complaints.decode()


def test_the_command_line_says_what_it_needs():
    """Without the server's packages it leaves with one line instead of a traceback."""
    code = f"import runpy, sys; sys.path.append({str(SOURCES)!r}); runpy.run_module('mailkeep', run_name='__main__')"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], check=False, capture_output=True, text=True, timeout=RUN_S
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.splitlines() == [
        "mailkeep: typer is not installed; the command line belongs to the server: pip install 'mailkeep[server]'"
    ]
