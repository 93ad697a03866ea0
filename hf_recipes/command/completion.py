"""Completion in a shell: ``eval "$(register-python-argcomplete hf-recipes)"``."""

import argparse
from collections.abc import Iterable

import argcomplete

from hf_recipes.command.flags import flags_of
from hf_recipes.core.arguments.commands import COMMANDS, recipes


def complete(others: Iterable[str]) -> None:
    """Answer the shell and end the program; `others` are the commands that are no scripts."""
    parser = argparse.ArgumentParser(prog="hf-recipes")
    commands = parser.add_subparsers()
    for name in COMMANDS:
        command = commands.add_parser(name, allow_abbrev=False)
        for flag, description in flags_of(name).items():
            command.add_argument(f"--{flag}", choices=description.get("choices"), nargs=description.get("nargs"))
        command.add_argument("--config")
        command.add_argument("--help_all", action="store_true")
    for name in others:
        command = commands.add_parser(name)
        if name == "recipes":
            command.add_argument("name", choices=recipes())
    argcomplete.autocomplete(parser)
