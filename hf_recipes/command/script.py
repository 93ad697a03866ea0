"""The beginning of every script: its command line is checked before a library of a run is imported."""

import gc
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from hf_recipes.command.flags import command_line
from hf_recipes.core.arguments.commands import COMMANDS
from hf_recipes.core.arguments.limits import check_numbers
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import is_path
from hf_recipes.core.script import errors_in_one_line, print_any_text, run_script
from hf_recipes.data.files.specs import parse_spec

# Flags of what `parse_spec` reads.
DATA = ("train_file", "validation_file", "eval_files", "input_file", "input_files", "decontaminate", "text")


def check_command_line(name: str, argv: Sequence[str], program: str) -> None:
    """Compare the command line of the command `name` with its recorded flags, and look for the data and the model that
    it names; ``--help`` is printed."""
    line = command_line(name, program)
    if line is None:
        return
    values = line.read(argv)
    try:
        check_numbers(values, line.limits)
    except ValueError as error:
        raise UserError(str(error)) from error
    for spec in (spec for flag in DATA for spec in values.get(flag) or ()):
        parse_spec(spec)
    model = values.get("model_name_or_path")
    if model and is_path(model) and not Path(model).exists():
        raise UserError(f"{model}: no such folder")


def begin_script(first_process_alone: bool = False) -> None:
    """Check the command line of the script that runs, and have its imports not searched for garbage.

    With `first_process_alone` the others of several processes, which torchrun started, end here.
    """
    program = Path(sys.argv[0]).name
    print_any_text()
    with errors_in_one_line():
        for name, command in COMMANDS.items():
            if program in command.scripts:
                check_command_line(name, sys.argv[1:], program)
    if first_process_alone and int(os.environ.get("RANK", 0)) > 0:
        sys.exit()
    gc.disable()  # what the libraries define stays; `run_script` turns it on again


def run_stage(name: str) -> None:
    """Run the script of a stage."""
    begin_script()
    from hf_recipes.stages.base import RESUME_HINT, run

    run_script(partial(run, import_module(f"hf_recipes.stages.{name}").STAGE), RESUME_HINT)
