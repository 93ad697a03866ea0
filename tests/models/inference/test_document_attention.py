"""Attention document by document: the same losses and gradients as with masks."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hf_recipes.models.inference import document_attention
from hf_recipes.models.inference.document_attention import _documents, attend_by_document

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 90}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def with_masks_again():
    yield
    AttentionInterface.register("sdpa", sdpa_attention_forward)
    AttentionMaskInterface.register("sdpa", sdpa_mask)


def packed() -> dict:
    positions = [[*range(5), *range(9), *range(2)], [*range(16)], [*range(12), 0, 0, 0, 0]]
    return {"position_ids": torch.tensor(positions)}


def padded() -> dict:
    return {"attention_mask": (torch.arange(16) < torch.tensor([[16], [7], [1]])).long()}


def passes(model, batch: dict) -> list[torch.Tensor]:
    """Loss, logits of real tokens and gradients."""
    ids = torch.arange(48).reshape(3, 16)
    real = batch.get("attention_mask", torch.ones(3, 16)).bool()
    output = model(ids, labels=ids.where(real, -100), use_cache=False, **batch)
    output.loss.backward()
    gradients = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    return [output.loss, output.logits[real], *gradients]


def counted(monkeypatch) -> list[int]:
    calls, plain = [], torch.nn.functional.scaled_dot_product_attention

    def attention(query, *args, **kwargs):
        calls.append(query.shape[2])
        return plain(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    return calls


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("batch", "documents"), [(packed, [5, 9, 2, 16, 12, 1]), (padded, [16, 7, 9, 1, 15])])
def test_losses_and_gradients_are_those_with_masks(batch, documents, checkpointing, monkeypatch):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).train()
    before = passes(model, batch())
    if checkpointing:
        model.gradient_checkpointing_enable()
    attend_by_document()
    calls = counted(monkeypatch)
    after = passes(model, batch())
    assert calls == documents * (4 if checkpointing else 2)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [4, 16])
def test_a_window_is_kept_where_it_is_shorter(window, monkeypatch):
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, **HEADS, sliding_window=window)
    model = AutoModelForCausalLM.from_config(config).train()
    before = passes(model, packed())
    attend_by_document()
    calls = counted(monkeypatch)
    for one, other in zip(before, passes(model, packed()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert (16 in calls and 5 not in calls) == (window == 4)


@pytest.mark.parametrize(
    ("rows", "documents"),
    [
        ([[1, 0, 0], [1, 1, 0], [1, 1, 1]], [(1, 3)]),
        ([[1, 0, 0], [0, 1, 0], [0, 1, 1]], [(1, 1), (1, 2)]),
        ([[1, 0, 0], [1, 1, 0], [1, 1, 0]], [(1, 2), (1, 1)]),  # padding
        ([[0, 0, 0], [0, 1, 0], [0, 1, 1]], [(1, 1), (1, 2)]),  # padding on the left
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [(3, 1)]),
        ([[1, 1, 0], [1, 1, 0], [1, 1, 1]], None),  # two tokens that see each other
        ([[1, 0, 0], [1, 1, 0], [0, 1, 1]], None),  # a window
        ([[1, 0, 0], [0, 1, 0], [1, 0, 1]], None),  # one that sees past another document
    ],
)
def test_documents_of_a_mask(rows, documents):
    assert _documents(torch.tensor([rows]).bool()) == documents


def test_generation_has_masks_of_its_own():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).eval()
    ids, mask = torch.tensor([[1, 2, 3, 4, 5], [0, 0, 6, 7, 8]]), torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    before = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    attend_by_document()
    assert torch.equal(
        before, model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    )


def test_dropout_and_biases_take_the_mask():
    attend_by_document()
    states, mask = torch.ones(1, 2, 4, 8), torch.ones(4, 4).tril().bool()[None, None]
    mask.documents = [(1, 4)]
    module = torch.nn.Module()
    for more in ({"dropout": 0.5}, {"position_bias": torch.zeros(1, 2, 4, 4)}):
        torch.manual_seed(0)
        one, _ = document_attention._attention(module, states, states, states, mask, **more)
        torch.manual_seed(0)
        other, _ = sdpa_attention_forward(module, states, states, states, mask, **more)
        assert torch.equal(one, other)


def test_memory_is_estimated_without_looking_at_values():
    attend_by_document()
    with FakeTensorMode():
        model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS))
        assert model(torch.zeros(3, 16, dtype=torch.long), **padded()).logits.shape == (3, 16, 90)
