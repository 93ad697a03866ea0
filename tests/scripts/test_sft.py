"""scripts/sft.py as a user runs it, on a tiny model."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from conftest import ROOT, build_tokenizer, same, weights, write_jsonl

STEPS = ["--report_to", "none", "--per_device_train_batch_size", "4", "--logging_steps", "1", "--learning_rate", "1e-2"]


def flags(model_dir, data, output, *more):
    return [
        "--model_name_or_path",
        model_dir,
        "--train_file",
        data / "train.json",
        "--output_dir",
        output,
        *STEPS,
        *more,
    ]


def log_history(output) -> list[dict]:
    checkpoint = max(Path(output).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]


def test_a_run_leaves_its_figures_answers_and_card(sft, model_dir, pairs, tmp_path):
    output = tmp_path / "run"
    validation = ["--validation_file", pairs / "dev.json", "--eval_on_start", "--max_target_length", "8"]
    code, out, err = sft(*flags(model_dir, pairs, output, "--max_steps", "6", "--eval_steps", "3", *validation))
    assert code == 0, err
    names = {path.name for path in output.iterdir()}
    assert names >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "run_config.yaml",
        "data_ledger.json",
        "metrics.json",
        "curves.png",
        "README.md",
        "predictions",
        "checkpoint-6",
    }
    assert not any(name.endswith((".bin", ".pt", ".partial")) for name in names) and ".saving" not in names
    assert (output / "curves.png").read_bytes()[:4] == b"\x89PNG"
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert all(entry.pop("memory") > 0 and entry.pop("time") > 0 for entry in log)
    saved = log_history(output)
    assert log[: len(saved)] == saved and [entry["step"] for entry in log][-1] == 6

    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["steps"] == 6
    for when in ("before", "after"):
        assert metrics[when].keys() >= {
            "loss",
            "accuracy",
            "rouge1",
            "rouge2",
            "rougeL",
            "bleu4",
            "mean_token_accuracy",
        }
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    assert sorted(path.name for path in (output / "predictions").iterdir()) == [f"step-{n}.jsonl" for n in (0, 3, 6)]
    rows = [json.loads(line) for line in (output / "predictions" / "step-6.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and rows[0].keys() >= {"location", "question", "reference", "prediction"}

    ledger = json.loads((output / "data_ledger.json").read_text())
    assert ledger["train"]["total"] == {"read": 40, "kept": 40} and ledger["validation"]["total"]["kept"] == 8
    assert "base" in out and "adapted" in out and "reference" in out and str(output) in out
    card = (output / "README.md").read_text()
    assert "library_name: peft" in card and "`tiny` 的 LoRA 适配器，用 hf_recipes 训练 6 步" in card


def test_the_model_card_loads_the_adapter(sft, model_dir, pairs, tmp_path, monkeypatch):
    output = tmp_path / "run"
    assert sft(*flags(model_dir, pairs, output, "--max_steps", "1"))[0] == 0
    code = (output / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(output))
    assert 'base = "tiny"' in code
    scope: dict = {}
    exec(code.replace('"tiny"', repr(model_dir)), scope)
    assert scope["tokenizer"].chat_template and scope["model"].peft_config


@pytest.mark.parametrize("use_lora", ["True", "False"])
def test_generation_stops_where_the_template_ends_a_turn(sft, model_dir, pairs, tmp_path, use_lora):
    """Base models often have another eos than their template's end of turn, such as Qwen's <|endoftext|>."""
    base, output = shutil.copytree(model_dir, tmp_path / "base"), tmp_path / "run"
    build_tokenizer(eos_token="<|endoftext|>").save_pretrained(base)
    (base / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert sft(*flags(base, pairs, output, "--max_steps", "1", "--use_lora", use_lora))[0] == 0
    code = (output / "README.md").read_text().split("```python\n")[1]
    if use_lora == "False":
        assert json.loads((output / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
        assert "stops" not in code
    else:  # the base's settings are not the adapter's
        assert 'stops = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])' in code
        assert "eos_token_id=stops" in code


def test_loss_is_the_mean_over_answer_tokens(sft, model_dir, pairs, tmp_path, tokenizer):
    """The logged evaluation loss is the sum over all labelled tokens over their number, whatever the batches."""
    from transformers import AutoModelForCausalLM

    from hf_recipes.data.chat.encoder import ChatEncoder
    from hf_recipes.data.examples import load_examples

    write_jsonl(pairs / "dev.json", [{"input": "问" * n, "target": "答" * n} for n in (1, 2, 9, 30, 3)])
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    total = count = 0
    for row in ChatEncoder(tokenizer).encode(load_examples([str(pairs / "dev.json")])["messages"][:]):
        ids, labels = (torch.tensor(part[None], dtype=torch.long) for part in (row.input_ids, row.labels))
        number = int((labels != -100).sum())
        total, count = total + model(ids, labels=labels).loss.item() * number, count + number
    for size in (1, 2, 5):
        output = tmp_path / f"run{size}"
        more = ["--validation_file", pairs / "dev.json", "--eval_on_start", "--per_device_eval_batch_size", size]
        more += ["--max_new_tokens", 1]
        assert (
            sft(*flags(model_dir, pairs, output, "--max_steps", 1, "--bf16", "False", "--dtype", "float32", *more))[0]
            == 0
        )
        loss = json.loads((output / "metrics.json").read_text())["before"]["loss"]
        assert loss == pytest.approx(total / count, abs=1e-5)


def test_all_weights_are_trained_without_lora(sft, model_dir, pairs, tmp_path):
    output = tmp_path / "run"
    base = shutil.copytree(model_dir, tmp_path / "base")
    settings = {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 2048, "eos_token_id": [0], "pad_token_id": 0}
    (base / "generation_config.json").write_text(json.dumps(settings))
    more = ["--max_steps", "2", "--use_lora", "False", "--save_steps", "1", "--eval_steps", "1"]
    more += ["--max_new_tokens", "4", "--validation_file", pairs / "dev.json"]
    code, out, err = sft(*flags(base, pairs, output, *more))
    assert code == 0 and out.count("do_sample becomes true, which temperature, top_p need") == 1, err
    for folder in (output, output / "checkpoint-1", output / "checkpoint-2"):  # no evaluation's settings among them
        saved = json.loads((folder / "generation_config.json").read_text())
        assert saved.pop("transformers_version") and saved == {**settings, "do_sample": True, "eos_token_id": [0, 2]}
    before, after = weights(model_dir), weights(output)
    assert before.keys() == after.keys() and after["model.norm.weight"].dtype == torch.float32
    assert not any(torch.equal(before[key].float(), after[key].float()) for key in before)


def test_lora_moves_the_adapter_and_leaves_the_base(model_dir, pairs, tmp_path):
    from stage_runs import trainer_of

    from hf_recipes.models.arguments import ModelArguments
    from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
    from hf_recipes.run.model import build_model
    from hf_recipes.stages.sft import STAGE, SFTArguments

    args = SFTArguments(output_dir=str(tmp_path), report_to="none", max_steps=2, learning_rate=1e-2, save_strategy="no")
    tokenizer, added = load_tokenizer(model_dir)
    model = build_model(ModelArguments(model_dir), args, tokenizer, added)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer_of(STAGE, args, pairs / "train.json", tokenizer, model)[0].train()
    for name, weight in model.named_parameters():
        assert torch.equal(before[name], weight) is ("lora_" not in name), name


def test_going_on_from_an_adapter(sft, model_dir, pairs, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert sft(*flags(model_dir, pairs, first, "--max_steps", "2"))[0] == 0
    assert (
        sft(*flags(model_dir, pairs, second, "--max_steps", "1", "--peft_path", first, "--learning_rate", "0"))[0] == 0
    )
    assert same(weights(first), weights(second))
    lora = tmp_path / "lora.json"
    lora.write_text('{"lora_r": 4, "lora_target_modules": "all-linear"}')
    more = ["--peft_path", first, "--lora_config", lora]
    code, _, err = sft(*flags(model_dir, pairs, tmp_path / "third", *more))
    assert code == 1 and "was trained with r 8" in err and "says 4" in err


def test_a_templates_new_tokens_go_with_the_adapter(sft, model_dir, pairs, tmp_path):
    """GLM's tokens are new to the tokenizer: trained, saved, and there for whoever goes on from the adapter."""
    first, second = tmp_path / "first", tmp_path / "second"
    code, out, err = sft(*flags(model_dir, pairs, first, "--max_steps", "2", "--chat_template", "glm"))
    assert code == 0, err
    assert "added the special tokens [gMASK] <sop>" in out and "embeddings grown from" in out
    assert any("trainable_tokens_delta" in name for name in weights(first))
    code, _, err = sft(
        *flags(model_dir, pairs, second, "--max_steps", "1", "--peft_path", first, "--learning_rate", "0")
    )
    assert code == 0, err
    assert same(weights(first), weights(second))
    more = ["--peft_path", first, "--chat_template", "baichuan"]
    code, _, err = sft(*flags(model_dir, pairs, tmp_path / "third", *more))
    assert code == 1 and "tokens that it was not trained with (<reserved_106> <reserved_107>)" in err


