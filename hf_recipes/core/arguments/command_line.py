"""Command lines: flags, ``--config file.yaml``, or both (flags win); unknown names are errors.

Nothing here needs the libraries of a run, so that ``--help`` and a wrong flag do not wait for them.
"""

import argparse
import difflib
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_origin

from hf_recipes.core.arguments.commands import Command, config_path, find_recipe, recipes
from hf_recipes.core.arguments.flags import as_taken
from hf_recipes.core.arguments.limits import at
from hf_recipes.core.arguments.other_names import is_others, name_here
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import parse_json, read_mapping

TRUE, FALSE = ("yes", "true", "t", "y", "1", "on"), ("no", "false", "f", "n", "0", "off")
MOST_CHOICES = 6  # that help names
_ITEM = "\0"  # before an item of a list in a file, which is no flag where it begins with "-"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" (did you mean X?)"``, with the known name closest to `name`; empty if none is as close as `cutoff`."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {matches[0]}?)" if matches else ""


def truth(text: str | bool) -> bool:
    """A truth value as people write it on a command line or in YAML."""
    if isinstance(text, bool):
        return text
    if text.lower() in (*TRUE, *FALSE):
        return text.lower() in TRUE
    raise argparse.ArgumentTypeError(f"true or false expected, not {text!r}")


def json_object(text: str | dict) -> dict[str, Any]:
    try:
        value = parse_json(text) if isinstance(text, str) else text
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"a JSON object expected, not {text}")
    return value


KINDS = {"int": int, "float": float, "str": str, "truth": truth, "object": json_object}


