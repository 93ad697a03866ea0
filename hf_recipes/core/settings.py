"""Command lines: dataclass flags, ``--config file.yaml``, or both (flags win); unknown names are errors."""

import dataclasses
import difflib
import io
import json
import operator
import os
import re
import select
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from hf_recipes import __version__
from hf_recipes.core.distributed import leave_process_group
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import disk_problem, read_mapping, write_text
from hf_recipes.core.heap import map_large_blocks
from hf_recipes.core.other_names import name_here

# Never written to run_config.yaml: secrets, and settings of one invocation rather than of the run.
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
DEFAULTS = "# Defaults\n"  # heading of run_config.yaml's second section


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" (did you mean X?)"``, with the known name closest to `name`; empty if none is as close as `cutoff`."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {matches[0]}?)" if matches else ""


def setting(text: str, default: Any = None) -> Any:
    """A dataclass field with its text for ``--help``."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class at:
    """Limits of a number, as in ``Annotated[int, at(ge=1)]``: at least, more than, at most, below."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    text: str | None = None  # the expected values in words, in place of the limits; {} is the value

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
NonNegativeFloat = Annotated[float, at(ge=0)]
PositiveFloat = Annotated[float, at(gt=0)]
Share = Annotated[float, at(ge=0, le=1, text="a share from 0 to 1")]


@cache
def _limits(kind: type) -> dict[str, at]:
    return {
        name: part.__metadata__[0]
        for name, hint in get_type_hints(kind, include_extras=True).items()
        for part in (hint, *get_args(hint))  # the arguments of PositiveInt | None
        if get_origin(part) is Annotated
    }


def check_limits(arguments: Any, **inherited: at) -> None:
    """Raise ValueError for a number outside the limits that its field is annotated with, or that `inherited` gives."""
    for name, limits in (_limits(type(arguments)) | inherited).items():
        value = getattr(arguments, name)
        if value is not None and value not in limits:
            text = f"{value:g}" if isinstance(value, float) else value
            raise ValueError(f"--{name} {text}: expected {str(limits).format(text)}")


_ITEM = "\0"  # before an item of a list in a file, which is no flag where it begins with "-"


