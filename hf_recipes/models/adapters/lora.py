"""A new LoRA adapter: its JSON file, and putting it on a model."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.bounds import bounded
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import read_mapping
from hf_recipes.models.adapters.peft_workarounds import adaptable, base_biases, repair
from hf_recipes.models.adapters.residual import KINDS, initialize_residual, is_residual
from hf_recipes.models.adapters.targets import (
    check_patterns,
    fused_experts,
    leaf,
    linear_modules,
    spell_out_targets,
)
from hf_recipes.models.adapters.vision import leave_vision_out, save_for_both_layouts
from hf_recipes.models.checks.finite import not_finite
from hf_recipes.models.quantization.experts import as_plain_parameters

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

# Our names of PEFT's keys; PEFT's are understood too.
RENAMED = {"lora_r": "r", "lora_target_modules": "target_modules"}
REQUIRED = ("r", "lora_alpha", "lora_dropout")
TYPES: dict[str, Any] = {  # where PEFT takes more, or less, than it says
    "lora_alpha": int | float,
    "lora_dropout": int | float,
    "rank_pattern": dict[str, int],
    "alpha_pattern": dict[str, int | float],
}
IN_WORDS = {
    int: "a number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list[str]: "a list of texts",
    list[int]: "a list of numbers",
    **dict.fromkeys((dict[str, int], dict[str, int | float]), "an object of numbers"),
    dict[str, list[int]]: "an object of lists of numbers",
}


def read_lora_config(path: str | None, task_type: str = "CAUSAL_LM") -> "LoraConfig":
    """A `LoraConfig` from JSON with `lora_r`, `lora_alpha`, `lora_dropout`, `lora_target_modules` (a list, names with
    commas, a regular expression, or "all-linear"), `modules_to_save`, and any of PEFT's own keys.

    None stands for rank 8 on all linear layers. With the `task_type` SEQ_CLS, a reward model's head is trained and
    saved with the adapter.
    """
    from peft import LoraConfig

    if path is None:
        settings: dict[str, Any] = {"lora_r": 8, "lora_alpha": 16, "lora_target_modules": "all-linear"}
    else:
        settings = read_mapping(path, "--lora_config")
    known = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
    values: dict[str, Any] = {"task_type": task_type}
    for key, value in settings.items():
        name = RENAMED.get(key, key)
        if name not in known:
            raise UserError(f"{path}: unknown key {key!r}{nearest(key, known | set(RENAMED))}")
        if name in values and name != "task_type":
            raise UserError(f"{path}: {key!r} and another key both set {name}; leave one of them out")
        values[name] = value
    for key in ("target_modules", "modules_to_save"):
        named = values.get(key)
        if isinstance(named, str) and named != "all-linear" and re.fullmatch(r"[\w.,\s-]+", named):
            values[key] = [name.strip() for name in named.split(",") if name.strip()]
        elif isinstance(named, str):
            try:
                re.compile(named)
            except re.error as error:
                raise UserError(f"{path}: {key} {named!r} is no regular expression ({error})") from None
    check_initialization(path, values)
    check_types(path, values)
    for name, only in (("peft_type", "LORA"), ("task_type", task_type)):
        if values.get(name, only) != only:
            raise UserError(f"{path}: {name} is {json.dumps(values[name])}; here it is {only}: take it out")
    if values.get("inference_mode"):
        raise UserError(f"{path}: inference_mode would leave nothing to train; take it out")
    if name := not_finite(values):
        raise UserError(f"{path}: {name} is no finite number")
    try:
        return LoraConfig(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None


def check_initialization(path: str | None, values: Mapping[str, Any], is_saved: bool = False) -> None:
    """Refuse initializations that need data which no run gives them, or that change the base's weights."""
    kind = str(values.get("init_lora_weights")).lower()
    if kind.startswith(("corda", "eva", "lora_ga")) and not is_saved:
        raise UserError(
            f"{path}: init_lora_weights {kind} is computed from data beforehand, which no stage does; take true, "
            "gaussian, orthogonal, mica, pissa or olora"
        )
    changes = [name for name in ("layer_replication", "kasa_config") if values.get(name) is not None]
    if kind.startswith(("loftq", "corda", "lora_ga", *(["pissa_niter"] if is_saved else []))):
        changes.append(f"init_lora_weights {kind}")
    if changes:
        instead = "convert it to plain LoRA where it was trained" if is_saved else "take it out"
        raise UserError(
            f"{path}: {changes[0]} changes the base's weights, and no file holds the changed ones; {instead}"
        )
    also = [name for name in ("use_dora", "alora_invocation_tokens") if values.get(name)]
    if kind.startswith(KINDS) and also:
        raise UserError(f"{path}: init_lora_weights {kind} does not go with {also[0]}; leave one of them out")


