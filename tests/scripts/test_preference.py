"""scripts/dpo.py and scripts/kto.py as a user runs them, on a tiny model; the rows of the scorecard that they touch."""

import json

import pytest
import torch

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


@pytest.fixture
def start(forks, stage, settings):
    """``start(folder, "--flag", value, …, world=2)``: a run in processes of its own."""

    def begin(output, *flags, how="run", **kwargs):
        return getattr(forks, how)(*settings, "--output_dir", output, *flags, script=f"scripts/{stage}.py", **kwargs)

    return begin


def test_a_run_leaves_the_whole_folder_and_can_be_repeated(run, stage, tmp_path):
    flags = ["--eval_files", f"pairs={SAMPLES}/train.jsonl", "--eval_methods", "pair_accuracy", "rouge"]
    flags += ["--validation_split_percentage", "20", "--max_steps", "4", "--eval_steps", "2", "--eval_on_start"]
    if stage == "dpo":
        flags += ["--train_sampling_strategy", "group_by_length"]
    code, out, err = run(*flags, "--max_new_tokens", 4)
    assert code == 0, err
    folder = tmp_path / "run"
    names = {"adapter_model.safetensors", "tokenizer.json", "run_config.yaml", "data_ledger.json", "metrics.json"}
    assert {path.name for path in folder.iterdir()} >= names | {"curves.png", "README.md", "checkpoint-4"}
    assert not list(folder.rglob("ref"))
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
    assert f"4 steps on {kept} {what}" in card and f"tags: [hf_recipes, {stage}, lora]" in card

    code, _, err = run("--config", folder / "run_config.yaml", "--output_dir", tmp_path / "again")
    assert code == 0, err
    assert same(weights(folder), weights(tmp_path / "again"))


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
    assert ("pairs             40" in out) != ("rows              60" in out) and "of them learned" in out
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


@pytest.mark.parametrize("flag", ["--load_in_4bit", "--load_in_8bit"])
def test_a_quantized_base(run, tmp_path, flag):
    code, _, err = run("--max_steps", 2, flag, "true")
    assert code == 0, err
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float32}


def test_an_adapter_is_gone_on_from(run, stage, tmp_path):
    assert run("--max_steps", 3)[0] == 0
    flags = ["--peft_path", tmp_path / "run", "--output_dir", tmp_path / "more", "--max_steps", 2, "--save_steps", 1]
    code, out, err = run(*flags)
    assert code == 0, err
    assert f"step 1/2  loss {0.6931 if stage == 'dpo' else 0.5:.4f}" in out
    first, more = weights(tmp_path / "run"), weights(tmp_path / "more")
    assert first.keys() == more.keys() and not same(first, more)
    assert not list((tmp_path / "more").rglob("ref")) and len(list((tmp_path / "more").rglob("*.safetensors"))) == 3


@pytest.mark.parametrize("way", ["new", "gone on from", pytest.param("all weights", marks=pytest.mark.slow)])
def test_row_04_a_killed_run_goes_on_to_the_same_weights(start, tmp_path, way):
    """Its reference is the start again, not the checkpoint."""
    flags = [
        "--max_steps",
        8,
        "--save_steps",
        3,
        "--per_device_train_batch_size",
        3,
        "--gradient_accumulation_steps",
        2,
    ]
    if way == "all weights":
        flags += ["--use_lora", "False", "--learning_rate", 1e-3]
    if way == "gone on from":
        assert start(tmp_path / "first", "--max_steps", 3).code == 0
        flags += ["--peft_path", tmp_path / "first"]
    whole = start(tmp_path / "whole", *flags)
    assert whole.code == 0, whole.err
    run = start(tmp_path / "run", *flags, how="start")
    run.wait_for("step 5/8")
    run.signal()
    run.wait()
    run = start(tmp_path / "run", *flags, "--resume_from_checkpoint", "true")
    assert run.code == 0 and "going on from" in run.out, run.err
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert run.losses() == whole.losses()[-len(run.losses()) :]


def test_row_09_an_update_that_is_not_finite_names_its_rows(start, stage, tmp_path):
    spoil = """
from hf_recipes.stages.dpo_trainer import PairTrainer
from hf_recipes.stages.kto import UnpairedTrainer
for kind in (PairTrainer, UnpairedTrainer):
    def spoiled(self, model, inputs, *args, compute_loss=kind.compute_loss, **kwargs):
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        return loss * (float("nan") if 16 in inputs["row"].tolist() else 1)
    kind.compute_loss = spoiled
"""
    run = start(tmp_path / "run", "--per_device_train_batch_size", 4, "--max_steps", 15, before=spoil)
    assert run.code == 0, run.err
    [line] = [line for line in run.out.splitlines() if "not finite" in line]
    assert f"{DATA[stage].name}:17" in line and line.count(".jsonl:") == 4
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


