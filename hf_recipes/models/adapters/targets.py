"""What an adapter adapts: in a mixture of experts, these and the layers beside them; the shares of all parts."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING
from unittest.mock import patch

from hf_recipes.core.errors import UserError
from hf_recipes.models.quantization.experts import as_plain_parameters, is_experts_weight
from hf_recipes.models.quantization.settings import ROUTER, is_quantized, is_read_by_kernel

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel

# The first that a weight's name holds; the names are those of transformers' families.
PARTS = {
    "router": ROUTER,
    "shared experts": re.compile(r"shared_(expert|mlp)"),
    "experts": re.compile(r"(^|\.)experts\.|\.(input|output)_linear\."),
    "attention": re.compile(r"attn|attention|\.(query_key_value|query|key|value)\."),
    "state spaces": re.compile(r"mamba|mixer|\.conv\."),
    "dense layers": re.compile(r"mlp|feed_forward|ffn|dense|\.fc\d|moe"),
    "embeddings": re.compile(r"embed|lm_head|wte|wpe"),
    "score head": re.compile(r"score|classifier"),
}
SHOWN_AT_ZERO = ("attention", "experts", "shared experts", "dense layers", "router")


def linear_modules(model: "PreTrainedModel") -> dict[str, "nn.Module"]:
    """The linear modules by their full names, without the language-model head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head, kinds = model.get_output_embeddings(), (nn.Linear, Conv1D)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds) and module is not head}


def leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def fused_experts(model: "PreTrainedModel") -> list[str]:
    """The weights that hold all experts of a layer, as `target_parameters` names them: ``experts.down_proj``."""
    return sorted({".".join(name.split(".")[-2:]) for name in _experts_weights(model)})


def _experts_weights(model: "PreTrainedModel") -> list[str]:
    return [
        f"{name}.{key}"
        for name, module in model.named_modules()
        for key, _ in module.named_parameters(recurse=False)
        if is_experts_weight(module, key)
    ]


def spell_out_targets(model: "PreTrainedModel", config: "LoraConfig", path: str | None) -> set[str]:
    """Name in `config` all that its targets stand for in a mixture of experts, or in a model with Mamba layers.

    ``all-linear`` is attention, experts, shared experts and dense layers, never the router. PEFT 0.21 itself reads it
    by family: with the router, or without experts; it reads a regular expression as the last names of what that
    matches; and it takes the names of dense layers and shared experts for those of experts, as transformers 4 had them.
    Such layers are adapted through their weights (`target_parameters`), under the names in the adapter's file that they
    would have as modules.

    Returns:
        the names among `target_modules` that PEFT takes for experts.
    """
    with as_plain_parameters(model):
        experts = _experts_weights(model)
    linear = linear_modules(model)
    passed_over = {name for name in linear if is_read_by_kernel(model, name)}
    if not experts and not passed_over:
        return set()
    parameters, targets = set(config.target_parameters or ()), config.target_modules
    if is_all := targets == "all-linear":
        routers = {name for name in linear if experts and ROUTER.search(name)}
        named = {leaf(name) for name in linear.keys() - routers - passed_over}
        parameters |= {".".join(name.split(".")[-2:]) for name in experts}
    elif is_pattern := isinstance(targets, str):
        named = {name for name, _ in model.named_modules() if re.fullmatch(targets, name)}
        weights = _matching(model, targets, experts, path)
        if not experts or not named | weights:  # as in dense models, or an error of PEFT's
            return set()
        parameters |= weights
    elif not targets:
        return set()
    else:
        named = set(targets)
    leaves = {name for name in map(leaf, named) if _is_taken_for_experts(model, name)}
    taken = {name for name in named if leaf(name) in leaves}
    owners = [f".{name}" for name, _ in model.named_parameters() if name.endswith(".weight")]
    parameters |= {f"{name}.weight" for name in taken if any(key.endswith(f".{name}.weight") for key in owners)}
    if is_all or is_pattern:
        config.target_modules = sorted(named - taken)
    config.target_parameters = sorted(parameters) or None
    if parameters or taken:
        _check_goes_with_parameters(config, path)
    return taken


