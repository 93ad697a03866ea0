"""Each row of the table of families, on a tiny model: trained, saved, loaded by PEFT, merged, generated from, in four
bits, packed, and with a head for scores."""

import re

import pytest
import torch
from models.tiny_families import FAMILIES, Family, make_base, take_steps
from peft import PeftModel
from transformers import AutoModelForCausalLM

from conftest import ROOT
from hf_recipes.core.errors import UserError
from hf_recipes.export.merge import MergeArguments, merge
from hf_recipes.models.adapters.lora import attach_lora, read_lora_config
from hf_recipes.models.adapters.saved_adapter import load_adapter
from hf_recipes.models.adapters.targets import leaf, linear_modules, part_of
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.packing import made_to_keep_packed_rows_apart
from hf_recipes.models.checks.saving import check_saved
from hf_recipes.models.inference.loading import load_for_inference, open_for_inference
from hf_recipes.models.loading import load_model
from hf_recipes.models.quantization.settings import prepare_quantized

IDS = torch.arange(40).view(2, 20) + 5


def opened(base: str, **kwargs):
    return load_model(ModelArguments(base, dtype="float32", **kwargs), trains_all=False, bf16=False).eval()


def in_four_bits(base: str):
    """With the kernel that training has, also on processors that have another one for inference."""
    model = opened(base, load_in_4bit=True)
    prepare_quantized(model)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


@pytest.fixture(params=FAMILIES)
def row(request, tmp_path):
    family = FAMILIES[request.param]
    return family, make_base(tmp_path / "base", family)


def test_a_family(row, tmp_path):
    family, base = row
    path = str(ROOT / "configs" / f"lora_{family.lora}.json")
    torch.manual_seed(0)
    model = attach_lora(opened(base), read_lora_config(path), path, []).train()
    adapted = {leaf(name.split(".lora_")[0]) for name, p in model.named_parameters() if p.requires_grad}
    text = {
        leaf(name)
        for name, module in linear_modules(opened(base)).items()
        if not re.search(r"vision|visual|projector|expert_gate|router|\.mixer\.out_proj|\.mamba\.out_proj", name)
    }
    assert text <= adapted
    assert "router" not in {part_of(name) for name, p in model.named_parameters() if p.requires_grad}
    take_steps(model, IDS)
    adapter = str(tmp_path / "adapter")
    model.save_pretrained(adapter)
    check_saved(model, tmp_path / "adapter")
    expected = logits(model)
    assert not torch.allclose(logits(opened(base)), expected, atol=1e-3)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    assert torch.allclose(logits(plain), expected, atol=1e-5)

    merge(MergeArguments([adapter], str(tmp_path / "merged"), model_name_or_path=base))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(logits(merged), expected, atol=1e-4)

    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    padded = merged.generate(IDS[:, :6], attention_mask=mask, **options)
    alone = merged.generate(IDS[:1, 3:6], attention_mask=mask[:1, 3:], **options)
    assert torch.equal(padded[0, 6:], alone[0, 3:])


def test_it_in_four_bits(row, tmp_path):
    """Trained on the quantized base, and loaded onto it again."""
    family, base = row
    path = str(ROOT / "configs" / f"lora_{family.lora}.json")
    model = attach_lora(in_four_bits(base), read_lora_config(path), path, []).train()
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    trained = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert trained and all(p.grad is not None for p in trained)
    torch.optim.SGD(trained, lr=1.0).step()
    model.save_pretrained(tmp_path / "adapter")
    expected = logits(model)
    again = logits(load_adapter(in_four_bits(base), str(tmp_path / "adapter")))
    assert torch.allclose(again, expected, atol=1e-5) and expected.isfinite().all()


@pytest.mark.parametrize("flag", ["load_in_4bit", "load_in_8bit"])
def test_what_mamba_kernels_read_is_not_quantized(tmp_path, flag):
    base = make_base(tmp_path, Family("mamba", "all_linear"))
    model = attach_lora(opened(base, **{flag: True}), read_lora_config(None), None, []).train()
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    assert {leaf(name.split(".lora_")[0]) for name in trained} == {"in_proj"}
    assert all(p.grad.any() for p in trained.values())
    assert model.generate(IDS[:, :6], max_new_tokens=2, do_sample=False).shape == (2, 8)


def test_packed_rows_of_it(row):
    family, base = row
    model = opened(base)
    rows = [IDS[:1, :7], IDS[1:, :9]]
    alone = [model(one, use_cache=False).logits for one in rows]
    assert made_to_keep_packed_rows_apart(model) is family.packs
    if family.packs:
        positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
        with torch.no_grad():
            packed = model(torch.cat(rows, 1), position_ids=positions, use_cache=False).logits
        assert torch.allclose(packed, torch.cat(alone, 1), atol=1e-5)


def test_a_head_for_scores(row):
    family, base = row
    if not family.rewards:
        with pytest.raises(UserError, match="no class of this family with a head for scores"):
            load_reward(base)
        return
    with torch.no_grad():
        assert load_reward(base)(IDS).logits.shape == (2, 1)


def load_reward(base: str):
    arguments = ModelArguments(base, dtype="float32")
    _, tokenizer = open_for_inference(arguments)
    return load_for_inference(arguments, tokenizer, is_reward=True)
