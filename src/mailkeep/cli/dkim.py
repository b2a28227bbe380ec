"""`mailkeep dkim`: make keys that sign mail, and see which ones do, with the DNS records they need.

A private key is written to its file and never shown.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailkeep.cli.output import EXIT_CONFIG, fail, load_settings, print_json, table

if TYPE_CHECKING:
    from mailkeep.dkim.keys import Keyring

app = typer.Typer(help="Make keys that sign mail (DKIM), and list them.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def keygen(
    *,
    domain: Annotated[str, typer.Option(help="The sender's domain, such as example.org.")],
    selector: Annotated[str, typer.Option(help="Name of the key below the domain, such as 2026a.")],
    ed25519: Annotated[
        bool, typer.Option("--ed25519", help="Ed25519 instead of RSA with 2048 bits.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The key file.", show_default="<domain>.<selector>.pem")
    ] = None,
) -> None:
    """Write a new private key to a file that only you can read, and print the DNS record of its public half.

    A file that exists is left alone (exit code 1).
    """
    import os

    from mailkeep.dkim.keys import as_pem, check_name, new_private_key, record_line
    from mailkeep.dkim.signature import Algorithm, SigningKey

    try:
        domain = check_name(domain, selector)
    except ValueError as fault:
        fail(str(fault))
    key = SigningKey(domain, selector, new_private_key(Algorithm.ED25519 if ed25519 else Algorithm.RSA))
    path = out or Path(f"{domain}.{selector}.pem")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(as_pem(key.private_key))
    except OSError as fault:
        fail(f"can't write {path}: {fault.strerror}")
    print(f"""\
Wrote {path}; keep it secret. Publish this DNS record:

{record_line(key)}

Once it can be looked up, add to the file that MAIL_DKIM_KEYS_FILE names:

[[key]]
domain = "{domain}"
selector = "{selector}"
key_file = "{path.resolve()}\"""")


@app.command("list")
def list_keys(*, as_json: Json = False) -> None:
    """List the keys of MAIL_DKIM_KEYS_FILE: what each does now, since when, and its DNS record.

    A key is `signing`, `waiting` for its `not_before`, or `retired`: a later one of its algorithm has taken over.
    """
    from datetime import UTC, datetime

    from mailkeep.dkim.keys import record_name, record_value

    keyring, now = _keyring(), datetime.now(UTC)
    rows = [
        {
            "domain": key.domain,
            "selector": key.selector,
            "algorithm": key.algorithm,
            "state": keyring.state(key, now),
            "not_before": key.not_before,
            "record_name": record_name(key),
            "record_value": record_value(key),
        }
        for key in keyring.keys
    ]
    if as_json:
        print_json(rows)
        return
    titles = ("DOMAIN", "SELECTOR", "ALGORITHM", "STATE", "NOT BEFORE", "TXT RECORD")
    print(
        table(titles, [[cell or "-" for name, cell in row.items() if name != "record_name"] for row in rows])
    )


def _keyring() -> "Keyring":
    from mailkeep.dkim.keys import DkimKeysError, Keyring

    path = load_settings().dkim_keys_file
    if path is None:
        fail("MAIL_DKIM_KEYS_FILE is not set; mail is not signed")
    try:
        return Keyring.load(path)
    except DkimKeysError as fault:
        problems = "\n".join(f"  {problem}" for problem in fault.problems)
        fail(f"the DKIM keys of {path} can't be used\n{problems}", EXIT_CONFIG)
