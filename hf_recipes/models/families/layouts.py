"""How each older family stores its weights and tokenizer, and what its weights are in a class of transformers.

Names of modules in layers are given without their prefix ("model.layers.0."); a module that becomes several has a
function that splits the rows of its weight and its bias.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hf_recipes.models.families import old_configs
from hf_recipes.models.families.old_configs import Config

if TYPE_CHECKING:
    import torch

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
BAICHUAN = Family("Baichuan-7B", "llama", "configs/lora_llama.json", old_configs.baichuan, _PACKED, split=_thirds)
BAICHUAN2 = replace(
    BAICHUAN,
    name="Baichuan2-7B",
    normalized_head=True,
    template="baichuan",
    chat_ends=("</s>",),
    chat_tokens=("<reserved_106>", "<reserved_107>"),
)
QWEN = Family(
    "Qwen-1",
    "qwen2",
    "configs/lora_qwen.json",
    old_configs.qwen,
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
    old_configs.internlm,
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
    old_configs.internlm2,
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
# Upstream calls two of them sop and eop, which as added tokens would be taken out of words such as people.
_GLM_SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
_GLM_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
CHATGLM2 = Family(
    "ChatGLM2-6B",
    "glm",
    "configs/lora_glm.json",
    old_configs.chatglm2,
    {
        "input_layernorm": "input_layernorm",
        "self_attention.query_key_value": QKV,
        "self_attention.dense": "self_attn.o_proj",
        "post_attention_layernorm": "post_attention_layernorm",
        "mlp.dense_h_to_4h": "mlp.gate_up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    },
    {
        "transformer.embedding.word_embeddings": "model.embed_tokens",
        "transformer.encoder.final_layernorm": "model.norm",
        "transformer.output_layer": "lm_head",
    },
    "transformer.encoder.layers",
    _grouped,
    template="chatglm2",
    chat_ends=("</s>",),
    always_chat=True,
    prefix=("[gMASK]", "<sop>"),
    special=_GLM_SPECIAL,
    default_theta=10_000.0,
)
CHATGLM3 = replace(
    CHATGLM2,
    name="ChatGLM3-6B",
    config=old_configs.chatglm3,
    template="chatglm3",
    chat_ends=("</s>", "<|user|>", "<|observation|>"),
    special=(*_GLM_SPECIAL, *_GLM_ROLES),
)
GLM4 = replace(
    CHATGLM3,
    name="GLM-4-9B",
    template="glm",
    chat_ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
    always_chat=False,
    special=(
        *("<|endoftext|>", *_GLM_SPECIAL, *_GLM_ROLES),
        *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    ),
    pattern="glm4",
)
MINICPM = Family(
    "MiniCPM",
    "granite",
    "configs/lora_llama.json",
    old_configs.minicpm,
    ATTENTION | MLP | NORMS,
    template="minicpm",
    chat_ends=("</s>",),
    adds_bos=True,
)
