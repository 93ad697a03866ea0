import json

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import build_tokenizer, tiny_model
from hf_recipes.core.errors import UserError
from hf_recipes.models.adapters.lora import attach_lora, read_lora_config
from hf_recipes.models.adapters.saved_adapter import check_same_shape, load_adapter, read_adapter_config
from hf_recipes.models.embeddings import fit_embeddings


def written(tmp_path, **settings) -> str:
    path = tmp_path / "lora.json"
    path.write_text(json.dumps(settings))
    return str(path)


def test_both_spellings_and_any_key_of_peft(tmp_path):
    ours = read_lora_config(written(tmp_path, lora_r=4, lora_target_modules="q_proj, v_proj", use_dora=True))
    peft = read_lora_config(written(tmp_path, r=4, target_modules=["q_proj", "v_proj"], use_dora=True))
    assert ours.to_dict() == peft.to_dict() and ours.use_dora and set(ours.target_modules) == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": 8}, r"unknown key 'lora_rank' \(did you mean"),
        ({"lora_r": 8, "r": 4}, "and another key both set r"),
        ({"lora_r": 0, "target_modules": "all-linear"}, None),
        ({"lora_r": "8"}, 'r is "8"; expected a number'),
        ({"lora_alpha": None}, "lora_alpha is null; expected a number"),
        ({"lora_target_modules": 5}, "target_modules is 5; expected a list"),
        ({"lora_target_modules": [1]}, r"target_modules is \[1\]; expected a list of texts or a text"),
        ({"modules_to_save": "embed_.*"}, 'modules_to_save is "embed_.*"; expected a list of texts'),
        ({"rank_pattern": {"q_proj": "8"}}, r'rank_pattern is {"q_proj": "8"}; expected an object of numbers'),
        ({"use_dora": "yes"}, 'use_dora is "yes"; expected true or false'),
        ({"bias": "al"}, 'bias is "al"; expected none or all or lora_only'),
        ({"lora_target_modules": "*("}, "nothing to repeat"),
        ({"lora_target_modules": "all-linear", "inference_mode": True}, "nothing to train"),
    ],
)
def test_bad_keys(tmp_path, settings, message):
    path = written(tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        attach_lora(tiny_model(64), read_lora_config(path), path, [])


def test_a_key_that_is_given_twice(tmp_path):
    (tmp_path / "lora.json").write_text('{"lora_r": 4, "lora_alpha": 8, "lora_r": 16}')
    with pytest.raises(UserError, match=r"not JSON .*'lora_r' is given twice"):
        read_lora_config(str(tmp_path / "lora.json"))


def test_a_shape_that_a_saved_adapter_has_not(tmp_path):
    """It keeps its own, whatever the file says."""
    saved = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["self_attn.q_proj"])
    shape = {"lora_r": 8, "lora_dropout": 0.1, "lora_target_modules": ["q_proj"], "init_lora_weights": "pissa"}
    check_same_shape(saved, "first", written(tmp_path, **shape))
    for other, message in (
        ({"lora_alpha": 32}, "with lora_alpha 16, and .*lora.json says 32"),
        ({"lora_dropout": 0.0}, "with lora_dropout 0.1"),
        ({"lora_target_modules": ["q_proj", "up_proj"]}, "with target_modules without up_proj; a saved adapter"),
    ):
        with pytest.raises(UserError, match=f"--peft_path first was trained {message}"):
            check_same_shape(saved, "first", written(tmp_path, **shape | other))


def test_modules_that_the_model_lacks(tmp_path):
    path = written(tmp_path, lora_r=2, lora_target_modules=["query_key_value"])
    with pytest.raises(
        UserError, match=r"names 'query_key_value', which Qwen3ForCausalLM lacks; .*q_proj, up_proj, v_proj"
    ):
        attach_lora(tiny_model(64), read_lora_config(path), path, [])


def test_modules_that_are_excluded_and_not_there_are_named(tmp_path, capsys):
    shape = {"lora_r": 2, "lora_target_modules": "all-linear", "exclude_modules": ["q_proj", "visual", "1.mlp.up_proj"]}
    path = written(tmp_path, **shape)
    adapted = attach_lora(tiny_model(64), read_lora_config(path), path, [])
    assert capsys.readouterr().out == f"note: {path}: exclude_modules names 'visual', which Qwen3ForCausalLM lacks\n"
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert any("0.mlp.up_proj" in name for name in trained)
    assert not any("q_proj" in name or "1.mlp.up_proj" in name for name in trained)


