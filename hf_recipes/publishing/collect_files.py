"""What of a folder is published: its files as others may see them, in a folder of their own."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import yaml

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import temporary_folder, to_json
from hf_recipes.core.ledger import LEDGER
from hf_recipes.hub import clients as hub
from hf_recipes.publishing.model_card import CardWords, merged_card, model_card, with_base, with_header
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
from hf_recipes.publishing.usage_code import addressed
from hf_recipes.trainer.checkpoints import BEGUN_WITH, MANIFEST, write_manifest

T = TypeVar("T")
STAGING = ".publishing"
SETTINGS = "run_config.yaml"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json", "generation_config.json")
TOKENIZER = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("*.tiktoken", "*.jinja", "additional_chat_templates/*.jinja", "*.py"),
    *("processor_config.json", "preprocessor_config.json"),
)
MERGE = "merge.json"
RESULTS_OF_CHECKPOINT = (SETTINGS, LEDGER, "curves.png")
RESULTS = ("README.md", *RESULTS_OF_CHECKPOINT, "metrics.json", MERGE)
CONFIGURATIONS = ("adapter_config.json", "config.json", "generation_config.json", "tokenizer_config.json")
# Of a checkpoint: a pickle of settings, PEFT's own card, and settings with this machine's paths.
NEVER = ("training_args.bin", "README.md", BEGUN_WITH)
_TENSORS = {".safetensors", ".pt", ".pth", ".bin", ".png"}  # not searched for tokens


@dataclass(frozen=True)
class Address:
    """Where a model goes, and what its files cannot say: its base's name on a hub, and a license."""

    repo: str
    target: hub.Target = "hf"
    base: str | None = None
    license: str | None = None


@contextmanager
def staged(folder: Path, address: Address, *, state_as: str | None = None) -> Iterator[Path]:
    """A folder beside the run's files with what is to be published and nothing else.

    Weights, tokenizer, model card, settings, ledger, metrics and curves; never predictions, logs or pickles. Paths in
    settings and configurations become names. Large files are linked, not copied.

    Args:
        folder: a run's, a merged model's, or that of a run's checkpoint: then the card is written for it.
        state_as: put all of the checkpoint, optimizer included, in a subfolder of this name as well.

    Raises:
        UserError: no model in it, a damaged file, a full disk, or a token in a file.
    """
    parent = folder.resolve().parent
    is_checkpoint = (folder / "trainer_state.json").is_file() and (parent / SETTINGS).is_file()
    run = parent if is_checkpoint else folder
    _check_model(folder)
    location = run if os.access(run, os.W_OK) else Path(tempfile.gettempdir())
    with ExitStack() as stack:
        try:
            target = stack.enter_context(temporary_folder(location / STAGING))
            _fill(target, folder, run, address, state_as)
        except OSError as error:
            raise UserError(f"{error.filename or location}: {error.strerror}, so nothing is published") from None
        yield target


def _check_model(folder: Path) -> None:
    there = sorted(path.name for path in folder.iterdir())
    if not any(name.endswith(".safetensors") for name in there):
        newest = max(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, default=None)
        hint = f"; a checkpoint can be published too: --folder {newest}" if newest else ""
        more = f" and {len(there) - 5} more" if len(there) > 5 else ""
        holds = f"it holds {', '.join(there[:5])}{more}" if there else "it is empty"
        raise UserError(
            f"{folder}: no weights (*.safetensors) in it, so no model to publish: {holds}; expected is the folder of a "
            f"run, a checkpoint or a merged model{hint}"
        )
    if not {"adapter_config.json", "config.json"} & set(there):
        raise UserError(
            f"{folder}: weights, but neither adapter_config.json nor config.json beside them; copy it there"
        )
    for index in folder.glob("*.safetensors.index.json"):
        shards = _read(index, lambda text: set(json.loads(text)["weight_map"].values()))
        if missing := sorted(shards - set(there)):
            raise UserError(f"{folder}: {missing[0]} is missing, which {index.name} names; copy the whole model there")


