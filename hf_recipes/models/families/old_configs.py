"""The configuration of each older family, as values of the class of transformers that has the same function.

Each function takes the old config.json; a KeyError names what it lacks.
"""

import math
from collections.abc import Mapping
from typing import Any

from hf_recipes.core.errors import UserError

Config = Mapping[str, Any]


def _shared(old: Config) -> dict[str, Any]:
    """What Llama's configuration calls by the same names."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    optional = ("max_position_embeddings", "rms_norm_eps", "initializer_range", "hidden_act", "num_key_value_heads")
    values = {name: old[name] for name in names} | {name: old[name] for name in optional if name in old}
    return values | {"tie_word_embeddings": old.get("tie_word_embeddings", False)}


def _require(old: Config, **values: Any) -> None:
    for key, value in values.items():
        if old.get(key, value) != value:
            raise UserError(f"config.json: {key} is {old[key]}, and only {value} has an equal in transformers")


def _rotary(theta: float, scaling: Config | None) -> dict[str, Any]:
    if not scaling:
        return {"rope_type": "default", "rope_theta": theta}
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind not in ("linear", "dynamic"):
        raise UserError(f"config.json: rotary positions are scaled by {kind!r}, and only linear and dynamic are exact")
    return {"rope_type": kind, "rope_theta": theta, "factor": float(scaling["factor"])}


def baichuan(old: Config) -> dict[str, Any]:
    return _shared(old) | {"rope_parameters": _rotary(10_000.0, None)}


def internlm(old: Config) -> dict[str, Any]:
    rotary = old.get("rotary") or {}
    kind, factor = rotary.get("type", "origin"), rotary.get("scaling_factor", 1.0)
    scaling = None if kind == "origin" else {"type": kind, "factor": factor}
    rope = _rotary(float(rotary.get("base", 10_000)), scaling)
    return _shared(old) | {"attention_bias": old.get("bias", True), "rope_parameters": rope}


def internlm2(old: Config) -> dict[str, Any]:
    rope = _rotary(float(old.get("rope_theta", 10_000)), old.get("rope_scaling"))
    return _shared(old) | {"attention_bias": old.get("bias", True), "rope_parameters": rope}


def minicpm(old: Config) -> dict[str, Any]:
    values = _shared(old) | {"tie_word_embeddings": old.get("tie_word_embeddings", True)}
    head_dim = old["hidden_size"] // old["num_attention_heads"]
    return values | {
        "attention_bias": old.get("attention_bias", False),
        "embedding_multiplier": float(old.get("scale_emb", 1)),
        "residual_multiplier": old.get("scale_depth", 1) / math.sqrt(old["num_hidden_layers"]),
        "logits_scaling": old["hidden_size"] / old.get("dim_model_base", 1),
        "attention_multiplier": head_dim**-0.5,
        "rope_parameters": _rotary(float(old.get("rope_theta", 10_000)), old.get("rope_scaling")),
    }


# Names in the first release of Qwen-7B, by those of the later ones.
_FIRST_QWEN = {
    "vocab_size": "padded_vocab_size",
    "hidden_size": "n_embd",
    "intermediate_size": "ffn_hidden_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


def qwen(old: Config) -> dict[str, Any]:
    old = {**old, **{name: old[first] for name, first in _FIRST_QWEN.items() if first in old}}
    _require(old, rotary_pct=1.0, scale_attn_weights=True, no_bias=True, apply_residual_connection_post_layernorm=False)
    length = old.get("seq_length") or old["max_position_embeddings"]
    values = _shared({**old, "intermediate_size": old["intermediate_size"] // 2, "max_position_embeddings": length})
    head_dim = old.get("kv_channels", old["hidden_size"] // old["num_attention_heads"])
    if head_dim != old["hidden_size"] // old["num_attention_heads"]:
        values["head_dim"] = head_dim
    return values | {
        "num_key_value_heads": old["num_attention_heads"],
        "hidden_act": "silu",
        "rms_norm_eps": old.get("layer_norm_epsilon", 1e-6),
        "rope_parameters": _rotary(float(old.get("rotary_emb_base", 10_000)), None),
    }


def _chatglm(old: Config) -> dict[str, Any]:
    _require(
        {"multi_query_attention": False} | dict(old),  # whose rows are by head, not queries, keys, values
        multi_query_attention=True,
        add_bias_linear=False,
        apply_residual_connection_post_layernorm=False,
        original_rope=True,
        post_layer_norm=True,
        quantization_bit=0,
        rmsnorm=True,
    )
    return {
        "vocab_size": old["padded_vocab_size"],
        "hidden_size": old["hidden_size"],
        "intermediate_size": old["ffn_hidden_size"],
        "num_hidden_layers": old["num_layers"],
        "num_attention_heads": old["num_attention_heads"],
        "num_key_value_heads": old["multi_query_group_num"],
        "head_dim": old["kv_channels"],
        "rms_norm_eps": old.get("layernorm_epsilon", 1e-5),
        "max_position_embeddings": old["seq_length"],
        "attention_bias": old.get("add_qkv_bias", False),
        "tie_word_embeddings": False,
    }


def chatglm2(old: Config) -> dict[str, Any]:
    """ChatGLM2-6B-32k divides positions by rope_ratio."""
    ratio = old.get("rope_ratio", 1)
    rope = _rotary(10_000.0, None if ratio == 1 else {"type": "linear", "factor": ratio})
    return _chatglm(old) | {"rope_parameters": rope | {"partial_rotary_factor": 0.5}}


def chatglm3(old: Config) -> dict[str, Any]:
    """ChatGLM3-6B-32k multiplies the base by rope_ratio."""
    rope = _rotary(10_000.0 * old.get("rope_ratio", 1), None)
    return _chatglm(old) | {"rope_parameters": rope | {"partial_rotary_factor": 0.5}}
