"""The flags of every command, as recorded in flags.json: for help and checks that import no library of a run."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hf_recipes.core.arguments.command_line import CommandLine
from hf_recipes.core.arguments.commands import COMMANDS

FILE = Path(__file__).with_name("flags.json")
INHERITED_FROM = ("transformers", "trl")  # whose dataclasses ours extend


def versions() -> dict[str, str]:
    """Of the packages that bring flags; empty where one is not installed."""
    try:
        return {name: version(name) for name in INHERITED_FROM}
    except PackageNotFoundError:
        return {}


@cache
def recorded() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def flags_of(name: str) -> dict[str, Mapping[str, Any]]:
    """The flags of a command, as `CommandLine.of` takes them."""
    keys = recorded()["commands"][name]
    return {key.partition(" ")[0]: recorded()["flags"][key] for key in keys}


def command_line(name: str, program: str) -> CommandLine | None:
    """The command line of a command; None where other versions are installed than those of the record."""
    if versions() != recorded()["versions"]:
        return None
    return CommandLine.of(flags_of(name), COMMANDS[name], program)
