"""LoRA adapters merged into their base: a whole model, held against base and adapter before it gets its name.

Several adapters are added up with their weights: W + Σ wᵢ·sᵢ·BᵢAᵢ, with sᵢ each adapter's own scale. That is PEFT's
combination "cat" without its intermediate adapter: exact, whatever ranks and targets they have. "linear" adds the A and
the B matrices by themselves, which needs equal ranks and brings in products of one's B and another's A; "svd" is an
approximation.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_recipes import __version__
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import new_folder, write_text, writing
from hf_recipes.export import merge_record
from hf_recipes.export.parity import answer, compare, default_tolerance, parity_prompts
from hf_recipes.models import weight_files
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.devices import has_accelerator
from hf_recipes.models.generation_settings import make_savable, stop_at_eos
from hf_recipes.models.inference.loading import is_reward_model, load_for_inference, open_for_inference
from hf_recipes.models.loading import load_config
from hf_recipes.models.saved_adapter import load_adapter, read_adapter_config
from hf_recipes.publishing.model_card import model_card

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WHOLE = "100TB"  # all weights in one file


@dataclass(frozen=True)
class Sources:
    """What is merged: the base in float32 with the first adapter, its configuration and the folder of its files; the
    tokenizer that the merged model gets, and the ids of tokens that the base did not have."""

    model: ModelArguments
    config: "PretrainedConfig"
    folder: Path
    tokenizer: "PreTrainedTokenizerBase"
    new_tokens: list[int]
    is_reward: bool


@dataclass
class MergeArguments:
    """What to merge, and how the result is written."""

    peft_path: list[str]
    output_dir: str
    model_name_or_path: str | None = None
    model_revision: str = "main"
    weights: list[float] | None = None
    dtype: str = "auto"
    max_shard_size: str | None = None
    tolerance: float | None = None
    trust_remote_code: bool = False
    cache_dir: str | None = None

    def __post_init__(self):
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
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"--tolerance {self.tolerance}: a positive difference of logits")
        if self.max_shard_size is not None:
            from huggingface_hub.serialization._base import parse_size_to_int

            try:
                parse_size_to_int(self.max_shard_size)
            except ValueError:
                raise ValueError(f"--max_shard_size {self.max_shard_size}: expected a size such as 5GB") from None


def merge(args: MergeArguments) -> Path:
    """Write the merged model to `args.output_dir`, unless it is there already.

    Raises:
        UserError: adapters or a base that do not fit, another thing in the folder, or a difference from base and
            adapters above the tolerance; nothing is left under the final name then.
    """
    configs = [read_adapter_config(path) for path in args.peft_path]
    _check_combination(args, configs)
    sources = _open(args, configs)
    base, folder = sources.model, sources.folder
    adapters = [
        {"name": merge_record.shown_name(path), "weight": weight, "files": merge_record.file_hashes(Path(path))}
        for path, weight in zip(args.peft_path, args.weights, strict=True)
    ]
    _check_base(folder, args.peft_path, adapters)
    request = {
        "base": merge_record.file_hashes(folder) if os.path.isdir(base.model_name_or_path) else {"commit": folder.name},
        "adapters": [[adapter["files"], adapter["weight"]] for adapter in adapters],
        **{name: getattr(args, name) for name in ("dtype", "max_shard_size", "tolerance")},
    }
    target = Path(args.output_dir)
    if merge_record.is_done(target, request):
        say(f"{target}: this merge is done already; nothing is changed")
        return target
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
        record |= {"versions": _versions(), "request": request}
        write_text(partial / "README.md", model_card(partial, merge=record, title=target.resolve().name))
        record["files"] = merge_record.file_hashes(partial, ["*"])
        merge_record.write_record(partial, record)
    return target


def _check_combination(args: MergeArguments, configs: Sequence["PeftConfig"]) -> None:
    for path, config, weight in zip(args.peft_path, configs, args.weights, strict=True):
        if config.peft_type != "LORA":
            raise UserError(f"--peft_path {path}: an adapter of type {config.peft_type.value}; only LoRA is merged")
        if len(configs) == 1 and weight == 1:
            continue
        whole = [
            key
            for key, found in (
                ("modules_to_save", config.modules_to_save),
                ("trainable_token_indices", config.trainable_token_indices),
                ("use_dora", config.use_dora),
                ("bias", config.bias != "none"),
                ("lora_bias", config.lora_bias),
            )
            if found
        ]
        if whole:
            raise UserError(
                f"--peft_path {path}: it has {', '.join(whole)}, which can be neither weighted nor added to another "
                "adapter's; merge it by itself, without --weights"
            )
    kinds = {config.task_type or "CAUSAL_LM" for config in configs}  # PEFT's default is null
    if len(kinds) > 1:
        raise UserError(f"--peft_path: adapters for different tasks ({', '.join(map(str, kinds))}); merge one kind")


def _open(args: MergeArguments, configs: Sequence["PeftConfig"]) -> Sources:
    name, revision = args.model_name_or_path, args.model_revision
    if name is None:
        found = {config.base_model_name_or_path for config in configs}
        if len(found) > 1 or not found - {None, ""}:
            why = f"adapters of several bases ({', '.join(map(str, found))})" if len(found) > 1 else "no base is named"
            raise UserError(f"--peft_path: {why}; say which with --model_name_or_path")
        [name] = found
        revision = configs[0].revision or revision
        say(f"the base is {name}, as {args.peft_path[0]} says")
    source = {"trust_remote_code": args.trust_remote_code, "cache_dir": args.cache_dir}
    base = ModelArguments(name, model_revision=revision, dtype="float32", peft_path=args.peft_path[0])
    try:
        config = load_config(base, **source)
    except UserError as error:
        if args.model_name_or_path is None:
            raise UserError(f"{error} (the base that {args.peft_path[0]} names); --model_name_or_path says") from None
        raise
    if quantization := getattr(config, "quantization_config", None):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        raise UserError(
            f"--model_name_or_path {name}: its weights are stored quantized ({getattr(method, 'value', method)}); name "
            "the full-precision model that it was made from"
        )
    tokenizer = None
    for path in args.peft_path:
        _, own = open_for_inference(ModelArguments(name, model_revision=revision, peft_path=path), **source)
        if tokenizer is None:
            tokenizer = own
        elif own.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"--peft_path {path}: its tokenizer has other tokens than that of {args.peft_path[0]}; adapters of one "
                "vocabulary can be merged together"
            )
        elif own.chat_template != tokenizer.chat_template:
            say(f"{path}: has another chat template; the merged model gets that of {args.peft_path[0]}")
    trained = configs[0].trainable_token_indices or []
    trained = [index for indices in trained.values() for index in indices] if isinstance(trained, dict) else trained
    new = sorted({*trained, *range(config.get_text_config().vocab_size, len(tokenizer))})
    folder = weight_files.local_folder(name, revision, args.cache_dir)
    return Sources(base, config, folder, tokenizer, new, is_reward_model(config, args.peft_path[0]))


def _check_base(folder: Path, paths: Sequence[str], adapters: Sequence[Mapping[str, Any]]) -> None:
    record = merge_record.read_record(folder) or {}
    weights = "adapter_model.safetensors"
    there = {adapter["files"].get(weights) for adapter in record.get("adapters", ())}
    for path, adapter in zip(paths, adapters, strict=True):
        if adapter["files"][weights] in there:
            raise UserError(f"--model_name_or_path {folder}: {path} is merged into this model already; name its base")


def _write(args: MergeArguments, sources: Sources, partial: Path) -> dict[str, Any]:
    """Merge, save in `partial`, and hold what is read back from there against base and adapters."""
    source = {"trust_remote_code": args.trust_remote_code, "cache_dir": args.cache_dir}
    how = {"is_reward": sources.is_reward, "device_map": "cpu", **source}
    prompts = parity_prompts(sources.tokenizer, sources.new_tokens)
    model = load_for_inference(sources.model, sources.tokenizer, **how)
    names = ["default", *(f"adapter{number}" for number in range(2, len(args.peft_path) + 1))]
    for path, name in zip(args.peft_path[1:], names[1:], strict=True):
        model = load_adapter(model, path, name=name)
    model = _to_roomy_accelerator(model.eval())
    _weigh(model, names, args.weights)
    expected = answer(model, prompts)
    if not expected.is_finite:
        raise UserError(f"--peft_path {' '.join(args.peft_path)}: base and adapter give logits that are not numbers")
    with model.disable_adapter():
        effect = compare(expected, answer(model, prompts, expected.tokens)).logits

    model = _unload(model, names)
    merging = compare(expected, answer(model, prompts, expected.tokens))
    limit = max(default_tolerance(0.0, expected), args.tolerance or 0.0)
    if not merging.within(limit):
        raise UserError(
            f"merging changes logits by {merging.logits:.3g}, before any rounding, beyond the tolerance of "
            f"{limit:.3g}: nothing is left in --output_dir"
        )
    dtype = _cast(model, sources, args.dtype)
    stop_at_eos(model, sources.tokenizer)
    make_savable(model)
    model.save_pretrained(
        partial, max_shard_size=args.max_shard_size or weight_files.largest_shard(sources.folder) or WHOLE
    )
    sources.tokenizer.save_pretrained(partial)
    del model

    _, tokenizer = open_for_inference(ModelArguments(str(partial)), **source)
    if parity_prompts(tokenizer, sources.new_tokens) != prompts:
        raise UserError("the tokenizer gives other tokens once it is saved and read back: nothing is left")
    model = _to_roomy_accelerator(load_for_inference(ModelArguments(str(partial), dtype="float32"), tokenizer, **how))
    found = compare(expected, answer(model, prompts, expected.tokens))
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    tolerance = args.tolerance or default_tolerance(rounding, expected)
    kind = str(dtype).removeprefix("torch.")
    say(
        f"parity, computed in float32 on {len(prompts)} prompts: the largest difference of "
        f"{'scores' if sources.is_reward else 'logits'}\n"
        f"  base alone                    {effect:.6f}\n"
        f"  merged                        {merging.logits:.6f}   (at most {limit:.6f})\n"
        f"  merged, read back ({kind + ')':<11} {found.logits:.6f}   (at most {tolerance:.6f})"
    )
    if found.tokens:
        say(f"  greedy tokens alike           {found.same} of {found.tokens}")
    if not found.within(tolerance):
        hint = "" if dtype == torch.float32 else "; --dtype float32 does not round"
        raise UserError(
            f"the merged model's logits differ from those of base and adapter by {found.logits:.3g}, beyond the "
            f"tolerance of {tolerance:.3g}: nothing is left in --output_dir{hint}"
        )
    parity = {
        "prompts": len(prompts),
        "base_alone": effect,
        "merged": merging.logits,
        "logits": found.logits,
        "tolerance": tolerance,
        "greedy_tokens": {"same": found.same, "of": found.tokens},
    }
    return {"dtype": kind, "parity": parity}


def _weigh(model: "PeftModel", names: Sequence[str], weights: Sequence[float]) -> None:
    from peft.tuners.lora import LoraLayer

    model.base_model.set_adapter(list(names))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, weight in zip(names, weights, strict=True):
                if name in module.scaling:
                    module.scaling[name] *= weight


def _unload(model: "PeftModel", names: Sequence[str]) -> "PreTrainedModel":
    """The base with the adapters in it. Embeddings that are one weight at first are one afterwards where they are still
    alike, as after training a few tokens; where only one of the two was trained, they are two."""
    base = model.base_model.model
    text = base.config.get_text_config()
    tied = bool(text.tie_word_embeddings) and base.get_output_embeddings() is not None
    if tied:  # merging into one of them would change the other
        seen: set[int] = set()
        for module in base.modules():
            for name, weight in module.named_parameters(recurse=False):
                if id(weight) in seen:
                    setattr(module, name, torch.nn.Parameter(weight.data.clone(), weight.requires_grad))
                seen.add(id(weight))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are apart, which is settled below
        try:
            base = model.merge_and_unload(adapter_names=list(names))
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"--peft_path: PEFT cannot merge this adapter ({' '.join(str(error).split())})") from None
    if tied:
        one, other = base.get_input_embeddings(), base.get_output_embeddings()
        alike = torch.equal(one.weight, other.weight)
        for config in (base.config, text):
            config.tie_word_embeddings = alike
        if alike:
            other.weight = one.weight
        else:
            say("input and output embeddings are no longer one weight: the adapter trained one of them alone")
    return base


@torch.no_grad()
def _cast(model: "PreTrainedModel", sources: Sources, wanted: str) -> torch.dtype:
    """Weights in the dtype that the base's files have them in, or in the one that is wanted; a reward head in float32.

    Returns:
        That of most.
    """
    from hf_recipes.models.reward_head import ScoreHead

    stored: dict[str, torch.dtype] = {}
    if wanted != "auto":
        most = getattr(torch, wanted)
    else:
        stored = weight_files.stored_dtypes(sources.folder)
        most = weight_files.commonest(stored) or sources.config.dtype or torch.float32
    heads = {name for name, module in model.named_modules() if isinstance(module, ScoreHead)}
    for name, weight in model.named_parameters():
        is_head = name.rpartition(".")[0] in heads
        weight.data = weight.data.to(torch.float32 if is_head else stored.get(name, most))
    model.config.dtype = most
    return most


def _to_roomy_accelerator(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel | PeftModel":
    """`model` there, where twice its weights fit; float32 weights of many models do not."""
    if has_accelerator():
        free, _ = torch.accelerator.get_memory_info()
        if free > 2 * sum(weight.numel() * weight.element_size() for weight in model.parameters()):
            return model.to(torch.accelerator.current_accelerator())
    return model


def _versions() -> dict[str, str]:
    import peft
    import transformers

    own = {"hf_recipes": __version__, "peft": peft.__version__, "transformers": transformers.__version__}
    return {**own, "torch": torch.__version__}
