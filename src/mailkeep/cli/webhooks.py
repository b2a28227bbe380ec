"""`mailkeep webhooks`: who is told what becomes of mail, how that goes, and whether it works.

Exit codes: 0 done, 1 a webhook can't be told, 69 PostgreSQL is away, 78 bad configuration.
"""

from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from mailkeep.dispatch.webhook_post import Posted
    from mailkeep.settings import WebhookSettings
    from mailkeep.store.postgres import Store
    from mailkeep.store.webhooks import WebhookState

TITLES: Final = ("NAME", "STATE", "TOLD", "RETRYING", "GIVEN UP", "BEHIND", "EVENTS", "AT", "PROBLEM")

app = typer.Typer(
    help="Show who is told what becomes of mail (MAIL_WEBHOOKS_FILE), and test whether it works.",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the webhook.")]


@app.command("list")
def list_webhooks(*, as_json: Json = False) -> None:
    """List webhooks and how they fare; those that only the database knows are no longer configured."""
    from mailkeep.cli._store import ask_store
    from mailkeep.cli.output import print_json, table
    from mailkeep.store.webhooks import WebhookCursors

    configured = {webhook.name: webhook for webhook in _configured()}
    states = {state.name: state for state in ask_store(lambda store: WebhookCursors(store).states())}
    names = sorted(configured.keys() | states.keys())
    if as_json:
        print_json(
            [{"name": name, "configured": name in configured, "state": states.get(name)} for name in names]
        )
    elif names:
        print(table(TITLES, (_row(name, configured.get(name), states.get(name)) for name in names)))
    else:
        print("There is no webhook: MAIL_WEBHOOKS_FILE is not set.")


@app.command("test")
def try_webhook(name: Name, *, as_json: Json = False) -> None:
    """Post a signed event of type `webhook.test` to a webhook, and say what it answers."""
    import asyncio

    from mailkeep.cli.output import fail, print_json

    webhook = _named(name)
    posted = asyncio.run(_post_test(webhook))
    if as_json:
        print_json(posted)
    if posted.problem is not None:
        fail(f"{name} ({webhook.place}): {posted.problem}")
    if not as_json:
        print(f"{name} ({webhook.place}) took it")


@app.command()
def retry(name: Name, *, as_json: Json = False) -> None:
    """Tell a webhook now all that it did not take before, given up or not."""
    from mailkeep.cli._store import ask_store
    from mailkeep.cli.output import print_json
    from mailkeep.store.webhooks import WebhookCursors

    async def run(store: "Store") -> int:
        return await WebhookCursors(store).retry(name)

    events = ask_store(run)
    if as_json:
        print_json({"events": events})
    else:
        print(f"{events} events are due now")


@app.command()
def enable(name: Name) -> None:
    """Let a webhook that answered 410 (gone) go on from where it stopped."""
    from mailkeep.cli._store import ask_store
    from mailkeep.cli.output import fail
    from mailkeep.store.webhooks import WebhookCursors

    async def run(store: "Store") -> bool:
        return await WebhookCursors(store).enable(name)

    if not ask_store(run):
        fail(f"{name} is not disabled; see `mailkeep webhooks list`")
    print(f"{name} is told again")


@app.command()
def secret() -> None:
    """Make a secret that signs, for MAIL_WEBHOOKS_FILE and for the receiver.

    To rotate: put the new one first in `secrets`, restart, give it to the receiver, then take the old one out.
    """
    import base64
    import secrets

    from mailkeep.core.webhook import SECRET_PREFIX

    print(SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode())


def _configured() -> "tuple[WebhookSettings, ...]":
    from mailkeep.cli.output import load_settings

    return load_settings(find_dev=True).webhooks


def _named(name: str) -> "WebhookSettings":
    from mailkeep.cli.output import fail

    found = [webhook for webhook in _configured() if webhook.name == name]
    if not found:
        fail(f"MAIL_WEBHOOKS_FILE has no webhook {name!r}")
    return found[0]


async def _post_test(webhook: "WebhookSettings") -> "Posted":
    import uuid
    from datetime import UTC, datetime

    import msgspec

    from mailkeep.dispatch.webhook_post import WebhookPost

    event_id = f"evt_test_{uuid.uuid4().hex}"
    event = {"event_id": event_id, "type": "webhook.test", "timestamp": datetime.now(UTC), "data": {}}
    post = WebhookPost(webhook)
    try:
        return await post.post(event_id, msgspec.json.encode(event))
    finally:
        await post.close()


def _row(name: str, webhook: "WebhookSettings | None", state: "WebhookState | None") -> tuple[object, ...]:
    from mailkeep.core.duration import format_duration

    at = ", ".join(webhook.events) or "all" if webhook else "-", webhook.place if webhook else "-"
    if state is None:
        return (name, "new", 0, 0, 0, "-", *at, "")
    behind = "-" if state.behind_s is None else format_duration(max(round(state.behind_s), 0))
    facts = (state.told, state.waiting, state.given_up, behind)
    return (name, _state(webhook, state), *facts, *at, state.problem or "")


def _state(webhook: "WebhookSettings | None", state: "WebhookState") -> str:
    if webhook is None:
        return "not configured"
    if state.disabled_at is not None:
        return "disabled"
    return "ok" if state.problem is None else "out"
