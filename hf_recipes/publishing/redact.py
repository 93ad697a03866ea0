"""A run's files without what others may not see: rows and local paths."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PureWindowsPath
from typing import Any

import yaml

from hf_recipes.core.arguments.settings import DEFAULTS
from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import Entry, Ledger, without_quoted_values
from hf_recipes.data.files.dataset_info import resolve
from hf_recipes.data.files.specs import entries_of, parse_spec
from hf_recipes.hub.clients import source_of
from hf_recipes.privacy.redactor import Redactor

# Settings of the machine rather than the model; tokens are in no settings file.
_OMITTED = {"cache_dir", "hub_token", "logging_dir", "output_dir"}
# Settings that may name something on a hub; those in whose text a slash may be no path's; and those that are no path.
_IDS = ("model_name_or_path", "tokenizer_name", "peft_path", "reward_model", "reward_base", "eval_files")
_TEXTS = ("hub_model_id", "hub_revision", "model_revision")
_TEXTS += ("prompt_column", "response_column", "history_column", "thoughts_column", "label_column")
_WORDS = re.compile(r"system_prompt|content|chat_template_kwargs|\w+_token")
_PATHS = re.compile(r"(^|_)(files?|path|dir|config|config_name|tokenizer_name|deepspeed|mixture)$")  # in other files
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_SPLITS = {"train_file": "train", "validation_file": "validation"}  # the split that is read by default
NAMES = ".public_names.json"  # in a run's folder


def hub_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """The values of `settings`, and the sources of their data, that are on a hub → their names there.

    Only the run itself can tell an id from a path: only on its machine a path exists.
    """
    names = {}
    for key in _IDS:
        given = settings.get(key) or ()
        for value in (given,) if isinstance(given, str) else given:
            value = value if os.path.exists(value) else value.rpartition("=")[2]
            if os.path.exists(value):
                _, name = source_of(value) or ("", "")
                if _HUB_ID.fullmatch(name):  # a configuration may have the full path
                    names |= dict.fromkeys((value, os.path.abspath(value), os.path.realpath(value)), name)
            elif _HUB_ID.fullmatch(value.partition(":")[0]):
                names[value] = value
    entries = entries_of(settings["dataset"], settings.get("dataset_dir")) if settings.get("dataset") else []
    for key, split in _SPLITS.items():
        given = settings.get(key) or (entries if key == "train_file" else ())
        for value in [given] if isinstance(given, str) else given:
            with suppress(UserError):  # a file that is gone
                spec, _ = resolve(parse_spec(value))
                if spec.hub:
                    source = f"{spec.path}/{spec.split or split}"  # as the ledger has it
                    names |= {name: name for name in (value, value.rpartition("=")[2], source)}
    return names


def public_name(value: str, names: Mapping[str, str]) -> str:
    """The name in `names`, or else the last part of the path, without personal data."""
    return names.get(value) or Redactor().redact(PureWindowsPath(value).name)[0]  # it splits at both kinds of slash


def _is_absolute(value: str) -> bool:
    path = PureWindowsPath(value)
    return value.startswith("~") or bool(path.root and (path.drive or len(path.parts) > 2))


def public_values(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A configuration with `public_name` for each path: a text that is absolute, or whose key is that of a path.

    Any other text stays, as a token with a slash does; settings, as metrics.json has them, lose any path.
    """

    def public(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return (public_settings_values if key == "settings" else public_values)(value, names)
        if isinstance(value, list):
            return [public(key, item) for item in value]
        if not isinstance(value, str) or _is_template(value) or _WORDS.fullmatch(key):
            return value
        is_path_key = _PATHS.search(key) or key.endswith("name_or_path") or key == "best_model_checkpoint"
        return public_name(value, names) if is_path_key or _is_absolute(value) else value

    return {key: public(key, value) for key, value in values.items() if key not in _OMITTED}


def _is_template(text: str) -> bool:
    return "\n" in text or "{{" in text or "{%" in text


def public_settings_values(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Settings with `public_name` for whatever may be a path: any text with a slash, at any depth.

    Of ``name=path`` and ``file.py:function=weight`` only the path is changed.
    """

    def without_path(value: str) -> str:
        is_path = "/" in value or "\\" in value or value.startswith("~")
        return public_name(value, names) if value in names or is_path else value

    def public(value: Any, key: Any = None) -> Any:
        if _WORDS.fullmatch(str(key)):
            return value
        if isinstance(value, Mapping):
            return {public(name): public(item, name) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [public(item, key) for item in value]
        if not isinstance(value, str) or _is_template(value):
            return value
        if value in names:
            return names[value]
        if key == "rewards":
            return re.sub(r"^(.+?\.py)(?=$|[=:])", lambda path: public_name(path[1], names), value)
        if key in _TEXTS:
            is_path = _is_absolute(value) and not re.search(r"\s", value)
            return without_path(value) if is_path or os.path.exists(value) else value
        if value.lstrip()[:1] in ("{", "["):
            with suppress(ValueError):
                return json.dumps(public(json.loads(value)), ensure_ascii=False)
        return without_path(value) if os.path.exists(value) else "=".join(map(without_path, value.split("=")))

    return {key: public(value, key) for key, value in values.items() if key not in _OMITTED}


def public_settings(text: str, names: Mapping[str, str]) -> str:
    """`run_config.yaml` as it may be published: its comments, the settings that differ from defaults, the others."""
    changed, mark, defaults = text.partition(DEFAULTS)
    sections = []
    for section in (changed, defaults):
        values = public_settings_values(yaml.safe_load(section) or {}, names)
        sections.append(yaml.safe_dump(values, allow_unicode=True, sort_keys=False) if values else "")
    comments = "".join(line for line in changed.splitlines(keepends=True) if line.startswith("#"))
    return f"{comments}\n{sections[0]}\n{mark}{sections[1]}"


def public_ledger(ledgers: Mapping[str, Mapping], names: Mapping[str, str]) -> dict[str, dict]:
    """`data_ledger.json` as it may be published: counts and reasons by file name, no locations or quoted values."""
    public = {}
    for name, value in ledgers.items():
        ledger, by_name = Ledger.from_dict(value), Ledger()
        for source, counts in ledger.sources.items():
            by_name.sources.setdefault(public_name(source, names), Counter()).update(counts)
        for (source, status), entry in ledger.reasons.items():
            key = public_name(source, names), without_quoted_values(status)
            by_name.reasons.setdefault(key, Entry()).count += entry.count
        public[name] = by_name.to_dict()
        for reason in public[name]["reasons"]:
            del reason["first"]
    return public


def is_merge(record: Any) -> bool:
    """Whether `record`, read from a `merge.json`, has a base and the adapters that were merged into it."""
    return isinstance(record, Mapping) and {"name"} <= set(record.get("base") or ()) and bool(record.get("adapters"))


def public_merge(record: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    """`merge.json` as it may be published: base, adapters and parity, without the files of this machine."""
    if not is_merge(record):
        raise ValueError("no record of a merge")

    def named(model: Mapping[str, Any]) -> dict[str, Any]:
        name = model["name"]  # OWNER/NAME is a hub's: of paths a merge records the last part
        return {**model, "name": name if _HUB_ID.fullmatch(name) and name not in names else public_name(name, names)}

    base, adapters = named(record["base"]), [named(adapter) for adapter in record["adapters"]]
    rest = {key: value for key, value in record.items() if key not in ("request", "files")}
    return {**public_values(rest, names), "base": base, "adapters": adapters}
