"""scripts/merge_adapter.py: the merged weights are the sum, whatever was trained; nothing is lost or overwritten."""

import json
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from conftest import ROOT, build_tokenizer, tiny_model, weights, write_jsonl
from hf_recipes.core.files import lock_of
from hf_recipes.export import merge as merging
from hf_recipes.export.parity import ModelOutputs, compare, parity_prompts
from hf_recipes.models.embeddings import fit_embeddings

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FILES = {
    *("README.md", "chat_template.jinja", "config.json", "generation_config.json", "merge.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
}


def make_adapter(folder, base: str, tokenizer, seed: int = 0, task_type: str = "CAUSAL_LM", **settings) -> Path:
    """An adapter all of whose matrices are random, so that it changes what the model says."""
    kind = AutoModelForSequenceClassification if task_type == "SEQ_CLS" else AutoModelForCausalLM
    model = kind.from_pretrained(base, **({"num_labels": 1} if task_type == "SEQ_CLS" else {}))
    fit_embeddings(model, tokenizer)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ALL} | settings
    adapted = get_peft_model(model, LoraConfig(task_type=task_type, **settings))
    draw = torch.Generator().manual_seed(seed)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=draw) * 0.1
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


@pytest.fixture
def adapter(model_dir, tokenizer, tmp_path) -> Path:
    return make_adapter(tmp_path / "adapter", model_dir, tokenizer)


@pytest.fixture
def merge(script):
    return partial(script, "merge_adapter.py")


def update(folder: Path, name: str, scale: float = 2.0) -> torch.Tensor:
    tensors, key = load_file(folder / "adapter_model.safetensors"), f"base_model.model.{name}"
    return scale * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]


def test_the_update_is_added_and_parity_is_printed(merge, model_dir, adapter, tmp_path, tokenizer):
    out = tmp_path / "merged"
    code, text, err = merge("--model_name_or_path", model_dir, "--peft_path", adapter, "--output_dir", out)
    assert code == 0, err
    base, result, name = weights(model_dir), weights(out), "model.layers.1.mlp.down_proj"
    assert base.keys() == result.keys()
    assert torch.allclose(result[f"{name}.weight"], base[f"{name}.weight"] + update(adapter, name), atol=1e-7)
    assert torch.equal(result["model.norm.weight"], base["model.norm.weight"])

    record = json.loads((out / "merge.json").read_text(encoding="utf-8"))
    parity = record["parity"]
    assert parity["base_alone"] > 0.01 > 1e-4 > parity["logits"] and parity["logits"] <= parity["tolerance"]
    assert parity["greedy_tokens"] == {"same": 160, "of": 160}
    assert f"(float32)    {parity['logits']:.6f}" in text and "greedy tokens alike           160 of 160" in text
    assert record["adapters"][0]["name"] == "adapter" and record["base"]["name"] == "tiny"
    assert str(tmp_path) not in (out / "merge.json").read_text() + (out / "README.md").read_text()

    assert {path.name for path in out.iterdir()} == FILES
    loaded, ids = AutoModelForCausalLM.from_pretrained(out), torch.arange(3, 20)[None]
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), adapter)
    assert torch.allclose(loaded(ids).logits, expected(ids).logits, atol=1e-5)
    assert loaded.generation_config.eos_token_id == [2]
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    [code] = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    found: dict = {}
    exec(code.replace('"FOLDER"', json.dumps(str(out))), found)
    assert torch.equal(found["model"](ids).logits, loaded(ids).logits)


@pytest.mark.parametrize(("task_type", "mended"), [("CAUSAL_LM", {}), (None, {"do_sample": True})])
def test_generation_settings_stay_those_of_the_base(merge, script, tokenizer, tmp_path, task_type, mended):
    """All of them, with the tokenizer's eos; with PEFT's default task too, whose wrapper has no `generate`."""
    base, settings = tmp_path / "base", {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    settings |= {"max_new_tokens": 2048, "eos_token_id": [0, 5]} | ({} if mended else {"do_sample": True})
    tiny_model(len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    (base / "generation_config.json").write_text(json.dumps(settings))
    adapter = make_adapter(tmp_path / "adapter", str(base), tokenizer, task_type=task_type)
    code, _, err = merge("--peft_path", adapter, "--output_dir", tmp_path / "merged")
    assert code == 0, err
    kept = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert kept.pop("transformers_version") and kept == settings | mended | {"eos_token_id": [0, 2, 5]}

    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "你好", "response": "年龄"}])
    answers = []
    for model, flags in ((base, ["--peft_path", adapter]), (tmp_path / "merged", [])):
        output = tmp_path / f"out{len(answers)}.jsonl"
        how = ["--input_file", rows, "--output_file", output, "--max_new_tokens", 16, "--dtype", "float32"]
        code, _, err = script("predict.py", "--model_name_or_path", model, *flags, *how)
        assert code == 0, err
        answers.append(json.loads(output.read_text(encoding="utf-8"))["prediction"])
    assert answers[0] == answers[1] != ""


