"""The reference: the adapter off, the adapter as it was, or a second model; kept out of training and of every file."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import same, weights
from hf_recipes.trainer.losses.reference_adapter import REFERENCE
from preference_runs import make_kto, make_pairs

MAKE = {"dpo": make_pairs, "kto": make_kto}


def learn(trainer, step: float = 0.1) -> None:
    """As if it had been trained: every weight that is trained moves."""
    torch.manual_seed(1)
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data += step * torch.randn_like(weight)


@pytest.fixture
def adapter(model_dir, tmp_path) -> str:
    """An adapter with weights of its own, those of the embeddings of new tokens among them."""
    trainer, _, _ = make_pairs(model_dir, tmp_path, template="glm")
    learn(trainer)
    trainer.save_model(str(tmp_path / "adapter"))
    return str(tmp_path / "adapter")


@pytest.mark.parametrize("stage", MAKE)
def test_of_a_new_adapter_it_is_the_base(model_dir, tmp_path, stage):
    trainer, _, _ = MAKE[stage](model_dir, tmp_path, model={"dtype": "float32"})
    model = trainer.model
    assert list(model.peft_config) == ["default"] and not any(".ref" in name for name, _ in model.named_parameters())
    assert trainer.ref_model is None
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    with model.disable_adapter(), torch.no_grad():
        base = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    learn(trainer)
    log_probs = base[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    expected = (log_probs * batch["completion_mask"][:, 1:]).sum(1)
    assert trainer.reference_log_probs(batch).tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert all(weight.requires_grad is ("lora_" in name) for name, weight in model.named_parameters())


def test_of_an_adapter_that_was_trained_it_is_its_start(model_dir, adapter, tmp_path):
    trainer, _, _ = make_pairs(model_dir, tmp_path, model={"peft_path": adapter, "dtype": "float32"}, max_steps=3)
    model = trainer.model
    assert list(model.peft_config) == ["default", REFERENCE]
    start = {name: weight.clone() for name, weight in model.named_parameters()}
    names = [name for name in start if ".ref" in name]
    assert any("trainable_tokens" in name for name in names) and len(names) == sum(".default" in name for name in start)
    assert all(torch.equal(start[name], start[name.replace(".ref", ".default")]) for name in names)
    trainer.train()
    for name, weight in model.named_parameters():
        assert torch.equal(start[name], weight) is (".default" not in name), name
        assert weight.requires_grad is (".default" in name), name
    trainer.save_model(str(tmp_path / "saved"))
    assert not list((tmp_path / "saved").rglob(f"{REFERENCE}*")) and list(model.peft_config) == ["default", REFERENCE]
    own, base = weights(tmp_path / "saved"), weights(adapter)
    assert own.keys() == base.keys() and not same(own, base)


def losses_of(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


WAYS = {
    "LoRA": {},
    "LoRA, new tokens": {"template": "glm"},
    "all weights": {"model": {"use_lora": False}},
    "all weights, new tokens": {"model": {"use_lora": False}, "template": "glm"},
    "all weights, asked before": {"model": {"use_lora": False}, "precompute_ref_log_probs": True},
    "QLoRA": {"model": {"load_in_4bit": True}},
    "bfloat16": {"bf16": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_it_begins_as_the_policy(model_dir, tmp_path, way):
    """All margins are 0: the loss of the first update is log 2, and then it falls."""
    settings = {"max_steps": 6, "logging_steps": 1, "per_device_train_batch_size": 4, **WAYS[way]}
    trainer, _, _ = make_pairs(model_dir, tmp_path, **settings)
    trainer.train()
    found = losses_of(trainer)
    assert found[0] == pytest.approx(math.log(2), abs=1e-6) and found[-1] < 0.68
    first = trainer.state.log_history[0]
    assert first["rewards/margins"] == first["rewards/chosen"] == first["rewards/rejected"] == 0


def test_it_begins_as_the_adapter_that_the_run_goes_on_from(model_dir, adapter, tmp_path):
    for precomputed in (False, True):
        settings = {"max_steps": 6, "logging_steps": 1, "precompute_ref_log_probs": precomputed}
        trainer, _, _ = make_pairs(model_dir, tmp_path, model={"peft_path": adapter}, **settings)
        trainer.train()
        found = losses_of(trainer)
        assert found[0] == pytest.approx(math.log(2), abs=1e-6) and found[-1] < 0.68


def test_an_adapter_that_changes_the_base_has_a_copy_too(model_dir, tmp_path):
    settings = {"lora_r": 4, "target_modules": ["q_proj"], "init_lora_weights": False}
    path = tmp_path / "lora.json"
    path.write_text(json.dumps(settings))
    trainer, _, _ = make_pairs(model_dir, tmp_path, model={"lora_config": str(path)})
    assert list(trainer.model.peft_config) == ["default", REFERENCE]


@pytest.mark.parametrize("stage", MAKE)
@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_of_an_adapter_that_begins_in_the_base_it_is_the_base(model_dir, tmp_path, stage, kind):
    path = tmp_path / "lora.json"
    path.write_text(json.dumps({"lora_r": 4, "target_modules": "all-linear", "init_lora_weights": kind}))
    settings = {"max_steps": 3, "logging_steps": 1, "model": {"lora_config": str(path), "dtype": "float32"}}
    trainer, _, _ = MAKE[stage](model_dir, tmp_path, **settings)
    assert list(trainer.model.peft_config) == ["default"]
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model_dir)(input_ids=batch["input_ids"]).logits
    trainer.train()
    log_probs = base[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    expected = (log_probs * batch["completion_mask"][:, 1:]).sum(1)
    assert trainer.reference_log_probs(batch).tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert stage == "kto" or losses_of(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_asked_before_it_gives_the_same_training(model_dir, tmp_path):
    for make in MAKE.values():
        found = []
        for precomputed in (False, True):
            settings = {"max_steps": 5, "logging_steps": 1, "precompute_ref_log_probs": precomputed}
            trainer, _, _ = make(model_dir, tmp_path, **settings)
            trainer.train()
            found.append(losses_of(trainer))
        assert found[0] == pytest.approx(found[1], abs=1e-6)
