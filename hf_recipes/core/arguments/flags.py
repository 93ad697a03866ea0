"""Settings as the flags of a command line, and back."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def as_text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(as_text, value))
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_taken(value: Any, takes_list: bool) -> Any:
    """A value of a YAML file as a flag takes it: ``{dev: path}`` as a list of names, a list as a text with commas."""
    if isinstance(value, dict) and takes_list:
        value = [f"{name}={item}" for name, item in value.items()]
    return ",".join(map(str, value)) if isinstance(value, list) and not takes_list else value


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    return [item for name, value in settings.items() for item in _flag(name, value)]


def _flag(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, list):
        yield from (f"--{name}", *map(as_text, value))
    elif value is not None:
        yield f"--{name}={json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else as_text(value)}"


def as_settings(argv: Sequence[str]) -> dict[str, Any]:
    """A command line as the settings that ``--config`` reads, by the command's name."""
    settings: dict[str, Any] = {}
    for item in argv[1:]:
        name, sign, value = item.partition("=")
        if item.startswith("--"):
            settings[name := name[2:]] = value if sign else []
        else:
            settings[list(settings)[-1]].append(item)
    return {argv[0]: {name: True if value == [] else value for name, value in settings.items()}}


def output_dir(argv: Sequence[str]) -> str | None:
    return next((item.partition("=")[2] for item in argv if item.startswith("--output_dir=")), None)
