"""Forward passes that score tokens: the model's own logits, in pieces, whatever its head does to them."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from conftest import tiny_model
from hf_recipes.models.inference import forward

VOCABULARY = 600
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2, "bos_token_id": 1}
FAMILIES = {
    "plain": lambda: tiny_model(VOCABULARY),
    "softcapped": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=0.5)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0)),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=4.0)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, eos_token_id=2)),
}


@pytest.fixture
def inputs():
    """Three rows of 40 tokens; one has no label in its second half."""
    ids = torch.randint(5, VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :7] = labels[1, 20:] = -100
    return {"input_ids": ids, "labels": labels}


def from_all_logits(model, inputs):
    """(B,) losses and hits by the model's forward over whole rows."""
    logits, targets = model(input_ids=inputs["input_ids"]).logits[:, :-1], inputs["labels"][:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
    return losses.view_as(targets).sum(1), ((logits.argmax(-1) == targets) & (targets != -100)).sum(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_pieces_are_those_of_the_models_forward(family, inputs, monkeypatch):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    losses, hits = from_all_logits(model, inputs)
    trained = forward.supervised_losses(model, inputs)
    gradients = []
    for one in (losses, trained[0]):
        gradients.append(torch.autograd.grad(one.sum(), list(model.parameters())))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))
    monkeypatch.setattr(forward, "PIECE", 7 * VOCABULARY)
    monkeypatch.setattr(forward, "TOKENS", 80)
    with torch.no_grad():
        evaluated = forward.supervised_losses(model, inputs)
        rows = [row[:length].tolist() for row, length in zip(inputs["input_ids"], (5, 33, 9), strict=True)]
        alone = torch.cat([model(torch.tensor([row])).logits[:, -1] for row in rows])
        assert torch.allclose(forward.last_logits(model, rows), alone, atol=1e-5)
    for found in (trained, evaluated):
        assert torch.allclose(found[0], losses, rtol=1e-6, atol=1e-5)
        assert found[1].tolist() == [33, 13, 33] and found[2].tolist() == hits.tolist()
    assert "forward" not in vars(model.base_model) and not model.base_model._forward_hooks


class _Largest(TorchDispatchMode):
    """The most elements of a tensor of logits, and the most tokens in a tensor of ids."""

    logits = tokens = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == VOCABULARY:
                self.logits = max(self.logits, tensor.numel())
        if func is torch.ops.aten.embedding.default:
            self.tokens = max(self.tokens, args[1].numel())
        return result


def test_memory_is_flat_in_rows_and_length(monkeypatch):
    monkeypatch.setattr(forward, "PIECE", 50 * VOCABULARY)
    monkeypatch.setattr(forward, "TOKENS", 256)
    model = tiny_model(VOCABULARY)
    for rows, length in ((2, 40), (16, 40), (3, 200)):
        batch = [(torch.full((length,), 7), torch.full((length,), 7))] * rows
        with forward.evaluating(model), _Largest() as largest:
            found = forward.row_losses(model, batch)
        assert [count for _, count, _ in found] == [length - 1] * rows
        assert largest.logits <= 50 * VOCABULARY and largest.tokens <= 256, (rows, length)
        assert forward.scored_pass(rows, length).rows <= max(1, 256 // length)
