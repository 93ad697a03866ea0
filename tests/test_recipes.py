"""The recipes to start from, with a tiny model and the rows that each is for."""

import json

import pytest
import yaml

from conftest import ROOT, write_jsonl

QUESTIONS = [f"第{number}问：天气怎么样？" for number in range(12)]
ROWS = {
    "train.jsonl": [{"instruction": text, "output": "很好。"} for text in QUESTIONS],
    "pairs.jsonl": [{"prompt": text, "chosen": "很好。", "rejected": "不知道。"} for text in QUESTIONS],
    "rated.jsonl": [
        {"instruction": text, "output": "很好。", "like_count": 20 * (number % 2)}
        for number, text in enumerate(QUESTIONS)
    ],
    "prompts.jsonl": [{"input": text, "target": "好", "answer_choices": ["好", "不好"]} for text in QUESTIONS],
    "corpus": [{"text": text * 40} for text in QUESTIONS],
}
# One update of a few rows, on a processor.
SMALL = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 2,
    "save_steps": 1,
    "eval_steps": 1,
    "report_to": "none",
    "bf16": "false",
    "use_cpu": "true",
}
RECIPES = (
    *("sft_lora", "sft_qlora_8gb", "sft_full_zero3", "pretrain_continue", "pretrain_scratch"),
    *("reward", "dpo", "kto", "grpo"),
)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name, script, forks, model_dir, tokens_only, tmp_path, monkeypatch):
    path = ROOT / "configs" / "recipes" / f"{name}.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    rows = recipe["train_file"]
    write_jsonl(tmp_path / (rows if rows.endswith("l") else f"{rows}/rows.jsonl"), ROWS[rows])
    flags = {**SMALL, "output_dir": "run"}
    if "config_name" in recipe:
        flags |= {"tokenizer_name": tokens_only, "config_name": model_dir, "lr_scheduler_type": "constant"}
        flags |= {"lr_scheduler_kwargs": "{}", "warmup_steps": 0}
    else:
        flags["model_name_or_path"] = model_dir
    if "validation_split_percentage" in recipe:
        flags["validation_split_percentage"] = 25
    if "block_size" in recipe:
        flags["block_size"] = 32
    if name == "grpo":
        flags |= {"num_generations": 2, "max_completion_length": 4, "generation_batch_size": 2}
    if "optim" in recipe:
        flags["optim"] = "adamw_torch"
    if "validation_split_percentage" not in recipe:
        del flags["eval_steps"]
    argv = ["--config", path, *(item for key, value in flags.items() for item in (f"--{key}", value))]
    if "deepspeed" in recipe:
        run = forks.run(*argv, "--train_file", tmp_path / rows, "--output_dir", tmp_path / "run", "--dry_run")
        assert run.code == 0, run.err
        return
    code, _, err = script(f"{name.partition('_')[0]}.py", *argv)
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