def _reader(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """`kind` for the text of an item, also of 1e3 as an integer."""

    @wraps(kind)
    def read(text: str) -> Any:
        text = text.removeprefix(_ITEM) if isinstance(text, str) else text
        if kind is int and re.fullmatch(r"\d+(\.\d+)?(e\+?\d)?", text, re.IGNORECASE) and not text.isdigit():
            text = int(float(text)) if float(text).is_integer() else text
        return kind(text)

    return read


class CommandLine(argparse.ArgumentParser):
    """Flags and a YAML file of the same names.

    Args:
        command: what ``--help`` says of it, beside the flags.
    """

    def __init__(self, *args, command: Command | None = None, **kwargs):
        self.command = command
        super().__init__(*args, allow_abbrev=False, add_help=False, **kwargs)
        self.fields: list[str] = []
        self.unusable: Collection[str] = ()  # fields that no message advises
        self.limits: dict[str, at] = {}
        self.repeated: list[str] = []  # lists of which the last one counts, as argparse has it

    @classmethod
    def of(cls, flags: Mapping[str, Mapping[str, Any]], command: Command, prog: str) -> "CommandLine":
        """The command line of flags as `description` has them."""
        line = cls(prog=prog, command=command)
        for name, description in flags.items():
            flag = dict(description)
            limits, kind = flag.pop("limits", None), KINDS.get(flag.pop("type", ""))
            line.limits |= {name: at(**limits)} if limits else {}
            line.add_argument(*_spellings(name), type=kind, **flag)
            if kind is truth and flag.get("default") is True:
                line.add_argument(*_spellings(f"no_{name}"), action="store_false", dest=name)
        line.fields = list(flags)
        line.complete()
        return line

    def complete(self) -> None:
        """Add what every command line has, and read numbers and truth values as people write them."""
        self.add_argument("--config", help="YAML file of settings; flags on the command line win over it.")
        self.add_argument("-h", "--help", action="store_true", help="These flags.")
        self.add_argument("--help_all", "--help-all", action="store_true", help="All flags.")
        for action in self._actions:
            if action.type is truth and action.nargs is None:
                action.nargs, action.const = "?", True  # also where none is the default, such as --bf16
            action.type = json_object if get_origin(action.type) is dict else action.type
            action.type = _reader(action.type) if action.type in KINDS.values() else action.type

    def error(self, message: str) -> NoReturn:
        # "--a_flag/--a-flag" are argparse's two spellings of one flag.
        raise UserError(re.sub(r"(--\w+)/--[\w-]+", r"\1", message))

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """The value of each field; ``--help`` is printed and ends the program.

        Raises:
            UserError: a mistake of the command line or the file.
        """
        if {"-h", "--help", "--help_all", "--help-all"} & set(argv):
            print(self.format_help_of(all_flags="--help_all" in argv or "--help-all" in argv))
            sys.exit()
        config_path, flags = self._take_config(argv)
        config = read_mapping(config_path, "--config", as_yaml=True) if config_path else {}
        for key in config:
            if key not in self.fields:
                raise UserError(f"{config_path}: unknown key {key!r}{self._meant(str(key))}")
        # A null in the file overrules a default, which no flag can do.
        self.set_defaults(**{key: None for key, value in config.items() if value is None})
        on_command_line = _named(flags)
        # Before argparse says which flags are missing: they may be there by another name.
        for before, flag in pairwise(["", *flags]):
            if re.match(r"--\w", flag) and " " not in flag.split("=")[0]:
                self._check_known(flag, before)
        try:
            namespace, unknown = self.parse_known_args(self._as_flags(config) + flags)
        except UserError as error:
            match = re.search(r"argument --(\w+)", str(error))
            from_file = match and match[1] in config and match[1] not in on_command_line
            raise UserError(f"{config_path}: {error}" if from_file else str(error)) from None
        if unknown:
            name = unknown[0].split("=")[0]
            if not name.startswith("-"):
                before = next((flag for flag in reversed(flags[: flags.index(unknown[0])]) if flag[:2] == "--"), "")
                is_secret = "token" in before or "auth" in before  # the stray argument may be a secret
                raise UserError("stray argument " + (f"after {before.split('=')[0]}" if is_secret else repr(name)))
            self._check_known(name)
        self.given = set(config) | on_command_line
        self.repeated = [name for name, times in self._lists_of(flags).items() if times > 1]
        return {name: getattr(namespace, name) for name in self.fields}

    def _lists_of(self, flags: Sequence[str]) -> Counter[str]:
        """How often each setting that takes several values stands among `flags`."""
        actions = (self._option_string_actions.get(flag.split("=")[0]) for flag in flags)
        return Counter(action.dest for action in actions if action and action.nargs in ("+", "*"))

    def _check_known(self, flag: str, before: str = "") -> None:
        name = flag.split("=")[0]
        if name not in self._option_string_actions:
            meant = self._meant(name.lstrip("-").replace("-", "_"), "--")
            wants = self._option_string_actions.get(before)
            if not meant and wants and wants.nargs is None and getattr(wants.type, "__wrapped__", None) is str:
                meant = f"; as the value of {before}, write {before}={flag}"
            raise UserError(f"unknown flag {name}{meant}")

    def _meant(self, name: str, prefix: str = "") -> str:
        """What an unknown setting is called here: by other toolkits' names, else a likely misspelling."""
        known = {field for field in self.fields if field not in self.unusable}
        if here := name_here(name, known, prefix):
            return here
        # At 0.6 torch_dtype would be torch_compile, and at 0.8 val_size is vocab_size.
        return "" if is_others(name) else nearest(f"{prefix}{name}", (f"{prefix}{field}" for field in known), 0.8)

    @classmethod
    def names(cls, argv: Sequence[str]) -> set[str]:
        """The names of settings on a command line and in its ``--config`` file, known or not."""
        path, flags = cls._take_config(argv)
        return set(read_mapping(path, "--config", as_yaml=True) if path else ()) | _named(flags)

    @staticmethod
    def _take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
        path, flags, items = None, [], iter(argv)
        for item in items:
            if item == "--config":
                path = next(items, None)
                if path is None:
                    raise UserError("--config needs the path of a YAML file")
            elif item.startswith("--config="):
                path = item.split("=", 1)[1]
            else:
                flags.append(item)
        recipe = path and config_path(find_recipe(path))
        if recipe and not Path(recipe).exists():
            raise UserError(f"--config {path}: no such file{nearest(path, recipes())}")
        return recipe, flags

    def _as_flags(self, config: Mapping[str, Any]) -> list[str]:
        """YAML values as flags, so that one parser checks both."""
        flags: list[str] = []
        for key, value in config.items():
            value = as_taken(value, self._option_string_actions[f"--{key}"].nargs == "+")
            if isinstance(value, list):
                flags += [f"--{key}", *(f"{_ITEM}{item}" for item in value)] if value else []
            elif isinstance(value, dict):
                flags += [f"--{key}", json.dumps(value)]
            elif value is not None:
                flags += [f"--{key}={value}"]
        return flags

    def format_help_of(self, all_flags: bool) -> str:
        """A sentence, two examples, and the flags that matter, or all of them."""
        formatter = _Formatter(self.prog, width=min(120, shutil.get_terminal_size().columns))
        actions = {action.dest: action for action in reversed(self._actions)}  # the first of a name, not its --no_
        groups = dict(self.command.main_flags) if self.command else {}
        shown = {name: actions[name] for names in groups.values() for name in names.split() if name in actions}
        rest = [action for name, action in reversed(actions.items()) if name not in shown]
        if self.command:
            examples = self.command.examples
            if self.prog.startswith("hf-recipes "):  # which starts torchrun by itself
                of_script = rf"(?:python|torchrun( --nproc_per_node \d+)) scripts/{self.command.script}"
                examples = [re.sub(of_script, lambda match: self.prog + (match[1] or ""), one) for one in examples]
            formatter.add_text(self.command.sentence)
            formatter.add_lines(examples if all_flags else examples[:2])
        for heading, names in groups.items():
            formatter.start_section(heading)
            formatter.add_arguments(shown[name] for name in names.split() if name in shown)
            formatter.end_section()
        if all_flags or not groups:
            formatter.start_section("All others" if groups else "Flags")
            formatter.add_arguments(rest)
            formatter.end_section()
        else:
            formatter.add_lines([f"{len(rest)} more: --help_all"])
        return formatter.format_help()


class _Formatter(argparse.HelpFormatter):
    """Each flag by one spelling, with its default where that tells something."""

    def __init__(self, prog: str, width: int):
        super().__init__(prog, max_help_position=32, width=width)

    def add_lines(self, lines: Sequence[str]) -> None:
        self._add_item("\n".join, [[f"  {line}" for line in lines] + ["\n"]])

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flag = next(option for option in action.option_strings if option.startswith("--"))
        return f"{flag} {self._format_args(action, action.dest.upper())}" if action.nargs != 0 else flag

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        return {"int": "N", "float": "X", "truth": "true|false"}.get(kind, "…")

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str):
        if action.choices is not None and len(list(action.choices)) > MOST_CHOICES:
            return lambda count: (default_metavar,) * count
        if action.choices is not None:
            return lambda count: ("|".join(map(str, action.choices)),) * count
        return lambda count: (self._get_default_metavar_for_optional(action),) * count

    def _expand_help(self, action: argparse.Action) -> str:
        text = " ".join((action.help or "").split())
        default = getattr(action.default, "value", action.default)
        if default in (None, False, "", argparse.SUPPRESS) or default == [] or "efault" in text:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
        return f"{text} (default: {shown})"


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def _named(flags: Sequence[str]) -> set[str]:
    return {flag.lstrip("-").split("=")[0].replace("-", "_") for flag in flags if flag[:2] == "--"}
