"""Write the contracts of `api/`, which follow from the code: `make docs`.

The output depends on nothing else, so that `tests/unit/test_contracts.py` can hold the committed files against it.
"""
# ruff: noqa: INP001  # a script beside the files it writes, no package

import json
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from mailkeep.contracts.asyncapi import asyncapi
from mailkeep.contracts.command_schema import command_schema
from mailkeep.contracts.openapi import openapi
from mailkeep.contracts.send_openapi import send_openapi

API: Final = Path(__file__).parent
NOTICE: Final = "# Written by api/generate.py (`make docs`); edit src/mailkeep/contracts instead.\n"
SMALL_CHARS: Final = 80


class _Dumper(yaml.SafeDumper):
    """Writes each part in full where it stands, and small ones on one line."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


def _list(dumper: yaml.SafeDumper, parts: list[Any]) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", parts, flow_style=_is_small(parts))


def _object(dumper: yaml.SafeDumper, members: dict[str, Any]) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", members.items(), flow_style=_is_small(members))


def _is_small(part: object) -> bool:
    return len(json.dumps(part)) <= SMALL_CHARS


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(dict, _object)


def documents() -> dict[str, str]:
    """Return every generated file, name -> text."""
    return {
        "internal-openapi.yaml": _yaml(openapi()),
        "send-openapi.yaml": _yaml(send_openapi()),
        "delivery-commands-asyncapi.yaml": _yaml(asyncapi()),
        "delivery-command.schema.json": f"{json.dumps(command_schema(), indent=2, ensure_ascii=False)}\n",
    }


def _yaml(document: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(document))
    return NOTICE + yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)


if __name__ == "__main__":
    for name, text in documents().items():
        (API / name).write_text(text, encoding="utf-8")
