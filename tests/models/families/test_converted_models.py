"""Converted checkpoints are models like any other: trained, loaded by PEFT, merged, generated from and packed."""

import pytest
import torch
from models.tiny_families import take_steps
from old_checkpoints import FAMILIES, write_old
from peft import PeftModel
from transformers import AutoModelForCausalLM

from conftest import ROOT
from hf_recipes.export.merge import MergeArguments, merge
from hf_recipes.models.adapters.lora import attach_lora, read_lora_config
from hf_recipes.models.adapters.saved_adapter import load_adapter
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.packing import made_to_keep_packed_rows_apart
from hf_recipes.models.families.convert import convert_checkpoint
from hf_recipes.models.families.detect import detect
from hf_recipes.models.families.tokenizers import fast_tokenizer
from hf_recipes.models.loading import load_model
from hf_recipes.models.quantization.settings import prepare_quantized

QUICK = ("baichuan2", "qwen", "chatglm3")  # the others run in make check-families
ROWS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
IDS = torch.arange(40).view(2, 20) + 5


def opened(base: str, **kwargs):
    return load_model(ModelArguments(base, dtype="float32", **kwargs), trains_all=False, bf16=False).eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


def trained(model, file: str):
    torch.manual_seed(0)
    model = attach_lora(model, read_lora_config(file), file, []).train()
    take_steps(model, IDS)
    return model


@pytest.mark.parametrize("name", ROWS)
def test_a_converted_model(tmp_path, monkeypatch, name):
    monkeypatch.setattr(fast_tokenizer, "JOINED", 5)
    source = write_old(tmp_path / "old", name)
    family = detect(FAMILIES[name].config, str(source))
    base, adapter = str(convert_checkpoint(str(source), str(tmp_path / "base"))), tmp_path / "adapter"
    file = str(ROOT / family.lora_config)
    model = trained(opened(base), file)
    model.save_pretrained(adapter)
    expected = logits(model)
    assert not torch.allclose(logits(opened(base)), expected, atol=1e-3)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    assert torch.allclose(logits(plain), expected, atol=1e-5)
    merge(MergeArguments([str(adapter)], str(tmp_path / "merged"), model_name_or_path=base))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    padded = merged.generate(IDS[:, :6], attention_mask=mask, **options)
    alone = merged.generate(IDS[:1, 3:6], attention_mask=mask[:1, 3:], **options)
    assert torch.equal(padded[0, 6:], alone[0, 3:])

    rows = [IDS[:1, :7], IDS[1:, :9]]
    with torch.no_grad():
        each = [merged(row, use_cache=False).logits for row in rows]
        positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
        packed = merged(torch.cat(rows, 1), position_ids=positions, use_cache=False).logits
    assert made_to_keep_packed_rows_apart(merged) and torch.allclose(packed, torch.cat(each, 1), atol=1e-5)

    quantized = opened(base, load_in_4bit=True)
    prepare_quantized(quantized)
    quantized = trained(quantized, file)
    quantized.save_pretrained(tmp_path / "four")
    again = opened(base, load_in_4bit=True)
    prepare_quantized(again)
    assert torch.allclose(logits(load_adapter(again, str(tmp_path / "four"))), logits(quantized), atol=1e-5)
