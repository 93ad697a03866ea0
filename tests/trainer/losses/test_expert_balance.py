"""The loss that balances experts, in families that count them by other names, or compute none themselves."""

import pytest
import torch
from models.tiny_families import GROUPS, HEADS, LATENT, MIXTURE, SIZES, SMALL_MAMBA
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from hf_recipes.core.errors import UserError
from hf_recipes.dry_run.checks import balances_experts
from hf_recipes.stages.sft import SFTArguments
from hf_recipes.trainer.losses.expert_balance import ExpertBalance, expert_count, experts_counted

HYBRID = {**SMALL_MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 64}
KINDS = {
    "mixtral": MIXTURE,
    "phimoe": MIXTURE,
    "granitemoe": MIXTURE,
    "granitemoehybrid": {**MIXTURE, **HYBRID},
    "deepseek_v3": {**GROUPS, **LATENT},
    "glm4_moe": {**GROUPS, **HEADS},
    "hunyuan_v1_moe": {**HEADS, "num_experts": 4, "moe_topk": 2, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_computed_from_the_use_of_all_experts(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, "vocab_size": 100, **KINDS[kind]})
    model, ids = AutoModelForCausalLM.from_config(config), torch.arange(40).view(2, 20) + 5
    balance, has_name = ExpertBalance(model), hasattr(config, "num_experts")
    with torch.no_grad():
        model(ids, output_router_logits=True, use_cache=False)
        add_fused_lm_head(model)
        with experts_counted(config):
            theirs = model(ids, labels=ids, fused_lm_head=True, output_router_logits=True).aux_loss
    probabilities = torch.cat(list(balance._router_logits)).softmax(-1)
    used = torch.zeros_like(probabilities).scatter(1, probabilities.topk(2).indices, 1.0)
    expected = 4 * (used.mean(0) * probabilities.mean(0)).sum()
    assert probabilities.shape[1] == expert_count(config) == 4
    assert torch.allclose(balance(), expected) and torch.allclose(theirs, expected)
    assert hasattr(config, "num_experts") == has_name  # nothing of it is saved


def test_a_hybrid_without_experts_balances_none(tmp_path):
    """Granite 4's small models have the mixture's class and its coefficient, and no expert."""
    config = AutoConfig.for_model("granitemoehybrid", **{**SIZES, **HYBRID, "num_local_experts": 0})
    settings = {"output_dir": str(tmp_path), "report_to": "none", "bf16": False}
    assert config.router_aux_loss_coef and not balances_experts(SFTArguments(**settings), config)
    with pytest.raises(UserError, match="is for mixtures of experts; granitemoehybrid is not one"):
        balances_experts(SFTArguments(**settings, router_aux_loss_coef=0.1), config)
    assert balances_experts(SFTArguments(**settings), AutoConfig.for_model("phimoe"))
