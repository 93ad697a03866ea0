"""Models that see pictures: the text part is trained, and the adapter works in the text model and in the whole one."""

import json
import re

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from conftest import build_tokenizer, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.models.adapters.lora import attach_lora, read_lora_config
from hf_recipes.models.adapters.saved_adapter import load_adapter
from hf_recipes.models.adapters.vision import vision_parts
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.saving import check_saved
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches
from hf_recipes.models.loading import load_model

TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
TEXT |= {"intermediate_size": 128, "pad_token_id": 0}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
LINEAR |= {"linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
EYES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 28, "patch_size": 14}
BLOCKS = {"hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
FAMILIES = {
    "qwen3_5": {"text_config": {**TEXT, **LINEAR}, "vision_config": {**BLOCKS, "num_position_embeddings": 16}},
    "gemma3": {
        "text_config": {**TEXT, "layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": {**EYES, "num_hidden_layers": 1},
        "mm_tokens_per_image": 4,
    },
    "qwen2_5_vl": {"text_config": TEXT, "vision_config": BLOCKS},
    "llama4": {
        "text_config": {**TEXT, "intermediate_size_mlp": 128, "num_local_experts": 4, "interleave_moe_layer_step": 2},
        "vision_config": EYES
        | {"num_hidden_layers": 1, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
    "mllama": {
        "text_config": {**TEXT, "cross_attention_layers": [1]},
        "vision_config": {**EYES, "num_hidden_layers": 1},
    },
}


def make_base(folder, kind: str) -> str:
    tokenizer = build_tokenizer()
    settings = FAMILIES[kind]
    settings = {**settings, "text_config": {**settings["text_config"], "vocab_size": len(tokenizer)}}
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def opened(base: str):
    return load_model(ModelArguments(base, dtype="float32"), trains_all=False, bf16=False).eval()


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
@pytest.mark.parametrize("kind", ["qwen3_5", "gemma3", "llama4"])
def test_the_adapter_fits_both_layouts(tmp_path, kind, targets):
    base, ids = make_base(tmp_path / "base", kind), torch.arange(10)[None] + 5
    path = tmp_path / "lora.json"
    path.write_text(json.dumps({"lora_r": 4, "lora_target_modules": targets}))
    model = attach_lora(opened(base), read_lora_config(str(path)), str(path), [])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                assert not re.search(r"vision|visual|projector", name)
                parameter.normal_(std=0.1)
        expected = model(ids).logits
    model.save_pretrained(tmp_path / "adapter")
    check_saved(model, tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    layer = "language_model.model.layers.1" if kind == "llama4" else "model.language_model.layers.1"
    assert any(name.startswith(f"base_model.model.{layer}.self_attn.q_proj.") for name in names)
    as_text = "base_model.model.model.layers.1.self_attn.q_proj."
    assert any(name.startswith(as_text) for name in names) is (kind != "gemma3")
    with torch.no_grad():
        for whole in (AutoModelForImageTextToText, AutoModelForCausalLM):
            plain = PeftModel.from_pretrained(whole.from_pretrained(base), tmp_path / "adapter").eval()
            assert torch.allclose(plain(ids).logits, expected, atol=1e-4)
            assert not torch.allclose(opened(base)(ids).logits, expected, atol=1e-2)
        ours = load_adapter(opened(base), str(tmp_path / "adapter"), is_trainable=True)
        assert torch.allclose(ours(ids).logits, expected, atol=1e-5)
        ours.save_pretrained(tmp_path / "again")
    with safe_open(tmp_path / "again" / "adapter_model.safetensors", "pt") as file:
        assert set(file.keys()) == names


def test_a_run_trains_the_text_part_alone(forks, tmp_path):
    base = make_base(tmp_path / "base", "gemma3")
    file = write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "问题", "output": "好的"}] * 4)
    argv = ["--model_name_or_path", base, "--train_file", file, "--max_steps", 1, "--report_to", "none"]
    run = forks.run(*argv, "--use_lora", "False", "--output_dir", tmp_path / "run")
    assert run.code == 0, run.err
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, tmp_path / "run"))
    for part in vision_parts(before):
        same = zip(before.get_submodule(part).parameters(), after.get_submodule(part).parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in same)
    changed = zip(before.model.language_model.parameters(), after.model.language_model.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in changed)


def test_what_a_text_part_leaves_out_is_said(tmp_path, capsys):
    base = make_base(tmp_path / "base", "qwen3_5")
    assert type(opened(base)).__name__ == "Qwen3_5ForCausalLM"
    said = "the text part of Qwen3_5ForConditionalGeneration; whole models saved or merged from it have no vision part"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "name"), [("qwen2_5_vl", "Qwen2_5_VL"), ("mllama", "Mllama")])
def test_a_vision_model_without_a_class_for_its_text_part(tmp_path, kind, name):
    with pytest.raises(UserError, match=rf"a vision model \({name}ForConditionalGeneration\), whose text part"):
        opened(make_base(tmp_path / "base", kind))


def test_a_whole_model_continues_texts(tmp_path):
    """Gemma 3's configuration has no `use_cache`, which that of its text part has."""
    model, tokenizer = opened(make_base(tmp_path, "gemma3")), build_tokenizer()
    [(_, [continued])] = continue_batches(model, tokenizer, [[5, 6, 7]], [[0]], Decoding(3), stop_ids=[2])
    with torch.no_grad():
        expected = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False, eos_token_id=2)
    assert continued.text == tokenizer.decode(expected[0, 3:], skip_special_tokens=True)
    assert not hasattr(model.config, "use_cache") and model.config.text_config.use_cache