def test_the_second_call_changes_nothing_and_another_is_refused(merge, model_dir, adapter, tmp_path):
    out = tmp_path / "merged"
    flags = ["--model_name_or_path", model_dir, "--peft_path", adapter, "--output_dir", out]
    assert merge(*flags)[0] == 0
    stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    code, text, _ = merge(*flags)
    assert code == 0 and "done already; nothing is changed" in text
    code, _, err = merge(*flags, "--weights", 0.5, "--dtype", "bfloat16")
    assert code == 1 and "holds another merge (other adapters, dtype); nothing is overwritten" in err
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == stamps

    (out / "config.json").write_text("{}")
    code, _, err = merge(*flags)
    assert code == 1 and "was changed after it was written (config.json)" in err
    assert (out / "config.json").read_text() == "{}"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    code, _, err = merge(*flags[:-1], mine)
    assert code == 1 and "mine: the folder is not empty and holds no merged model" in err
    code, _, err = merge(*flags[:-1], mine / "notes.txt")
    assert code == 1 and "notes.txt: this is a file" in err
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_a_merge_waits_for_one_into_the_same_folder(merge, model_dir, adapter, tmp_path, monkeypatch):
    flags = ["--model_name_or_path", model_dir, "--peft_path", adapter, "--output_dir"]
    assert merge(*flags, tmp_path / "first")[0] == 0
    out, messages = tmp_path / "out", []
    lock = FileLock(lock_of(out))
    lock.acquire()

    def finish_the_other(message):
        messages.append(message)
        os.rename(tmp_path / "first", out)
        lock.release()

    monkeypatch.setattr("hf_recipes.core.files.say", finish_the_other)
    code, text, err = merge(*flags, out)
    assert code == 0 and messages == [f"{out}: another process makes it; waiting for its end"], err
    assert "out: this merge is done already; nothing is changed" in text


def test_the_base_is_the_one_that_the_adapter_names(merge, adapter, model_dir, tmp_path):
    code, text, _ = merge("--peft_path", adapter, "--output_dir", tmp_path / "merged")
    assert code == 0 and f"the base is {model_dir}" in text
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone"}))
    code, _, err = merge("--peft_path", adapter, "--output_dir", tmp_path / "other")
    assert code == 1 and "/gone: no such folder (the base that" in err and not (tmp_path / "other").exists()


def test_several_adapters_are_added_with_their_weights(merge, model_dir, tokenizer, tmp_path):
    """Ranks and targets may differ; the sum is that of PEFT's combination "cat"."""
    one = make_adapter(tmp_path / "one", model_dir, tokenizer, 1)
    two = make_adapter(tmp_path / "two", model_dir, tokenizer, 2, r=2, lora_alpha=2, target_modules=["q_proj"])
    out = tmp_path / "merged"
    code, _, err = merge("--peft_path", one, two, "--weights", 0.7, 0.3, "--output_dir", out)
    assert code == 0, err
    base, result = weights(model_dir), weights(out)
    query, gate = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate_proj"
    both = 0.7 * update(one, query) + 0.3 * update(two, query, 1.0)
    assert torch.allclose(result[f"{query}.weight"], base[f"{query}.weight"] + both, atol=1e-6)
    assert torch.allclose(result[f"{gate}.weight"], base[f"{gate}.weight"] + 0.7 * update(one, gate), atol=1e-6)
    cat = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), one, "one")
    cat.load_adapter(two, "two")
    cat.add_weighted_adapter(["one", "two"], [0.7, 0.3], "both", combination_type="cat")
    cat.set_adapter("both")
    ids = torch.arange(3, 20)[None]
    assert torch.allclose(AutoModelForCausalLM.from_pretrained(out)(ids).logits, cat(ids).logits, atol=1e-5)
    assert [entry["weight"] for entry in json.loads((out / "merge.json").read_text())["adapters"]] == [0.7, 0.3]


