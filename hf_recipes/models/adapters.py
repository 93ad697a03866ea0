"""LoRA from a JSON file: reading it, attaching it, and going on from a saved adapter."""

import dataclasses
import json
import os
import re
from typing import TYPE_CHECKING, Any

from hf_recipes.errors import UserError, say
from hf_recipes.models.finite import check_file, not_finite
from hf_recipes.parsing import nearest, read_json_object

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel
    from transformers import PreTrainedModel

# Our names for PEFT's, beside which PEFT's own are understood.
RENAMED = {"lora_r": "r", "lora_target_modules": "target_modules"}

MERGE_RECORD = "merge.json"  # in a merged model's folder: what it was merged from
REWARD_HEADS = (".score.weight", ".classifier.weight")


def read_lora_config(path: str | None, task_type: str = "CAUSAL_LM") -> "LoraConfig":
    """A `LoraConfig` from JSON with `lora_r`, `lora_alpha`, `lora_dropout`, `lora_target_modules` (a list, names with
    commas, a regular expression, or "all-linear"), `modules_to_save`, and any of PEFT's own keys.

    None stands for rank 8 on all linear layers. With the `task_type` SEQ_CLS, a reward model's head is trained and
    saved with the adapter.

    Raises:
        UserError: no such file, not a JSON object, an unknown key (the nearest is named), or values PEFT refuses.
    """
    from peft import LoraConfig

    if path is None:
        settings: dict[str, Any] = {"lora_r": 8, "lora_alpha": 16, "lora_target_modules": "all-linear"}
    else:
        settings = read_json_object(path, "--lora_config")
    known = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
    values: dict[str, Any] = {"task_type": task_type}
    for key, value in settings.items():
        name = RENAMED.get(key, key)
        if name not in known:
            raise UserError(f"{path}: unknown key {key!r}{nearest(key, known | set(RENAMED))}")
        if name in values and name != "task_type":
            raise UserError(f"{path}: {key!r} says again what another key said")
        values[name] = value
    for key in ("target_modules", "modules_to_save"):
        named = values.get(key)
        if isinstance(named, str) and named != "all-linear" and re.fullmatch(r"[\w.,\s-]+", named):
            values[key] = [name.strip() for name in named.split(",") if name.strip()]
    _check_types(path, values, task_type)
    if name := not_finite(values):
        raise UserError(f"{path}: {name} is no finite number")
    try:
        return LoraConfig(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None


def _check_types(path: str | None, values: dict[str, Any], task_type: str) -> None:
    number, names = (int, float), (list, str, type(None))
    kinds = {"r": int, "lora_alpha": number, "lora_dropout": number, "target_modules": names, "modules_to_save": names}
    for name, kind in kinds.items():
        value = values.get(name)
        if name in values and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UserError(
                f"{path}: {name} is {json.dumps(value)}; expected a {'number' if kind != names else 'list'}"
            )
    for name, only in (("peft_type", "LORA"), ("task_type", task_type)):
        if values.get(name, only) != only:
            raise UserError(f"{path}: {name} is {json.dumps(values[name])}; here it is {only}: take it out")
    if values.get("inference_mode"):
        raise UserError(f"{path}: inference_mode would leave nothing to train; take it out")


def linear_modules(model: "PreTrainedModel") -> list[str]:
    """Last names of the model's linear modules, which `target_modules` may name; not the language-model head's."""
    import torch

    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear,)
    try:
        from transformers.pytorch_utils import Conv1D

        kinds += (Conv1D,)
    except ImportError:
        pass
    found = (name for name, module in model.named_modules() if isinstance(module, kinds) and module is not head)
    return sorted({name.rsplit(".", 1)[-1] for name in found})


def attach_lora(model: "PreTrainedModel", config: "LoraConfig", path: str | None, new_tokens: list[int]) -> "PeftModel":
    """Put a fresh adapter on `model`; the embeddings of `new_tokens` (ids) are trained with it.

    Raises:
        UserError: a module that the model lacks; the linear modules that it has are listed.
    """
    from peft import get_peft_model
    from transformers.integrations import is_deepspeed_zero3_enabled

    names = {name for name, _ in model.named_modules()}
    for key in ("target_modules", "modules_to_save"):
        wanted = getattr(config, key)
        if key == "modules_to_save" and wanted and config.task_type == "SEQ_CLS":
            wanted = set(wanted) - {"classifier", "score"}  # PEFT names both heads, whichever there is
        for target in wanted if isinstance(wanted, (list, set, tuple)) else ():
            if not any(name == target or name.endswith(f".{target}") for name in names):
                raise UserError(
                    f"{path}: {key} names {target!r}, which {type(model).__name__} lacks; its linear modules are "
                    f"{', '.join(linear_modules(model))}"
                )
    if new_tokens:
        layers = dict(model.named_modules())
        trained = [model.get_input_embeddings()]
        if not model.config.get_text_config().tie_word_embeddings and model.get_output_embeddings() is not None:
            trained.append(model.get_output_embeddings())
        indices = {
            next(n for n, m in layers.items() if m is module).rsplit(".", 1)[-1]: new_tokens for module in trained
        }
        config.trainable_token_indices = indices
    try:
        # DeepSpeed's stage 3 gathers weights of one dtype only, and keeps its own copies in float32.
        adapted = get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError, re.error) as error:
        raise UserError(
            f"{path or 'lora_config'}: {' '.join(str(error).split())[:300]} "
            f"(linear modules of {type(model).__name__}: {', '.join(linear_modules(model))})"
        ) from None
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise UserError(f"{path}: leaves no weight to train (layers_to_transform or exclude_modules name all of them)")
    return adapted


