"""scripts/dpo.py and scripts/kto.py as a user runs them, on a tiny model; what every stage promises is in
tests/stages/test_contract.py.
"""

import json

import pytest

from conftest import ROOT, conversation, same, weights, write_jsonl

SAMPLES = ROOT / "datasets" / "preference"
DATA = {"dpo": SAMPLES / "reviews.jsonl", "kto": SAMPLES / "comments.jsonl"}
LEAN = ["--report_to", "none", "--learning_rate", "1e-2", "--logging_steps", "1", "--bf16", "False", "--train_file"]
LIKES = ["--label_column", "like_count", "--label_threshold", "10", "--label_low", "3"]


@pytest.fixture(params=DATA)
def stage(request) -> str:
    return request.param


@pytest.fixture
def settings(stage, model_dir):
    return ["--model_name_or_path", model_dir, *LEAN, DATA[stage]]


@pytest.fixture
def run(script, stage, settings, tmp_path):
    def start(*flags):
        return script(f"{stage}.py", *settings, "--output_dir", tmp_path / "run", *flags)

    return start


def test_a_run_evaluates_margins_and_answers(run, stage, tmp_path):
    flags = ["--eval_files", f"pairs={SAMPLES}/train.jsonl", "--eval_methods", "pair_accuracy", "rouge"]
    flags += ["--validation_split_percentage", "20", "--max_steps", "4", "--eval_steps", "2", "--eval_on_start"]
    if stage == "dpo":
        flags += ["--train_sampling_strategy", "group_by_length"]
    code, out, err = run(*flags, "--max_new_tokens", 4)
    assert code == 0, err
    folder = tmp_path / "run"
    metrics = json.loads((folder / "metrics.json").read_text())
    keys = {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"}
    for when in ("before", "after"):
        assert metrics[when].keys() >= keys | {"pairs_pair_accuracy_accuracy", "pairs_answers_rougeL"}
    assert metrics["before"]["loss"] == pytest.approx(0.6931472 if stage == "dpo" else 0.5, abs=1e-6)
    assert metrics["before"]["rewards/margins"] == 0 and metrics["after"]["loss"] < metrics["before"]["loss"]
    answers = [
        json.loads(line) for line in (folder / "predictions/pairs_answers/step-4.jsonl").read_text().splitlines()
    ]
    assert len(answers) == 81 and answers[0].keys() >= {"question", "reference", "prediction"}
    assert len((folder / "predictions/pairs_pair_accuracy/step-4.jsonl").read_text().splitlines()) == 81
    assert "reward margin" in out and f"eval_rewards/margins {metrics['after']['rewards/margins']:.4f}" in out
    kept = json.loads((folder / "data_ledger.json").read_text())["train"]["total"]["kept"]
    card = (folder / "README.md").read_text()
    what = "pairs of reviews.jsonl" if stage == "dpo" else "rated answers of comments.jsonl"
    assert f"4 steps on {kept} {what}" in card and f"tags:\n- hf_recipes\n- {stage}\n- lora\n" in card


def test_likes_are_labels(script, model_dir, tmp_path):
    where = ["--model_name_or_path", model_dir, *LEAN, DATA["kto"], "--output_dir", tmp_path / "run"]
    code, out, err = script("kto.py", *where, *LIKES, "--max_steps", 1)
    assert code == 0, err
    assert "30 good answers and 15 bad ones" in out and "15 dropped by settings: like_count from 3 to below 10" in out
    ledger = json.loads((tmp_path / "run" / "data_ledger.json").read_text())["train"]["total"]
    assert (ledger["read"], ledger["kept"], ledger["dropped"]) == (60, 45, 15)


def test_dry_run_says_what_a_reference_needs(run, tmp_path):
    def table(*flags):
        code, out, err = run("--dry_run", "--per_device_train_batch_size", 4, *flags)
        assert code == 0 and not (tmp_path / "run").exists(), err
        rows = dict(line.strip().rsplit("  ", 1) for line in out.splitlines() if line.startswith(" ") and "  " in line)
        return {name.strip(): value for name, value in rows.items()}, out

    adapter, out = table()
    assert ("pairs             40" in out) != ("rows              60" in out) and "of them trained on" in out
    whole, without = (table("--use_lora", "False", *more)[0] for more in ((), ("--precompute_ref_log_probs", "true")))
    sizes = [float(part["weights"].split()[0]) for part in (adapter, without, whole)]
    assert sizes[2] == pytest.approx(2 * sizes[1], rel=0.02) and sizes[0] < sizes[2]


def test_what_cannot_be_used_is_named(run, script, stage, model_dir, tmp_path):
    good = {"prompt": "一", "chosen": "二", "rejected": "三"} if stage == "dpo" else None
    good = good or {"prompt": "一", "completion": "二", "label": True}
    missing = [good, {key: value for key, value in good.items() if key not in ("rejected", "completion")}]
    code, _, err = run("--train_file", write_jsonl(tmp_path / "bad.jsonl", missing))
    column = "rejected" if stage == "dpo" else "completion"
    assert code == 1 and f"bad.jsonl:2: no '{column}'" in err and "Traceback" not in err
    code, _, err = run("--loss_type", "kta")
    expected = "no such loss; there are sigmoid, " if stage == "dpo" else "invalid choice: 'kta' (choose from 'kto', "
    assert code == 1 and f"--loss_type{' kta' * (stage == 'dpo')}: {expected}" in err and "Traceback" not in err
    code, _, err = run("--eval_methods", "rouge")
    assert code == 1 and "--eval_methods without --eval_files name=path" in err
    other = write_jsonl(tmp_path / "sft.jsonl", [{"prompt": "一", "response": "二"}] * 3)
    code, _, err = run("--train_file", other)
    expected = "learns from preference" if stage == "dpo" else "--label_column must name one of prompt, response"
    assert code == 1 and expected in err
    rows = write_jsonl(tmp_path / "text.jsonl", [{"messages": conversation("一", "二"), "label": True}] * 3)
    code, _, err = script(
        "reward.py", "--model_name_or_path", model_dir, "--train_file", rows, "--output_dir", tmp_path / "run"
    )
    assert code == 1 and "its schema is unpaired" in err


def test_an_adapter_is_gone_on_from(run, stage, tmp_path):
    assert run("--max_steps", 3)[0] == 0
    flags = ["--peft_path", tmp_path / "run", "--output_dir", tmp_path / "more", "--max_steps", 2, "--save_steps", 1]
    code, out, err = run(*flags)
    assert code == 0, err
    assert f"step 1/2  loss {0.6931 if stage == 'dpo' else 0.5:.4f}" in out
    first, more = weights(tmp_path / "run"), weights(tmp_path / "more")
    assert first.keys() == more.keys() and not same(first, more)
    assert not list((tmp_path / "more").rglob("ref")) and len(list((tmp_path / "more").rglob("*.safetensors"))) == 3
