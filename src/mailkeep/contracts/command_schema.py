"""The JSON Schema of one command, as HTTP and `mail.enqueue` take it: as a file `api/delivery-command.schema.json`."""

from typing import Final

from mailkeep.contracts.examples import COMMANDS
from mailkeep.contracts.schemas import schemas
from mailkeep.contracts.truth import COMMAND, Schema

DEFINITIONS: Final = "#/$defs/"


def command_schema() -> Schema:
    """Return the schema, with examples that are executed as tests."""
    definitions = schemas((), DEFINITIONS)
    command = definitions.pop(COMMAND)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:mailkeep:schema:delivery-command",
        "title": COMMAND,
        **command,
        "examples": list(COMMANDS.values()),
        "$defs": definitions,
    }
