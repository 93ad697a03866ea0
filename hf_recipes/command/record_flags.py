"""Records the flags of every command in flags.json, for ``make flags``."""

import argparse
import json
import runpy
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hf_recipes.command.flags import FILE, versions
from hf_recipes.core.arguments.command_line import KINDS, truth
from hf_recipes.core.arguments.commands import COMMANDS, bundled
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.inherited import UNUSABLE
from hf_recipes.stages.base import run
from hf_recipes.stages.table import STAGES

MODES = {"inspect_data.py": ([], ["--tokenizer"], ["--score"])}  # of scripts with more than one set of flags


def record() -> dict[str, Any]:
    """What flags.json holds: versions, each flag once, and the names of each command's flags."""
    flags: dict[str, Any] = {}
    commands = {}
    for name, command in COMMANDS.items():
        commands[name] = []
        for flag, description in _union(
            [_description(parser) for script in command.scripts for parser in parsers_of(script)]
        ).items():
            variants = [key for key in flags if key.partition(" ")[0] == flag]
            key = next((key for key in variants if flags[key] == description), None)
            key = key or (f"{flag} {len(variants) + 1}" if variants else flag)
            flags[key] = description
            commands[name].append(key)
    return {"versions": versions(), "commands": commands, "flags": flags}


def text(record: Mapping[str, Any]) -> str:
    """JSON with a line for each flag."""
    parts = []
    for name, part in record.items():
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in part.items())
        parts.append(f'"{name}": {{\n{lines}\n}}')
    return "{" + ",\n".join(parts) + "}\n"


def parsers_of(script: str) -> list[Parser]:
    """Every parser that a script makes, by its mode and by the stage that it may be for."""
    made: list[Parser] = []

    def parse(parser: Parser, argv=None):
        made.append(parser)
        raise UserError("its flags are all that is wanted")

    for argv in MODES.get(script, [[]]):
        with patch.object(Parser, "parse", parse), patch.object(sys, "argv", [script, *argv]):
            names = runpy.run_path(str(bundled(f"scripts/{script}")))
            with suppress(UserError):
                names["main"]() if "main" in names else run(STAGES[Path(script).stem])
    return made


def _description(parser: Parser) -> dict[str, dict[str, Any]]:
    actions = {action.dest: action for action in reversed(parser._actions)}
    flags = {name: _flag(actions[name]) | _limits(parser, name) for name in parser.fields}
    for kind in parser.dataclass_types:
        unusable = UNUSABLE | kind.unusable if issubclass(kind, RunArguments) else {}
        for name in unusable.keys() & flags.keys():
            flags[name]["help"] = f"Refused: it {unusable[name]}."
    return flags


def _limits(parser: Parser, name: str) -> dict[str, Any]:
    limits = parser.limits.get(name)
    return {"limits": {key: value for key, value in asdict(limits).items() if value is not None}} if limits else {}


def _flag(action: argparse.Action) -> dict[str, Any]:
    kind = getattr(action.type, "__wrapped__", action.type)
    names = [name for name, known in KINDS.items() if known is kind]
    default = getattr(action.default, "value", action.default)
    flag = {
        "type": names[0] if names else None,
        "nargs": action.nargs,
        "const": action.const if kind is truth else None,
        "default": json.loads(json.dumps(default, default=str)),
        "choices": action.choices and [getattr(choice, "value", choice) for choice in action.choices],
        "required": action.required or None,
        "help": action.help,
    }
    if flag["choices"]:
        flag["type"] = "int" if all(isinstance(choice, int) for choice in flag["choices"]) else "str"
    return {key: value for key, value in flag.items() if value is not None}


def _union(descriptions: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The flags of all; of one that differs, what agrees, and it is required where it is so in all of them."""
    united: dict[str, dict[str, Any]] = {}
    for description in descriptions:
        for name, flag in description.items():
            before = united.setdefault(name, flag)
            united[name] = {key: value for key, value in before.items() if key == "help" or flag.get(key) == value}
    for name, flag in united.items():
        if not all(name in description for description in descriptions):
            flag.pop("required", None)
    return united


if __name__ == "__main__":
    FILE.write_text(text(record()), encoding="utf-8")
