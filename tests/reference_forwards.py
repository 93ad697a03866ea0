"""The published architectures of the older families in plain torch, on tensors as their checkpoints name them.

Each function takes a state dict, the config.json and token ids (T,), and returns logits (T, vocabulary).
"""

import math

import torch
from torch.nn.functional import linear, normalize, silu, softmax


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def angles(length, dim, theta):
    frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.outer(torch.arange(length, dtype=torch.float64), frequencies).float()


def dynamic_theta(theta, dim, factor, length, trained_length):
    """NTK: a larger base for texts longer than those of the training."""
    if length <= trained_length:
        return theta
    return theta * (factor * length / trained_length - (factor - 1)) ** (dim / (dim - 2))


def rotate_halves(x, angle):
    """`x` (T, heads, d): the first half of d with the second."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotate_pairs(x, angle):
    """`x` (T, heads, d): of the first half of d neighbours with each other; the second half stays."""
    turned, rest = x.chunk(2, dim=-1)
    even, odd = turned[..., 0::2], turned[..., 1::2]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=-1)


def attend(query, key, value):
    """Causal attention of `query` (T, heads, d) to `key` and `value` (T, groups, d)."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1])
    later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    weights = softmax(scores.masked_fill(later, float("-inf")), dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value).flatten(1)


