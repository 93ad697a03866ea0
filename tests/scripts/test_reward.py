"""scripts/reward.py on a tiny model; what every stage promises is in tests/stages/test_contract.py."""

import json

import pytest
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


@pytest.fixture
def reward(script, model_dir, tmp_path):
    def run(*flags, model=model_dir):
        return script("reward.py", "--model_name_or_path", model, *LEAN, "--output_dir", tmp_path / "run", *flags)

    return run


def test_a_run_scores_the_pairs_of_every_file(reward, tmp_path):
    files = ["--eval_files", f"more={ROOT}/datasets/preference/train.jsonl", "--save_scores", "true"]
    files += ["--train_sampling_strategy", "group_by_length"]
    code, out, err = reward(
        "--validation_split_percentage", "20", "--max_steps", "4", "--eval_steps", "2", "--eval_on_start", *files
    )
    assert code == 0, err
    run = tmp_path / "run"
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


def test_a_tokenizer_without_a_template_gets_plain_text(reward, model_dir, tmp_path):
    bare = tmp_path / "bare"
    tokenizer = build_tokenizer(chat_template=None)
    tokenizer.save_pretrained(bare)
    tiny_model(len(tokenizer)).save_pretrained(bare)
    code, out, err = reward("--max_steps", "1", model=bare)
    assert code == 0 and "no chat template; question and answer follow each other as plain text" in out, err
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert saved.apply_chat_template(conversation("一", "二"), tokenize=False) == "一\n二<|im_end|>"


def test_dry_run_and_what_cannot_be_used(reward, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_recipes.dry_run.advice.free_bytes", lambda: 1e6)
    code, out, err = reward("--dry_run", "--use_lora", "False", "--use_cpu")
    assert code == 0 and not (tmp_path / "run").exists(), err
    assert "pairs             40" in out and "activations" in out and "labelled" not in out
    assert "are needed and 1 MB are free: try " in out
    assert "--per_device_train_batch_size" not in out  # of which one pair at a time is in memory
    choices = ROOT / "datasets" / "eval" / "single_choice.jsonl"
    code, _, err = reward("--eval_files", f"exam={choices}")
    assert code == 1 and "--eval_files exam: single_choice is of a model that writes" in err
    code, _, err = reward("--eval_methods", "rouge")
    assert code == 1 and "--eval_methods rouge is of a model that writes" in err
    code, _, err = reward("--rewards", "length:1-5")
    assert code == 1 and "a reward model writes nothing" in err
    code, _, err = reward("--nll_prefix_token", "eos")
    assert code == 1 and "--nll_prefix_token is put before texts that nll scores" in err
    rows = [{"prompt": "一", "response": "二"}] * 3
    code, _, err = reward("--train_file", write_jsonl(tmp_path / "sft.jsonl", rows))
    assert code == 1 and "this stage learns from preference examples" in err
    code, _, err = reward("--initializer_range", "0")
    assert code == 1 and "--initializer_range 0: expected more than 0" in err


def test_pairs_to_evaluate_on_that_are_too_long_are_counted_with_what_keeps_them(reward, script, model_dir, tmp_path):
    rows = [{"prompt": "一", "chosen": "年龄" * (1 + number), "rejected": "药"} for number in range(100)]
    path = write_jsonl(tmp_path / "long.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = [[*conversation("一"), {"role": "assistant", "content": row["chosen"]}] for row in rows]
    lengths = [len(tokenizer.apply_chat_template(text)["input_ids"]) for text in texts]
    limit = lengths[49]
    expected = f"50 of 100 rows are longer than --max_length {limit}; {lengths[99]} keeps all, {lengths[98]} keeps 99 %"
    train = write_jsonl(tmp_path / "short.jsonl", rows[:10])
    flags = ["--train_file", train, "--eval_files", f"long={path}", "--max_length", limit, "--dry_run"]
    code, _, err = reward(*flags)
    assert code == 1 and "50 of 100 rows cannot be used, more than --max_drop_ratio 0.01 allows" in err
    assert expected in err
    code, out, err = reward(*flags, "--max_drop_ratio", 0.5)
    assert code == 0, err
    assert f"note: {path}: {expected}" in out
    flags = ["--model_name_or_path", model_dir, "--eval_files", f"long={path}", "--max_pair_length", limit]
    code, _, err = script("evaluate.py", *flags, "--output_dir", tmp_path / "out")
    assert code == 1 and expected.replace("--max_length", "--max_pair_length") in err


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


def test_under_accelerates_deepspeed_the_pairs_of_a_batch_pass_at_once(forks, model_dir, tmp_path):
    """Its engine makes an update of each backward pass, or refuses one without."""
    path = tmp_path / "zero2.json"
    path.write_text('{"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"}')
    launched = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
    launched |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    argv = ["--model_name_or_path", model_dir, *LEAN, "--per_device_train_batch_size", 4, "--dry_run"]
    run = forks.run(*argv, "--output_dir", tmp_path / "run", script="scripts/reward.py", **launched)
    assert run.code == 0, run.err
    assert "largest batch (8 × " in run.out
