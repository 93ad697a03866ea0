"""Completion in a shell: ``eval "$(register-python-argcomplete hf-recipes)"``."""

import argparse

import argcomplete

from hf_recipes.command.flags import flags_of
from hf_recipes.core.arguments.commands import COMMANDS


def complete() -> None:
    """Answer the shell and end the program."""
    parser = argparse.ArgumentParser(prog="hf-recipes")
    commands = parser.add_subparsers()
    for name in COMMANDS:
        command = commands.add_parser(name, allow_abbrev=False)
        for flag, description in flags_of(name).items():
            command.add_argument(f"--{flag}", choices=description.get("choices"), nargs=description.get("nargs"))
        command.add_argument("--config")
    argcomplete.autocomplete(parser)
