"""What of a folder is published: copied into a temporary folder, without local paths and secrets."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import temporary_folder, to_json
from hf_recipes.core.ledger import LEDGER
from hf_recipes.hub import clients as hub
from hf_recipes.publishing.model_card import CardWords, Training, model_card, with_header
from hf_recipes.publishing.redact import (
    NAMES,
    hub_names,
    is_merge,
    public_ledger,
    public_merge,
    public_name,
    public_settings,
    public_values,
)
from hf_recipes.publishing.usage_code import FOLDER, Does, Usage, quoted
from hf_recipes.trainer.checkpoints.whole import BEGUN_WITH, MANIFEST, write_manifest

T = TypeVar("T")
UPLOAD = ".publishing"
SETTINGS, MERGE, CARD = "run_config.yaml", "merge.json", "README.md"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json", "generation_config.json")
TOKENIZER = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("*.tiktoken", "*.jinja", "additional_chat_templates/*.jinja"),
    *("processor_config.json", "preprocessor_config.json"),
)
RESULTS_OF_CHECKPOINT = (SETTINGS, LEDGER, "curves.png")
RESULTS = (CARD, *RESULTS_OF_CHECKPOINT, "metrics.json", MERGE)
CONFIGURATIONS = ("adapter_config.json", "config.json", "generation_config.json", "tokenizer_config.json")
AUTO_MAPS = (*CONFIGURATIONS, "processor_config.json", "preprocessor_config.json")
# Of a checkpoint: a pickle of settings, PEFT's card, and settings with this machine's paths.
NEVER = ("training_args.bin", CARD, BEGUN_WITH)
_BINARY = {".safetensors", ".pt", ".pth", ".bin", ".png"}  # not searched for tokens


@dataclass(frozen=True)
class Address:
    """Where a model goes, and what its files do not hold: its base's name on a hub, and a license."""

    repo: str
    target: hub.Target = "hf"
    base: str | None = None
    license: str | None = None


@contextmanager
def upload_folder(folder: Path, address: Address, *, state_as: str | None = None) -> Iterator[Path]:
    """A temporary folder, in that of the run, with what is to be published of `folder` and nothing else.

    These are weights, tokenizer, model card, settings, ledger, metrics and curves; never predictions, logs or pickles.
    Paths in settings and configurations become names. Large files are linked, not copied.

    Args:
        folder: a run's, a merged model's, or that of a run's checkpoint: then the card is written for it.
        state_as: a subfolder that gets all of the checkpoint too, optimizer included.
    """
    parent = folder.resolve().parent
    is_checkpoint = (folder / "trainer_state.json").is_file() and (parent / SETTINGS).is_file()
    run = parent if is_checkpoint else folder
    _check_model(folder)
    location = run if os.access(run, os.W_OK) else Path(tempfile.gettempdir())
    with ExitStack() as stack:
        try:
            target = stack.enter_context(temporary_folder(location / UPLOAD))
            _copy(folder, run, target, address, state_as)
            _refuse_secrets(target, run)
        except OSError as error:
            raise UserError(f"{error.filename or location}: {error.strerror}, so nothing is published") from None
        yield target