def _fill(target: Path, folder: Path, run: Path, address: Address, state_as: str | None) -> None:
    names = _read(run / NAMES, lambda text: dict(json.loads(text))) if (run / NAMES).is_file() else {}
    bases = _bases(folder, run)
    shown = bases | {public_name(base, names) for base in bases}
    for base in bases - names.keys():  # a whole path where the settings have a part of it
        if os.path.exists(base):
            names |= hub_names({"model_name_or_path": base})
    if address.base:
        names |= dict.fromkeys(bases, address.base)
    values = _in_json(partial(public_values, names=names))

    def card(text: str) -> str:
        if address.base:
            for name in shown:
                text = with_base(text, name, address.base)
        text = addressed(text, address.repo, address.target)
        return with_header(text, license=address.license) if address.license else text

    rewrites: dict[str, Callable[[str], str]] = {
        SETTINGS: partial(public_settings, names=names),
        LEDGER: _in_json(partial(public_ledger, names=names)),
        MERGE: _in_json(partial(public_merge, names=names)),
        "README.md": card,
        **dict.fromkeys((*CONFIGURATIONS, "trainer_state.json", "metrics.json"), values),
    }

    def stage(path: Path, name: Path | str) -> None:
        _stage(path, target / name, rewrites.get(path.name))

    for pattern in (*WEIGHTS, *TOKENIZER):
        for path in folder.glob(pattern):
            stage(path, path.relative_to(folder))
    is_merged = run == folder and _bases_of_merge(folder) is not None
    if is_merged or (run / SETTINGS).is_file():  # else README.md is not ours
        for path in (run / name for name in (RESULTS if run == folder else RESULTS_OF_CHECKPOINT)):
            if path.is_file():
                stage(path, path.name)
    if is_merged and not _is_edited(folder / "README.md", _read(folder / MERGE, json.loads)):
        text = _read(folder / MERGE, lambda text: merged_card(folder, public_merge(json.loads(text), names)))
        (target / "README.md").write_text(card(text), encoding="utf-8")
    if run != folder:
        settings, ledgers = _read(run / SETTINGS, yaml.safe_load), _read(run / LEDGER, json.loads)
        history, step = _read(folder / "trainer_state.json", _history)
        text = card(model_card(folder, settings, names, ledgers, history, step, _words(folder / BEGUN_WITH)))
        (target / "README.md").write_text(text, encoding="utf-8")
    if state_as:
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in NEVER:
                stage(path, Path(state_as, path.relative_to(folder)))
        manifest = target / state_as / MANIFEST
        if manifest.is_file():  # some files have another size now
            world_size = _read(folder / MANIFEST, lambda text: json.loads(text)["world_size"])
            manifest.unlink()
            write_manifest(target / state_as, world_size)
    secrets = [secret.encode() for secret in hub.secrets()]
    for path in target.rglob("*"):
        if path.is_file() and path.suffix not in _TENSORS and any(secret in path.read_bytes() for secret in secrets):
            raise UserError(f"{run / path.relative_to(target)}: a token or key stands in it; take it out to publish")


def _bases(folder: Path, run: Path) -> set[str]:
    """What the files call the model that this one was made from."""
    found = set(_bases_of_merge(folder) or ())
    if (run / SETTINGS).is_file():
        found.add(_read(run / SETTINGS, lambda text: yaml.safe_load(text).get("model_name_or_path")))
    if (folder / "adapter_config.json").is_file():
        found.add(_read(folder / "adapter_config.json", lambda text: json.loads(text).get("base_model_name_or_path")))
    return found - {None, ""}


def _bases_of_merge(folder: Path) -> list[str] | None:
    """The base of a merged model; None where the folder holds none, even if some program left a file of that name."""
    path = folder / MERGE
    record = _read(path, json.loads) if path.is_file() else None
    return [record["base"]["name"]] if is_merge(record) else None


def _is_edited(card: Path, record: Mapping) -> bool:
    """Whether a merged model's card is another one than the merge left with it."""
    if not card.is_file():
        return False
    return hashlib.sha256(card.read_bytes()).hexdigest() != record.get("files", {}).get(card.name)


def base_without_name(folder: Path) -> str | None:
    """What the adapter staged in `folder` calls its base, where that is no name on a hub."""
    path = folder / "adapter_config.json"
    base = _read(path, json.loads).get("base_model_name_or_path") if path.is_file() else None
    return base if base and "/" not in base else None


def _stage(path: Path, target: Path, rewrite: Callable[[str], str] | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if rewrite:
        target.write_text(_read(path, rewrite), encoding="utf-8")
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
    """What the card of a checkpoint calls its rows, as its stage recorded it; of older ones not known."""
    return CardWords(**_read(record, json.loads).get("card", {})) if record.is_file() else CardWords()


def _read(path: Path, parse: Callable[[str], T]) -> T:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged, so nothing is published ({type(error).__name__}: {reason})") from None
