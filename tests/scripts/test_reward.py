"""scripts/reward.py as a user runs it, on a tiny model; the rows of the scorecard that its own loss and data touch."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from conftest import ROOT, build_tokenizer, conversation, same, tiny_model, weights, write_jsonl

SAMPLES = ROOT / "datasets" / "preference" / "reviews.jsonl"
LEAN = (
    "--report_to",
    "none",
    "--learning_rate",
    "1e-2",
    "--logging_steps",
    "1",
    "--bf16",
    "False",
    "--train_file",
    SAMPLES,
)
SCRIPT = {"script": "scripts/reward.py"}


@pytest.fixture
def reward(script, model_dir, tmp_path):
    def run(*flags, model=model_dir):
        return script("reward.py", "--model_name_or_path", model, *LEAN, "--output_dir", tmp_path / "run", *flags)

    return run


@pytest.fixture
def settings(model_dir):
    return ["--model_name_or_path", model_dir, *LEAN]


def test_a_run_leaves_the_whole_folder_and_can_be_repeated(reward, model_dir, tmp_path):
    files = ["--eval_files", f"more={ROOT}/datasets/preference/train.jsonl", "--save_scores", "true"]
    files += ["--train_sampling_strategy", "group_by_length"]
    code, out, err = reward(
        "--validation_split_percentage", "20", "--max_steps", "4", "--eval_steps", "2", "--eval_on_start", *files
    )
    assert code == 0, err
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "adapter_model.safetensors",
        "tokenizer.json",
        "run_config.yaml",
        "data_ledger.json",
        "metrics.json",
    }
    assert names >= {"curves.png", "README.md", "checkpoint-4"}
    assert any(name.endswith("score.weight") for name in weights(run))
    metrics = json.loads((run / "metrics.json").read_text())
    for when in ("before", "after"):
        for name in ("", "more_", "train_"):
            keys = ("accuracy", "loss", "difference_mean", "difference_std")
            assert metrics[when].keys() >= {f"{name}{key}" for key in keys}
    assert metrics["before"]["loss"] == pytest.approx(0.6931, abs=0.01)  # a small head: log 2
    assert metrics["after"]["train_loss"] < metrics["before"]["train_loss"]
    for name, count in (("", 8), ("more", 81), ("train", 32)):
        folder = run / "predictions" / name
        rows = [json.loads(line) for line in (folder / "step-4.jsonl").read_text().splitlines()]
        assert len(rows) == count and all(r["difference"] == r["chosen"] - r["rejected"] for r in rows)
        assert (folder / "differences.png").read_bytes()[:4] == b"\x89PNG"
    card = (run / "README.md").read_text()
    assert "Reward model: LoRA adapter of `tiny`" in card and "奖励模型：`tiny` 的 LoRA 适配器" in card
    assert "4 steps on 32 pairs of reviews.jsonl" in card and "difference mean" in out

    code, _, err = reward("--config", run / "run_config.yaml", "--output_dir", tmp_path / "again")
    assert code == 0, err
    assert same(weights(run), weights(tmp_path / "again"))


def test_a_tokenizer_without_a_template_gets_plain_text(reward, model_dir, tmp_path):
    bare = tmp_path / "bare"
    tokenizer = build_tokenizer(chat_template=None)
    tokenizer.save_pretrained(bare)
    tiny_model(len(tokenizer)).save_pretrained(bare)
    code, out, err = reward("--max_steps", "1", model=bare)
    assert code == 0 and "no chat template; question and answer follow each other as plain text" in out, err
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert saved.apply_chat_template(conversation("一", "二"), tokenize=False) == "一\n二<|im_end|>"


def test_dry_run_and_what_cannot_be_used(reward, tmp_path):
    code, out, err = reward("--dry_run", "--use_lora", "False")
    assert code == 0 and not (tmp_path / "run").exists(), err
    assert "pairs             40" in out and "activations" in out and "labelled" not in out
    choices = ROOT / "datasets" / "eval" / "single_choice.jsonl"
    code, _, err = reward("--eval_files", f"exam={choices}")
    assert code == 1 and "--eval_files exam: single_choice is of a model that writes" in err
    code, _, err = reward("--eval_methods", "rouge")
    assert code == 1 and "--eval_methods rouge is of a model that writes" in err
    rows = [{"prompt": "一", "response": "二"}] * 3
    code, _, err = reward("--train_file", write_jsonl(tmp_path / "sft.jsonl", rows))
    assert code == 1 and "this stage learns from preference examples" in err
    code, _, err = reward("--initializer_range", "0")
    assert code == 1 and "--initializer_range 0: expected more than 0" in err


def test_an_adapter_of_another_stage_is_named(reward, script, model_dir, pairs, tmp_path):
    where = ("--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--report_to", "none")
    assert script("sft.py", *where, "--max_steps", 1, "--output_dir", tmp_path / "sft")[0] == 0
    code, _, err = reward("--peft_path", tmp_path / "sft")
    assert code == 1 and "an adapter for CAUSAL_LM; this stage continues one for SEQ_CLS" in err
    assert reward("--max_steps", 1)[0] == 0
    code, _, err = script("sft.py", *where, "--peft_path", tmp_path / "run", "--output_dir", tmp_path / "two")
    assert code == 1 and "a reward model's adapter; this stage continues one for CAUSAL_LM" in err
    code, _, err = reward(
        "--peft_path", tmp_path / "run", "--output_dir", tmp_path / "more", "--max_steps", 1, "--learning_rate", 0
    )
    assert code == 0, err
    assert same(weights(tmp_path / "run"), weights(tmp_path / "more"))


@pytest.mark.parametrize("flag", ["--load_in_4bit", "--load_in_8bit"])
def test_a_quantized_base(reward, tmp_path, flag):
    code, _, err = reward("--max_steps", 2, flag, "true")
    assert code == 0, err
    head = next(value for name, value in weights(tmp_path / "run").items() if name.endswith("score.weight"))
    assert head.dtype == torch.float32


def test_row_04_a_killed_run_goes_on_to_the_same_weights(forks, settings, tmp_path):
    argv = [*settings, "--max_steps", 8, "--save_steps", 3, "--per_device_train_batch_size", 3]
    argv += ["--gradient_accumulation_steps", 2]
    whole = forks.run(*argv, "--output_dir", tmp_path / "whole", **SCRIPT)
    assert whole.code == 0, whole.err
    run = forks.start(*argv, "--output_dir", tmp_path / "run", **SCRIPT)
    run.wait_for("step 5/8")
    run.signal()
    run.wait()
    run = forks.run(*argv, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "true", **SCRIPT)
    assert run.code == 0 and "going on from" in run.out, run.err
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_row_09_an_update_that_is_not_finite_names_its_pairs(forks, settings, tmp_path):
    spoil = """