def grown(base: Path, tokenizer_tokens: list[str], tie: bool) -> tuple[str, object]:
    """A base, and a tokenizer with tokens that it lacks."""
    tokenizer = build_tokenizer()
    model = tiny_model(len(tokenizer))
    if not tie:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.02)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": tokenizer_tokens})
    return str(base), tokenizer


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("how", ["rows", "both", "input", "head", "lora", "rows, LoRA on the head"])
def test_embeddings_tied_and_not(merge, tmp_path, tie, how):
    """New tokens' rows, whole embeddings or LoRA on them: what was one weight stays one only where it still is."""
    base, tokenizer = grown(tmp_path / "base", ["<|a|>", "<|b|>"], tie)
    new = tokenizer.convert_tokens_to_ids(["<|a|>", "<|b|>"])
    rows = {"embed_tokens": new} if tie else {"embed_tokens": new, "lm_head": new}
    settings = {
        "rows": {"trainable_token_indices": rows},
        "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
        "input": {"modules_to_save": ["embed_tokens"]},
        "head": {"modules_to_save": ["lm_head"]},
        "lora": {"target_modules": ["embed_tokens", "q_proj"]},
        "rows, LoRA on the head": {
            "trainable_token_indices": {"embed_tokens": new},
            "target_modules": ["lm_head", "q_proj"],
        },
    }[how]
    adapter = make_adapter(tmp_path / "adapter", base, tokenizer, **settings)
    out = tmp_path / "merged"
    code, text, err = merge("--peft_path", adapter, "--output_dir", out)
    assert code == 0, err
    assert ("no longer one weight" in text) == (tie and how != "rows")
    stays_tied = tie and how == "rows"
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is stays_tied
    assert ("lm_head.weight" in weights(out)) is not stays_tied
    merged, own = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert own.convert_tokens_to_ids(["<|a|>", "<|b|>"]) == new
    assert merged.get_input_embeddings().num_embeddings == len(own) == new[-1] + 1
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fit_embeddings(plain, tokenizer)
    ids = torch.tensor([[5, new[0], 7, new[1], 9]])
    expected = PeftModel.from_pretrained(plain, adapter)
    assert torch.allclose(merged(ids).logits, expected(ids).logits, atol=1e-5)
    saved = load_file(adapter / "adapter_model.safetensors")
    if how == "rows":
        [key] = [name for name in saved if "embed_tokens" in name and "trainable_tokens_delta" in name]
        assert torch.equal(merged.get_input_embeddings().weight[new], saved[key])


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_dtype_and_shards_are_those_of_the_base(merge, tokenizer, tmp_path, stored):
    base = tmp_path / "base"
    tiny_model(len(tokenizer)).to(stored).save_pretrained(base, max_shard_size="20KB")
    tokenizer.save_pretrained(base)
    largest = max(path.stat().st_size for path in base.glob("*.safetensors"))
    adapter = make_adapter(tmp_path / "adapter", str(base), tokenizer)
    kind = str(stored).removeprefix("torch.")
    code, _, err = merge("--peft_path", adapter, "--output_dir", tmp_path / "merged")
    assert code == 0, err
    shards = sorted((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(shards) > 1 and max(path.stat().st_size for path in shards) <= largest * 1.1
    tensors = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    assert {tensor.dtype for tensor in tensors.values()} == {stored}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == kind
    name = "model.layers.0.mlp.up_proj"
    source = {k: v for path in base.glob("*.safetensors") for k, v in load_file(path).items()}
    exact = (source[f"{name}.weight"].float() + update(adapter, name)).to(stored)
    assert torch.equal(tensors[f"{name}.weight"], exact)  # added in float32, rounded once
    parity = json.loads((tmp_path / "merged" / "merge.json").read_text())["parity"]
    assert parity["merged"] < 1e-5 < parity["logits"] < parity["tolerance"]

    code, _, err = merge(
        *("--peft_path", adapter, "--output_dir", tmp_path / "wide"),
        *("--dtype", "float32", "--max_shard_size", "1GB"),
    )
    assert code == 0, err
    assert {tensor.dtype for tensor in weights(tmp_path / "wide").values()} == {torch.float32}
    code, _, err = merge("--peft_path", adapter, "--output_dir", tmp_path / "strict", "--tolerance", "1e-9")
    assert code == 1 and "beyond the tolerance of 1e-09" in err and "--dtype float32 does not round" in err
    assert not list(tmp_path.glob("strict*"))


def test_an_adapter_of_a_quantized_base(merge, model_dir, adapter, tmp_path):
    """A base that was quantized for the training is merged whole; one that is stored quantized is refused."""
    (adapter / "run_config.yaml").write_text("load_in_4bit: true\n")
    code, text, _ = merge("--peft_path", adapter, "--output_dir", tmp_path / "merged")
    assert code == 0 and "trained on the base in 4 bits; it is merged into the base's full weights" in text
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["quantized_in_training"] == "4 bits"
    assert "the base in 4 bits" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    stored = shutil.copytree(model_dir, tmp_path / "stored")
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (stored / "config.json").write_text(json.dumps(config))
    code, _, err = merge("--model_name_or_path", stored, "--peft_path", adapter, "--output_dir", tmp_path / "no")
    assert code == 1 and "stored quantized (bitsandbytes)" in err


def test_a_reward_adapter(merge, script, model_dir, tokenizer, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", model_dir, tokenizer, task_type="SEQ_CLS")
    code, text, err = merge("--peft_path", adapter, "--output_dir", tmp_path / "merged")
    assert code == 0, err
    assert "the largest difference of scores" in text and "greedy" not in text
    assert "AutoModelForSequenceClassification" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "你好", "chosen": "年龄", "rejected": "性别"}) + "\n", encoding="utf-8")
    found = []
    for name, flags in (("a", ["--peft_path", adapter]), ("b", [])):
        model = tmp_path / "merged" if name == "b" else model_dir
        code, _, err = script(
            *("score.py", "--model_name_or_path", model, *flags, "--input_file", rows, "--dtype", "float32"),
            *("--output_file", tmp_path / f"{name}.jsonl"),
        )
        assert code == 0, err
        found.append(re.findall(r"-?\d+\.\d+", (tmp_path / f"{name}.jsonl").read_text()))
    assert found[0] and [float(n) for n in found[0]] == pytest.approx([float(n) for n in found[1]], abs=1e-5)


