"""Models that see pictures: their text part is trained, and its adapter fits the text model and the whole one."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

FILE = "adapter_model.safetensors"


def has_vision(config: "PretrainedConfig") -> bool:
    return getattr(config, "vision_config", None) is not None


def vision_parts(model: "PreTrainedModel") -> list[str]:
    """Names of the modules beside the language model; none where only this one was loaded."""
    inner, prefix = model.base_model, model.base_model_prefix
    if not has_vision(model.config) or not hasattr(inner, "language_model"):
        return []
    return [f"{prefix}.{name}" for name, _ in inner.named_children() if name != "language_model"]


def leave_vision_out(model: "PreTrainedModel", config: "LoraConfig") -> None:
    """Keep the adapter in the text part, and under names that both layouts of the model have."""
    if (parts := vision_parts(model)) and not config.exclude_modules:
        config.exclude_modules = rf"({'|'.join(re.escape(part) for part in parts)})(\..*)?"
    if _prefixes(model) and config.target_modules == "all-linear":
        from hf_recipes.models.adapters.targets import linear_modules

        config.target_modules = sorted({".".join(name.split(".")[-2:]) for name in linear_modules(model)})


def _prefixes(model: "PreTrainedModel") -> tuple[str, str] | None:
    """What the weights' names begin with in the text model, and in the whole one, where transformers tells two."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    for change in get_checkpoint_conversion_mapping(model.config.model_type) or ():
        if isinstance(change, PrefixChange) and change.prefix_to_remove:
            prefix = f"{change.model_prefix}." if change.model_prefix else ""
            return prefix, f"{prefix}{change.prefix_to_remove}."
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(inner).base_model_prefix  # Llama 4's is that of the whole model, which its text model lacks
    return ("", f"{name}.") if name and not hasattr(inner, name) else None


def save_for_both_layouts(model: "PeftModel") -> None:
    """Let `save_pretrained` write the adapter of a text model under the names of the whole model as well.

    PEFT and vLLM pass over the names that a model lacks, and would otherwise load nothing into the other layout.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    prefixes = _prefixes(model.get_base_model())
    if prefixes is None:
        return
    text, whole = (f"base_model.model.{prefix}" for prefix in prefixes)
    save = model.save_pretrained

    def save_pretrained(folder: str, *args: Any, **kwargs: Any) -> None:
        save(folder, *args, **kwargs)
        for path in Path(folder).rglob(FILE):
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            tensors = load_file(path)
            for name, tensor in list(tensors.items()):
                if name.startswith(text) and not name.startswith(whole):
                    tensors[whole + name.removeprefix(text)] = tensor.clone()
            save_file(tensors, path, metadata)

    model.save_pretrained = save_pretrained


def in_text_layout(model: "PreTrainedModel", name: str) -> str:
    """The name in `model` of a tensor that an adapter has under the name of the other layout."""
    prefixes = _prefixes(model)
    if prefixes is None:
        return name
    text, whole = (f"base_model.model.{prefix}" for prefix in prefixes)
    return text + name.removeprefix(whole) if name.startswith(whole) else name