from hf_recipes.stages import reward
compute = reward.Trainer.compute_loss
def spoiled(self, model, inputs, *args, **kwargs):
    loss = compute(self, model, inputs, *args, **kwargs)
    return loss * float("nan") if 16 in inputs["row"].tolist() else loss
reward.Trainer.compute_loss = spoiled
"""
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 4, "--max_steps", 10]
    run = forks.run(*argv, before=spoil, **SCRIPT)
    assert run.code == 0, run.err
    [line] = [line for line in run.out.splitlines() if "not finite" in line]
    assert "reviews.jsonl:17" in line and line.count("reviews.jsonl:") == 4
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


@pytest.mark.parametrize("world", [1, 2])
def test_row_10_accumulation_is_the_same_as_a_larger_batch(forks, settings, tmp_path, world):
    """40 pairs in batches of 16: the last of an epoch is shorter, and over two processes of uneven length."""
    found = {}
    for size, accumulation in ((16 // world, 1), (2, 8 // world)):
        output = tmp_path / str(size)
        argv = [*settings, "--output_dir", output, "--gradient_accumulation_steps", accumulation, "--max_steps", 5]
        argv += ["--optim", "sgd", "--use_lora", "False", "--per_device_train_batch_size", size]
        argv += ["--center_rewards_coefficient", 0.01, "--initializer_range", 0.5, "--max_train_samples", 37]
        run = forks.run(*argv, world=world, **SCRIPT)
        assert run.code == 0, run.err
        found[size] = weights(output), run.losses()
    (one, losses), (other, others) = found.values()
    assert losses == pytest.approx(others, abs=2e-4)  # as printed, with four digits
    assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)


def test_two_processes_learn_what_one_does(forks, settings, tmp_path):
    """37 pairs come out uneven: the filler of the last batch is in no loss."""
    found = {}
    for world in (1, 2):
        argv = [*settings, "--output_dir", tmp_path / str(world), "--per_device_train_batch_size", 8 // world]
        argv += ["--optim", "sgd", "--use_lora", "False", "--num_train_epochs", 1, "--max_train_samples", 37]
        argv += ["--validation_file", SAMPLES, "--initializer_range", 0.5]
        run = forks.run(*argv, world=world, **SCRIPT)
        assert run.code == 0, run.err
        metrics = json.loads((tmp_path / str(world) / "metrics.json").read_text())
        found[world] = metrics["train"]["tokens"], metrics["after"]["pairs"], weights(tmp_path / str(world))
    assert found[1][:2] == found[2][:2] and found[1][1] == 40
    assert all(torch.allclose(found[1][2][key], found[2][2][key], atol=1e-4) for key in found[1][2])


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["True", "False"])
def test_row_17_zero_3_saves_the_whole_model(forks, settings, tmp_path, lora):
    argv = [*settings, "--output_dir", tmp_path / "run", "--max_steps", 2, "--use_lora", lora]
    run = forks.run(*argv, "--deepspeed", "configs/deepspeed/zero3.json", world=2, **SCRIPT)
    assert run.code == 0, run.err
    head = next(value for name, value in weights(tmp_path / "run").items() if name.endswith("score.weight"))
    assert head.shape == (1, 32) and head.float().std() > 0
