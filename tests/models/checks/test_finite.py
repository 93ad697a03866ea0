"""A model with NaN or infinities in it is refused where it is loaded, by file and tensor, however it is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conftest import build_tokenizer, json_files, tiny_model, write_jsonl
from hf_recipes.apps.chat.engine import Engine
from hf_recipes.apps.chat.models import ChatModel
from hf_recipes.core.errors import UserError
from hf_recipes.models.adapters.lora import read_lora_config
from hf_recipes.models.adapters.saved_adapter import read_adapter_config
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.finite import check_weights
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.loading import load_for_inference, open_for_inference

UP = "model.layers.1.mlp.up_proj.weight"
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def spoiled(folder, target: Path, name: str, value: float = float("nan")) -> Path:
    """A copy of a model's or an adapter's folder with one element of the tensor `name` set to `value`."""
    shutil.copytree(folder, target)
    [path] = target.glob("*.safetensors")
    tensors = load_file(path)
    tensors[name].view(-1)[3] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def adapter(model_dir, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def enlarged(folder, target: Path) -> Path:
    """A copy whose weights are numbers and whose outputs overflow."""
    shutil.copytree(folder, target)
    [path] = target.glob("*.safetensors")
    tensors = load_file(path)
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] * 3e38}, path, metadata={"format": "pt"})
    return target


def ask(engine: Engine):
    decoding = Decoding(4)
    return engine.answer("base", engine.prompt("base", [{"role": "user", "content": "你好"}], decoding), decoding)


def load(model, **how):
    arguments = ModelArguments(str(model), **{name: str(v) if name == "peft_path" else v for name, v in how.items()})
    return load_for_inference(arguments, open_for_inference(arguments)[1])


@pytest.mark.parametrize("how", [{}, {"load_in_8bit": True}, {"load_in_4bit": True}, {"dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_base(model_dir, tmp_path, how, value):
    base = spoiled(model_dir, tmp_path / "base", UP, value)
    with pytest.raises(UserError, match=rf"base: model.safetensors: {UP} holds NaN or infinite values"):
        load(base, **how)


def test_a_base_in_several_files_and_a_reward_model(model_dir, judge, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    model.model.norm.weight.data[0] = float("inf")
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=r"base: model-0000\d-of-0000\d.safetensors: model.norm.weight holds"):
        load(tmp_path / "base")
    reward = ModelArguments(str(spoiled(judge, tmp_path / "reward", "score.weight")))
    with pytest.raises(UserError, match=r"reward: model.safetensors: score.weight holds"):
        load_for_inference(reward, open_for_inference(reward)[1], is_reward=True)


def test_what_float16_cannot_hold(model_dir, tmp_path):
    base = spoiled(model_dir, tmp_path / "base", UP, 1e6)
    assert load(base, dtype="float32")
    with pytest.raises(UserError, match=f"{UP} in float16 holds NaN or infinite values.*--dtype float32"):
        load(base, dtype="float16")


def test_sharded_weights_are_looked_at_in_their_files(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.is_deepspeed_zero3_enabled", lambda: True)
    base = ModelArguments(str(spoiled(model_dir, tmp_path / "base", UP)))
    with pytest.raises(UserError, match=f"model.safetensors: {UP}"):
        check_weights(tiny_model(64), base)
    monkeypatch.undo()
    with pytest.raises(UserError, match=f"model.safetensors: {UP}"):  # of which some are left on disk
        check_weights(tiny_model(64).to("meta"), base)
    monkeypatch.setenv("LOCAL_RANK", "1")  # the first process looks
    check_weights(tiny_model(64), base)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_looked_at_where_weights_cannot_be(model_dir, tmp_path, monkeypatch, zipped):
    good, bad = (shutil.copytree(model_dir, tmp_path / name) for name in ("good", "bad"))
    for folder in (good, bad):
        tensors = load_file(folder / "model.safetensors")
        if folder == bad:
            tensors[UP][3, 4] = float("nan")
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        torch.save({"state": float("nan")}, folder / "optimizer.bin")
    for how in ({"load_in_4bit": True}, {"load_in_8bit": True}, {}):
        with pytest.raises(UserError, match=f"bad: pytorch_model.bin: {UP} holds NaN or infinite values"):
            load(bad, **how)
        assert load(good, **how)
    monkeypatch.setattr("transformers.integrations.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(UserError, match=f"bad: pytorch_model.bin: {UP}"):
        check_weights(tiny_model(64), ModelArguments(str(bad)))
    check_weights(tiny_model(64), ModelArguments(str(good)))


def test_an_adapter(model_dir, adapter, tmp_path):
    with pytest.raises(UserError, match=f"--peft_path .*bad: adapter_model.safetensors: {Q} holds NaN or infinite"):
        load(model_dir, peft_path=spoiled(adapter, tmp_path / "bad", Q, float("inf")))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for name, key, value in (
        ("lora_alpha", "lora_alpha", "NaN"),
        ("lora_alpha", "lora_alpha", "1e999"),
        ("lora_alpha", "lora_alpha", "2e300"),
        ("alpha_pattern.q_proj", "alpha_pattern", '{"q_proj": -Infinity}'),
    ):
        folder = shutil.copytree(adapter, tmp_path / f"{name}{value[:2]}")
        text = json.dumps(settings | {key: "VALUE"}).replace('"VALUE"', value)
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match=f"adapter_config.json: {name} is no finite number"):
            read_adapter_config(str(folder))
    (tmp_path / "lora.json").write_text('{"lora_r": 4, "lora_alpha": Infinity, "lora_target_modules": "q_proj"}')
    with pytest.raises(UserError, match=r"lora.json: lora_alpha is no finite number"):
        read_lora_config(str(tmp_path / "lora.json"))


def test_weights_that_are_numbers_and_logits_that_are_not(script, model_dir, judge, tmp_path):
    """Nothing is written for such a row."""
    huge, reward = (enlarged(folder, tmp_path / name) for name, folder in (("huge", model_dir), ("reward", judge)))
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "你好", "response": "年龄"}])
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "今天天气很好，我们去吃药"}])
    choices = write_jsonl(tmp_path / "exam.jsonl", [{"question": "你好", "A": "好", "B": "不", "answer": "A"}])
    output = tmp_path / "out.jsonl"
    for name, model, path, flags in (
        ("evaluate.py", huge, rows, ["--eval_files", f"a={rows}", "--output_dir", tmp_path / "run"]),
        ("evaluate.py", huge, texts, ["--eval_files", f"a={texts}", "--output_dir", tmp_path / "run"]),
        ("evaluate.py", huge, choices, ["--eval_files", f"a={choices}", "--output_dir", tmp_path / "run"]),
        ("predict.py", huge, rows, ["--input_file", rows, "--output_file", output]),
        ("score.py", reward, rows, ["--input_file", rows, "--output_file", output, "--overwrite_output"]),
    ):
        flags += [] if name == "score.py" else ["--max_new_tokens", 4]
        code, _, err = script(name, "--model_name_or_path", model, "--dtype", "float32", *flags)
        assert code == 1 and f"{path}:1: the model's logits are not numbers" in err, err
        assert output.read_text() == "" if "--output_file" in flags else not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="base: the model's logits are not numbers"):
        list(ask(Engine(load(huge, dtype="float32"), [ChatModel("base", build_tokenizer())])))


def test_numbers_that_are_none_are_null_in_every_file(script, model_dir, tmp_path, monkeypatch):
    """A perplexity beyond the largest float, and what a row brings with it."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "你好", "response": "年龄", "weight": NaN}\n', encoding="utf-8")
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "今天天气很好，我们去吃药"}])
    flags = ["--model_name_or_path", model_dir, "--max_new_tokens", 4]
    code, _, err = script("predict.py", *flags, "--input_file", rows, "--output_file", tmp_path / "out" / "a.jsonl")
    assert code == 0, err
    assert json_files(tmp_path / "out")[tmp_path / "out" / "a.jsonl"][0]["weight"] is None
    monkeypatch.setattr("hf_recipes.evaluation.methods.perplexity.math.exp", lambda value: float("inf"))
    output = tmp_path / "evaluation"
    code, _, err = script("evaluate.py", *flags, "--eval_files", f"t={texts}", "--output_dir", output)
    assert code == 0, err
    assert json_files(output)[output / "metrics.json"]["model"]["t"]["perplexity"] is None
