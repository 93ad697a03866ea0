"""Command lines: dataclass flags, ``--config file.yaml``, or both (flags win); unknown names are errors."""

import dataclasses
import difflib
import json
import operator
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from hf_recipes import __version__
from hf_recipes.core.distributed import leave_process_group
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import disk_problem, write_text
from hf_recipes.core.heap import map_large_blocks

# Never written to run_config.yaml: secrets, and what concerns one invocation rather than the run.
NOT_RECORDED = {
    "auth",
    "dry_run",
    "hub_token",
    "inexact_resume",
    "local_rank",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "trust_checkpoint",
}


DEFAULTS = "# Defaults\n"  # in run_config.yaml, between what was set and what was not


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean X?)"`` for the known name closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]}?)" if matches else ""


def setting(text: str, default: Any = None) -> Any:
    """A dataclass field with its help for ``--help``."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class at:
    """Limits of a number, as in ``Annotated[int, at(ge=1)]``: at least, more than, at most, below."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    text: str | None = None  # what is expected, where the limits do not say it all; {} is the value

    def __contains__(self, value: float) -> bool:
        bounds = ((operator.ge, self.ge), (operator.gt, self.gt), (operator.le, self.le), (operator.lt, self.lt))
        return all(holds(value, bound) for holds, bound in bounds if bound is not None)

    def __str__(self) -> str:
        lowest = self.gt if self.ge is None else self.ge
        if self.text or (self.le is None and self.lt is None):
            return self.text or f"{'more than' if self.ge is None else 'at least'} {lowest}"
        return f"{lowest} to {f'below {self.lt}' if self.le is None else self.le}"


PositiveInt = Annotated[int, at(ge=1)]
NonNegativeInt = Annotated[int, at(ge=0)]
PositiveFloat = Annotated[float, at(gt=0)]
Share = Annotated[float, at(ge=0, le=1, text="a share from 0 to 1")]


@cache
def _limits(kind: type) -> dict[str, at]:
    hints = get_type_hints(kind, include_extras=True)
    found = {name: (hint, *get_args(hint)) for name, hint in hints.items()}  # PositiveInt | None too
    return {name: one.__metadata__[0] for name, parts in found.items() for one in parts if get_origin(one) is Annotated}


def check_limits(arguments: Any, **inherited: at) -> None:
    """Refuse a number that is not what its field is annotated with, or what is said of an inherited field.

    Raises:
        ValueError: there is one.
    """
    for name, limits in (_limits(type(arguments)) | inherited).items():
        value = getattr(arguments, name)
        if value is not None and value not in limits:
            shown = f"{value:g}" if isinstance(value, float) else value
            raise ValueError(f"--{name} {shown}: expected {str(limits).format(shown)}")


