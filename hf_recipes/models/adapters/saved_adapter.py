"""A saved adapter: reading its configuration, checking its tensors, and loading it."""

import os
import re
from contextlib import nullcontext
from typing import TYPE_CHECKING
from warnings import catch_warnings

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import read_mapping
from hf_recipes.models.adapters.lora import (
    RENAMED,
    check_expressions,
    check_initialization,
    check_types,
    read_lora_config,
)
from hf_recipes.models.adapters.peft_workarounds import adaptable, base_biases, repair
from hf_recipes.models.adapters.residual import is_residual, to_plain_lora
from hf_recipes.models.adapters.vision import in_text_layout, save_for_both_layouts
from hf_recipes.models.checks.finite import check_file, not_finite

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

MERGE_RECORD = "merge.json"  # in a merged model's folder: what it was merged from
_MATRIX = re.compile(r"\.lora_(embedding_)?[AB](\.|$)")
OTHER_TASKS = ("SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS")
REWARD_HEADS = (".score.weight", ".classifier.weight")


def read_adapter_config(path: str, task_type: str | None = None) -> "PeftConfig":
    """The configuration of the adapter saved in `path`, which must be for `task_type` where one is given."""
    from peft import PeftConfig

    if not os.path.isfile(os.path.join(path, "adapter_config.json")):
        if os.path.isfile(os.path.join(path, MERGE_RECORD)):
            what = "holds a merged model, with its adapter in it already: give it as --model_name_or_path"
        elif os.path.isfile(os.path.join(path, "config.json")):
            what = "holds a whole model, not an adapter"
        else:
            what = "has none"
        raise UserError(f"--peft_path {path}: expected a folder with adapter_config.json; this one {what}")
    if not os.path.isfile(os.path.join(path, "adapter_model.safetensors")):
        raise UserError(f"--peft_path {path}: no adapter_model.safetensors (other formats are not loaded)")
    values = read_mapping(os.path.join(path, "adapter_config.json"), "--peft_path")
    try:
        config = PeftConfig.from_pretrained(path)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"--peft_path {path}: adapter_config.json cannot be read ({error})") from None
    if name := not_finite(vars(config)):
        raise UserError(
            f"--peft_path {path}: adapter_config.json: {name} is no finite number; write what it was trained with"
        )
    if config.peft_type == "LORA":
        check_types(f"--peft_path {path}/adapter_config.json", values)
        check_initialization(f"--peft_path {path}", vars(config), is_saved=True)
    if task_type and config.peft_type != "LORA":
        raise UserError(
            f"--peft_path {path}: an adapter of type {config.peft_type.value}; a stage continues LoRA alone"
        )
    if task_type and config.task_type not in (None, task_type):
        what = "a reward model's adapter" if config.task_type == "SEQ_CLS" else f"an adapter for {config.task_type}"
        raise UserError(f"--peft_path {path}: {what}; this stage continues one for {task_type}")
    if config.task_type in OTHER_TASKS:
        raise UserError(
            f"--peft_path {path}: an adapter for {config.task_type}, which nothing here runs; if its base is a causal "
            'language model, write "task_type": "CAUSAL_LM" in adapter_config.json'
        )
    return config


def check_same_shape(saved: "PeftConfig", path: str, lora_config: str) -> None:
    """Refuse a --lora_config that says otherwise than the adapter `saved` in `path`, which keeps what it has."""
    wanted = read_lora_config(lora_config, saved.task_type or "CAUSAL_LM")
    given = {RENAMED.get(key, key) for key in read_mapping(lora_config, "--lora_config")} - {"init_lora_weights"}
    differing = [
        f"{key} {getattr(saved, key, None)}, and {lora_config} says {getattr(wanted, key)}"
        for key in sorted(given)
        if isinstance(getattr(wanted, key), int | float) and getattr(wanted, key) != getattr(saved, key, None)
    ]
    theirs, ours = (getattr(one, "target_modules", None) for one in (saved, wanted))
    # Names may be spelled out in what is saved, and layers of experts stand there as parameters.
    if isinstance(theirs, set) and isinstance(ours, set) and not getattr(saved, "target_parameters", None):
        missing = [name for name in sorted(ours) if not any(f".{one}".endswith(f".{name}") for one in theirs)]
        differing += [f"target_modules without {', '.join(missing)}"] if missing else []
    if differing:
        raise UserError(
            f"--peft_path {path} was trained with {differing[0]}; a saved adapter keeps its shape: leave --lora_config "
            "out"
        )


def check_adapter_weights(path: str) -> None:
    check_file(os.path.join(path, "adapter_model.safetensors"), f"--peft_path {path}: adapter_model.safetensors")


