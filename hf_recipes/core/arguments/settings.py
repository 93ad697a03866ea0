"""Settings as dataclasses, from a command line and a file, and the record of them."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from hf_recipes import __version__
from hf_recipes.core.arguments.command_line import CommandLine, truth
from hf_recipes.core.arguments.commands import COMMANDS, config_path
from hf_recipes.core.arguments.limits import limits_of
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import write_text

# Never written to run_config.yaml: secrets, and settings of one invocation rather than of the run.
NOT_RECORDED = {
    "auth",
    "dry_run",
    "hub_token",
    "inexact_resume",
    "json",
    "local_rank",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "trust_checkpoint",
}
DEFAULTS = "# Defaults\n"  # heading of run_config.yaml's second section


JSON_HELP = "Print the result as one JSON document to stdout, and messages to stderr; of a training, with --dry_run."


def setting(text: str, default: Any = None) -> Any:
    """A dataclass field with its text for ``--help``."""
    return field(default=default, metadata={"help": text})


class Parser(CommandLine, HfArgumentParser):
    """Parses dataclasses from flags and YAML.

    A dataclass may have a class method `dependent_defaults`, from the values of all to defaults that follow from them.

    After `parse`, `settings` has the value of every field before any `__post_init__` changed it, which `save_settings`
    writes and `--config` reads; `given` has the names that were set.
    """

    def __init__(self, dataclass_types: Sequence[type], **kwargs):
        program = Path(sys.argv[0])
        command = next((one for one in COMMANDS.values() if program.name in one.scripts), None)
        super().__init__(list(dataclass_types), command=command, **kwargs)
        self.fields = [f.name for t in dataclass_types for f in dataclasses.fields(t) if f.init]
        self.unusable = set().union(*(getattr(kind, "unusable", ()) for kind in dataclass_types))
        self.limits = dict(limit for kind in dataclass_types for limit in limits_of(kind).items())
        for action in self._actions:
            action.type = truth if action.type is string_to_bool else action.type
        self.complete()
        self.settings: dict[str, Any] = {}
        self.given: set[str] = set()
        self._defaults = {name: _plain(self.get_default(name)) for name in self.fields}

    def parse(self, argv: Sequence[str] | None = None) -> tuple:
        """One instance of each dataclass; all mistakes of the command line and the file are UserErrors."""
        values = self.read(sys.argv[1:] if argv is None else argv)
        for name in self.repeated:
            say(f"note: of several --{name} the last one counts; put all values after one: --{name} A B", sys.stderr)
        for kind in self.dataclass_types:
            if hasattr(kind, "dependent_defaults"):
                defaults = kind.dependent_defaults(values)
                self._defaults |= dict.fromkeys(defaults)  # what is given is no default, whatever it is
                values |= {name: value for name, value in defaults.items() if name not in self.given}
        self.settings = dict(values)
        instances = []
        for kind in self.dataclass_types:
            names = [f.name for f in dataclasses.fields(kind) if f.init]
            try:
                instances.append(kind(**{name: _resolved(values[name]) for name in names}))
            except (ValueError, TypeError, ImportError, OSError) as error:
                raise UserError(" ".join(str(error).split())) from error
        return tuple(instances)

    def recorded(self) -> dict[str, Any]:
        """`settings` without `NOT_RECORDED`, as YAML's own types."""
        return {name: _plain(self.settings[name]) for name in self.fields if name not in NOT_RECORDED}

    def save_settings(self, path: str | os.PathLike) -> None:
        """Write `recorded` as YAML: first what differs from the defaults, then the rest."""
        import torch
        import transformers

        recorded = self.recorded()
        changed = {name for name in self.given & recorded.keys() if recorded[name] != self._defaults[name]}

        def section(is_changed: bool) -> str:
            values = {name: value for name, value in recorded.items() if (name in changed) is is_changed}
            return yaml.safe_dump(values, allow_unicode=True, sort_keys=False) if values else ""

        text = (
            f"# Repeat this run: --config {Path(path).name}\n"
            f"# hf_recipes {__version__}, transformers {transformers.__version__}, torch {torch.__version__}\n\n"
            f"{section(True)}\n"
            f"{DEFAULTS}{section(False)}"
        )
        write_text(path, text)


def _resolved(value: Any) -> Any:
    """`value`, with configurations that come with the package where they are."""
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    return config_path(value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return getattr(value, "value", value)  # the value of an enum member
