"""`mailkeep migrate`: bring the schema up to date."""

from typing import Annotated

import typer


def migrate(
    *,
    print_roles: Annotated[
        bool, typer.Option("--print-roles", help="Print the SQL of least-privilege roles instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Apply what is missing of the schema `mail` and say so; `serve` does the same by itself at its start.

    Any number may run at once: one applies, the others wait and find nothing left to do. Where the service's own role may
    not change the schema, this is for the role that owns it, and then `mailkeep migrate --print-roles | psql …`.
    """
    if print_roles:
        from mailkeep.store.migrate import roles_script

        print(roles_script(), end="")
        return
    import asyncio
    import json

    from mailkeep.cli.output import EXIT_UNAVAILABLE, fail, load_settings
    from mailkeep.store.connect import connect
    from mailkeep.store.errors import StoreUnavailableError, translated
    from mailkeep.store.migrate import MigrationError
    from mailkeep.store.migrate import migrate as apply

    settings = load_settings()
    dsn = settings.postgres_dsn
    if dsn is None:
        fail("MAIL_POSTGRES_DSN is not set; it names the database to migrate")

    async def run() -> list[str]:
        with translated():
            connection = await connect(dsn.reveal())
            try:
                return [f"{step.version:04d}_{step.name}" for step in await apply(connection)]
            finally:
                await connection.close()

    try:
        applied = asyncio.run(run())
    except StoreUnavailableError as fault:
        fail(f"can't reach {dsn}: {fault}", EXIT_UNAVAILABLE)
    except MigrationError as fault:
        fail(str(fault))
    if as_json:
        print(json.dumps({"applied": applied}))
    else:
        print("\n".join(f"applied {name}" for name in applied) or "the schema is up to date")