def _check_model(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    if not any(name.endswith(".safetensors") for name in names):
        newest = max(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, default=None)
        hint = f"; a checkpoint can be published too: --folder {newest}" if newest else ""
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        holds = f"it holds {', '.join(names[:5])}{more}" if names else "it is empty"
        raise UserError(
            f"{folder}: no weights (*.safetensors) in it, so no model to publish: {holds}; expected is the folder of a "
            f"run, a checkpoint or a merged model{hint}"
        )
    if not {"adapter_config.json", "config.json"} & set(names):
        raise UserError(f"{folder}: weights, but no adapter_config.json or config.json next to them; copy it there")
    for index in folder.glob("*.safetensors.index.json"):
        shards = _read(index, lambda text: set(json.loads(text)["weight_map"].values()))
        if missing := sorted(shards - set(names)):
            raise UserError(f"{folder}: {missing[0]} is missing, which {index.name} names; copy the whole model there")


def _copy(folder: Path, run: Path, target: Path, address: Address, state_as: str | None) -> None:
    settings = _read_if_there(run / SETTINGS, lambda text: dict(yaml.safe_load(text)))
    merge = _read_if_there(folder / MERGE, json.loads) if run == folder else None
    merge = merge if is_merge(merge) else None
    names = _read_if_there(run / NAMES, lambda text: dict(json.loads(text))) or {}
    adapter = _read_if_there(folder / "adapter_config.json", lambda text: dict(json.loads(text))) or {}
    bases = {(settings or {}).get("model_name_or_path"), adapter.get("base_model_name_or_path")} - {None, ""}
    bases |= {merge["base"]["name"]} if merge else set()
    in_card = bases | {public_name(base, names) for base in bases}  # what a card may call the base
    for base in bases - names.keys():  # a full path where the settings have a part of it
        if os.path.exists(base):
            names |= hub_names({"model_name_or_path": base})
    if address.base:
        names |= dict.fromkeys(bases, address.base)
    relation = "adapter" if adapter else "merge" if merge and len(merge["adapters"]) > 1 else "finetune"
    card = partial(_public_card, folder, in_card, settings or {}, relation, address)
    values = _in_json(partial(public_values, names=names))
    redact: dict[str, Callable[[str], str]] = {
        SETTINGS: partial(public_settings, names=names),
        LEDGER: _in_json(partial(public_ledger, names=names)),
        MERGE: _in_json(partial(public_merge, names=names)),
        CARD: card,
        **dict.fromkeys((*CONFIGURATIONS, "trainer_state.json", "metrics.json"), values),
    }

    def copy(path: Path, name: Path | str) -> None:
        _check_link(path, run)
        _copy_file(path, target / name, redact.get(path.name))

    for pattern in (*WEIGHTS, *TOKENIZER):
        for path in folder.glob(pattern):
            copy(path, path.relative_to(folder))
    for path in _code(folder):
        copy(path, path.name)
    if merge or settings is not None:  # else README.md is none of ours
        for path in (run / name for name in (RESULTS if run == folder else RESULTS_OF_CHECKPOINT)):
            if path.is_file():
                copy(path, path.name)
    text = None
    if run != folder:
        history, step = _read(folder / "trainer_state.json", _history)
        ledgers, words = _read(run / LEDGER, json.loads), _words(folder / BEGUN_WITH)
        text = model_card(folder, Training(settings, names, ledgers, history, step, words))
    elif merge and not (folder / CARD).is_file():
        text = _read(folder / MERGE, lambda text: model_card(folder, merge=public_merge(json.loads(text), names)))
    if text is not None:
        (target / CARD).write_text(card(text), encoding="utf-8")
    if state_as:
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in NEVER:
                copy(path, Path(state_as, path.relative_to(folder)))
        manifest = target / state_as / MANIFEST
        if manifest.is_file():  # some files have another size now
            world_size = _read(folder / MANIFEST, lambda text: json.loads(text)["world_size"])
            manifest.unlink()
            write_manifest(target / state_as, world_size)


def _code(folder: Path) -> set[Path]:
    """The Python files that the configurations name (`auto_map`), and those that these import from the folder."""
    from transformers.dynamic_module_utils import get_relative_import_files

    files: set[Path] = set()
    for name in AUTO_MAPS:
        mapped = _read_if_there(folder / name, lambda text: dict(json.loads(text).get("auto_map") or {})) or {}
        for value in mapped.values():
            for reference in filter(None, value if isinstance(value, list) else [value]):
                path = folder / f"{reference.split('.')[0]}.py"  # OWNER/NAME--module.Class is another repository's
                if path.is_file():
                    files |= {path, *map(Path, get_relative_import_files(path))}
    return files


def _check_link(path: Path, run: Path) -> None:
    """Refuse a link that leaves the folder, but for those of the hub's cache to its blobs."""
    root, target = run.resolve(), path.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not target.is_relative_to(root) and not target.is_relative_to(blobs):
        raise UserError(f"{path}: a link to a file outside of {run}, so nothing is published; put the file there")


def _refuse_secrets(copied: Path, run: Path) -> None:
    secrets = [secret.encode() for secret in hub.secrets()]
    for path in copied.rglob("*"):
        if path.is_file() and path.suffix not in _BINARY and any(secret in path.read_bytes() for secret in secrets):
            raise UserError(f"{run / path.relative_to(copied)}: a token or key stands in it; take it out to publish")


def _public_card(
    folder: Path, bases: set[str], settings: Mapping[str, Any], relation: str, address: Address, text: str
) -> str:
    """A card with the repository's and the base's names on the hub: its code is rendered again, for the repository."""
    for base in bases or {None}:
        for does in get_args(Does):
            usage = Usage.of(folder, does, base, settings)
            public = replace(usage, base=usage.base and (address.base or usage.base))
            text = text.replace(usage.code(), public.code(address.repo, address.target))
    text = text.replace(quoted(FOLDER), quoted(address.repo))  # in the code of a card that its owner has changed
    if not address.base:
        return with_header(text, license=address.license)
    for base in bases:
        text = text.replace(f"`{base}`", f"`{address.base}`")
    return with_header(text, base_model=address.base, base_model_relation=relation, license=address.license)


def base_without_name(folder: Path) -> str | None:
    """The base of the adapter in an upload folder, where that is no name on a hub."""
    config = _read_if_there(folder / "adapter_config.json", json.loads) or {}
    base = config.get("base_model_name_or_path")
    return base if base and "/" not in base else None


def _copy_file(path: Path, target: Path, redact: Callable[[str], str] | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if redact:
        target.write_text(_read(path, redact), encoding="utf-8")
        return
    try:
        os.link(path, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(path, target)


def _in_json(change: Callable[[dict], dict]) -> Callable[[str], str]:
    return lambda text: to_json(change(json.loads(text)), indent=2) + "\n"


def _history(text: str) -> tuple[list[dict], int]:
    state = json.loads(text)
    return state["log_history"], state["global_step"]


def _words(record: Path) -> CardWords:
    """What the card of a checkpoint calls its rows, as its stage recorded it; the default for those of old versions."""
    return CardWords(**(_read_if_there(record, lambda text: dict(json.loads(text))) or {}).get("card", {}))


def _read(path: Path, parse: Callable[[str], T]) -> T:
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged, so nothing is published ({type(error).__name__}: {reason})") from None


def _read_if_there(path: Path, parse: Callable[[str], T]) -> T | None:
    return _read(path, parse) if path.is_file() else None