def baichuan(state, config, ids, normalized_head=False):
    heads, eps = config["num_attention_heads"], config["rms_norm_eps"]
    x = state["model.embed_tokens.weight"][ids]
    angle = angles(len(ids), config["hidden_size"] // heads, 10_000.0)
    for number in range(config["num_hidden_layers"]):
        layer = {name: state[f"model.layers.{number}.{name}.weight"] for name in LLAMA_NORMS_AND_MLP}
        h = rms_norm(x, layer["input_layernorm"], eps)
        packed = linear(h, state[f"model.layers.{number}.self_attn.W_pack.weight"])
        query, key, value = packed.unflatten(-1, (3, heads, -1)).unbind(1)
        h = attend(rotate_halves(query, angle), rotate_halves(key, angle), value)
        x = x + linear(h, state[f"model.layers.{number}.self_attn.o_proj.weight"])
        x = x + llama_mlp(rms_norm(x, layer["post_attention_layernorm"], eps), layer)
    head = state["lm_head.weight"]
    return linear(rms_norm(x, state["model.norm.weight"], eps), normalize(head) if normalized_head else head)


def baichuan2(state, config, ids):
    return baichuan(state, config, ids, normalized_head=True)


LLAMA_NORMS_AND_MLP = (
    "input_layernorm",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def llama_mlp(h, layer):
    return linear(silu(linear(h, layer["mlp.gate_proj"])) * linear(h, layer["mlp.up_proj"]), layer["mlp.down_proj"])


def llama_like(state, config, ids, *, theta, bias=False, scale_embedding=1.0, scale_residual=1.0, scale_hidden=1.0):
    heads, eps = config["num_attention_heads"], config["rms_norm_eps"]
    head_dim = config["hidden_size"] // heads
    angle = angles(len(ids), head_dim, theta)
    x = state["model.embed_tokens.weight"][ids] * scale_embedding
    for number in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{number}."
        layer = {name: state[f"{prefix}{name}.weight"] for name in LLAMA_NORMS_AND_MLP}

        def project(h, name, prefix=prefix):
            name = f"{prefix}self_attn.{name}_proj"
            return linear(h, state[f"{name}.weight"], state[f"{name}.bias"] if bias else None)

        h = rms_norm(x, layer["input_layernorm"], eps)
        query, key, value = (project(h, name).unflatten(-1, (-1, head_dim)) for name in "qkv")
        h = project(attend(rotate_halves(query, angle), rotate_halves(key, angle), value), "o")
        x = x + scale_residual * h
        x = x + scale_residual * llama_mlp(rms_norm(x, layer["post_attention_layernorm"], eps), layer)
    head = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    return linear(rms_norm(x, state["model.norm.weight"], eps) / scale_hidden, head)


def internlm(state, config, ids):
    dim = config["hidden_size"] // config["num_attention_heads"]
    length = config["max_position_embeddings"]
    rotary = config["rotary"]
    theta = dynamic_theta(float(rotary["base"]), dim, rotary.get("scaling_factor", 1.0), len(ids), length)
    return llama_like(state, config, ids, theta=theta, bias=True)


def minicpm(state, config, ids):
    return llama_like(
        state,
        config,
        ids,
        theta=10_000.0,
        scale_embedding=config["scale_emb"],
        scale_residual=config["scale_depth"] / math.sqrt(config["num_hidden_layers"]),
        scale_hidden=config["hidden_size"] / config["dim_model_base"],
    )


def internlm2(state, config, ids):
    heads, groups, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    head_dim = config["hidden_size"] // heads
    scaling = config["rope_scaling"]
    length = config["max_position_embeddings"]
    theta = dynamic_theta(config["rope_theta"], head_dim, scaling["factor"], len(ids), length)
    angle = angles(len(ids), head_dim, theta)
    x = state["model.tok_embeddings.weight"][ids]
    for number in range(config["num_hidden_layers"]):
        layer = {
            name.removeprefix(f"model.layers.{number}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"model.layers.{number}.")
        }
        h = rms_norm(x, layer["attention_norm.weight"], eps)
        packed = linear(h, layer["attention.wqkv.weight"]).unflatten(-1, (groups, heads // groups + 2, head_dim))
        query, key, value = packed[:, :, :-2].flatten(1, 2), packed[:, :, -2], packed[:, :, -1]
        h = attend(rotate_halves(query, angle), rotate_halves(key, angle), value)
        x = x + linear(h, layer["attention.wo.weight"])
        h = rms_norm(x, layer["ffn_norm.weight"], eps)
        h = silu(linear(h, layer["feed_forward.w1.weight"])) * linear(h, layer["feed_forward.w3.weight"])
        x = x + linear(h, layer["feed_forward.w2.weight"])
    return linear(rms_norm(x, state["model.norm.weight"], eps), state["output.weight"])


def qwen(state, config, ids):
    heads, eps = config["num_attention_heads"], config["layer_norm_epsilon"]
    angle = angles(len(ids), config["kv_channels"], config["rotary_emb_base"])
    x = state["transformer.wte.weight"][ids]
    for number in range(config["num_hidden_layers"]):
        prefix = f"transformer.h.{number}."
        h = rms_norm(x, state[f"{prefix}ln_1.weight"], eps)
        packed = linear(h, state[f"{prefix}attn.c_attn.weight"], state[f"{prefix}attn.c_attn.bias"])
        query, key, value = (part.unflatten(-1, (heads, -1)) for part in packed.chunk(3, dim=-1))
        h = attend(rotate_halves(query, angle), rotate_halves(key, angle), value)
        x = x + linear(h, state[f"{prefix}attn.c_proj.weight"])
        h = rms_norm(x, state[f"{prefix}ln_2.weight"], eps)
        h = linear(h, state[f"{prefix}mlp.w1.weight"]) * silu(linear(h, state[f"{prefix}mlp.w2.weight"]))
        x = x + linear(h, state[f"{prefix}mlp.c_proj.weight"])
    return linear(rms_norm(x, state["transformer.ln_f.weight"], eps), state["lm_head.weight"])


def chatglm(state, config, ids, position_ratio=1.0, theta=10_000.0):
    heads, groups, dim = (config[key] for key in ("num_attention_heads", "multi_query_group_num", "kv_channels"))
    eps, angle = config["layernorm_epsilon"], angles(len(ids), dim // 2, theta) / position_ratio
    x = state["transformer.embedding.word_embeddings.weight"][ids]
    for number in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{number}."
        h = rms_norm(x, state[f"{prefix}input_layernorm.weight"], eps)
        name = f"{prefix}self_attention.query_key_value"
        packed = linear(h, state[f"{name}.weight"], state[f"{name}.bias"])
        parts = packed.split([heads * dim, groups * dim, groups * dim], dim=-1)
        query, key, value = (part.unflatten(-1, (-1, dim)) for part in parts)
        h = attend(rotate_pairs(query, angle), rotate_pairs(key, angle), value)
        x = x + linear(h, state[f"{prefix}self_attention.dense.weight"])
        h = rms_norm(x, state[f"{prefix}post_attention_layernorm.weight"], eps)
        gate, up = linear(h, state[f"{prefix}mlp.dense_h_to_4h.weight"]).chunk(2, dim=-1)
        x = x + linear(silu(gate) * up, state[f"{prefix}mlp.dense_4h_to_h.weight"])
    x = rms_norm(x, state["transformer.encoder.final_layernorm.weight"], eps)
    return linear(x, state["transformer.output_layer.weight"])


def chatglm2(state, config, ids):
    return chatglm(state, config, ids, position_ratio=config.get("rope_ratio", 1))


def chatglm3(state, config, ids):
    return chatglm(state, config, ids, theta=10_000.0 * config.get("rope_ratio", 1))


def glm4(state, config, ids):
    return chatglm3(state, config, ids)
