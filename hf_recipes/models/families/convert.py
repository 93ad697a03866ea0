"""Older checkpoints converted to classes that transformers has: weights, configuration, tokenizer."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import (
    is_empty,
    lock_of,
    locked,
    move_folder,
    share_weights,
    write_json,
    writing,
)
from hf_recipes.data.examples import fingerprint
from hf_recipes.models import weight_files
from hf_recipes.models.families import detect as detection
from hf_recipes.models.families import layouts, old_configs, weights
from hf_recipes.models.families.detect import detect
from hf_recipes.models.families.layouts import Family
from hf_recipes.models.families.tokenizers import fast_tokenizer, from_sentencepiece, from_tiktoken
from hf_recipes.models.families.tokenizers.fast_tokenizer import build_tokenizer, is_chat_model, prove, read_json
from hf_recipes.models.families.weights import convert_weights, expected_shapes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

RECORD = "converted_from.json"  # in a converted folder: what it was made from, by which converter, and its files
NAMES = "Baichuan-7B, Baichuan2-7B, Qwen-1, InternLM, InternLM2, ChatGLM2-6B, ChatGLM3-6B, GLM-4-9B, MiniCPM"
_BUSY = "{}: another process makes it; waiting for its end"


def convert_checkpoint(model: str, output_dir: str, *, verify: bool = False, trust_remote_code: bool = False) -> Path:
    """Convert a folder of an older family; the new one is complete or absent, and one that is there is kept.

    A conversion that was killed resumes behind its last complete shard. No code of the checkpoint runs: its files are
    read as data. With `verify`, its code runs too, for its logits to be compared.
    """
    if verify and not trust_remote_code:
        raise UserError(
            "--verify runs the code of the checkpoint; read it, then allow it with --trust_remote_code True"
        )
    source, target = Path(model), Path(output_dir)
    if not source.is_dir():
        raise UserError(f"--model_name_or_path {model}: no such folder; download it first (scripts/download.py)")
    family, config = _family(source)
    content = weight_files.digest(source)
    with locked(lock_of(target), _BUSY.format(target), wait=-1):
        if _is_converted(target, content):
            say(f"{target}: already converted from {source}")
            if verify:
                from transformers import AutoTokenizer

                from hf_recipes.models.families.verification import compare, original_outputs

                compare(family, target, original_outputs(source, AutoTokenizer.from_pretrained(target)))
        elif target.exists() and not (target.is_dir() and is_empty(target)):
            raise UserError(
                f"--output_dir {target}: there is something already, which is not this conversion of {source}; name "
                "another folder"
            )
        else:
            _convert(family, config, source, target, content, verify)
    return target


def _family(source: Path) -> tuple[Family, dict[str, Any]]:
    if not (source / "config.json").exists():
        raise UserError(f"{source}: this folder has no config.json")
    config = read_json(source / "config.json")
    family = detect(config, str(source))
    if isinstance(family, str):
        raise UserError(f"{source}: {family}")
    if family is None:
        kind = next(iter(config.get("architectures") or [config.get("model_type")]))
        raise UserError(
            f"{source}: {kind} is of none of the families that are converted ({NAMES}); what "
            "transformers has a class for needs no conversion"
        )
    if config.get("quantization_config") or config.get("quantization_bit"):
        raise UserError(
            f"{source}: its weights are quantized, and only floating-point ones are converted; give the "
            "checkpoint that it was made from, and quantize in training (--load_in_4bit)"
        )
    return family, config


def _is_converted(target: Path, content: str) -> bool:
    try:
        record = read_json(target / RECORD)
        sizes = {name: (target / name).stat().st_size for name in record["files"]}
        return (record["content"], record["converter"], record["files"]) == (content, _converter(), sizes)
    except (OSError, UserError, LookupError, TypeError):
        return False


def _converter() -> str:
    read_by = (detection, fast_tokenizer, from_sentencepiece, from_tiktoken, layouts, old_configs, weights)
    return fingerprint(version("transformers"), code=(sys.modules[__name__], *read_by))


def _convert(family: Family, old: Mapping[str, Any], source: Path, target: Path, content: str, verify: bool) -> None:
    from transformers import AutoTokenizer

    config, shapes = _new_config(family, old, source)
    is_chat = is_chat_model(family, source, old)
    say(f"{source}: {family.name}{' (chat)' if is_chat else ''}, converted to {family.model_type}")
    record = {"source": source.name, "family": family.name, "content": content, "converter": _converter()}
    built, vocabulary = build_tokenizer(family, source, is_chat)
    if len(built) > config["vocab_size"]:
        raise UserError(f"{source}: {len(built):,} tokens for {config['vocab_size']:,} rows of embeddings")
    if verify:
        from hf_recipes.models.families.verification import compare, original_outputs

        expected = original_outputs(source, built)  # which may not run: before any weight is written
    with writing(f"--output_dir {target}"), _partial_folder(target, record) as (partial, shards):
        built.save_pretrained(partial)
        if vocabulary.model is not None:
            (partial / "tokenizer.model").write_bytes(vocabulary.model)
        config |= _token_ids(built)
        _write_config(config, partial)  # which AutoTokenizer reads
        prove(AutoTokenizer.from_pretrained(partial), vocabulary, str(source))
        state = record | {"shards": shards}
        dtype = convert_weights(
            family, source, partial, config, shapes, shards, lambda: write_json(partial / RECORD, state)
        )
        _write_config(config, partial, dtype)
        _write_generation_config(family, source, built, is_chat, partial)
        if verify:
            compare(family, partial, expected)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir()) if path.name != RECORD}
        write_json(partial / RECORD, record | {"files": sizes})
    say(f"model in {target}; LoRA: --lora_config {family.lora_config}")
    if not is_chat and family.template:
        say(f"{target}: a base model, without a chat template; sft takes one by --chat_template")


def _new_config(family: Family, old: Mapping[str, Any], source: Path) -> "tuple[dict[str, Any], dict[str, torch.Size]]":
    """The values of the new configuration, and the shapes of its weights."""
    path = source / "config.json"
    try:
        config = {"model_type": family.model_type} | family.config(old)
    except KeyError as error:
        raise UserError(f"{path}: no {error.args[0]}, which {family.name} has") from None
    except UserError as error:
        raise UserError(f"{source}: {family.name}, whose {error}") from None
    except Exception as error:  # a configuration can be wrong in any way
        raise _unfit(family, path, error) from None
    try:
        return config, expected_shapes(config)
    except Exception as error:
        raise _unfit(family, path, error) from None


def _unfit(family: Family, path: Path, error: Exception) -> UserError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return UserError(f"{path}: its values fit no {family.name} ({reason}); download it again, or mend them")


@contextmanager
def _partial_folder(target: Path, record: Mapping[str, str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder next to `target`, and the digests of the shards that a killed conversion of this `record` left there.

    It is renamed to `target` when nothing was raised, and removed after an error.
    """
    partial, shards = target.with_name(f"{target.name}.partial"), {}
    if partial.exists():
        left = read_json(partial / RECORD)
        if not left and any(not path.name.startswith(RECORD) for path in partial.iterdir()):
            raise UserError(
                f"{partial}: is in the way and no unfinished conversion; move it, or name another --output_dir"
            )
        if {key: left.get(key) for key in record} == record:
            shards = left.get("shards", {})
            say(f"{partial}: resumes a conversion that was killed, with {len(shards)} complete shards")
        else:
            say(f"{partial}: a conversion that was killed, of other files or by another version; it begins anew")
            shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / RECORD, record | {"shards": shards})
    try:
        yield partial, shards
        share_weights(partial)
        move_folder(partial, target)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_config(config: Mapping[str, Any], folder: Path, dtype: "torch.dtype | None" = None) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    new = AutoConfig.for_model(**config)
    new.architectures, new.dtype = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[new.model_type]], dtype
    new.save_pretrained(folder)


def _token_ids(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int | None]:
    return {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}


def _write_generation_config(
    family: Family, source: Path, tokenizer: "PreTrainedTokenizerBase", is_chat: bool, folder: Path
) -> None:
    """The settings that transformers has; generation stops at every token that ends a turn."""
    from transformers import GenerationConfig

    former = read_json(source / "generation_config.json")
    known = set(GenerationConfig().to_dict())
    kept = {key: value for key, value in former.items() if key in known and not key.endswith("_token_id")}
    if left_out := [key for key in former if key not in known]:
        say(f"generation_config.json: without {', '.join(left_out)}, which transformers does not have")
    ids, vocabulary = [tokenizer.eos_token_id], tokenizer.get_vocab()
    if is_chat:
        ids += [vocabulary[token] for token in family.chat_ends if token in vocabulary]
    ids = list(dict.fromkeys(ids))
    kept |= _token_ids(tokenizer) | {"transformers_version": version("transformers")}
    write_json(folder / "generation_config.json", kept | {"eos_token_id": ids if len(ids) > 1 else ids[0]})