def check_types(path: str | None, values: Mapping[str, Any]) -> None:
    """Refuse a value of an adapter's settings that is of another JSON type than PEFT's."""
    from huggingface_hub.dataclasses import type_validator
    from peft import LoraConfig

    for name, kind in (get_type_hints(LoraConfig) | TYPES).items():
        words = _in_words(kind)
        if not words or name not in values or (values[name] is None and name not in REQUIRED):
            continue
        try:
            type_validator(name, values[name], kind)
        except TypeError:
            raise UserError(f"{path}: {name} is {json.dumps(values[name])}; expected {words}") from None


def _in_words(kind: Any) -> str:
    """A type as JSON has it; empty for PEFT's classes, and for a union with them."""
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = [IN_WORDS.get(one, "") for one in kinds if one is not type(None)]
    return " or ".join(dict.fromkeys(words)) if all(words) else ""


def attach_lora(model: "PreTrainedModel", config: "LoraConfig", path: str | None, new_tokens: list[int]) -> "PeftModel":
    """Put a fresh adapter on `model`; the embeddings of `new_tokens` (ids) are trained with it."""
    from peft import get_peft_model
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils.other import ModulesToSaveWrapper
    from transformers.integrations import is_deepspeed_zero3_enabled

    names = {name for name, _ in model.named_modules()}
    check_expressions(config, names, path)
    linear = ", ".join(sorted({leaf(name) for name in linear_modules(model)}))
    experts = spell_out_targets(model, config, path)
    leave_vision_out(model, config)
    for key in ("target_modules", "modules_to_save"):
        wanted = getattr(config, key)
        if key == "modules_to_save" and wanted and config.task_type == "SEQ_CLS":
            wanted = set(wanted) - {"classifier", "score"}  # PEFT adds both names of a head
        for target in wanted if isinstance(wanted, (list, set, tuple)) else ():
            if target not in experts and not any(f".{name}".endswith(f".{target}") for name in names):
                fused = ", ".join(fused_experts(model))
                also = f", and target_parameters may name {fused}" if fused else ""
                raise UserError(
                    f"{path}: {key} names {target!r}, which {type(model).__name__} lacks; its linear modules are "
                    f"{linear}{also}"
                )
    with as_plain_parameters(model):
        parameters = [f".{name}" for name, _ in model.named_parameters()]
    excluded = config.exclude_modules
    for name in excluded if isinstance(excluded, list | set | tuple) else ():
        if not any(f".{one}".endswith(f".{name}") for one in names):  # one file may be for models with it and without
            say(f"note: {path}: exclude_modules names {name!r}, which {type(model).__name__} lacks")
    for target in set(config.target_parameters or ()) - experts:
        if not any(name.endswith(f".{target}") for name in parameters):
            raise UserError(f"{path}: target_parameters names {target!r}, which {type(model).__name__} lacks")
    _check_token_ids(config, model.get_input_embeddings().num_embeddings, path)
    if new_tokens:
        _train_tokens(model, config, path, new_tokens)
    kind = config.init_lora_weights if is_residual(config) else None
    if kind:
        config.init_lora_weights = True
    biases = base_biases(model, config)
    try:
        # DeepSpeed's stage 3 gathers weights of one dtype only, and keeps copies in float32 itself.
        with adaptable(model, config):
            adapted = get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
        if kind:
            initialize_residual(adapted, kind)
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"{path or 'lora_config'}: {' '.join(str(error).split())[:300]} "
            f"(linear modules of {type(model).__name__}: {linear})"
        ) from None
    rows = [module for module in adapted.modules() if isinstance(module, TrainableTokensLayer)]
    if any(isinstance(module.base_layer, ModulesToSaveWrapper) for module in rows):
        raise UserError(
            f"{path}: modules_to_save trains one of the tied embeddings whole and trainable_token_indices rows of the "
            "other, which are one weight; leave one of the two keys out"
        )
    check_patterns(adapted, config, path)
    repair(adapted, biases)
    save_for_both_layouts(adapted)
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise UserError(f"{path}: leaves no weight to train (layers_to_transform or exclude_modules name all of them)")
    return adapted