def _reader(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """`kind` for the text of an item, also of 1e3 as an integer, and of YAML's on and off."""

    @wraps(kind)
    def read(text: str) -> Any:
        text = text.removeprefix(_ITEM)
        if kind is int and re.fullmatch(r"\d+(\.\d+)?(e\+?\d)?", text, re.IGNORECASE) and not text.isdigit():
            text = int(float(text)) if float(text).is_integer() else text
        return kind({"on": "yes", "off": "no"}.get(text.lower(), text) if kind is string_to_bool else text)

    return read


class Parser(HfArgumentParser):
    """Parses dataclasses from flags and YAML.

    A dataclass may have a class method `dependent_defaults`, from the values of all to defaults that follow from them.

    After `parse`, `settings` has the value of every field before any `__post_init__` changed it, which `save_settings`
    writes and `--config` reads; `given` has the names that were set.
    """

    def __init__(self, dataclass_types: Sequence[type], **kwargs):
        super().__init__(list(dataclass_types), allow_abbrev=False, **kwargs)
        self.fields = [f.name for t in dataclass_types for f in dataclasses.fields(t) if f.init]
        self.add_argument("--config", help="YAML file of settings; flags on the command line win over it.")
        for action in self._actions:
            action.type = _reader(action.type) if action.type in (int, str, string_to_bool) else action.type
        self.settings: dict[str, Any] = {}
        self.given: set[str] = set()
        self._defaults = {name: _plain(self.get_default(name)) for name in self.fields}

    def error(self, message: str) -> NoReturn:
        # "--a_flag/--a-flag" are argparse's two spellings of one flag.
        raise UserError(re.sub(r"(--\w+)/--[\w-]+", r"\1", message))

    def parse(self, argv: Sequence[str] | None = None) -> tuple:
        """One instance of each dataclass; all mistakes of the command line and the file are UserErrors."""
        argv = list(sys.argv[1:] if argv is None else argv)
        config_path, flags = self._take_config(argv)
        config = read_mapping(config_path, "--config", as_yaml=True) if config_path else {}
        for key in config:
            if key not in self.fields:
                raise UserError(f"{config_path}: unknown key {key!r}{self._meant(str(key))}")
        # A null in the file overrules a default, which no flag can do.
        self.set_defaults(**{key: None for key, value in config.items() if value is None})
        on_command_line = _named(flags)
        for flag in flags:  # before argparse says which flags are missing: they may be there by another name
            if re.match(r"--\w", flag) and " " not in flag.split("=")[0]:
                self._check_known(flag)
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
        values = {name: getattr(namespace, name) for name in self.fields}
        self.given = set(config) | on_command_line
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
                instances.append(kind(**{name: values[name] for name in names}))
            except (ValueError, TypeError, ImportError, OSError) as error:
                raise UserError(" ".join(str(error).split())) from error
        return tuple(instances)

    def _check_known(self, flag: str) -> None:
        name = flag.split("=")[0]
        if name not in self._option_string_actions:
            raise UserError(f"unknown flag {name}{self._meant(name.lstrip('-').replace('-', '_'), '--')}")

    def _meant(self, name: str, prefix: str = "") -> str:
        """What an unknown setting is called here: by other toolkits' names, else a likely misspelling."""
        unusable = set().union(*(getattr(kind, "unusable", ()) for kind in self.dataclass_types))
        known = {field for field in self.fields if field not in unusable}
        # At 0.6 torch_dtype would be torch_compile.
        return name_here(name, known, prefix) or nearest(
            f"{prefix}{name}", (f"{prefix}{field}" for field in known), 0.8
        )

    @classmethod
    def names(cls, argv: Sequence[str]) -> set[str]:
        """The names of settings on a command line and in its ``--config`` file, known or not."""
        path, flags = cls._take_config(list(argv))
        return set(read_mapping(path, "--config", as_yaml=True) if path else ()) | _named(flags)

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
        """YAML values as flags, so that one parser checks both."""
        flags: list[str] = []
        for key, value in config.items():
            takes_list = self._option_string_actions[f"--{key}"].nargs == "+"
            if isinstance(value, dict) and takes_list:  # eval_files: {dev: path}
                value = [f"{name}={item}" for name, item in value.items()]
            if isinstance(value, list) and not takes_list:
                value = ",".join(map(str, value))
            if isinstance(value, list):
                flags += [f"--{key}", *(f"{_ITEM}{item}" for item in value)] if value else []
            elif isinstance(value, dict):
                flags += [f"--{key}", json.dumps(value)]
            elif value is not None:
                flags += [f"--{key}={value}"]
        return flags

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


def _named(flags: Sequence[str]) -> set[str]:
    return {flag.lstrip("-").split("=")[0].replace("-", "_") for flag in flags if flag[:2] == "--"}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return getattr(value, "value", value)  # the value of an enum member


# What a script holds until its end, such as the lock of its folder; `run_script` closes it.
at_end = ExitStack()


def run_script(main: Callable[[], None], resume_hint: str = "the same command starts again") -> None:
    """Run a script's `main`; a `UserError`, or a full or forbidden disk, is one line on stderr and exit code 1."""
    map_large_blocks()
    print_any_text()
    _hush_libraries()
    try:
        with at_end:
            main()
            leave_process_group()
            sys.stdout.flush()  # into a pipe that no one reads any more it fails here, not while Python ends
    except BrokenPipeError:
        unread = [stream.fileno() for stream in (sys.stdout, sys.stderr) if _lacks_reader(stream)]
        if not unread:
            raise
        # Whoever read the output, such as head, has enough; else Python would flush what is left once more, and fail.
        for number in unread:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        sys.exit(141)  # as of a process that SIGPIPE ends
    except KeyboardInterrupt:
        say(f"\ninterrupted; {resume_hint}")
        sys.exit(130)
    except Exception as error:
        text = str(error)
        if not isinstance(error, UserError):
            problem = disk_problem(error)
            if problem is None:
                raise
            text = f"a file cannot be read or written ({problem}); make room or check the permissions"
        rank = int(os.environ.get("RANK", 0))
        print(f"error{f' (rank {rank})' if rank else ''}: {text}", file=sys.stderr, flush=True)
        sys.exit(1)


def print_any_text() -> None:
    """Print characters that the terminal's encoding lacks as escapes: output never ends a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _lacks_reader(stream: TextIO) -> bool:
    """Whether the stream is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _hush_libraries() -> None:
    """Hide warnings that only the libraries' authors can act on, and progress bars where there is no terminal."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate|torch)\b")
    # PEFT 0.21 compares these keys with modules, and not with experts' weights; `attach_lora` compares them with both.
    warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
