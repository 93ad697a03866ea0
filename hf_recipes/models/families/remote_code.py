"""Older models run by the code that came with them, which was written for transformers 4.2x, on transformers 5.

A subclass of the checkpoint's class, made with --trust_remote_code and registered for its configuration's class alone,
has what that code takes for granted; neither transformers nor any other model is changed.
"""

import functools
import sys
from types import ModuleType
from typing import Any

from transformers import AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hf_recipes.core.errors import UserError
from hf_recipes.models.families.remote_models import CausalLM, Constructed, PrefixLM, subclass

STREAMS = "transformers_stream_generator"  # does not import on transformers 5, and is used by `chat` alone
# What configurations of version 4 had, or call otherwise.
DEFAULTS = {"use_cache": True, "tie_word_embeddings": True, "output_attentions": False, "output_hidden_states": False}
NAMES = {"num_hidden_layers": "num_layers", "max_position_embeddings": "max_sequence_length"}


def prepare(config: PretrainedConfig, name: str, **source: Any) -> None:
    """Let AutoModelForCausalLM make and load the model of an older `config` by the code in its folder or Hub id.

    Args:
        source: revision and cache_dir.
    """
    remote = remote_class(config, name, **source)
    adapted = _adapted(remote, PrefixLM if remote.base_model_prefix == "transformer" else CausalLM)
    adapted.register_for_auto_class("AutoModelForCausalLM")
    AutoModelForCausalLM.register(type(config), adapted, exist_ok=True)


def remote_class(config: PretrainedConfig, name: str, **source: Any) -> type[PreTrainedModel]:
    """The checkpoint's class; it and its configuration's class get what those of version 5 have no more."""
    references = getattr(config, "auto_map", None) or {}
    reference = references.get("AutoModelForCausalLM") or references.get("AutoModel")
    if reference is None:
        raise UserError(
            f"{name}: config.json names no code (auto_map); copy it and modeling_*.py from where the model is published"
        )
    kind = type(config)
    for key, value in DEFAULTS.items():
        if not hasattr(config, key):
            setattr(kind, key, value)
    if hasattr(config, "num_layers") and not hasattr(config, "num_hidden_layers"):
        kind.attribute_map = NAMES | {key: value for key, value in kind.attribute_map.items() if key not in NAMES}
    stand_in = ModuleType(STREAMS)
    sys.modules.setdefault(STREAMS, stand_in)
    try:
        remote = get_class_from_dynamic_module(reference, name, **source)
    finally:
        if sys.modules[STREAMS] is stand_in:
            del sys.modules[STREAMS]
    first = next(each for each in reversed(remote.__mro__) if each.__module__ == remote.__module__)
    if not hasattr(first, "get_head_mask"):
        first.get_head_mask = lambda self, head_mask, layers, *args: [None] * layers
    return remote


def original_class(config: PretrainedConfig, name: str) -> type[PreTrainedModel]:
    """The class of any older checkpoint, for whole forward passes."""
    if not hasattr(config, "max_length"):
        type(config).max_length = 20
    return _adapted(remote_class(config, name), Constructed)


@functools.cache
def _adapted(remote: type[PreTrainedModel], mixin: type[Constructed]) -> type[PreTrainedModel]:
    return subclass(remote, mixin, *(() if issubclass(remote, GenerationMixin) else (GenerationMixin,)))
