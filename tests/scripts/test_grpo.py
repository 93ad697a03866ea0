"""scripts/grpo.py as a user runs it, on a tiny model."""

import json

import pytest
import torch

from conftest import same, weights, write_jsonl

SCRIPT = {"script": "scripts/grpo.py"}


@pytest.fixture
def asked(tmp_path):
    rows = [
        {"prompt": f"标准{number}：属于年龄还是性别？", "response": ("年龄", "性别")[number % 2], "level": number}
        for number in range(6)
    ]
    return write_jsonl(tmp_path / "asked.jsonl", rows)


@pytest.fixture
def settings(model_dir, asked):
    return f"""--model_name_or_path {model_dir} --train_file {asked} --rewards chinese length:2-8=0.5 --bf16 False
    --report_to none --learning_rate 1e-2 --logging_steps 1 --num_generations 4 --per_device_train_batch_size 8
    --max_completion_length 8""".split()


@pytest.fixture
def grpo(script, settings, tmp_path):
    return lambda *flags: script("grpo.py", *settings, "--output_dir", tmp_path / "run", *flags)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_answers_that_are_all_cut_teach_nothing(grpo, algorithm):
    flags = ("--max_completion_length", 1, "--max_steps", 1, "--algorithm", algorithm, "--save_strategy", "no")
    code, out, err = grpo(*flags, "--mask_truncated_completions", True)
    assert code == 0, err
    why = "every answer is cut at --max_completion_length 1; raise it, or leave --mask_truncated_completions out"
    assert f"step 1: nothing is learned: {why}" in out and f"nothing was learned in any step: {why}" in out


def test_answers_of_the_same_reward_teach_nothing(grpo):
    code, out, err = grpo("--rewards", "format:never", "--max_steps", 1, "--save_strategy", "no")
    assert code == 0, err
    assert "nothing was learned in any step: all answers to each question have the same reward" in out


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_run_tells_of_its_answers_and_their_rewards(grpo, script, asked, judge, tmp_path, algorithm):
    code, out, err = grpo(
        *("--algorithm", algorithm, "--reward_model", judge, "--rewards", "model", "chinese=0.5", "rouge=2"),
        *("--validation_file", asked, "--eval_files", f"more={asked}"),
        *("--max_steps", 4, "--eval_steps", 2, "--eval_on_start", "--report_to", "tensorboard"),
    )
    assert code == 0, err
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    keys = ("reward", "rewards/model", "rewards/chinese", "rewards/rouge", "rewards/model_positive", "rougeL")
    for when in ("before", "after"):
        assert metrics[when].keys() >= {*keys, *(f"more_{key}" for key in keys)}
    rows = [json.loads(line) for line in (run / "predictions" / "step-4.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        parts = row["rewards"]
        assert row["reward"] == pytest.approx(parts["model"] + 0.5 * parts["chinese"] + 2 * parts["rouge"])
    assert metrics["after"]["reward"] == pytest.approx(sum(row["reward"] for row in rows) / 6)

    for step in range(1, 5):
        rows = [json.loads(line) for line in (run / "samples" / f"step-{step}.jsonl").read_text().splitlines()]
        assert len(rows) == 8 and {row["step"] for row in rows} == {step}
        for location in {row["location"] for row in rows}:  # an answer is better or worse than the others of its prompt
            group = [row for row in rows if row["location"] == location]
            assert len(group) == 4 and sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-4)
            assert max(group, key=lambda row: row["reward"])["advantage"] == max(row["advantage"] for row in group)
    logged = json.loads((run / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    train = [entry for entry in logged if "loss" in entry]
    assert len(train) == 4
    assert all(entry.keys() >= {"reward", "kl", "rewards/model/mean", "rewards/rouge/mean"} for entry in train)
    assert not any("eval_rewards/rouge/mean" in entry for entry in logged)
    card = (run / "README.md").read_text()
    assert f"tags:\n- hf_recipes\n- {algorithm}\n- lora\n" in card and "4 steps on 6 questions of asked.jsonl" in card
    assert f"Mean reward of the answers: {train[0]['reward']:.4f} at first" in card
    assert f"mean reward {train[0]['reward']:.4f} at first and {train[-1]['reward']:.4f} at last" in out
    assert "reward" in out and "step 1/4  loss" in out and "newest answers at each log" in out

    if algorithm == "rloo":  # GRPO's is repeated in tests/stages/test_contract.py
        code, _, err = script("grpo.py", "--config", run / "run_config.yaml", "--output_dir", tmp_path / "again")
        assert code == 0, err
        assert same(weights(run), weights(tmp_path / "again"))


def test_what_cannot_be_is_named(grpo, asked, model_dir, judge, tmp_path):
    code, out, err = grpo("--dry_run")
    assert code == 0 and not (tmp_path / "run").exists(), err
    assert "answers           24" in out and "3 an epoch" in out
    code, _, err = grpo("--num_generations", 3)
    assert code == 1 and "--num_generations 3 does not divide the 8 answers that are written together" in err
    code, _, err = grpo("--reward_model", model_dir)
    assert code == 1 and f"--reward_model {model_dir}: not a reward model; scripts/reward.py trains one" in err
    code, _, err = grpo("--model_name_or_path", judge)
    assert (code == 1 and "ForSequenceClassification" in err) or "reward model" in err
    own = tmp_path / "own.py"
    own.write_text("def reward(completions, level, **rest):\n    return [1 / (row - 4) for row in level]\n")
    code, _, err = grpo("--rewards", own, "--max_steps", 4)
    assert code == 1 and f"--rewards own: failed on {asked}:5 (ZeroDivisionError" in err and "Traceback" not in err
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"prompt": "只有问题？"}] * 3)
    code, _, err = grpo("--rewards", "rouge", "--train_file", bare, "--overwrite_output_dir")
    assert code == 1 and f"--rewards rouge: {bare}:1 has no answer to compare with, nor has any other row" in err


