"""LoRA from a JSON file: reading it, attaching it, and going on from a saved adapter."""

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import read_mapping
from hf_recipes.core.settings import nearest
from hf_recipes.models.checks.finite import check_file, not_finite
from hf_recipes.models.residual import begin_in_base, begins_in_base, to_plain_lora

if TYPE_CHECKING:
    import torch
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
        settings = read_mapping(path, "--lora_config")
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
        config = LoraConfig(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    _check_start(path, config)
    return config


def _check_start(path: str | None, config: "LoraConfig", is_saved: bool = False) -> None:
    """Refuse what begins from data that no run gives it, or from another base than the one that is named."""
    start = str(config.init_lora_weights).lower()
    if start.startswith(("corda", "eva", "lora_ga")) and not is_saved:
        raise UserError(
            f"{path}: init_lora_weights {start} is computed from data beforehand, which no stage does; take true, "
            "gaussian, orthogonal, pissa or olora"
        )
    changes = [name for name in ("layer_replication", "kasa_config") if getattr(config, name)]
    if start.startswith(("loftq", "corda", "lora_ga", *(["pissa_niter"] if is_saved else []))):
        changes.append(f"init_lora_weights {start}")
    if changes:
        instead = "convert it to plain LoRA where it was trained" if is_saved else "take it out"
        raise UserError(f"{path}: {changes[0]} makes another base of the one that is named, in no file; {instead}")
    if begins_in_base(config) and (config.use_dora or config.alora_invocation_tokens):
        what = "use_dora" if config.use_dora else "alora_invocation_tokens"
        raise UserError(f"{path}: init_lora_weights {start} does not go with {what}; leave one of them out")


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
    linear = ", ".join(linear_modules(model))
    if new_tokens:
        _train_tokens(model, config, path, new_tokens)
    kind = config.init_lora_weights if begins_in_base(config) else None
    if kind:
        config.init_lora_weights = True
    biases = _biases(model, config)
    try:
        # DeepSpeed's stage 3 gathers weights of one dtype only, and keeps its own copies in float32.
        with _token_rows_on_cpu():
            adapted = get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError, re.error) as error:
        raise UserError(
            f"{path or 'lora_config'}: {' '.join(str(error).split())[:300]} "
            f"(linear modules of {type(model).__name__}: {linear})"
        ) from None
    if kind:
        begin_in_base(adapted, kind)
    _restore_when_disabled(adapted, biases)
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise UserError(f"{path}: leaves no weight to train (layers_to_transform or exclude_modules name all of them)")
    return adapted


