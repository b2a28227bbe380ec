"""`mailkeep routes`: where mail goes, and whether it could go there.

Exit codes: 0 done, 1 an address can't be used, 78 bad configuration.
"""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from mailkeep.operator.queue import ReplicaView, RouteFacts
    from mailkeep.smtp.next_hop import NextHop
    from mailkeep.smtp.probe import Probe

TITLES: Final = ("NAME", "STATE", "DOMAINS", "TLS", "LOGIN", "CONNECTIONS", "MESSAGES/S", "ADDRESSES")
SHOWN_DOMAINS: Final = 3

app = typer.Typer(invoke_without_command=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def routes(context: typer.Context, *, as_json: Json = False) -> None:
    """List the next hops and how they fare; limits are those of one process.

    The state comes from the live replicas, where MAIL_POSTGRES_DSN names their queue. An address with (10/3) has priority 10, the lowest being tried first, and weight 3.
    """
    from mailkeep.cli.output import print_json, printable, table

    if context.invoked_subcommand is not None:
        return
    hops = _hops()
    facts = _fare(hops)
    if as_json:
        print_json([_described(hop) | {"state": facts.get(hop.name)} for hop in hops])
    elif hops:
        print(table(TITLES, (_row(hop, facts.get(hop.name)) for hop in hops)))
        for fact in facts.values():
            if fact.since is not None:
                since = f"{fact.since:%Y-%m-%d %H:%M:%S}"
                print(printable(f"-- {fact.next_hop} is out since {since}, its mail is parked: {fact.cause}"))
    else:
        print("There is no next hop: neither MAIL_SMTP_ADDR nor MAIL_ROUTES_FILE is set.")


def _fare(hops: "list[NextHop]") -> "dict[str, RouteFacts]":
    """Return how each hop fares for the live replicas; empty, and said so, where the queue can't be asked."""
    import asyncio

    from mailkeep.cli._store import open_store
    from mailkeep.cli.output import load_settings
    from mailkeep.operator.queue import OperatorQueue, route_facts
    from mailkeep.store.errors import StoreUnavailableError

    async def ask() -> "tuple[ReplicaView, ...]":
        async with open_store() as store:
            return await OperatorQueue(store).replicas()

    if load_settings(find_dev=True).postgres_dsn is None:
        return {}
    try:
        replicas = asyncio.run(ask())
    except StoreUnavailableError as fault:
        typer.echo(f"mailkeep: how they fare is not known: {fault}", err=True)
        return {}
    return {hop.name: route_facts(hop.name, replicas) for hop in hops}


@app.command("test", short_help="Try every address; no mail is sent.")
def probe_routes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One next hop alone.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Connect to every address of every next hop, log in, and say what is there; no mail is sent.

    Leaves with exit code 1 if mail could not be sent to one of them.
    """
    import asyncio

    from mailkeep.cli.output import EXIT_FAILED, fail, print_json, printable

    hops = [hop for hop in _hops() if name in {None, hop.name}]
    if not hops:
        fail(f"there is no next hop {name!r}" if name else "there is no next hop")
    probes = asyncio.run(_probes(hops))
    if as_json:
        print_json(probes)
    else:
        for line in (line for found in probes for line in _lines(found)):
            print(printable(line))
    if any(found.problem for found in probes):
        raise typer.Exit(EXIT_FAILED)


def _hops() -> "list[NextHop]":
    from mailkeep.cli.output import load_settings
    from mailkeep.smtp.configured import next_hops

    return list(next_hops(load_settings()).values())


async def _probes(hops: "list[NextHop]") -> "list[Probe]":
    from mailkeep.smtp.probe import probe

    return [await probe(hop, address) for hop in hops for address in hop.addresses]


def _state(facts: "RouteFacts | None") -> str:
    if facts is None or not facts.live_replicas:
        return "-"
    return f"out for {facts.out_for} of {facts.live_replicas}" if facts.out_for else "ok"


def _row(hop: "NextHop", state: "RouteFacts | None") -> tuple[object, ...]:
    more = f" and {len(hop.domains) - SHOWN_DOMAINS} more" if len(hop.domains) > SHOWN_DOMAINS else ""
    facts = _described(hop)
    return (
        hop.name,
        _state(state),
        ", ".join(hop.domains[:SHOWN_DOMAINS]) + more or facts["takes"],
        facts["tls"] + ("" if hop.proves_itself or facts["tls"] == "none" else ", not verified"),
        facts["login"] or "-",
        hop.max_connections,
        "-" if hop.messages_per_s is None else f"{hop.messages_per_s:g}",
        ", ".join(
            f"{address}" + (f" ({address.priority}/{address.weight})" if len(hop.addresses) > 1 else "")
            for address in hop.addresses
        ),
    )


def _described(hop: "NextHop") -> dict[str, Any]:
    from mailkeep.smtp.routes import SINKHOLE_HOP

    password = "password" if hop.password is not None else None
    return {
        "name": hop.name,
        "takes": "sinkhole.test"
        if hop.name == SINKHOLE_HOP
        else "all else"
        if not hop.domains
        else "its domains",
        "domains": hop.domains,
        "addresses": [
            {"host": one.host, "port": one.port, "priority": one.priority, "weight": one.weight}
            for one in hop.addresses
        ],
        "tls": hop.tls.value,
        "verified": hop.proves_itself,
        "pinned": bool(hop.fingerprints),
        "client_certificate": hop.client_certificate,
        "login": "token" if hop.token_command else password,
        "max_connections": hop.max_connections,
        "messages_per_connection": hop.messages_per_connection,
        "messages_per_s": hop.messages_per_s,
        "source_address": hop.source_address,
        "helo_name": hop.helo_name,
    }


def _lines(found: "Probe") -> list[str]:
    lines = [f"{found.hop}  {found.address}  {'FAILED' if found.problem else 'ok'}"]
    if found.problem:
        lines.append(f"  problem       {found.problem}")
    if found.tls:
        lines.append(f"  tls           {found.tls}")
    if found.certificate:
        names = ", ".join(found.certificate.names)
        known = f"{names}, until {found.certificate.expires}" if names else "not verified by an authority"
        lines += [f"  certificate   {known}", f"  fingerprint   {found.certificate.fingerprint}"]
    if found.capabilities:
        lines.append(f"  capabilities  {', '.join(found.capabilities)}")
    if found.logged_in is not None:
        lines.append(f"  login         {'accepted' if found.logged_in else 'FAILED'}")
    return lines