class Parser(HfArgumentParser):
    """Parses dataclasses from flags and YAML.

    `settings` holds, after `parse`, the value of every field as it was given or defaulted, before any
    `__post_init__` changed it: what `save_settings` writes and `--config` reads back.
    """

    def __init__(self, dataclass_types: Sequence[type], **kwargs):
        super().__init__(list(dataclass_types), allow_abbrev=False, **kwargs)
        self.fields = [f.name for t in dataclass_types for f in dataclasses.fields(t) if f.init]
        self.add_argument("--config", help="YAML file of settings; flags on the command line win over it.")
        self.settings: dict[str, Any] = {}
        self.given: set[str] = set()
        self._defaults = {name: _plain(self.get_default(name)) for name in self.fields}

    def error(self, message: str) -> NoReturn:
        # "--a_flag/--a-flag" are argparse's two spellings of one flag.
        raise UserError(re.sub(r"(--\w+)/--[\w-]+", r"\1", message))

    def parse(self, argv: Sequence[str] | None = None) -> tuple:
        """Return one instance of each dataclass.

        Raises:
            UserError: an unknown flag or key (the nearest known one is named), a value of the wrong type, a
                configuration file that is missing or is not a YAML mapping, or settings that contradict each other.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        config_path, flags = self._take_config(argv)
        config = _read_yaml(config_path) if config_path else {}
        for key in config:
            if key not in self.fields:
                raise UserError(f"{config_path}: unknown key {key!r}{nearest(str(key), self.fields)}")
        # A null in the file can overrule a default, which no flag could say.
        self.set_defaults(**{key: None for key, value in config.items() if value is None})
        on_command_line = _named(flags)
        try:
            namespace, unknown = self.parse_known_args(self._as_flags(config) + flags)
        except UserError as error:
            named = re.search(r"argument --(\w+)", str(error))
            from_file = named and named[1] in config and named[1] not in on_command_line
            raise UserError(f"{config_path}: {error}" if from_file else str(error)) from None
        if unknown:
            name = unknown[0].split("=")[0]
            if not name.startswith("-"):
                before = next((flag for flag in reversed(flags[: flags.index(unknown[0])]) if flag[:2] == "--"), "")
                is_secret = "token" in before or "auth" in before  # a slip there must not show what was meant for it
                raise UserError("stray argument " + (f"after {before.split('=')[0]}" if is_secret else repr(name)))
            raise UserError(f"unknown flag {name}{nearest(name, (f'--{field}' for field in self.fields))}")
        values = {name: getattr(namespace, name) for name in self.fields}
        self.given = set(config) | on_command_line
        self.settings = dict(values)
        instances = []
        for kind in self.dataclass_types:
            names = [f.name for f in dataclasses.fields(kind) if f.init]
            try:
                instances.append(kind(**{name: values[name] for name in names}))
            except (ValueError, TypeError, ImportError, OSError) as error:
                raise UserError(" ".join(str(error).split())) from error
        return tuple(instances)

    @classmethod
    def names(cls, argv: Sequence[str]) -> set[str]:
        """The settings that a command line and its ``--config`` file name, known or not.

        Raises:
            UserError: a configuration file that is missing or is not a YAML mapping.
        """
        path, flags = cls._take_config(list(argv))
        return set(_read_yaml(path) if path else ()) | _named(flags)

    @staticmethod
    def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
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
        return path, flags

    def _as_flags(self, config: dict[str, Any]) -> list[str]:
        """YAML values as the flags that say the same, so that one parser checks both."""
        flags: list[str] = []
        for key, value in config.items():
            if isinstance(value, list) and self._option_string_actions[f"--{key}"].nargs != "+":
                value = ",".join(map(str, value))
            if isinstance(value, list):
                flags += [f"--{key}", *map(str, value)] if value else []
            elif isinstance(value, dict):
                flags += [f"--{key}", json.dumps(value)]
            elif value is not None:
                flags += [f"--{key}={value}"]
        return flags

    def recorded(self) -> dict[str, Any]:
        """`settings` without secrets and without what concerns one invocation only, as YAML's own types."""
        return {name: _plain(self.settings[name]) for name in self.fields if name not in NOT_RECORDED}

    def save_settings(self, path: str | os.PathLike) -> None:
        """Write `settings` as YAML: first what was set otherwise than by default, then the rest, without secrets."""
        import torch
        import transformers

        recorded = self.recorded()
        changed = {name for name in self.given & recorded.keys() if recorded[name] != self._defaults[name]}

        def plain(is_changed: bool) -> str:
            chosen = {name: value for name, value in recorded.items() if (name in changed) is is_changed}
            return yaml.safe_dump(chosen, allow_unicode=True, sort_keys=False) if chosen else ""

        text = (
            f"# Repeat this run: --config {Path(path).name}\n"
            f"# hf_recipes {__version__}, transformers {transformers.__version__}, torch {torch.__version__}\n\n"
            f"{plain(True)}\n"
            f"{DEFAULTS}{plain(False)}"
        )
        write_text(path, text)


def _named(flags: Sequence[str]) -> set[str]:
    return {flag.lstrip("-").split("=")[0].replace("-", "_") for flag in flags if flag[:2] == "--"}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return getattr(value, "value", value)  # enum members, by their value


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        location = f"{path}:{mark.line + 1}" if mark else path
        raise UserError(f"{location}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected 'key: value' lines, found a {type(content).__name__}")
    return content


def read_json_object(path: str, flag: str) -> dict[str, Any]:
    """The JSON object in the file that `flag` names.

    Raises:
        UserError: no such file, not JSON, or no object.
    """
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{flag} {path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {path}: not JSON ({error})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{flag} {path}: expected a JSON object, found a {type(settings).__name__}")
    return settings


# What a script holds until its end, such as the lock of its folder; `run_script` lets go of it.
at_end = ExitStack()


def run_script(main: Callable[[], None], go_on: str = "the same command begins anew") -> None:
    """Run a script's `main`: a `UserError` becomes one line on stderr and exit code 1, without a traceback.

    So does a disk that is full or forbidden, wherever it is met.

    Args:
        go_on: what to do after Ctrl-C.
    """
    map_large_blocks()
    _hush_libraries()
    try:
        with at_end:
            main()
            leave_process_group()
    except KeyboardInterrupt:
        say(f"\ninterrupted; {go_on}")
        sys.exit(130)
    except Exception as error:
        text = str(error)
        if not isinstance(error, UserError):
            problem = disk_problem(error)
            if problem is None:
                raise
            text = f"a file cannot be read or written ({problem}); make room, or see to whose it is"
        rank = int(os.environ.get("RANK", 0))
        print(f"error{f' (rank {rank})' if rank else ''}: {text}", file=sys.stderr, flush=True)
        sys.exit(1)


def _hush_libraries() -> None:
    """Keep from the user what only the libraries' own authors can act on, and bars from files and pipes."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate|torch)\b")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
