"""A run's files as others may see them: without rows, local paths or secrets."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PureWindowsPath
from typing import Any

import yaml

from hf_recipes.core.ledger import Entry, Ledger, without_values
from hf_recipes.core.settings import DEFAULTS
from hf_recipes.hub.clients import source_of
from hf_recipes.privacy.redactor import Redactor

# What concerns the machine rather than the model; a token is in no settings file to begin with.
_LEFT_OUT = {"cache_dir", "hub_token", "logging_dir", "output_dir"}
# Settings that may name something on a hub, and those whose text may have a slash that parts no folders.
_IDS = ("model_name_or_path", "tokenizer_name", "peft_path", "reward_model", "reward_base", "eval_files")
_TEXTS = ("system_prompt", "hub_model_id", "hub_revision", "model_revision", "document_end_token")
_TEXTS += ("prompt_column", "response_column", "history_column", "label_column")
_PATHS = re.compile(r"(^|_)(files?|path|dir|config|config_name|tokenizer_name|deepspeed|mixture)$")  # in other files
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_SPLITS = {"train_file": "train", "validation_file": "validation"}  # read where none is named
NAMES = ".public_names.json"  # in a run's folder


def hub_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """The values of `settings`, and sources of their data, that name something on a hub → the name to show.

    Only a run itself can tell an id from a path, because only there a path leads to something.
    """
    names = {}
    for key in (*_IDS, *_SPLITS):
        given = settings.get(key) or ()
        for value in (given,) if isinstance(given, str) else given:
            value = value if os.path.exists(value) else value.rpartition("=")[2]
            name, _, split = value.partition(":")
            if os.path.exists(value):
                _, name = source_of(value) or ("", "")
                if _HUB_ID.fullmatch(name) and key not in _SPLITS:  # a configuration may have the whole path
                    names |= dict.fromkeys((value, os.path.abspath(value), os.path.realpath(value)), name)
            elif _HUB_ID.fullmatch(name):
                names[value] = value
                if key in _SPLITS:
                    source = f"{name}/{split or _SPLITS[key]}"  # as the ledger has it
                    names[source] = source
    return names


def public_name(value: str, names: Mapping[str, str]) -> str:
    """What `names` says, and of anything else the last part of its path, without personal data."""
    return names.get(value) or Redactor().redact(PureWindowsPath(value).name)[0]  # which knows both kinds of slash


def _is_absolute(value: str) -> bool:
    path = PureWindowsPath(value)
    return value.startswith("~") or bool(path.root and (path.drive or len(path.parts) > 2))


def public_values(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A configuration's mapping with `public_name` in place of each path: what is absolute, or named as a path's value.

    Anything else stays, as a token with a slash does.
    """

    def shown(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return public_values(value, names)
        if isinstance(value, list):
            return [shown(key, item) for item in value]
        if not isinstance(value, str) or "\n" in value or "{" in value:  # a template's text is no path
            return value
        names_one = _PATHS.search(key) or key.endswith("name_or_path") or key == "best_model_checkpoint"
        return public_name(value, names) if names_one or _is_absolute(value) else value

    return {key: shown(key, value) for key, value in values.items() if key not in _LEFT_OUT}


def public_settings_values(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Settings with a name in place of whatever may be a path, wherever it stands: any text with a slash.

    ``name=path`` and ``file.py:function=weight`` keep what is no path of them.
    """

    def cut(value: str) -> str:
        is_path = "/" in value or "\\" in value or value.startswith("~")
        return public_name(value, names) if value in names or is_path else value

    def shown(value: Any, key: Any = None) -> Any:
        if isinstance(value, Mapping):
            return {shown(name): shown(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [shown(item, key) for item in value]
        if not isinstance(value, str) or value in names:
            return cut(value) if isinstance(value, str) else value
        if key in _TEXTS:
            is_path = _is_absolute(value) and not re.search(r"\s", value)
            return cut(value) if is_path or os.path.exists(value) else value
        if value.lstrip()[:1] in ("{", "["):
            with suppress(ValueError):
                return json.dumps(shown(json.loads(value)), ensure_ascii=False)
        return cut(value) if os.path.exists(value) else "=".join(map(cut, value.split("=")))

    return {key: shown(value, key) for key, value in values.items() if key not in _LEFT_OUT}


def public_settings(text: str, names: Mapping[str, str]) -> str:
    """`run_config.yaml` as it may be published: its comments, then what is set otherwise than by default, then that."""
    given, mark, defaults = text.partition(DEFAULTS)
    parts = []
    for part in (given, defaults):
        values = public_settings_values(yaml.safe_load(part) or {}, names)
        parts.append(yaml.safe_dump(values, allow_unicode=True, sort_keys=False) if values else "")
    comments = "".join(line for line in given.splitlines(keepends=True) if line.startswith("#"))
    return f"{comments}\n{parts[0]}\n{mark}{parts[1]}"


def public_ledger(ledgers: Mapping[str, Mapping], names: Mapping[str, str]) -> dict[str, dict]:
    """`data_ledger.json` as it may be published: counts and reasons by file name, no locations or quoted values."""
    public = {}
    for name, value in ledgers.items():
        ledger, by_name = Ledger.from_dict(value), Ledger()
        for source, counts in ledger.sources.items():
            by_name.sources.setdefault(public_name(source, names), Counter()).update(counts)
        for (source, status), entry in ledger.reasons.items():
            key = public_name(source, names), without_values(status)
            by_name.reasons.setdefault(key, Entry()).count += entry.count
        public[name] = by_name.to_dict()
        for reason in public[name]["reasons"]:
            del reason["first"]
    return public


def is_merge(record: Any) -> bool:
    """Whether `record`, what a `merge.json` holds, tells a base and the adapters that were merged into it."""
    return isinstance(record, Mapping) and {"name"} <= set(record.get("base") or ()) and bool(record.get("adapters"))


def public_merge(record: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    """`merge.json` as it may be published: what was merged into what, and how near the result is to it."""
    if not is_merge(record):
        raise ValueError("no record of a merge")

    def named(part: Mapping[str, Any]) -> dict[str, Any]:
        name = part["name"]  # what has one slash is no path: a merge records those by their last part
        return {**part, "name": name if _HUB_ID.fullmatch(name) and name not in names else public_name(name, names)}

    base, adapters = named(record["base"]), [named(one) for one in record["adapters"]]
    kept = {key: value for key, value in record.items() if key not in ("request", "files")}  # of this machine's folder
    return {**public_values(kept, names), "base": base, "adapters": adapters}