def test_not_json(tmp_path):
    (tmp_path / "lora.json").write_text("{")
    with pytest.raises(UserError, match=r"lora.json: not JSON"):
        read_lora_config(str(tmp_path / "lora.json"))
    with pytest.raises(UserError, match="no such file"):
        read_lora_config(str(tmp_path / "none.json"))


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_are_trained_saved_and_loaded(tmp_path, tied):
    """A template's new tokens get embeddings that learn; base and adapter from disk give the trained model's logits."""
    model = tiny_model(560)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.02)
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = build_tokenizer()
    fresh = [f"<|new{i}|>" for i in range(560 - len(tokenizer) + 3)]
    tokenizer.add_special_tokens({"additional_special_tokens": fresh})
    fit_embeddings(model, tokenizer)
    new = tokenizer.convert_tokens_to_ids(fresh)
    assert model.get_input_embeddings().weight.shape[0] == 563
    adapted = attach_lora(model, read_lora_config(None), None, new)
    ids = torch.tensor([[5, new[0], 7, new[-1], 9]])
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    before = adapted(ids).logits.detach()
    for _ in range(2):
        adapted(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = adapted(ids).logits.detach()
    assert (after - before)[0, :, new[0]].abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    fit_embeddings(base, tokenizer)
    loaded = load_adapter(base, str(tmp_path / "adapter"))
    assert torch.allclose(loaded(ids).logits, after, atol=1e-5)


def test_an_adapter_for_another_base(tmp_path):
    adapted = attach_lora(tiny_model(64), read_lora_config(None), None, [])
    adapted.save_pretrained(tmp_path / "adapter")
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 64}
    config = AutoConfig.for_model("qwen3", num_attention_heads=2, num_key_value_heads=1, **sizes)
    other = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        UserError, match=r"an adapter for another base: it has model.layers.0.*of size 32, where this base has 16"
    ):
        load_adapter(other, str(tmp_path / "adapter"))
    shallow = tiny_model(64)
    shallow.model.layers = shallow.model.layers[:1]
    with pytest.raises(UserError, match=r"model.layers.1.*which this base lacks"):
        load_adapter(shallow, str(tmp_path / "adapter"))


def test_an_adapter_without_some_of_its_tensors(tmp_path):
    adapted = attach_lora(tiny_model(64), read_lora_config(None), None, [])
    adapted.save_pretrained(tmp_path)
    assert load_adapter(tiny_model(64), str(tmp_path))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    half = {name: tensor for name, tensor in tensors.items() if "layers.0" in name}
    save_file(half, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=rf"lacks {len(tensors) - len(half)} of the {len(tensors)} tensors .*layers.1"):
        load_adapter(tiny_model(64), str(tmp_path))


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"target_modules": ["q_proj"]}, 24),
        ({"target_modules": "model.layers.0.+v_proj"}, 26),
        ({"peft_type": "IA3"}, 28),
    ],
    ids=str,
)
def test_an_adapter_with_tensors_that_its_configuration_leaves_out(tmp_path, change, count):
    attach_lora(tiny_model(64), read_lora_config(None), None, []).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"adapter_config.json leaves out {count} of the 28 tensors .*layers\.\d"):
        load_adapter(tiny_model(64), str(tmp_path))


def test_a_stage_continues_lora_alone(tmp_path):
    get_peft_model(tiny_model(64), IA3Config(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    assert load_adapter(tiny_model(64), str(tmp_path))
    with pytest.raises(UserError, match="an adapter of type IA3; a stage continues LoRA alone"):
        read_adapter_config(str(tmp_path), "CAUSAL_LM")


@pytest.mark.parametrize("task_type", ["SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS"])
def test_an_adapter_for_a_task_that_nothing_runs(tmp_path, task_type):
    get_peft_model(tiny_model(64), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert load_adapter(tiny_model(64), str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "task_type": task_type}))
    with pytest.raises(UserError, match=f"an adapter for {task_type}, which nothing here runs"):
        load_adapter(tiny_model(64), str(tmp_path))


def test_a_folder_that_is_no_adapter(tmp_path):
    tiny_model(64).save_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="holds a whole model, not an adapter"):
        load_adapter(tiny_model(64), str(tmp_path / "whole"))