def test_held_out_rows_are_not_trained_on(sft, model_dir, pairs, tmp_path):
    output = tmp_path / "run"
    more = [
        "--validation_split_percentage",
        "20",
        "--max_train_samples",
        "16",
        "--max_eval_samples",
        "4",
        "--max_steps",
        "1",
    ]
    code, out, _ = sft(*flags(model_dir, pairs, output, *more))
    assert code == 0 and "held out 8 of 40 rows" in out
    ledger = json.loads((output / "data_ledger.json").read_text())
    assert ledger["train"]["total"]["read"] == 16 and ledger["validation"]["total"]["read"] == 4


def test_a_few_bad_rows_are_counted_and_the_rest_is_trained_on(sft, model_dir, pairs, tmp_path):
    with open(pairs / "train.json", "a", encoding="utf-8") as file:
        file.write('{"input": "问", "target": ""}\nnot json\n')
    more = ["--max_drop_ratio", "0.1", "--max_steps", "1"]
    code, out, _ = sft(*flags(model_dir, pairs, tmp_path / "run", *more))
    assert code == 0 and "dropped: empty answer (first at line 41)" in out
    ledger = json.loads((tmp_path / "run" / "data_ledger.json").read_text())["train"]
    assert ledger["total"] == {"read": 42, "kept": 40, "dropped": 2}
    assert ledger["reasons"][1]["first"] == [f"{pairs}/train.json:42"]


