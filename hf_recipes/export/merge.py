"""LoRA adapters merged into their base: a full model, which is compared with base and adapters before it gets its name.

Several adapters are added with their weights: W + Σ wᵢ·sᵢ·BᵢAᵢ, with sᵢ the scale of each. This is PEFT's combination
"cat" without its intermediate adapter, and exact for any ranks and targets. PEFT's "linear" adds the A and the B
matrices separately, which needs equal ranks and adds products of one's B and another's A; "svd" is an approximation.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch

from hf_recipes.core.arguments.limits import PositiveFloat, check_limits
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import make_once, new_folder, write_text, writing
from hf_recipes.evaluation.method import versions
from hf_recipes.export import merge_record, merge_weights
from hf_recipes.export.parity import answer, compare, default_tolerance, parity_prompts
from hf_recipes.models import weight_files
from hf_recipes.models.adapters.saved_adapter import load_adapter, read_adapter_config
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.devices import has_accelerator
from hf_recipes.models.inference.generation_settings import make_savable, stop_at_ends
from hf_recipes.models.inference.loading import is_reward_model, load_for_inference, open_for_inference
from hf_recipes.models.loading import load_config
from hf_recipes.models.templates.options import TemplateChoice
from hf_recipes.publishing.model_card import model_card

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ONE_FILE = "100TB"  # a shard size that all weights fit into


@dataclass(frozen=True)
class Sources:
    """What is merged.

    Attributes:
        model: the base, in float32, with the first adapter.
        config, folder: the base's.
        tokenizer: the one that the merged model gets.
        new_tokens: ids that the base does not have, or whose embeddings were trained.
    """

    model: ModelArguments
    config: "PretrainedConfig"
    folder: Path
    tokenizer: "PreTrainedTokenizerBase"
    new_tokens: list[int]
    is_reward: bool


@dataclass
class MergeArguments:
    """What to merge, and in which form the result is saved."""

    peft_path: list[str] = field(metadata={"help": "The adapter, or several, each with its weight."})
    output_dir: str = field(metadata={"help": "Folder of the merged model; nothing in it is overwritten."})
    model_name_or_path: str | None = setting("The base; by default the one that the adapter names.")
    model_revision: str = setting("Of the base on the Hub.", "main")
    weights: list[float] | None = setting("One for each adapter, by default 1.")
    dtype: str = setting("Of the saved weights; auto takes that of the base's files.", "auto")
    max_shard_size: str | None = setting("Of a weight file, such as 5GB; by default that of the base's largest.")
    tolerance: PositiveFloat | None = setting("Largest difference of logits from base and adapters that is accepted.")
    trust_remote_code: bool = setting("Run Python code that comes with the model.", False)
    cache_dir: str | None = setting("Of what is fetched from the Hub.")

    def __post_init__(self):
        check_limits(self)
        if self.dtype not in ("auto", *weight_files.FLOATS.values()):
            raise ValueError(f"--dtype {self.dtype}: expected auto, {', '.join(weight_files.FLOATS.values())}")
        if self.weights is None:
            self.weights = [1.0] * len(self.peft_path)
        if len(self.weights) != len(self.peft_path):
            raise ValueError(
                f"--weights: {len(self.weights)} given for {len(self.peft_path)} adapters; give one for each"
            )
        if len({os.path.realpath(path) for path in self.peft_path}) < len(self.peft_path):
            raise ValueError("--peft_path names one adapter twice; give it once, with the sum of the weights")
        if self.max_shard_size is not None:
            from huggingface_hub.serialization._base import parse_size_to_int

            try:
                parse_size_to_int(self.max_shard_size)
            except ValueError:
                raise ValueError(f"--max_shard_size {self.max_shard_size}: expected a size such as 5GB") from None


def merge(args: MergeArguments, template: TemplateChoice | None = None) -> Path:
    """Write the merged model to `args.output_dir`, unless the same merge is there already.

    Its chat template is the adapter's, with what `template` sets.

    Where its difference from base and adapters is above the tolerance, nothing is left under the final name.
    """
    template = template or TemplateChoice()
    configs = [read_adapter_config(path) for path in args.peft_path]
    _check_combination(args, configs)
    sources = _open(args, configs, template)
    base, folder = sources.model, sources.folder
    adapters = [
        {"name": merge_record.shown_name(path), "weight": weight, "files": merge_record.file_hashes(Path(path))}
        for path, weight in zip(args.peft_path, args.weights, strict=True)
    ]
    merge_record.check_base(folder, args.peft_path, adapters)
    request = {
        "base": merge_record.file_hashes(folder) if os.path.isdir(base.model_name_or_path) else {"commit": folder.name},
        "adapters": [[adapter["files"], adapter["weight"]] for adapter in adapters],
        **{name: getattr(args, name) for name in ("dtype", "max_shard_size", "tolerance")},
    }
    if template != TemplateChoice():
        request["chat_template"] = hashlib.sha256(sources.tokenizer.chat_template.encode()).hexdigest()
    target = Path(args.output_dir)
    make_once(
        target,
        lambda: merge_record.is_done(target, request),
        lambda: _merge(args, sources, adapters, request, target),
    )
    return target


def _merge(
    args: MergeArguments, sources: Sources, adapters: list[dict[str, Any]], request: dict[str, Any], target: Path
) -> None:
    """Write the merged model, its card and its record, of `request` among others, to the new folder `target`."""
    base = sources.model
    quantized = next(filter(None, (merge_record.training_quantization(Path(path)) for path in args.peft_path)), None)
    if quantized:
        say(f"the adapter was trained on the base in {quantized}; it is merged into the base's full weights")
    record = {
        "base": {"name": merge_record.shown_name(base.model_name_or_path), "revision": base.model_revision},
        "adapters": adapters,
        "combination": "sum of weighted updates" if len(adapters) > 1 else None,
        "quantized_in_training": quantized,
    }
    with writing(f"--output_dir {target}"), new_folder(target) as partial:
        record |= _write(args, sources, partial)
        record |= {"versions": versions() | {"peft": peft.__version__}, "request": request}
        write_text(partial / "README.md", model_card(partial, merge=record, title=target.resolve().name))
        record["files"] = merge_record.file_hashes(partial, ["*"])
        merge_record.write_record(partial, record)


def _check_combination(args: MergeArguments, configs: Sequence["PeftConfig"]) -> None:
    for path, config, weight in zip(args.peft_path, configs, args.weights, strict=True):
        if config.peft_type != "LORA":
            raise UserError(f"--peft_path {path}: an adapter of type {config.peft_type.value}; only LoRA is merged")
        if len(configs) == 1 and weight == 1:
            continue
        keys = ("modules_to_save", "trainable_token_indices", "use_dora", "bias", "lora_bias")
        if whole := [key for key in keys if getattr(config, key) not in (None, False, "none", [])]:
            raise UserError(
                f"--peft_path {path}: it has {', '.join(whole)}, which can be neither weighted nor added to another "
                "adapter's; merge it by itself, without --weights"
            )
    kinds = {config.task_type or "CAUSAL_LM" for config in configs}  # PEFT's default is null
    if len(kinds) > 1:
        raise UserError(f"--peft_path: adapters for different tasks ({', '.join(map(str, kinds))}); merge one kind")


def _open(args: MergeArguments, configs: Sequence["PeftConfig"], template: TemplateChoice) -> Sources:
    name, revision = args.model_name_or_path, args.model_revision
    if name is None:
        bases = {config.base_model_name_or_path for config in configs}
        if len(bases) > 1 or not bases - {None, ""}:
            why = f"adapters of several bases ({', '.join(map(str, bases))})" if len(bases) > 1 else "no base is named"
            raise UserError(f"--peft_path: {why}; name it with --model_name_or_path")
        [name] = bases
        revision = configs[0].revision or revision
        say(f"the base is {name}, as {args.peft_path[0]} says")
    source = {"trust_remote_code": args.trust_remote_code, "cache_dir": args.cache_dir}
    base = ModelArguments(name, model_revision=revision, dtype="float32", peft_path=args.peft_path[0])
    try:
        config = load_config(base, **source)
    except UserError as error:
        if args.model_name_or_path is None:
            hint = f"(the base that {args.peft_path[0]} names); name another with --model_name_or_path"
            raise UserError(f"{error} {hint}") from None
        raise
    if quantization := getattr(config, "quantization_config", None):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        raise UserError(
            f"--model_name_or_path {name}: its weights are stored quantized ({getattr(method, 'value', method)}); name "
            "the full-precision model that it was made from"
        )
    tokenizer = None
    for path in args.peft_path:
        arguments = ModelArguments(name, model_revision=revision, peft_path=path)
        _, other = open_for_inference(arguments, template=template, **source)
        if tokenizer is None:
            tokenizer = other
        elif other.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"--peft_path {path}: its tokenizer has other tokens than that of {args.peft_path[0]}; adapters of one "
                "vocabulary can be merged together"
            )
        elif other.chat_template != tokenizer.chat_template:
            say(f"{path}: has another chat template; the merged model gets that of {args.peft_path[0]}")
    trained = configs[0].trainable_token_indices or []
    trained = [index for indices in trained.values() for index in indices] if isinstance(trained, dict) else trained
    new = sorted({*trained, *range(config.get_text_config().vocab_size, len(tokenizer))})
    folder = weight_files.local_folder(name, revision, args.cache_dir)
    return Sources(base, config, folder, tokenizer, new, is_reward_model(config, args.peft_path[0]))


def _write(args: MergeArguments, sources: Sources, partial: Path) -> dict[str, Any]:
    """Merge, save in `partial`, and compare what is loaded from there with base and adapters."""
    source = {"trust_remote_code": args.trust_remote_code, "cache_dir": args.cache_dir}
    options = {"is_reward": sources.is_reward, "device_map": "cpu", **source}
    prompts = parity_prompts(sources.tokenizer, sources.new_tokens)
    model = load_for_inference(sources.model, sources.tokenizer, **options)
    names = ["default", *(f"adapter{number}" for number in range(2, len(args.peft_path) + 1))]
    for path, name in zip(args.peft_path[1:], names[1:], strict=True):
        model = load_adapter(model, path, name=name)
    model = _to_accelerator(model.eval())
    merge_weights.scale_adapters(model, names, args.weights)
    expected = answer(model, prompts)
    if not expected.is_finite:
        raise UserError(f"--peft_path {' '.join(args.peft_path)}: base and adapter give logits that are not numbers")
    with model.disable_adapter():
        effect = compare(expected, answer(model, prompts, expected.tokens)).logits

    model = merge_weights.merge_and_unload(model, names)
    merging = compare(expected, answer(model, prompts, expected.tokens))
    limit = max(default_tolerance(0.0, expected), args.tolerance or 0.0)
    if not merging.within(limit):
        raise UserError(
            f"merging changes logits by {merging.logits:.3g}, before any rounding, beyond the tolerance of "
            f"{limit:.3g}: nothing is left in --output_dir"
        )
    dtype = merge_weights.cast(model, sources.folder, args.dtype)
    stop_at_ends(model, sources.tokenizer)
    make_savable(model)
    model.save_pretrained(
        partial, max_shard_size=args.max_shard_size or weight_files.largest_shard(sources.folder) or ONE_FILE
    )
    sources.tokenizer.save_pretrained(partial)
    del model

    _, tokenizer = open_for_inference(ModelArguments(str(partial)), **source)
    if parity_prompts(tokenizer, sources.new_tokens) != prompts:
        raise UserError("the tokenizer gives other tokens once it is saved and loaded: nothing is left")
    model = _to_accelerator(load_for_inference(ModelArguments(str(partial), dtype="float32"), tokenizer, **options))
    saved = compare(expected, answer(model, prompts, expected.tokens))
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    tolerance = args.tolerance or default_tolerance(rounding, expected)
    kind = str(dtype).removeprefix("torch.")
    say(
        f"parity, computed in float32 on {len(prompts)} prompts: the largest difference of "
        f"{'scores' if sources.is_reward else 'logits'}\n"
        f"  base alone                    {effect:.6f}\n"
        f"  merged                        {merging.logits:.6f}   (at most {limit:.6f})\n"
        f"  merged, read back ({kind + ')':<11} {saved.logits:.6f}   (at most {tolerance:.6f})"
    )
    if saved.tokens:
        say(f"  greedy tokens alike           {saved.same} of {saved.tokens}")
    if not saved.within(tolerance):
        hint = "" if dtype == torch.float32 else "; --dtype float32 does not round"
        raise UserError(
            f"the merged model's logits differ from those of base and adapter by {saved.logits:.3g}, beyond the "
            f"tolerance of {tolerance:.3g}: nothing is left in --output_dir{hint}"
        )
    parity = {
        "prompts": len(prompts),
        "base_alone": effect,
        "merged": merging.logits,
        "logits": saved.logits,
        "tolerance": tolerance,
        "greedy_tokens": {"same": saved.same, "of": saved.tokens},
    }
    return {"dtype": kind, "parity": parity}


def _to_accelerator(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel | PeftModel":
    """`model` on the accelerator, where that has room for twice its weights (in float32)."""
    if has_accelerator():
        free, _ = torch.accelerator.get_memory_info()
        if free > 2 * sum(weight.numel() * weight.element_size() for weight in model.parameters()):
            return model.to(torch.accelerator.current_accelerator())
    return model
