"""The head on a CPU: TRL's fields and gradients, of labelled tokens alone."""

import copy
from types import MethodType

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from conftest import tiny_model
from hf_recipes.trainer.losses.cpu_lm_head import add_cpu_lm_head

VOCABULARY = 600
OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2, "bos_token_id": 1}
FAMILIES = {
    "plain": lambda: tiny_model(VOCABULARY),
    "softcapped": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, final_logit_softcapping=0.5)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_and_gradients_are_those_of_trl(family):
    torch.manual_seed(0)
    upstream = FAMILIES[family]().eval()
    model = copy.deepcopy(upstream)
    for one in (upstream, model):
        add_fused_lm_head(one, outputs=OUTPUTS)
    add_cpu_lm_head(model, OUTPUTS)
    forward = model.forward
    add_cpu_lm_head(model, OUTPUTS)
    assert model.forward == forward
    ids = torch.randint(5, VOCABULARY, (3, 40))
    labels = ids.clone()
    labels[:, :30] = labels[1, 35:] = -100
    found = []
    for one in (upstream, model):
        output = one(input_ids=ids, labels=labels, fused_lm_head=True)
        found.append((output, torch.autograd.grad(output.log_probs.exp().sum(), list(one.parameters()))))
    (expected, gradients), (output, its_gradients) = found
    for name in (*OUTPUTS, "label_mask"):
        assert torch.allclose(output[name].float(), expected[name].float(), atol=1e-5), name
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, its_gradients, strict=True))
    assert model(input_ids=ids, labels=labels).logits.shape == (3, 40, VOCABULARY)

    nothing = model(input_ids=ids, labels=torch.full_like(ids, -100), fused_lm_head=True).log_probs
    assert nothing.shape == (3, 39) and not nothing.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(nothing.sum(), list(model.parameters())))


def test_autocast_ends_with_the_forward_pass():
    """accelerate wraps `forward`; a pass within it must not enter the same context again, which torch never leaves."""
    model = tiny_model(VOCABULARY)
    add_fused_lm_head(model)
    add_cpu_lm_head(model)
    model.forward = MethodType(torch.autocast("cpu", torch.bfloat16)(model.forward.__func__), model)
    ids = torch.randint(5, VOCABULARY, (2, 12))
    assert model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.requires_grad
    assert not torch.is_autocast_enabled("cpu")
