"""A tiny model of each family that the table in docs/en/families.md has."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from conftest import build_tokenizer

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS = {"head_dim": 16}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}
LATENT |= {"num_key_value_heads": 4}
EXPERTS = {**HEADS, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
GROUPS = {"moe_intermediate_size": 64, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
GROUPS |= {"first_k_dense_replace": 1, "n_shared_experts": 1}
LINEAR = {**HEADS, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
LINEAR |= {"linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
BLOCKS = {"hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
EYES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
LAYERS = {**HEADS, "layer_types": ["sliding_attention", "full_attention"]}


@dataclass
class Family:
    """What a row of the table says, and the sizes of its tiny model.

    Attributes:
        kind: transformers' model_type.
        lora: the file configs/lora_*.json.
        packs: whether packed rows are independent.
        rewards: whether transformers has a class with a head for scores.
    """

    kind: str
    lora: str
    settings: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] | None = None
    packs: bool = True
    rewards: bool = True


FAMILIES = {
    "Llama": Family("llama", "llama"),
    "Mistral": Family("mistral", "llama"),
    "Qwen2.5": Family("qwen2", "qwen"),
    "Qwen3": Family("qwen3", "qwen", HEADS),
    "Qwen3-MoE": Family("qwen3_moe", "moe", EXPERTS),
    "Qwen3.5": Family("qwen3_5", "qwen3_5", LINEAR, BLOCKS | {"num_position_embeddings": 16}, packs=False),
    "GLM-4-9B": Family("glm", "glm", HEADS),
    "GLM-4-0414": Family("glm4", "glm4", HEADS),
    "GLM-4.5": Family("glm4_moe", "moe", {**GROUPS, **HEADS}, rewards=False),
    "DeepSeek-V3": Family("deepseek_v3", "deepseek", {**GROUPS, **LATENT}),
    "MiniCPM3": Family("minicpm3", "minicpm3", LATENT),
    "Gemma 3 1B": Family("gemma3_text", "gemma", LAYERS),
    "Gemma 3 4B": Family("gemma3", "gemma", LAYERS, {**EYES, "image_size": 28, "patch_size": 14}),
    "Bloom": Family("bloom", "bloom"),
    "Pythia": Family("gpt_neox", "pythia"),
    "Falcon 7B": Family("falcon", "falcon", {"multi_query": True, "alibi": False}),
    "Falcon 40B": Family("falcon", "falcon", {"new_decoder_architecture": True, "alibi": False}),
    "Falcon RW": Family("falcon", "falcon", {"multi_query": False, "alibi": True}),
    "Hunyuan": Family("hunyuan_v1_dense", "hunyuan", HEADS),
    "ERNIE 4.5": Family("ernie4_5", "ernie", HEADS, rewards=False),
    "gpt-oss": Family("gpt_oss", "moe", {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "InternLM3": Family("internlm3", "llama", rewards=False),
    "SmolLM3": Family("smollm3", "llama"),
    "Phi-4-mini": Family("phi3", "phi3"),
    "LFM2": Family("lfm2", "lfm2", {"layer_types": ["conv", "full_attention"]}, packs=False, rewards=False),
    "Granite": Family("granite", "llama", rewards=False),
}

MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
SHARED = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
SMALL_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
NEMOTRON = {"mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 16, "n_groups": 1}
FAMILIES |= {
    "Phi-3.5-MoE": Family("phimoe", "moe", MIXTURE),
    "ERNIE 4.5 MoE": Family(
        "ernie4_5_moe",
        "moe",
        {**HEADS, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64, "moe_layer_start_index": 1},
        rewards=False,
    ),
    "Qwen3-Next": Family(
        "qwen3_next", "moe", {**LINEAR, **SHARED, "num_experts": 4, "num_experts_per_tok": 2}, packs=False
    ),
    "Granite 4 hybrid": Family(
        "granitemoehybrid",
        "moe",
        {**MIXTURE, **SMALL_MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 64},
        packs=False,
        rewards=False,
    ),
    "Nemotron-H": Family(
        "nemotron_h",
        "all_linear",
        {**NEMOTRON, **HEADS, "layers_block_type": ["mamba", "attention"]},
        packs=False,
        rewards=False,
    ),
}


def make_base(folder: Path, family: Family) -> str:
    """The folder of a tiny model with random weights, and a tokenizer that fits."""
    tokenizer = build_tokenizer()
    sizes = {**SIZES, **family.settings, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    if family.vision is None:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.kind, **sizes))
    else:
        config = AutoConfig.for_model(family.kind, text_config=sizes, vision_config=family.vision)
        if hasattr(config, "mm_tokens_per_image"):
            config.mm_tokens_per_image = 4
        model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def take_steps(model, ids) -> None:
    """Three optimizer steps on what an adapter trains, which bring the loss down."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
