"""A model that follows an extended tokenizer: embeddings for the new tokens, and what they cost or bring at once."""

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import new_folder, write_json
from hf_recipes.core.folders import reserved
from hf_recipes.data.examples import load_examples
from hf_recipes.evaluation.methods.perplexity import NLL
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.embeddings import initialize_rows
from hf_recipes.models.families.tokenizers.from_sentencepiece import find_model
from hf_recipes.models.inference.batch_options import BatchOptions
from hf_recipes.models.inference.generation_settings import make_savable, stop_at_ends
from hf_recipes.models.loading import load_config, load_model
from hf_recipes.models.new_tokens import write_new_tokens
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.vocabulary.arguments import ExtendModelArguments
from hf_recipes.vocabulary.extend import EXTENSION

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RESULTS = "extension_results.json"
BATCH = 4  # windows in a forward pass of the measurement


def extend_model(arguments: ExtendModelArguments) -> Path:
    with reserved(arguments.output_dir) as target:
        _extend(arguments, target)
    return target


def _extend(arguments: ExtendModelArguments, target: Path) -> None:
    name = arguments.model_name_or_path
    source = {"trust_remote_code": arguments.trust_remote_code, "cache_dir": arguments.cache_dir}
    model_args = ModelArguments(name)
    config = load_config(model_args, **source)
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"{name}: its weights are quantized, and embeddings cannot be added to them; extend the model that it was "
            "made from, and quantize that (--load_in_4bit in training)"
        )
    old, _ = load_tokenizer(name, needs_template=False, **source)
    new, _ = load_tokenizer(arguments.tokenizer_name, needs_template=False, **source)
    ids = new_ids(old, new, name, arguments.tokenizer_name)
    texts = _texts(arguments)
    saved_as = getattr(config, "dtype", None) if arguments.dtype == "auto" else arguments.dtype
    model_args.dtype = str(saved_as or "float32").removeprefix("torch.")
    model = load_model(model_args, trains_all=False, bf16=False, **source)
    rows = model.get_input_embeddings().num_embeddings
    if rows < len(old):
        raise UserError(
            f"{name}: {rows:,} rows of embeddings for {len(old):,} tokens: tokens without a row have no embedding to "
            "begin from. A model may have more rows than tokens (they are padded), never fewer; give the tokenizer "
            "that it was trained with"
        )
    before = _measure(model, old, texts)
    if rows < len(new):
        model.resize_token_embeddings(len(new), pad_to_multiple_of=arguments.pad_to_multiple_of, mean_resizing=False)
    parts = token_parts(old, new, ids, _descriptions(arguments.tokenizer_name))
    padding = range(max(rows, len(new)), model.get_input_embeddings().num_embeddings)
    initialize_rows(model, parts | dict.fromkeys(padding, ()), arguments.initialization, arguments.seed)
    after = _measure(model, new, texts)
    _say_sizes(model, rows, len(ids), arguments.initialization)
    if before is not None:
        say(
            f"bits per character of {before['characters']:,} held-out characters: {before['bits_per_character']:.4f} "
            f"before, {after['bits_per_character']:.4f} with untrained embeddings, in {before['tokens']:,} and "
            f"{after['tokens']:,} tokens; train them next (scripts/pretrain.py --train_only embeddings)"
        )
    with new_folder(target) as partial:
        stop_at_ends(model, new)
        make_savable(model)
        model.save_pretrained(partial)
        new.save_pretrained(partial)
        _copy_sentencepiece(Path(arguments.tokenizer_name), partial)
        write_new_tokens(partial, ids)
        figures = {"initialization": arguments.initialization, "base": name, "before": before, "after": after}
        write_json(partial / RESULTS, figures)
    say(f"model in {target}")


def new_ids(old: "PreTrainedTokenizerBase", new: "PreTrainedTokenizerBase", model: str, tokenizer: str) -> list[int]:
    """The ids that only `new` has, in order.

    Raises:
        UserError: an old token has another id in `new`, or the new ids do not follow the old ones.
    """
    before, after = old.get_vocab(), new.get_vocab()
    for token, index in before.items():
        if after.get(token) != index:
            what = "none" if token not in after else f"id {after[token]:,}"
            raise UserError(
                f"--tokenizer_name {tokenizer}: no extension of the tokenizer of {model}, where {token!r} has id "
                f"{index:,}, here {what}; extend that one (extend_tokenizer.py --tokenizer_name {model})"
            )
    ids = sorted(index for token, index in after.items() if token not in before)
    if not ids:
        raise UserError(f"--tokenizer_name {tokenizer}: it has no token that {model} lacks")
    if ids != list(range(ids[0], ids[-1] + 1)) or ids[0] <= max(before.values()):
        raise UserError(f"--tokenizer_name {tokenizer}: its new ids are not one range after the old ones")
    return ids


def token_parts(
    old: "PreTrainedTokenizerBase", new: "PreTrainedTokenizerBase", ids: Sequence[int], descriptions: Mapping[str, str]
) -> dict[int, list[int]]:
    """The old tokens of each new one: those that it is cut into, or for a special one those of its description."""
    special = {index: str(token) for index, token in new.added_tokens_decoder.items() if token.special}
    parts = {}
    for index in ids:
        if index in special:
            text = descriptions.get(special[index], "")
            parts[index] = old(text, add_special_tokens=False)["input_ids"] if text else []
        else:
            token = new.convert_ids_to_tokens(index)
            parts[index] = [part.id for part in old.backend_tokenizer.model.tokenize(token)]
    return parts


def _descriptions(tokenizer: str) -> dict[str, str]:
    path = Path(tokenizer) / EXTENSION
    return json.loads(path.read_text(encoding="utf-8-sig"))["special_tokens"] if path.is_file() else {}


def _texts(arguments: ExtendModelArguments) -> "Dataset | None":
    if not arguments.validation_file:
        return None
    texts = load_examples(arguments.validation_file, form="text", cache_dir=arguments.cache_dir, split="test")
    sizes = accumulate(len((text or "").encode()) for text in texts["text"])
    return texts.select(range(max(1, sum(size <= arguments.max_eval_bytes for size in sizes))))


def _measure(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", texts: "Dataset | None"
) -> dict[str, Any] | None:
    """Bits per character of all characters, in windows of 1,024 tokens, each text after the end token or BOS."""
    if texts is None:
        return None
    method = NLL(texts, tokenizer, prefix_token="bos" if tokenizer.bos_token else "eos")
    records = method.compute(model.eval(), range(len(method)), BatchOptions(BATCH))
    figures = method.summarise(records)
    return {key: figures[key] for key in ("bits_per_character", "loss", "tokens", "characters")}


def _say_sizes(model: "PreTrainedModel", rows: int, count: int, how: str) -> None:
    embeddings = model.get_input_embeddings().weight
    tied = model.config.get_text_config().tie_word_embeddings
    added = (embeddings.shape[0] - rows) * embeddings.shape[1] * (1 if tied else 2)
    say(
        f"{count:,} new tokens; {rows:,} → {embeddings.shape[0]:,} rows of {embeddings.shape[1]:,}, "
        f"{'input and output tied' if tied else 'input and output apart'}: {added / 1e6:.1f} M new weights; "
        f"initialization: {how}"
    )


def _copy_sentencepiece(tokenizer: Path, target: Path) -> None:
    """transformers saves no tokenizer.model, from which llama.cpp's converter reads the pieces."""
    path = find_model(str(tokenizer))
    if path is not None:
        shutil.copyfile(path, target / "tokenizer.model")