def test_killed_in_the_middle(merge, model_dir, adapter, tmp_path, monkeypatch):
    """SIGKILL before the rename leaves nothing under the final name; the next call clears up and merges."""
    out = tmp_path / "merged"
    flags = ["--peft_path", adapter, "--output_dir", out]
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(merging.merge_record, "write_record", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        torch.set_num_threads(1)
        merging.merge(merging.MergeArguments([str(adapter)], str(out)))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    [left] = tmp_path.glob("merged*")
    assert left.name.startswith("merged.partial-") and (left / "model.safetensors").is_file()
    monkeypatch.undo()
    os.chdir(ROOT)
    assert merge(*flags)[0] == 0
    assert [path.name for path in tmp_path.glob("merged*")] == ["merged"]


def test_a_wrong_merge_is_not_kept(merge, adapter, tmp_path, monkeypatch):
    unload = merging.merge_weights.merge_and_unload

    def wrong(model, names):
        merged = unload(model, names)
        merged.model.layers[0].mlp.up_proj.weight.data[0] += 1
        return merged

    monkeypatch.setattr(merging.merge_weights, "merge_and_unload", wrong)
    code, _, err = merge("--peft_path", adapter, "--output_dir", tmp_path / "merged")
    assert code == 1 and "merging changes logits by" in err and not list(tmp_path.glob("merged*"))
    monkeypatch.undo()
    os.chdir(ROOT)
    cast = merging.merge_weights.cast

    def lossy(model, *rest):
        model.model.layers[1].self_attn.v_proj.weight.data *= 1.5
        return cast(model, *rest)

    monkeypatch.setattr(merging.merge_weights, "cast", lossy)
    code, _, err = merge("--peft_path", adapter, "--output_dir", tmp_path / "merged")
    assert code == 1 and "the merged model's logits differ" in err and not list(tmp_path.glob("merged*"))


def test_bad_input(merge, model_dir, bloom_dir, tokenizer, adapter, tmp_path):
    out = tmp_path / "out"

    def fails(message, *flags):
        code, _, err = merge(*flags, "--output_dir", out)
        assert code == 1 and message in err and "Traceback" not in err, err
        assert not list(tmp_path.glob("out*"))

    fails(
        "it has model.layers.0.mlp.down_proj, which this base lacks",
        "--peft_path",
        adapter,
        "--model_name_or_path",
        bloom_dir,
    )
    wide = tmp_path / "wide"
    config = tiny_model(len(tokenizer)).config
    config.intermediate_size = 48
    AutoModelForCausalLM.from_config(config).save_pretrained(wide)
    tokenizer.save_pretrained(wide)
    fails(
        "model.layers.0.mlp.down_proj, of size 64, where this base has 48 (lora_A.weight is [4, 64])",
        *("--peft_path", adapter, "--model_name_or_path", wide),
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    fails("this folder has no config.json", "--peft_path", adapter, "--model_name_or_path", empty)
    fails(
        "this folder has no config.json; it holds an adapter", "--peft_path", adapter, "--model_name_or_path", adapter
    )
    fails("this one has none", "--peft_path", empty)
    fails("holds a whole model, not an adapter", "--peft_path", model_dir)
    fails("--weights: 2 given for 1 adapters", "--peft_path", adapter, "--weights", 1, 2)
    fails("names one adapter twice", "--peft_path", adapter, adapter)
    fails("--dtype int8: expected auto", "--peft_path", adapter, "--dtype", "int8")
    fails("--max_shard_size big: expected a size", "--peft_path", adapter, "--max_shard_size", "big")
    whole = make_adapter(tmp_path / "whole", model_dir, tokenizer, modules_to_save=["lm_head"])
    fails("whole: it has modules_to_save, which can be neither weighted nor", "--peft_path", adapter, whole)
    dora = make_adapter(tmp_path / "dora", model_dir, tokenizer, use_dora=True)
    fails("dora: it has use_dora", "--peft_path", dora, "--weights", 0.5)
    more = build_tokenizer()
    more.add_tokens(["<|more|>"])
    other = make_adapter(tmp_path / "other", model_dir, more)
    fails("its tokenizer has other tokens than that of", "--peft_path", adapter, other)
    tensors = load_file(adapter / "adapter_model.safetensors")
    damaged = shutil.copytree(adapter, tmp_path / "nan")
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, damaged / "adapter_model.safetensors")
    fails("give logits that are not numbers", "--peft_path", damaged)

    assert merge("--peft_path", adapter, "--output_dir", tmp_path / "merged")[0] == 0
    fails("holds a merged model, with its adapter in it already", "--peft_path", tmp_path / "merged")
    fails(
        f"{adapter} is merged into this model already",
        *("--peft_path", adapter, "--model_name_or_path", tmp_path / "merged"),
    )


def test_differences_and_near_ties():
    rows = torch.tensor([[0.0, 1.0, 0.9], [2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
    one = ModelOutputs([[1, 0]], [rows])
    shifted = rows.clone()
    shifted[0, 2] += 0.15
    close = compare(one, ModelOutputs([[2, 0]], [shifted]))
    assert close.logits == pytest.approx(0.15) and close.same == 0 and close.gap == pytest.approx(0.1)
    assert close.within(0.2) and not close.within(0.1)
    other = compare(one, ModelOutputs([[1, 2]], [rows]))
    assert (other.logits, other.same, other.tokens, other.gap) == (0.0, 1, 2, 1.0) and not other.within(0.4)
    assert not compare(one, ModelOutputs([[1, 0]], [rows * float("nan")])).within(1e9)


def test_prompts_are_conversations_through_the_template_and_new_tokens(tokenizer):
    prompts = parity_prompts(tokenizer, [7, 8, 9])
    first = tokenizer.decode(prompts[0])
    assert first.startswith("<|im_start|>user\n你好") and first.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert prompts[-1] == [7, 8, 9] and len(prompts) == 6