def test_gb18030_is_read_and_said(sft, model_dir, pairs, tmp_path):
    text = (pairs / "train.json").read_text(encoding="utf-8")
    (pairs / "train.json").write_bytes(text.encode("gb18030"))
    code, out, _ = sft(*flags(model_dir, pairs, tmp_path / "run", "--max_steps", "1"))
    assert code == 0 and "GB18030 text" in out


COMMAND = """--model_name_or_path M --use_lora True --train_file D/train.json --validation_file D/dev.json --cache_dir C
--prompt_column input --response_column target --output_dir O --overwrite_output_dir --max_source_length 512
--max_target_length 64 --per_device_train_batch_size 4 --per_device_eval_batch_size 4 --gradient_accumulation_steps 16
--max_steps 10000 --logging_steps 10 --save_steps 300 --learning_rate 2e-4 --lora_config configs/lora_chatglm.json"""


@pytest.mark.parametrize("torchrun", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_command_of_the_readme_over_four_processes(forks, model_dir, pairs, tmp_path, torchrun):
    """As it stands, with fewer steps, and a LoRA file for the tiny model's family."""
    names = {"M": model_dir, "D/train.json": str(pairs / "train.json"), "D/dev.json": str(pairs / "dev.json")}
    names |= {"C": str(tmp_path / "cache"), "O": str(tmp_path / "run"), "10000": "2"}
    names["configs/lora_chatglm.json"] = "configs/lora_qwen.json"
    argv = [names.get(word, word) for word in COMMAND.split()]
    if torchrun:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [*launcher, "scripts/sft.py", *argv]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        out = done.stdout
    else:
        run = forks.run(*argv, world=4)
        assert run.code == 0, run.err
        out = run.out
    output = tmp_path / "run"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["steps"] == 2 and metrics["after"].keys() >= {"accuracy", "rougeL", "loss"}
    rows = (output / "predictions" / "step-2.jsonl").read_text().splitlines()
    assert len(rows) == 8 and len(set(rows)) == 8
    settings = yaml.safe_load((output / "run_config.yaml").read_text())
    assert settings["gradient_accumulation_steps"] == 16
    assert out.count("schema prompt_response (input → target)") == 2


def test_new_tokens_are_trained_where_zero_3_splits_their_embeddings(forks, model_dir, pairs, tmp_path):
    """To the same rows as without; PEFT's own way to them needs CUDA."""
    more = ["--max_steps", "1", "--chat_template", "glm", "--bf16", "False"]
    alone = forks.run(*flags(model_dir, pairs, tmp_path / "alone", *more))
    assert alone.code == 0, alone.err
    split = [*more, "--per_device_train_batch_size", "2", "--deepspeed", "configs/deepspeed/zero3.json"]
    run = forks.run(*flags(model_dir, pairs, tmp_path / "run", *split), world=2)
    assert run.code == 0, run.err
    expected, found = weights(tmp_path / "alone"), weights(tmp_path / "run")
    # What is not trained of the embeddings PEFT saves as well, where it has them whole.
    assert found.keys() == {name for name in expected if "base_layer" not in name}
    rows = [name for name in found if "trainable_tokens_delta" in name]
    assert rows and all(torch.allclose(expected[name], found[name], atol=1e-5) for name in rows)
    assert run.losses() == alone.losses()


def test_a_mixture_of_entries_has_its_figures_by_source(sft, model_dir, pairs, tmp_path):
    columns = {"prompt": "input", "response": "target"}
    entries = {
        "most": {"file_name": "train.json", "columns": columns},
        "few": {"file_name": "dev.json", "columns": columns},
    }
    (pairs / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    for number, stream in enumerate((["--max_train_samples", "30"], ["--streaming", "True"])):
        output = tmp_path / f"run{number}"
        command = [*("--model_name_or_path", model_dir, "--output_dir", output), *STEPS, "--max_steps", "3"]
        code, out, err = sft(*command, "--dataset", "most,few", "--dataset_dir", pairs, *stream)
        assert code == 0, err
        sources = json.loads((output / "metrics.json").read_text())["train"]["sources"]
        assert list(sources) == ["most", "few"]
        for name, figures in sources.items():
            logged = [entry for entry in log_history(output) if f"loss_{name}" in entry]
            assert figures["items"] == sum(entry[f"items_{name}"] for entry in logged) > 0
        assert sum(figures["realised"] for figures in sources.values()) == pytest.approx(1)
    record = yaml.safe_load((output / "run_config.yaml").read_text(encoding="utf-8"))
    assert (record["dataset"], record["streaming"], record["train_file"]) == ("most,few", True, None)
    code, out, err = sft(
        "--config", output / "run_config.yaml", "--output_dir", output, "--resume_from_checkpoint", "True"
    )
    assert code == 0 and "all 3 steps were trained before" in out, err
    code, out, _ = sft("--config", output / "run_config.yaml", "--output_dir", tmp_path / "dry", "--dry_run", "True")
    assert code == 0 and re.search(r"^rows +12$", out, re.MULTILINE)


def test_settings_of_an_adapter_are_read_first(sft, model_dir, tmp_path):
    """Before the data, which is none; with the byte order mark of Windows editors."""
    path, run = tmp_path / "lora.json", tmp_path / "run"
    (tmp_path / "none.json").write_text("[")
    flags = ("--model_name_or_path", model_dir, "--train_file", tmp_path / "none.json", "--output_dir", run)
    for text, message in (
        ('{"r": 4', f"--lora_config {path}: not JSON"),
        ('{"rr": 4}', "unknown key 'rr'"),
        ('{"r": 4}', "none.json"),
    ):
        path.write_text(text, encoding="utf-8-sig")
        code, _, err = sft(*flags, "--lora_config", path, "--dry_run")
        assert code == 1 and message in err, err