def load_adapter(
    model: "PreTrainedModel | PeftModel", path: str, *, is_trainable: bool = False, name: str = "default"
) -> "PeftModel":
    """`model` with the adapter saved in `path`; adapters that it has already stay active.

    On the meta device nothing is loaded, and what cannot be is refused all the same.

    Args:
        name: a different one for each adapter of a model.
    """
    import torch
    from peft import PeftModel

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    config = read_adapter_config(path)
    trained_on, base = config.base_model_name_or_path, inner.config._name_or_path
    is_outline = next(inner.parameters()).is_meta
    if not is_outline and trained_on and base and os.path.normpath(trained_on) != os.path.normpath(base):
        say(f"{path}: was trained on {trained_on}; this base is {base}")
    check_expressions(config, [key for key, _ in inner.named_modules()], f"--peft_path {path}")
    saved = _check_shapes(inner, path)
    check_adapter_weights(path)
    if is_reward_adapter(path) and not any(name.endswith(REWARD_HEADS) for name in saved):
        raise UserError(f"--peft_path {path}: a reward model's adapter without its head (score.weight)")
    kind = config.init_lora_weights if config.peft_type == "LORA" and is_residual(config) else None
    if kind:
        config.init_lora_weights = True
    biases = base_biases(inner, config)
    try:
        on_device = torch.device("meta") if is_outline else nullcontext()
        # torch warns of each weight that is not copied to the meta device.
        quiet = catch_warnings(action="ignore") if is_outline else nullcontext()
        with on_device, quiet, adaptable(inner, config, *getattr(model, "peft_config", {}).values()):
            if isinstance(model, PeftModel):
                # The file has the old init_lora_weights, or names that fit a base in full.
                if kind or getattr(config, "target_parameters", None):
                    config.inference_mode = not is_trainable
                    model.add_adapter(name, config)
                model.load_adapter(path, name, is_trainable=is_trainable)
                adapted = model
            else:
                adapted = PeftModel.from_pretrained(model, path, name, is_trainable=is_trainable, config=config)
        if kind:
            to_plain_lora(adapted, name, kind)
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"--peft_path {path}: does not fit {base} ({' '.join(str(error).split())[:300]})") from None
    of_adapter = re.compile(rf"(\.lora_(?:embedding_)?[AB])\.{re.escape(name)}(?=\.|$)")
    expected = {of_adapter.sub(r"\1", key) for key in adapted.state_dict() if of_adapter.search(key)}
    if missing := sorted(expected - saved):
        raise UserError(
            f"--peft_path {path}: adapter_model.safetensors lacks {len(missing)} of the {len(expected)} tensors that "
            f"adapter_config.json implies ({missing[0]}), which would stay random; give the whole adapter"
        )
    matrices = {in_text_layout(inner, key) for key in saved if _MATRIX.search(key)}
    if unused := sorted(matrices - expected):
        raise UserError(
            f"--peft_path {path}: adapter_config.json leaves out {len(unused)} of the {len(matrices)} tensors of "
            f"adapter_model.safetensors ({unused[0]}); give the configuration that was saved with them"
        )
    repair(adapted, biases)
    if is_trainable:
        save_for_both_layouts(adapted)
    return adapted


def is_reward_adapter(path: str) -> bool:
    """Whether base and adapter together are a reward model."""
    return read_adapter_config(path).task_type == "SEQ_CLS"


def _check_shapes(model: "PreTrainedModel | PeftModel", path: str) -> set[str]:
    """The names of the adapter's tensors, once the shape of each was compared with its module's."""
    from safetensors import SafetensorError, safe_open

    modules = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    try:
        file = safe_open(os.path.join(path, "adapter_model.safetensors"), "pt")
    except SafetensorError as error:
        raise UserError(f"--peft_path {path}: adapter_model.safetensors is damaged ({error})") from None
    with file as tensors:
        names = set(tensors.keys())
        for key in sorted(names):
            match = re.fullmatch(r"base_model\.model\.(.+)\.lora_(A|B)\.weight", in_text_layout(model, key))
            if not match:
                continue
            layer, letter = match.groups()
            # PEFT wraps experts once for each of their weights, one wrapper in the other.
            module = modules.get(layer) or modules.get(re.sub(r"(\.base_layer)+$", "", layer))
            shape = tensors.get_slice(key).get_shape()
            size = shape[1 if letter == "A" else 0] if len(shape) > 1 else None
            expected = getattr(module, "in_features" if letter == "A" else "out_features", size or "a matrix")
            if module is None or size != expected:
                why = "which this base lacks"
                if module is not None:
                    why = f"of size {size}, where this base has {expected} (lora_{letter}.weight is {shape})"
                raise UserError(f"--peft_path {path}: an adapter for another base: it has {layer}, {why}")
    return names