@pytest.mark.parametrize("world", [1, 2])
def test_row_10_accumulation_is_the_same_as_a_larger_batch(start, tmp_path, world):
    """37 rows in batches of 16: the last of an epoch is shorter, and over two processes of uneven length."""
    found = {}
    for size, accumulation in ((16 // world, 1), (2, 8 // world)):
        flags = [
            "--gradient_accumulation_steps",
            accumulation,
            "--max_steps",
            5,
            "--optim",
            "sgd",
            "--use_lora",
            "False",
        ]
        flags += ["--per_device_train_batch_size", size, "--max_train_samples", 37]
        run = start(tmp_path / str(size), *flags, world=world)
        assert run.code == 0, run.err
        found[size] = weights(tmp_path / str(size)), run.losses()
    (one, losses), (other, others) = found.values()
    assert losses == pytest.approx(others, abs=2e-4)  # as printed, with four digits
    assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)


def test_row_10_batches_of_one_pair(forks, model_dir, tmp_path):
    found = []
    for size, accumulation in ((8, 1), (1, 8)):
        flags = [
            "--gradient_accumulation_steps",
            accumulation,
            "--max_steps",
            5,
            "--optim",
            "sgd",
            "--use_lora",
            "False",
        ]
        argv = ["--model_name_or_path", model_dir, *LEAN, DATA["dpo"], "--output_dir", tmp_path / str(size), *flags]
        run = forks.run(*argv, "--per_device_train_batch_size", size, script="scripts/dpo.py")
        assert run.code == 0, run.err
        found.append(weights(tmp_path / str(size)))
    assert all(torch.allclose(found[0][key], found[1][key], atol=1e-5) for key in found[0])


@pytest.mark.parametrize("lora", ["True", "False"])
def test_two_processes_learn_what_one_does(start, stage, tmp_path, lora):
    """37 rows come out uneven: the filler of the last batch is in no loss, and no row is evaluated twice."""
    found = {}
    for world in (1, 2):
        flags = ["--per_device_train_batch_size", 8 // world, "--optim", "sgd", "--use_lora", lora]
        flags += ["--num_train_epochs", 1, "--max_train_samples", 37, "--validation_file", DATA[stage]]
        flags += ["--per_device_eval_batch_size", 3, "--eval_files", f"pairs={SAMPLES}/train.jsonl"]
        run = start(tmp_path / str(world), *flags, world=world)
        assert run.code == 0, run.err
        metrics = json.loads((tmp_path / str(world) / "metrics.json").read_text())
        found[world] = metrics["train"]["tokens"], metrics["after"], weights(tmp_path / str(world))
    (tokens, after, one), (tokens_of_two, after_two, two) = found.values()
    assert tokens == tokens_of_two and after.keys() == after_two.keys()
    for key in (key for key in after if not key.endswith(("runtime", "per_second"))):
        assert after[key] == pytest.approx(after_two[key], abs=1e-3), key
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["new", "gone on from", "all weights"])
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_row_17_parted_over_processes(start, tmp_path, zero, way):
    """The same losses as of one process, whose reference is whole, and the whole model on disk."""
    flags = ["--max_steps", 3]
    if way == "all weights":
        flags += ["--use_lora", "False", "--learning_rate", 1e-3]
    if way == "gone on from":
        assert start(tmp_path / "first", "--max_steps", 2).code == 0
        flags += ["--peft_path", tmp_path / "first"]
    alone = start(tmp_path / "alone", *flags)
    assert alone.code == 0, alone.err
    half = ["--per_device_train_batch_size", 4, "--deepspeed", f"configs/deepspeed/{zero}.json"]
    run = start(tmp_path / "run", *flags, *half, world=2)
    assert run.code == 0, run.err
    assert run.losses() == pytest.approx(alone.losses(), abs=1e-3)
    own, expected = weights(tmp_path / "run"), weights(tmp_path / "alone")
    assert own.keys() == expected.keys() and not list((tmp_path / "run").rglob("ref"))
    assert all(torch.allclose(own[key].float(), expected[key].float(), atol=1e-3) for key in own)