def test_a_reward_that_says_nothing_of_any_answer_ends_in_metrics_and_a_card(grpo, asked, tmp_path):
    silent = tmp_path / "silent.py"
    silent.write_text("def reward(completions, **rest):\n    return [None] * len(completions)\n")
    code, _, err = grpo("--rewards", silent, "--max_steps", 2, "--eval_files", f"asked={asked}")
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == 2 and "asked_rougeL" in metrics["after"] and "asked_reward" not in metrics["after"]
    assert "Mean training loss" in (tmp_path / "run" / "README.md").read_text()


def test_a_run_without_rewards_is_refused(script, model_dir, asked, tmp_path):
    where = ("--model_name_or_path", model_dir, "--train_file", asked, "--output_dir", tmp_path / "run")
    code, _, err = script("grpo.py", *where)
    assert code == 1 and "nothing says what an answer is worth: give --rewards" in err
    code, _, err = script("sft.py", *where, "--rewards", "rouge")
    assert code == 1 and "--rewards and --reward_model without answers to score" in err


def test_a_finished_policy_is_evaluated_by_its_rewards(grpo, script, model_dir, asked, judge, tmp_path):
    assert grpo("--max_steps", 1)[0] == 0
    code, _, err = script(
        *("evaluate.py", "--model_name_or_path", model_dir, "--peft_path", tmp_path / "run", "--compare", "base"),
        *("--eval_files", f"asked={asked}", "--reward_model", judge, "--max_new_tokens", 8),
        *("--do_sample", "True", "--output_dir", tmp_path / "evaluation"),
    )
    assert code == 0, err
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert "reward" in json.dumps(found) and (tmp_path / "evaluation" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("use_lora", ["True", "False"], ids=["LoRA", "full"])
@pytest.mark.parametrize("stage", [2, 3])
def test_row_17_zero_learns_what_one_process_does(forks, settings, judge, tmp_path, stage, use_lora):
    argv = [*settings, "--rewards", "chinese", "model", "--reward_model", judge, "--use_lora", use_lora]
    argv += ["--max_steps", 3, "--learning_rate", 1e-3, "--beta", 0.1]
    alone = forks.run(*argv, "--output_dir", tmp_path / "alone", **SCRIPT)
    assert alone.code == 0, alone.err
    argv += ["--per_device_train_batch_size", 4, "--deepspeed", f"configs/deepspeed/zero{stage}.json"]
    run = forks.run(*argv, "--output_dir", tmp_path / "zero", world=2, **SCRIPT)
    assert run.code == 0, run.err
    own, expected = weights(tmp_path / "zero"), weights(tmp_path / "alone")
    assert own.keys() >= expected.keys()
    assert all(torch.allclose(own[key], expected[key], atol=1e-4) for key in expected)
    found = []
    for name in ("zero", "alone"):
        rows = (tmp_path / name / "samples" / "step-1.jsonl").read_text().splitlines()
        found.append(sorted(json.loads(row)["prediction"] for row in rows))
    assert found[0] == found[1]
