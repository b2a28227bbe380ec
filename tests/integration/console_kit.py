"""What the tests of the console share: a visitor without a browser, mail that means harm, and where Debian's Chromium is."""

import re
import shutil
from html import unescape

import httpx2

TOKEN = "a-canary-token-of-the-console"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HARM = "<script>fetch('/harm')</script><img src=x onerror=alert(1)>"
HARMFUL_HTML = (
    "<html><body><h1>Hello</h1><script>alert(1)</script><img src=http://127.0.0.1:9/pixel.gif onerror=alert(2)>"
    "<form action=/deliveries method=post><button id=go>Go</button></form><style>@import 'http://127.0.0.1:9/x.css'</style>"
    "</body></html>"
)


class Visitor:
    """Somebody at the console of a served service: cookies are kept, forms are sent as a browser would."""

    def __init__(self, served, **options):
        self.base = f"http://{served.service.console_address}"
        self.client = httpx2.AsyncClient(base_url=self.base, timeout=60, **options)

    async def see(self, path, **parameters):
        """GET a page."""
        return await self.client.get(path, params=parameters or None)

    async def fields(self, path):
        """Return the hidden fields of the forms of a page."""
        page = (await self.see(path)).text
        found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page)
        return {name: unescape(value) for name, value in found}

    async def send(self, path, fields, *, origin=None, **headers):
        """POST a form."""
        origin = {"origin": self.base if origin is None else origin} if origin != "" else {}
        return await self.client.post(path, data=fields, headers=origin | headers)

    async def act(self, at, path, **fields):
        """Fill in the form of the page `at` and send it to `path`."""
        return await self.send(path, await self.fields(at) | {"reason": "because"} | fields)