def check_expressions(config: "LoraConfig", names: Iterable[str], path: str | None) -> None:
    """Match the configuration's regular expressions with the modules' names, in a bounded time."""
    patterns = {key: [getattr(config, key, None)] for key in ("target_modules", "exclude_modules")}
    for key in ("rank_pattern", "alpha_pattern", "layers_pattern"):
        values = getattr(config, key, None) or ()
        patterns[key] = [values] if isinstance(values, str) else list(values)
    for key, values in patterns.items():
        for pattern in values:
            if not isinstance(pattern, str) or pattern == "all-linear":
                continue
            where = f"{path}: the regular expression {pattern!r} in {key}"
            try:
                with bounded(where):
                    expression = re.compile(pattern)
                    for name in names:
                        expression.fullmatch(name)
            except (re.error, RecursionError) as error:
                raise UserError(f"{where} is none ({error})") from None


def _check_token_ids(config: "LoraConfig", rows: int, path: str | None) -> None:
    indices = config.trainable_token_indices or []
    for index in chain.from_iterable(indices.values()) if isinstance(indices, dict) else indices:
        if not 0 <= index < rows:
            raise UserError(f"{path}: trainable_token_indices names {index}, and the model has {rows:,} tokens")


def _train_tokens(model: "PreTrainedModel", config: "LoraConfig", path: str | None, ids: list[int]) -> None:
    """Train the rows of `ids` in all embeddings of which not all rows are trained."""
    names = {module: name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    embeddings = [names[m] for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None]
    whole = [name for name in embeddings if name in (config.modules_to_save or ())]
    targets = () if isinstance(config.target_modules, str) else set(config.target_modules or ())
    if targeted := [name for name in embeddings if name in targets and not whole]:
        raise UserError(
            f"{path}: target_modules names {' and '.join(targeted)}, where the rows of new tokens are trained: take it "
            "out, or name it in modules_to_save instead"
        )
    if model.config.get_text_config().tie_word_embeddings:
        if len(whole) == 1 and not config.ensure_weight_tying:
            raise UserError(
                f"{path}: modules_to_save names {whole[0]}, and new tokens are trained in "
                f'{" and ".join(embeddings)}, which are one weight: add "ensure_weight_tying": true'
            )
        embeddings = [] if whole else embeddings[:1]
    rest = [name for name in embeddings if name not in whole]
    if rest:
        weights = len(ids) * len(rest) * model.get_input_embeddings().weight.shape[1]
        say(
            f"{len(ids):,} new tokens: their embeddings are trained beside the adapter (trainable_token_indices of "
            f"{' and '.join(rest)}), {weights:,} weights, {weights * 16 / 1e6:,.1f} MB with gradients and moments"
        )
    indices = config.trainable_token_indices or {}
    indices = indices if isinstance(indices, dict) else {names[model.get_input_embeddings()]: indices}
    config.trainable_token_indices = {
        name: sorted({*indices.get(name, ()), *(ids if name in rest else ())})
        for name in dict.fromkeys([*indices, *rest])
    } or None
