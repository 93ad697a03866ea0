"""How each older family stores its configuration and weights, and what that is in a class of transformers.

Names of modules in layers are given without their prefix ("model.layers.0."); a module that becomes several has a
function that splits the rows of its weight and its bias.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError

if TYPE_CHECKING:
    import torch

Config = Mapping[str, Any]
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTSIDE = {"model.embed_tokens": "model.embed_tokens", "model.norm": "model.norm", "lm_head": "lm_head"}
NORMS = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "post_attention_layernorm"}
MLP = {f"mlp.{name}_proj": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
ATTENTION = {f"self_attn.{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"}


@dataclass(frozen=True)
class Family:
    """An older family that has the same function as a class of transformers.

    Attributes:
        modules: new names of those in layers; `split` makes several of one. `outside`: of all others.
        config: from the old config.json to the values of the new one; a KeyError names what the old one lacks.
        template: name of a bundled chat template, or the template, of its chat models.
        chat_ends: tokens that end a turn in chat models, the first of which becomes the eos token.
        chat_tokens: pieces that become special tokens in chat models, which begin or end turns.
        prefix: tokens that its tokenizer puts before every text.
        adds_bos: whether its tokenizer puts a BOS before texts where tokenizer_config.json does not say.
        special: tokens behind those of its vocabulary that no file names.
        pattern: what splits texts where its vocabulary is one of tiktoken.
        default_theta: base of the rotary frequencies in its weight files; None: that of the configuration.
    """

    name: str
    model_type: str
    lora_config: str
    config: Callable[[Config], dict[str, Any]]
    modules: Mapping[str, str | tuple[str, ...]]
    outside: Mapping[str, str] = field(default_factory=lambda: OUTSIDE)
    layers: str = "model.layers"
    split: "Callable[[torch.Tensor, Config], list[torch.Tensor]] | None" = None
    normalized_head: bool = False
    template: str | None = None
    chat_ends: tuple[str, ...] = ()
    chat_tokens: tuple[str, ...] = ()
    always_chat: bool = False
    adds_bos: bool = False
    prefix: tuple[str, ...] = ()
    special: tuple[str, ...] = ()
    pattern: str | None = None
    default_theta: float | None = None


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


def _baichuan(old: Config) -> dict[str, Any]:
    return _shared(old) | {"rope_parameters": _rotary(10_000.0, None)}


def _internlm(old: Config) -> dict[str, Any]:
    rotary = old.get("rotary") or {}
    scaling = None if rotary.get("type", "origin") == "origin" else {"type": rotary["type"], "factor": 1.0}
    rope = _rotary(float(rotary.get("base", 10_000)), scaling)
    return _shared(old) | {"attention_bias": old.get("bias", True), "rope_parameters": rope}


def _internlm2(old: Config) -> dict[str, Any]:
    rope = _rotary(float(old.get("rope_theta", 10_000)), old.get("rope_scaling"))
    return _shared(old) | {"attention_bias": old.get("bias", True), "rope_parameters": rope}


def _minicpm(old: Config) -> dict[str, Any]:
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


def _qwen(old: Config) -> dict[str, Any]:
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
        old,
        add_bias_linear=False,
        apply_residual_connection_post_layernorm=False,
        original_rope=True,
        post_layer_norm=True,
        quantization_bit=0,
        rmsnorm=True,
    )
    heads = old["num_attention_heads"]
    return {
        "vocab_size": old["padded_vocab_size"],
        "hidden_size": old["hidden_size"],
        "intermediate_size": old["ffn_hidden_size"],
        "num_hidden_layers": old["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": old["multi_query_group_num"] if old.get("multi_query_attention") else heads,
        "head_dim": old["kv_channels"],
        "rms_norm_eps": old.get("layernorm_epsilon", 1e-5),
        "max_position_embeddings": old["seq_length"],
        "attention_bias": old.get("add_qkv_bias", False),
        "tie_word_embeddings": False,
    }


def _chatglm2(old: Config) -> dict[str, Any]:
    """ChatGLM2-6B-32k divides positions by rope_ratio."""
    ratio = old.get("rope_ratio", 1)
    rope = _rotary(10_000.0, None if ratio == 1 else {"type": "linear", "factor": ratio})
    return _chatglm(old) | {"rope_parameters": rope | {"partial_rotary_factor": 0.5}}


def _chatglm3(old: Config) -> dict[str, Any]:
    """ChatGLM3-6B-32k multiplies the base by rope_ratio."""
    rope = _rotary(10_000.0 * old.get("rope_ratio", 1), None)
    return _chatglm(old) | {"rope_parameters": rope | {"partial_rotary_factor": 0.5}}


def _thirds(tensor: "torch.Tensor", config: Config) -> "list[torch.Tensor]":
    return list(tensor.split([len(tensor) // 3] * 3))


def _grouped(tensor: "torch.Tensor", config: Config) -> "list[torch.Tensor]":
    """All queries, then all keys, then all values."""
    keys = config["num_key_value_heads"] * config["head_dim"]
    return list(tensor.split([config["num_attention_heads"] * config["head_dim"], keys, keys]))


def _interleaved(tensor: "torch.Tensor", config: Config) -> "list[torch.Tensor]":
    """For each key head its queries, the key, the value."""
    groups = config.get("num_key_value_heads", config["num_attention_heads"])
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    heads = tensor.unflatten(0, (groups, -1, head_dim))
    parts = heads.split([config["num_attention_heads"] // groups, 1, 1], dim=1)
    return [part.flatten(0, 2) for part in parts]


_PACKED = {"self_attn.W_pack": QKV, "self_attn.o_proj": "self_attn.o_proj", **MLP, **NORMS}
BAICHUAN = Family("Baichuan-7B", "llama", "configs/lora_llama.json", _baichuan, _PACKED, split=_thirds)
BAICHUAN2 = Family(
    "Baichuan2-7B",
    "llama",
    "configs/lora_llama.json",
    _baichuan,
    _PACKED,
    split=_thirds,
    normalized_head=True,
    template="baichuan",
    chat_ends=("</s>",),
    chat_tokens=("<reserved_106>", "<reserved_107>"),
)
QWEN = Family(
    "Qwen-1",
    "qwen2",
    "configs/lora_qwen.json",
    _qwen,
    {
        "ln_1": "input_layernorm",
        "attn.c_attn": QKV,
        "attn.c_proj": "self_attn.o_proj",
        "ln_2": "post_attention_layernorm",
        "mlp.w1": "mlp.up_proj",
        "mlp.w2": "mlp.gate_proj",
        "mlp.c_proj": "mlp.down_proj",
    },
    {"transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.norm", "lm_head": "lm_head"},
    "transformer.h",
    _thirds,
    template="chatml",
    chat_ends=("<|im_end|>", "<|endoftext|>"),
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))),
    pattern="qwen2",
)
INTERNLM = Family(
    "InternLM",
    "llama",
    "configs/lora_llama.json",
    _internlm,
    ATTENTION | MLP | NORMS,
    template="""{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- message.content + '\n' }}
    {%- elif message.role == 'user' %}
        {{- '<|User|>:' + message.content + '<eoh>\n' }}
    {%- else %}
        {{- '<|Bot|>:' + message.content + '<eoa>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|Bot|>:' }}
{%- endif %}
""",
    chat_ends=("<eoa>", "</s>"),
    adds_bos=True,
)
INTERNLM2 = Family(
    "InternLM2",
    "llama",
    "configs/lora_llama.json",
    _internlm2,
    {
        "attention_norm": "input_layernorm",
        "attention.wqkv": QKV,
        "attention.wo": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
    },
    {"model.tok_embeddings": "model.embed_tokens", "model.norm": "model.norm", "output": "lm_head"},
    split=_interleaved,
    template="chatml",
    chat_ends=("<|im_end|>", "</s>"),
    adds_bos=True,
)
_GLM = {
    "modules": {
        "input_layernorm": "input_layernorm",
        "self_attention.query_key_value": QKV,
        "self_attention.dense": "self_attn.o_proj",
        "post_attention_layernorm": "post_attention_layernorm",
        "mlp.dense_h_to_4h": "mlp.gate_up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    },
    "outside": {
        "transformer.embedding.word_embeddings": "model.embed_tokens",
        "transformer.encoder.final_layernorm": "model.norm",
        "transformer.output_layer": "lm_head",
    },
    "layers": "transformer.encoder.layers",
    "split": _grouped,
    "always_chat": True,
    "prefix": ("[gMASK]", "<sop>"),
    "default_theta": 10_000.0,
}
# Upstream calls two of them sop and eop, which as added tokens would be taken out of words such as people.
_GLM_SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
CHATGLM2 = Family(
    "ChatGLM2-6B",
    "glm",
    "configs/lora_glm.json",
    _chatglm2,
    template="chatglm2",
    chat_ends=("</s>",),
    special=_GLM_SPECIAL,
    **_GLM,
)
CHATGLM3 = Family(
    "ChatGLM3-6B",
    "glm",
    "configs/lora_glm.json",
    _chatglm3,
    template="chatglm3",
    chat_ends=("</s>", "<|user|>", "<|observation|>"),
    special=(*_GLM_SPECIAL, "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    **_GLM,
)
GLM4 = Family(
    "GLM-4-9B",
    "glm",
    "configs/lora_glm.json",
    _chatglm3,
    template="glm",
    chat_ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
    special=(
        *("<|endoftext|>", *_GLM_SPECIAL, "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    ),
    pattern="glm4",
    **(_GLM | {"always_chat": False}),
)
MINICPM = Family(
    "MiniCPM",
    "granite",
    "configs/lora_llama.json",
    _minicpm,
    ATTENTION | MLP | NORMS,
    template="minicpm",
    chat_ends=("</s>",),
    adds_bos=True,
)