def _matching(model: "PreTrainedModel", pattern: str, experts: list[str], path: str | None) -> set[str]:
    """The weights of `experts` that a regular expression names: by their path, or by those of the modules of each
    expert that transformers 4 had (``experts.0.gate_proj`` and ``experts.0.up_proj`` for ``experts.gate_up_proj``)."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    matching = set()
    conversions = get_checkpoint_conversion_mapping(model.config.model_type) or ()
    fused = [each for each in conversions if isinstance(each, WeightConverter)]
    for name in experts:
        ends = [(each.source_patterns, end) for each in fused for end in each.target_patterns if name.endswith(end)]
        sources, end = ends[0] if ends else ([], "")
        modules = [name.removesuffix(end) + key.replace("*", "0").removesuffix(".weight") for key in sources]
        missing = [module for module in modules if not re.fullmatch(pattern, module)]
        if re.fullmatch(pattern, name) or (modules and not missing):
            matching.add(name)
        elif len(missing) < len(modules):
            raise UserError(
                f"{path}: the regular expression in target_modules leaves out {', '.join(map(leaf, missing))} of "
                f"experts, which are one weight with what it matches ({name}); name all of them, or none"
            )
    return matching


@contextmanager
def as_modules(model: "nn.Module", *configs: "PeftConfig") -> Iterator[None]:
    """While this lasts, `configs` name quantized layers as modules, through which alone they are adapted.

    Afterwards they name their weights again, as they have to in a file.
    """
    from peft.utils import transformers_weight_conversion as conversion

    linear = linear_modules(model) if is_quantized(model) else ()
    names = [f".{name.removesuffix('.base_layer')}.weight" for name in linear]
    changed = []
    for config in configs:
        parameters = set(getattr(config, "target_parameters", None) or ())
        weights = {key for key in parameters if key.endswith(".weight") and any(n.endswith(f".{key}") for n in names)}
        if weights:
            conversion.convert_peft_config_for_transformers(config, model, None)
            changed.append((config, config.target_modules, config.target_parameters))
            config.target_modules = {*config.target_modules, *(key.removesuffix(".weight") for key in weights)}
            config.target_parameters = config.target_parameters - weights
    with patch.object(conversion, "convert_peft_config_for_transformers") if changed else nullcontext():
        yield
    for config, modules, parameters in changed:
        config.target_modules, config.target_parameters = modules, parameters


def _is_taken_for_experts(model: "PreTrainedModel", name: str) -> bool:
    """Whether PEFT reads `name` as an expert's module of transformers 4, and no longer as a module."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one half of a fused weight, without the other
        return True
    return name not in config.target_modules


def _check_goes_with_parameters(config: "LoraConfig", path: str | None) -> None:
    for key, instead in (
        ("lora_dropout", "set it to 0, as configs/lora_moe.json has it"),
        ("use_dora", "take it out"),
        ("lora_bias", "take it out"),
        ("layers_to_transform", "take it out, or name the weights of those layers in target_parameters"),
        ("exclude_modules", "name what is to be adapted instead"),
    ):
        if value := getattr(config, key):
            raise UserError(
                f"{path}: {key} {value} does not reach experts, whose weights PEFT adapts as parameters: {instead}"
            )


def check_patterns(model: "PeftModel", config: "LoraConfig", path: str | None) -> None:
    """Refuse a key of `rank_pattern` or `alpha_pattern` that is the name of nothing adapted."""
    adapted = [*model.base_model.targeted_module_names, *model.base_model.targeted_parameter_names]
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, key) or ():
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):
                names = ", ".join(sorted({leaf(name) for name in adapted}))
                raise UserError(f"{path}: {key} names {pattern!r}, and no weight of that name is adapted ({names} are)")


def part_of(name: str) -> str:
    """The part of a model that a weight belongs to, by its full name."""
    return next((part for part, pattern in PARTS.items() if pattern.search(name)), "other weights")


def trained_shares(model: "nn.Module") -> dict[str, float]:
    """Which share of the weights that are trained is in which part; of a mixture, the parts without any too."""
    trained = dict.fromkeys([*SHOWN_AT_ZERO, *PARTS], 0)
    present = set()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        present.add(part)
        if parameter.requires_grad:
            trained[part] = trained.get(part, 0) + getattr(parameter, "ds_numel", parameter.numel())
    shown = present & set(SHOWN_AT_ZERO) if {"experts", "router"} <= present else set()
    count = sum(trained.values())
    return {part: size / count for part, size in trained.items() if size or part in shown}


def what_is_trained(trained: int, total: int, shares: Mapping[str, float]) -> str:
    """How many of a model's weights are trained, and in which parts they are."""
    parts = ", ".join(f"{part} {share:.1%}" for part, share in shares.items())
    return f"{trained:,} of {total:,} weights ({trained / total:.2%}): {parts}"
