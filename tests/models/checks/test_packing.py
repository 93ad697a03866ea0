"""Whether packed rows are independent is found from any weights, and families whose masks can restart are made to."""

import functools
import inspect
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import tiny_model
from hf_recipes.core.errors import UserError
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.packing import (
    keeps_packed_rows_apart,
    leaks_in_tiny_copy,
    made_to_keep_packed_rows_apart,
)
from hf_recipes.models.loading import load_config, load_model
from hf_recipes.models.quantization.settings import prepare_quantized

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 128, "pad_token_id": 0}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
LINEAR |= {"linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "head_dim": 16}
APART = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "gpt_neox": {},
    "glm4": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16},
    "minicpm3": {**LATENT, "num_key_value_heads": 4},
    "qwen3_moe": EXPERTS,
}
MADE = {
    "bloom": {},
    "falcon 7b": {"multi_query": True, "alibi": False},
    "falcon 40b": {"new_decoder_architecture": True, "alibi": False},
    "falcon rw": {"multi_query": False, "alibi": True},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "afmoe": {**EXPERTS, "num_dense_layers": 1},
}
NEVER = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": LINEAR,
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16},
    "jamba": {},
    "mamba": {},
}


def config_of(name: str):
    return AutoConfig.for_model(name.split()[0], **{**SIZES, **{**APART, **MADE, **NEVER}[name]})


@pytest.mark.parametrize("kind", ["bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2", "lfm3"])
def test_the_dry_run_knows_a_state_in_a_model_of_full_size(kind):
    """Whose Mamba layers have sizes of their own, and whose padding token lies behind the tiny copy's vocabulary."""
    assert leaks_in_tiny_copy(AutoConfig.for_model(kind), trust_remote_code=False)


def random_model(name: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(name)).eval()


def scaled(model, factor: float):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model


@pytest.mark.parametrize("name", [*APART, *MADE, *NEVER])
def test_it_is_found_from_weights_of_any_scale(name):
    for factor in (1.0, 0.1, 40.0):
        assert keeps_packed_rows_apart(scaled(random_model(name), factor)) is (name in APART)
    assert keeps_packed_rows_apart(random_model(name).bfloat16()) is (name in APART)


@pytest.mark.parametrize("name", [*APART, *MADE])
def test_packed_rows_are_as_they_are_alone(name):
    model = random_model(name)
    rows = [torch.arange(7)[None] + 5, torch.arange(9)[None] + 40]
    with torch.no_grad():
        before = [model(row, use_cache=False).logits for row in rows]
        assert made_to_keep_packed_rows_apart(model)
        positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
        packed = model(torch.cat(rows, 1), position_ids=positions, use_cache=False).logits
        after = [model(row, use_cache=False).logits for row in rows]
    assert torch.allclose(packed, torch.cat(before, 1), atol=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("name", [*APART, *MADE, *NEVER])
def test_the_dry_run_says_what_the_run_finds(name):
    model = random_model(name)
    assert leaks_in_tiny_copy(config_of(name), trust_remote_code=False) is not made_to_keep_packed_rows_apart(model)


def test_masks_whose_maker_somebody_else_wrapped_restart_too(monkeypatch):
    model = random_model("bloom")
    code = sys.modules[type(model).__module__]
    plain = inspect.unwrap(code.create_causal_mask)

    @functools.wraps(plain)
    def wrapped(*args, **kwargs):  # as transformers 5.24 has it
        return plain(*args, **kwargs)

    monkeypatch.setattr(code, "create_causal_mask", wrapped)
    assert made_to_keep_packed_rows_apart(model)


def test_padded_batches_of_a_model_made_to_pack_are_as_before():
    model = random_model("bloom")
    ids, mask = torch.arange(12).view(2, 6) + 5, torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        before = model(ids, attention_mask=mask, position_ids=positions).logits
        made_to_keep_packed_rows_apart(model)
        assert torch.equal(model(ids, attention_mask=mask, position_ids=positions).logits, before)
        assert model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False).shape == (2, 9)


def test_a_base_in_four_bits_with_a_head_in_bfloat16_is_tried_too(tmp_path):
    """Its norms are in float32; and whatever the processor, nothing before the training repacks the weights."""
    tiny_model(600).save_pretrained(tmp_path)
    model = load_model(ModelArguments(str(tmp_path), load_in_4bit=True), trains_all=False, bf16=True)
    prepare_quantized(model)
    assert {p.dtype for p in model.parameters()} >= {torch.float32, torch.bfloat16}
    assert keeps_packed_rows_apart(model)


def test_the_check_leaves_the_random_numbers_of_the_run_as_they_are():
    model = tiny_model(128)
    before = torch.get_rng_state()
    assert keeps_packed_rows_apart(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_models_that_attend_to_later_tokens_are_refused(tmp_path):
    """CPM-Ant by its configuration, before any weight is read; others are tried."""
    AutoConfig.for_model("cpmant").save_pretrained(tmp_path / "cpmant")
    with pytest.raises(UserError, match="cpmant attends to later tokens; it is no causal language model"):
        load_config(ModelArguments(str(tmp_path / "cpmant")), False)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", **SIZES)).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="bert attends to later tokens; it is no causal language model"):
        load_model(ModelArguments(str(tmp_path / "bert")), trains_all=False, bf16=False)