def read_adapter_config(path: str, task_type: str | None = None) -> "PeftConfig":
    """The configuration of the adapter saved in `path`.

    Raises:
        UserError: there is none, its weights are not safetensors, a setting is NaN, or it is for another task than
            `task_type`.
    """
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
    try:
        config = PeftConfig.from_pretrained(path)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"--peft_path {path}: adapter_config.json cannot be read ({error})") from None
    if name := not_finite(vars(config)):
        raise UserError(
            f"--peft_path {path}: adapter_config.json: {name} is no finite number; write what it was trained with"
        )
    if task_type and config.task_type not in (None, task_type):
        what = "a reward model's adapter" if config.task_type == "SEQ_CLS" else f"an adapter for {config.task_type}"
        raise UserError(f"--peft_path {path}: {what}; this stage goes on from one for {task_type}")
    return config


def load_adapter(
    model: "PreTrainedModel | PeftModel", path: str, *, is_trainable: bool = False, name: str = "default"
) -> "PeftModel":
    """`model` with the adapter saved in `path`; beside others, which stay active, where it has some.

    Args:
        name: another one for each adapter of a model.

    Raises:
        UserError: no adapter there, or one for another base or with NaN (the first such tensor is named).
    """
    from peft import PeftModel

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    base, own = read_adapter_config(path).base_model_name_or_path, inner.config._name_or_path
    if base and own and os.path.normpath(base) != os.path.normpath(own):
        say(f"{path}: was trained on {base}; this base is {own}")
    saved = _check_shapes(inner, path)
    check_file(os.path.join(path, "adapter_model.safetensors"), f"--peft_path {path}: adapter_model.safetensors")
    if is_reward_adapter(path) and not any(name.endswith(REWARD_HEADS) for name in saved):
        raise UserError(f"--peft_path {path}: a reward model's adapter without its head (score.weight)")
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(path, name, is_trainable=is_trainable)
            adapted = model
        else:
            adapted = PeftModel.from_pretrained(model, path, name, is_trainable=is_trainable)
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"--peft_path {path}: does not fit {own} ({' '.join(str(error).split())[:300]})") from None
    own_name = re.compile(rf"(\.lora_(?:embedding_)?[AB])\.{re.escape(name)}(?=\.|$)")
    expected = {own_name.sub(r"\1", key) for key in adapted.state_dict() if own_name.search(key)}
    if missing := sorted(expected - saved):
        raise UserError(
            f"--peft_path {path}: adapter_model.safetensors lacks {len(missing)} of the {len(expected)} tensors that "
            f"adapter_config.json speaks of ({missing[0]}), which would stay random; give the whole adapter"
        )
    return adapted


def is_reward_adapter(path: str) -> bool:
    """Whether the adapter saved in `path` makes a reward model of its base."""
    return read_adapter_config(path).task_type == "SEQ_CLS"


def _check_shapes(model: "PreTrainedModel | PeftModel", path: str) -> set[str]:
    """The names of the adapter's tensors, after each was compared with the module that it is for."""
    from safetensors import SafetensorError, safe_open

    modules = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    try:
        file = safe_open(os.path.join(path, "adapter_model.safetensors"), "pt")
    except SafetensorError as error:
        raise UserError(f"--peft_path {path}: adapter_model.safetensors is damaged ({error})") from None
    with file as tensors:
        names = set(tensors.keys())
        for key in sorted(names):
            found = re.fullmatch(r"base_model\.model\.(.+)\.lora_(A|B)\.weight", key)
            if not found:
                continue
            module = modules.get(found[1])
            shape = tensors.get_slice(key).get_shape()
            size = shape[1 if found[2] == "A" else 0]
            expected = getattr(module, "in_features" if found[2] == "A" else "out_features", size)
            if module is None or size != expected:
                why = "which this base lacks"
                if module is not None:
                    why = f"of size {size}, where this base has {expected} (lora_{found[2]}.weight is {shape})"
                raise UserError(f"--peft_path {path}: an adapter for another base: it has {found[1]}, {why}")
    return names
