"""LLaMA-Factory's ``dataset_info.json``: where an entry's rows are, and how they become rows that we know."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import read_mapping
from hf_recipes.data.files.specs import MODELSCOPE, Spec, parse_spec

FORMATS = ("alpaca", "sharegpt")
KEYS = (
    "file_name",
    "hf_hub_url",
    "ms_hub_url",
    "subset",
    "split",
    "num_samples",
    "formatting",
    "ranking",
    "columns",
    "tags",
    "file_sha1",
)
ALTERNATIVES = {"om_hub_url"}  # addresses of what another key names too
# Its names of columns, and ours.
COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "messages",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
}
DEFAULTS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
}
ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
TAGS = ("role_tag", "content_tag", *ROLES)
TURNS = ("messages", "chosen", "rejected")


@dataclass(frozen=True)
class Layout:
    """How the rows of an entry are read.

    Attributes:
        columns: pairs of a column and our name for it.
        role, content: the keys of a turn; empty where rows have no turns.
        roles: pairs of a role and our name for it.
        required: our names of the columns that the entry names, which have to be there.
    """

    columns: tuple[tuple[str, str], ...]
    role: str = ""
    content: str = ""
    roles: tuple[tuple[str, str], ...] = ()
    required: tuple[str, ...] = ()

    @cached_property
    def _names(self) -> dict[str, str]:
        return dict(self.columns)

    @cached_property
    def _role_names(self) -> dict[str, str]:
        return dict(self.roles)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(astuple(self)).encode()).hexdigest()[:16]

    def row(self, row: Mapping[str, Any], location: str) -> dict[str, Any]:
        """A row with our names."""
        names = self._names
        taken = next((name for name in row if name not in names and name in names.values()), None)
        if taken is not None:
            raise UserError(
                f"{location}: the column {taken!r} is none of the columns of its dataset_info.json, and another one "
                "goes by this name; add it there, or take it out of the rows"
            )
        return {names.get(name, name): self._turns(names.get(name), value) for name, value in row.items()}

    def _turns(self, name: str | None, value: Any) -> Any:
        if not self.role or name not in TURNS:
            return value
        if isinstance(value, list):
            return [self._turn(turn) for turn in value]
        return self._turn(value)

    def _turn(self, turn: Any) -> Any:
        if not isinstance(turn, dict) or self.role not in turn:
            return turn
        rest = {key: value for key, value in turn.items() if key not in (self.role, self.content)}
        role = turn[self.role]
        return {"role": self._role_names.get(role, role), "content": turn.get(self.content), **rest}


def resolve(spec: Spec) -> tuple[Spec, Layout | None]:
    """A spec without its entry, and how the rows are read; any other spec as it is."""
    if spec.entry is None:
        return spec, None
    entries, where = read_mapping(spec.path, "dataset_info"), f"{spec.path}: {spec.entry}"
    entry = entries.get(spec.entry)
    if not isinstance(entry, dict):
        raise UserError(f"{spec.path}: no entry {spec.entry!r}{nearest(spec.entry, entries)}")
    unknown = next((key for key in entry if key not in KEYS and key not in ALTERNATIVES), None)
    if unknown is not None:
        raise UserError(f"{where}: the key {unknown!r} is not supported; there are {', '.join(KEYS)}")
    source = _source(entry, Path(spec.path).parent, where)
    count = entry.get("num_samples")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise UserError(f"{where}: num_samples {count!r}: expected a number of rows above 0")
    amount = count if spec.amount is None else spec.amount
    return replace(source, text=spec.text, name=spec.name, amount=amount), _layout(entry, where)


def _source(entry: Mapping[str, Any], folder: Path, where: str) -> Spec:
    """Where the rows are: on a hub, where one is named, as LLaMA-Factory does, else in a file."""
    subset, split = entry.get("subset"), entry.get("split")
    takes_modelscope = os.environ.get("USE_MODELSCOPE_HUB", "0").lower() in ("1", "true", "y")
    prefixes = {"hf_hub_url": "", "ms_hub_url": MODELSCOPE}
    keys = sorted(prefixes, reverse=takes_modelscope)
    for key in keys:
        if entry.get(key):
            name = prefixes[key] + entry[key] + (f"/{subset}" if subset else "") + (f":{split}" if split else "")
            spec = parse_spec(name)
            if not spec.hub:
                raise UserError(f"{where}: {key} {entry[key]!r} is not OWNER/NAME, or there is a file of this name")
            return spec
    if not entry.get("file_name"):
        raise UserError(f"{where}: it names no data; expected file_name, hf_hub_url or ms_hub_url")
    if subset:
        raise UserError(f"{where}: subset has no effect on file_name; leave it out")
    path = folder / entry["file_name"]
    if not path.exists():
        raise UserError(f"{where}: file_name {entry['file_name']}: there is no {path}")
    if digest := entry.get("file_sha1"):
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha1").hexdigest() != digest:
                raise UserError(f"{where}: {path} is another file than file_sha1 says; correct that, or leave it out")
    return Spec(str(path), "", str(path), split=split)


def _layout(entry: Mapping[str, Any], where: str) -> Layout:
    form = entry.get("formatting", "alpaca")
    if form not in FORMATS:
        raise UserError(f"{where}: formatting {form!r} is not supported; there are {', '.join(FORMATS)}")
    given = _named(entry, "columns", COLUMNS, where)
    columns = given or DEFAULTS[form]
    if entry.get("ranking"):
        missing = next((name for name in ("chosen", "rejected") if name not in columns), None)
        if missing:
            raise UserError(f"{where}: ranking without {missing!r} in its columns; name that column")
    named = {column: COLUMNS[name] for name, column in columns.items()}
    if form == "alpaca":
        if entry.get("tags"):
            raise UserError(f"{where}: tags are of formatting sharegpt; its rows would be read as alpaca's")
        if set(columns) == {"prompt"}:
            named = {columns["prompt"]: "text"}  # of pretraining
        return Layout(tuple(named.items()), required=tuple(named[column] for column in given.values()))
    if "messages" not in columns:
        raise UserError(f"{where}: formatting sharegpt without 'messages' in its columns; name that column")
    tags = _named(entry, "tags", TAGS, where)
    role, content = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    roles = {tags[tag]: name for tag, name in ROLES.items() if tag in tags}
    required = tuple(named[column] for column in given.values())
    return Layout(tuple(named.items()), role, content, tuple(roles.items()), required)


def _named(entry: Mapping[str, Any], key: str, known: Any, where: str) -> dict[str, str]:
    """The mapping under `key`, without names of nothing."""
    values = entry.get(key) or {}
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise UserError(f"{where}: {key}: {unknown!r} is not supported; there are {', '.join(known)}")
    return {name: value for name, value in values.items() if value}