def _train_tokens(model: "PreTrainedModel", config: "LoraConfig", path: str | None, ids: list[int]) -> None:
    """Have the rows of `ids` trained in all embeddings that are not trained whole."""
    names = {module: name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    embeddings = [names[m] for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None]
    whole = [name for name in embeddings if name in (config.modules_to_save or ())]
    targets = () if isinstance(config.target_modules, str) else set(config.target_modules or ())
    if targeted := [name for name in embeddings if name in targets and not whole]:
        raise UserError(
            f"{path}: target_modules names {' and '.join(targeted)}, where the rows of new tokens are trained: take it "
            "out, or train all of it by modules_to_save in its place"
        )
    if model.config.get_text_config().tie_word_embeddings:
        if len(whole) == 1 and not config.ensure_weight_tying:
            raise UserError(
                f"{path}: modules_to_save names {whole[0]}, and new tokens are to be learned in "
                f'{" and ".join(embeddings)}, which are one weight: add "ensure_weight_tying": true'
            )
        embeddings = [] if whole else embeddings[:1]
    rest = [name for name in embeddings if name not in whole]
    own = config.trainable_token_indices or {}
    own = own if isinstance(own, dict) else {names[model.get_input_embeddings()]: own}
    config.trainable_token_indices = {
        name: sorted({*own.get(name, ()), *(ids if name in rest else ())}) for name in dict.fromkeys([*own, *rest])
    } or None


@contextmanager
def _token_rows_on_cpu() -> Iterator[None]:
    """While this lasts, PEFT reads the rows of embeddings that ZeRO's stage 3 splits without CUDA, which 0.21 names."""
    import torch
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils.integrations import check_deepspeed_zero3_enabled, gather_params_ctx

    if torch.cuda.is_available() or not check_deepspeed_zero3_enabled():
        yield
        return

    def rows_of(self, weight: torch.Tensor, rows: torch.Tensor, embed_dim: int) -> torch.Tensor:
        with gather_params_ctx([weight], modifier_rank=None):
            return weight[rows].clone()  # whole in all processes, so that none has to send it

    with patch.object(TrainableTokensLayer, "_collect_token_weights", rows_of):
        yield


def _biases(model: "PreTrainedModel", config: "PeftConfig") -> "list[tuple[torch.nn.Parameter, torch.Tensor]]":
    """The base's own biases, where the adapter trains some, and their values."""
    if getattr(config, "bias", "none") == "none":
        return []
    return [(p, p.detach().clone()) for name, p in model.named_parameters() if name.endswith("bias")]


def _restore_when_disabled(model: "PeftModel", biases: "list[tuple[torch.nn.Parameter, torch.Tensor]]") -> None:
    """Make `disable_adapter` leave the base alone: PEFT's leaves `biases` as they were trained."""
    if not biases:
        return
    disable = model.disable_adapter

    @contextmanager
    def disable_adapter() -> Iterator[None]:
        trained = [bias.data for bias, _ in biases]
        with warnings.catch_warnings(), disable():
            for bias, own in biases:
                bias.data = own.to(bias.data)
            try:
                yield
            finally:
                for (bias, _), data in zip(biases, trained, strict=True):
                    bias.data = data

    model.disable_adapter = disable_adapter


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
    if config.peft_type == "LORA":
        _check_start(f"--peft_path {path}", config, is_saved=True)
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
    config = read_adapter_config(path)
    base, own = config.base_model_name_or_path, inner.config._name_or_path
    if base and own and os.path.normpath(base) != os.path.normpath(own):
        say(f"{path}: was trained on {base}; this base is {own}")
    saved = _check_shapes(inner, path)
    check_file(os.path.join(path, "adapter_model.safetensors"), f"--peft_path {path}: adapter_model.safetensors")
    if is_reward_adapter(path) and not any(name.endswith(REWARD_HEADS) for name in saved):
        raise UserError(f"--peft_path {path}: a reward model's adapter without its head (score.weight)")
    kind = config.init_lora_weights if config.peft_type == "LORA" and begins_in_base(config) else None
    if kind:
        config.init_lora_weights = True
    biases = _biases(inner, config)
    try:
        with _token_rows_on_cpu():
            if isinstance(model, PeftModel):
                if kind:  # which its file has still
                    config.inference_mode = not is_trainable
                    model.add_adapter(name, config)
                model.load_adapter(path, name, is_trainable=is_trainable)
                adapted = model
            else:
                adapted = PeftModel.from_pretrained(model, path, name, is_trainable=is_trainable, config=config)
        if kind:
            to_plain_lora(adapted, name, kind)
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"--peft_path {path}: does not fit {own} ({' '.join(str(error).split())[:300]})") from None
    own_name = re.compile(rf"(\.lora_(?:embedding_)?[AB])\.{re.escape(name)}(?=\.|$)")
    expected = {own_name.sub(r"\1", key) for key in adapted.state_dict() if own_name.search(key)}
    if missing := sorted(expected - saved):
        raise UserError(
            f"--peft_path {path}: adapter_model.safetensors lacks {len(missing)} of the {len(expected)} tensors that "
            f"adapter_config.json speaks of ({missing[0]}), which would stay random; give the whole adapter"
        )
    _restore_when_disabled(adapted, biases)
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
            # PEFT wraps experts once for each of their weights, one wrapper in the other.
            module = modules.get(found[1]) or modules.get(re.sub(r"(\.base_layer)+$", "", found[1]))
            shape = tensors.get_slice(key).get_shape()
            size = shape[1 if found[2] == "A" else 0]
            expected = getattr(module, "in_features" if found[2] == "A" else "out_features", size)
            if module is None or size != expected:
                why = "which this base lacks"
                if module is not None:
                    why = f"of size {size}, where this base has {expected} (lora_{found[2]}.weight is {shape})"
                raise UserError(f"--peft_path {path}: an adapter for another base: it has {found[1]}, {why}")
    return names
