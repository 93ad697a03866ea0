"""What every stage promises, tried on each of `STAGES`; rows 4, 8, 9, 10 and 17 of the reliability scorecard.

A new stage is tested by its `Case`. Processes cost seconds, so some tests run a few stages, and the others with
`make check-slow`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from conftest import conversation, json_files, same, tiny_model, weights, write_jsonl
from hf_recipes.stages.table import STAGES
from hf_recipes.trainer.checkpoints.whole import BEGUN_WITH, what_is_missing

ANSWERS = ["年龄", "性别不限", "药物，睡眠", "今天天气很好"]
ALL_WEIGHTS = ("--use_lora", False)


def _answer(number: int) -> str:
    return ANSWERS[number % 4] * (1 + number % 3)


def _pair(number: int) -> dict:
    return {"prompt": f"标准{number}？", "chosen": _answer(number), "rejected": _answer(number + 1)}


@dataclass(frozen=True)
class Case:
    """A stage's rows by their number, the flags that it needs, and metrics that its evaluation has."""

    row: Callable[[int], dict]
    metrics: set[str]
    flags: tuple = ()
    adapter: tuple = ()  # flags that train one, where the stage does not without
    whole: tuple = ALL_WEIGHTS


CASES = {
    "sft": Case(
        lambda n: {"messages": conversation(f"标准{n}？", _answer(n))},
        {"loss", "mean_token_accuracy", "rougeL"},
        ("--max_target_length", 16),
    ),
    "pretrain": Case(
        lambda n: {"text": f"第{n}篇：今天天气很好。" * 4},
        {"dev_loss", "dev_bits_per_character"},
        ("--block_size", 32),
        adapter=("--use_lora", True),
        whole=(),
    ),
    "reward": Case(_pair, {"loss", "accuracy", "difference_mean"}),
    "dpo": Case(_pair, {"loss", "rewards/margins", "rewards/accuracies", "logps/chosen"}),
    "orpo": Case(_pair, {"accuracy", "accuracy_per_token"}),
    "kto": Case(
        lambda n: {"prompt": f"标准{n}？", "completion": _answer(n), "label": n % 2 == 0},
        {"loss", "rewards/margins", "kl"},
    ),
    "grpo": Case(
        lambda n: {"prompt": f"标准{n}？", "response": _answer(n)},
        {"reward", "rewards/chinese", "rougeL"},
        ("--rewards", "chinese", "length:2-8=0.5", "--num_generations", 2, "--max_completion_length", 6),
    ),
}
REFERENCE = ("dpo", "kto")  # their loss compares with the model as it was at the start


def stages(*often: str):
    """All stages, of which these are tried often."""
    marks = {name: [] if name in often else [pytest.mark.slow] for name in STAGES}
    return pytest.mark.parametrize("stage", [pytest.param(name, marks=marks[name]) for name in STAGES])


EVERY_STAGE = stages(*STAGES)


def test_every_stage_is_tried():
    assert CASES.keys() == STAGES.keys()


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> str:
    """A model whose training depends on the random state as well."""
    folder = tmp_path_factory.mktemp("models") / "dropout"
    dropout = tiny_model(len(tokenizer))
    dropout.config.attention_dropout = 0.1
    dropout.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(forks, model, tmp_path_factory):
    """``run("sft", folder, "--flag", value, …, world=2)``: six steps on 24 rows, saved every second one."""
    data = tmp_path_factory.mktemp("data")

    def start(stage, output, *flags, **kwargs):
        case = CASES[stage]
        train = write_jsonl(data / stage / "train.jsonl", [case.row(number) for number in range(24)])
        write_jsonl(data / stage / "few.jsonl", [case.row(number) for number in range(13)])
        write_jsonl(data / stage / "dev.jsonl", [case.row(number) for number in range(30, 37)])
        argv = ["--model_name_or_path", model, "--train_file", train, "--cache_dir", data / "cache", "--report_to"]
        argv += ["none", "--bf16", False, "--per_device_train_batch_size", 4, "--max_steps", 6, "--save_steps", 2]
        argv += ["--learning_rate", 1e-2, "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", 4]
        argv += ["--logging_steps", 1, *case.flags, "--output_dir", output]
        return forks.run(*argv, *flags, script=f"scripts/{stage}.py", **kwargs)

    start.data = data
    return start


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """``finished("sft")`` → the folder of a run that nothing disturbs, evaluated before, within and after."""
    folders = {}

    def once(stage):
        if stage not in folders:
            folder = tmp_path_factory.mktemp(stage) / "run"
            dev = ["--validation_file", run.data / stage / "dev.jsonl", "--eval_steps", 3, "--eval_on_start"]
            done = run(stage, folder, *dev)
            assert done.code == 0, done.err
            folders[stage] = folder
        return folders[stage]

    return once


@EVERY_STAGE
def test_a_run_leaves_its_whole_folder(finished, stage):
    folder = finished(stage)
    names = {path.name for path in folder.iterdir()}
    expected = {"tokenizer.json", "run_config.yaml", "data_ledger.json", "metrics.json", "curves.png", "README.md"}
    adapter = not CASES[stage].adapter
    expected |= {"adapter_model.safetensors", "adapter_config.json"} if adapter else {"model.safetensors"}
    assert names >= expected | {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    assert not any(name.endswith((".bin", ".pt", ".partial")) for name in names) and ".saving" not in names
    assert what_is_missing(folder / "checkpoint-6") is None and not list(folder.rglob("ref"))
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    found = json_files(folder)  # of which none holds NaN
    metrics = found[folder / "metrics.json"]
    assert metrics["steps"] == 6 and metrics["train"]["tokens"] > 0
    for when in ("before", "after"):
        assert metrics[when].keys() >= CASES[stage].metrics, when
    total = found[folder / "data_ledger.json"]["train"]["total"]
    assert total["read"] == total["kept"] == 24
    card = (folder / "README.md").read_text()
    assert f"tags:\n- hf_recipes\n- {STAGES[stage].card.tag}\n" in card


@EVERY_STAGE
def test_a_run_is_repeated_from_its_settings(run, forks, finished, tmp_path, stage):
    again = ["--config", finished(stage) / "run_config.yaml", "--output_dir", tmp_path / "again"]
    done = forks.run(*again, script=f"scripts/{stage}.py")
    assert done.code == 0, done.err
    assert same(weights(finished(stage)), weights(tmp_path / "again"))


@stages("pretrain", "grpo")
def test_a_run_whose_metric_does_not_improve_ends_early(run, tmp_path, stage):
    """At a rate of nothing, after the first evaluation and two more; nothing is saved but the end."""
    metric = sorted(CASES[stage].metrics)[0]
    flags = ["--validation_file", run.data / stage / "dev.jsonl", "--eval_steps", 1, "--save_strategy", "no"]
    flags += ["--learning_rate", 0, "--early_stopping_patience", 2, "--metric_for_best_model", metric]
    done = run(stage, tmp_path / "run", *flags)
    assert done.code == 0, done.err
    assert "kept: the last step's weights; --load_best_model_at_end True keeps the best saved step's" in done.out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    stop = metrics["train"]["stopped_early"]
    assert (metrics["steps"], stop["step"], stop["of"], stop["best_step"]) == (3, 3, 6, 1)
    assert metrics["after"][metric] == stop["best"] and (tmp_path / "run" / "README.md").is_file()


# Sends this process a signal in the training step of an update.
SIGNAL = """
import os, signal
from hf_recipes.trainer.base import RunMixin
step = RunMixin.training_step
def signalled(self, *args, **kwargs):
    if self.state.global_step == {step}:
        os.kill(os.getpid(), signal.{name})
    return step(self, *args, **kwargs)
RunMixin.training_step = signalled
if signal.{name} != signal.SIGKILL:
    signal.signal(signal.{name}, signal.SIG_DFL)  # under nohup, which the tests may be, a hangup is ignored
"""


@EVERY_STAGE
def test_row_04_a_killed_run_resumes_to_the_same_weights(run, finished, tmp_path, stage):
    """Without evaluations too, which are no part of the training."""
    killed = run(stage, tmp_path / "run", before=SIGNAL.format(step=4, name="SIGKILL"))
    assert killed.code == -9, killed.err
    done = run(stage, tmp_path / "run", "--resume_from_checkpoint", "true")
    assert done.code == 0 and f"resuming from {tmp_path}/run/checkpoint-4" in done.out, done.err
    assert same(weights(finished(stage)), weights(tmp_path / "run"))


@pytest.mark.parametrize("way", ["continued adapter", pytest.param("all weights", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", REFERENCE)
def test_row_04_the_reference_of_a_resumed_run_is_the_start(run, finished, tmp_path, stage, way):
    """And not the checkpoint."""
    flags = ["--peft_path", finished(stage)] if way == "continued adapter" else ALL_WEIGHTS
    whole = run(stage, tmp_path / "whole", *flags)
    assert whole.code == 0, whole.err
    assert run(stage, tmp_path / "run", *flags, before=SIGNAL.format(step=4, name="SIGKILL")).code == -9
    done = run(stage, tmp_path / "run", *flags, "--resume_from_checkpoint", "true")
    assert done.code == 0 and same(weights(tmp_path / "whole"), weights(tmp_path / "run")), done.err
    assert done.losses() == whole.losses()[-2:]


@stages("sft", "grpo")
def test_row_08_a_signal_ends_a_run_with_a_checkpoint(run, finished, tmp_path, stage):
    name = "SIGHUP" if stage == "grpo" else "SIGTERM"
    stopped = run(stage, tmp_path / "run", "--save_strategy", "no", before=SIGNAL.format(step=2, name=name))
    assert stopped.code == 0, stopped.err
    assert f"stopped by {name} after step 3 of 6; resume with the same command and --resume_from" in stopped.out
    [checkpoint] = (tmp_path / "run").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-3" and what_is_missing(checkpoint) is None
    done = run(stage, tmp_path / "run", "--save_strategy", "no", "--resume_from_checkpoint", "true")
    assert done.code == 0 and same(weights(finished(stage)), weights(tmp_path / "run")), done.err


# Makes the sixth batch's loss not finite, through its gradient as well, and names the batch's rows.
SPOIL = """
from hf_recipes.trainer.base import RunMixin
step, batches = RunMixin.training_step, 0
def spoiled(self, model, inputs, *args, **kwargs):
    global batches
    batches += 1
    if batches != 6:
        return step(self, model, inputs, *args, **kwargs)
    print("spoiled:", ", ".join(self.locations_of([inputs])), flush=True)
    compute = self.compute_loss
    self.compute_loss = lambda *args, **kwargs: compute(*args, **kwargs) * float("nan")
    try:
        return step(self, model, inputs, *args, **kwargs)
    finally:
        del self.compute_loss
RunMixin.training_step = spoiled
"""


@EVERY_STAGE
def test_row_09_an_update_that_is_not_finite_is_left_out_and_its_rows_named(run, tmp_path, stage):
    """The third update of two batches each; the rows are those of the batch that was spoiled."""
    flags = ["--gradient_accumulation_steps", 2, "--save_steps", 1, "--max_steps", 4]
    done = run(stage, tmp_path / "run", *flags, before=SPOIL)
    assert done.code == 0, done.err
    [rows] = [line.removeprefix("spoiled: ") for line in done.out.splitlines() if line.startswith("spoiled: ")]
    [line] = [line for line in done.out.splitlines() if "not finite" in line]
    assert line == f"step 3: the loss is not finite; this update is left out. Rows: {rows}"
    assert ("document " if stage == "pretrain" else "train.jsonl:") in rows
    second, third, fourth = (weights(tmp_path / "run" / f"checkpoint-{step}") for step in (2, 3, 4))
    assert same(second, third) and not same(third, fourth)
    assert all(tensor.isfinite().all() for tensor in fourth.values())


@pytest.fixture(scope="module")
def width(run, model_dir):
    """``width("sft", batch, accumulation)``: flags of an epoch of all weights, whose changes are as its gradients."""

    def flags(stage, batch, accumulation, way="all weights"):
        folder, case = run.data / stage, CASES[stage]
        sizes = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
        sizes += ["--per_device_eval_batch_size", 3, "--num_train_epochs", 1, "--max_steps", -1, "--warmup_steps", 0]
        files = ["--train_file", folder / "few.jsonl", "--validation_file", folder / "dev.jsonl"]
        how = ["--model_name_or_path", model_dir, "--save_strategy", "no", "--optim", "sgd", "--learning_rate", 0.1]
        return [*sizes, *files, *how, *(case.whole if way == "all weights" else case.adapter)]

    return flags


@pytest.fixture(scope="module")
def in_one_batch(run, width, tmp_path_factory):
    """``in_one_batch("sft")`` → the folder of an epoch in updates of eight rows, the last of fewer."""
    folders = {}

    def once(stage, way="all weights"):
        if (stage, way) not in folders:
            folders[stage, way] = tmp_path_factory.mktemp(f"{stage}-8") / "run"
            done = run(stage, folders[stage, way], *width(stage, 8, 1, way))
            assert done.code == 0, done.err
        return folders[stage, way]

    return once


def check_same_result(one, other, start) -> None:
    """Losses, tokens, sampled answers, evaluations and weights of two folders."""
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    assert figures[0]["train"]["tokens"] == figures[1]["train"]["tokens"]
    assert figures[0]["train"]["loss"] == pytest.approx(figures[1]["train"]["loss"], abs=1e-4)
    assert figures[0]["after"].keys() == figures[1]["after"].keys()
    for key, value in figures[0]["after"].items():
        if not key.endswith(("runtime", "per_second")):
            assert figures[1]["after"][key] == pytest.approx(value, abs=1e-3), key
    for path in one.glob("samples/*.jsonl"):  # of GRPO
        paths = path, other / path.relative_to(one)
        answers = [sorted(json.loads(row)["prediction"] for row in path.read_text().splitlines()) for path in paths]
        assert answers[0] == answers[1], path.name
    own, expected, start = weights(other), weights(one), weights(start)
    assert all(torch.allclose(own[key], expected[key], atol=1e-5) for key in expected)
    assert (
        max((tensor - start.get(key, 0)).abs().max() for key, tensor in expected.items() if "lora_A" not in key) > 1e-3
    )


@pytest.mark.parametrize(
    ("batch", "accumulation", "stage"), [*((2, 4, name) for name in STAGES), (1, 8, "sft"), (1, 8, "dpo")]
)
def test_row_10_an_accumulated_update_is_that_of_one_batch(
    run, width, in_one_batch, model_dir, tmp_path, batch, accumulation, stage
):
    done = run(stage, tmp_path / "run", *width(stage, batch, accumulation))
    assert done.code == 0, done.err
    check_same_result(in_one_batch(stage), tmp_path / "run", model_dir)


@EVERY_STAGE
def test_a_whole_model_has_the_configuration_of_its_base(in_one_batch, model_dir, stage):
    before, after = (json.loads(Path(folder, "config.json").read_text()) for folder in (model_dir, in_one_batch(stage)))
    changed = {key for key in {**before, **after} if before.get(key) != after.get(key)}
    assert changed == ({"architectures", "id2label", "label2id"} if stage == "reward" else set())


TWO_PROCESSES = [("all weights", "reward"), ("all weights", "kto"), ("all weights", "grpo"), ("adapter", "dpo")]


@pytest.mark.parametrize(
    ("way", "stage"),
    [
        pytest.param(way, name, marks=[] if (way, name) in TWO_PROCESSES else pytest.mark.slow)
        for way in ("all weights", "adapter")
        for name in STAGES
    ],
)
def test_two_processes_learn_what_one_does(run, width, in_one_batch, model_dir, tmp_path, way, stage):
    """13 rows come out uneven: the padding row of the last batch is in no loss, and no row is evaluated twice."""
    done = run(stage, tmp_path / "run", *width(stage, 2, 2, way), world=2)
    assert done.code == 0, done.err
    check_same_result(in_one_batch(stage, way), tmp_path / "run", model_dir)


WAYS = ["adapter", "all weights", "continued adapter"]


ZERO3 = ("--deepspeed", "configs/deepspeed/zero3.json")


@pytest.mark.parametrize("stage", ["pretrain", "orpo", pytest.param("sft", marks=pytest.mark.slow)])
def test_one_lora_for_both_embeddings_is_refused_under_zero3(run, tmp_path, stage):
    """Those whose loss takes the logits would train it elsewhere; DeepSpeed ends in a traceback when it shards it."""
    lora = tmp_path / "lora.json"
    lora.write_text(json.dumps({"r": 4, "target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}))
    done = run(stage, tmp_path / "run", *CASES[stage].adapter, "--lora_config", lora, *ZERO3, world=2)
    refused = "would not be trained" if stage == "sft" else '"ensure_weight_tying" gives both embeddings one LoRA'
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 1 and errors and refused in errors[0], done.err
    assert "Traceback" not in done.err and "Loading weights" not in done.err


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_rows_of_embeddings_are_trained_under_zero3_or_refused(run, model_dir, tmp_path, stage):
    lora = tmp_path / "lora.json"
    lora.write_text(json.dumps({"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}))
    flags = [*CASES[stage].adapter, "--lora_config", lora, "--model_name_or_path", model_dir, "--learning_rate", 1e-3]
    alone = run(stage, tmp_path / "alone", *flags)
    assert alone.code == 0, alone.err
    done = run(stage, tmp_path / "run", *flags, "--per_device_train_batch_size", 2, *ZERO3, world=2)
    if stage == "grpo":
        assert done.code == 1 and "which this stage's loss cannot gather under DeepSpeed's stage 3" in done.err
        assert "Traceback" not in done.err
        return
    assert done.code == 0, done.err
    assert done.losses() == pytest.approx(alone.losses(), abs=1e-4)
    own, expected = weights(tmp_path / "run"), weights(tmp_path / "alone")
    assert own.keys() == expected.keys() and all(torch.allclose(own[key], expected[key], atol=1e-4) for key in own)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
@pytest.mark.parametrize("stage", STAGES)
def test_row_17_zero_saves_the_whole_model_that_one_process_trains(run, model_dir, tmp_path, stage, zero, way):
    """The losses are those of one process, whose reference is whole."""
    case = CASES[stage]
    flags = [*(case.whole if way == "all weights" else case.adapter), "--learning_rate", 1e-3]
    flags += ["--model_name_or_path", model_dir]  # without dropout
    if way == "continued adapter":
        assert run(stage, tmp_path / "first", *flags, "--max_steps", 2).code == 0
        flags += ["--peft_path", tmp_path / "first"]
    alone = run(stage, tmp_path / "alone", *flags)
    assert alone.code == 0, alone.err
    half = ["--per_device_train_batch_size", 2, "--deepspeed", f"configs/deepspeed/{zero}.json"]
    done = run(stage, tmp_path / "run", *flags, *half, world=2)
    assert done.code == 0, done.err
    assert done.losses() == pytest.approx(alone.losses(), abs=1e-3)
    own, expected = weights(tmp_path / "run"), weights(tmp_path / "alone")
    assert own.keys() >= expected.keys() and not list((tmp_path / "run").rglob("ref"))
    assert all(torch.allclose(own[key].float(), expected[key].float(), atol=1e-3) for key in expected)


QUANTIZED = [("--load_in_4bit", stage) for stage in STAGES] + [("--load_in_8bit", "reward")]


@pytest.mark.parametrize(
    ("flag", "stage"),
    [*QUANTIZED, *(pytest.param("--load_in_8bit", stage, marks=pytest.mark.slow) for stage in STAGES)],
)
def test_an_adapter_of_a_quantized_base_is_in_float32(run, tmp_path, flag, stage):
    done = run(stage, tmp_path / "run", *CASES[stage].adapter, "--max_steps", 2, flag)
    assert done.code == 0, done.err
    saved = weights(tmp_path / "run")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert all(tensor.any() for name, tensor in saved.items() if "lora_B" in name)  # which began at zero


@stages("sft", "pretrain")
def test_a_run_resumes_as_it_began_or_not_at_all(run, finished, tmp_path, stage):
    checkpoint = finished(stage) / "checkpoint-2"
    record = json.loads((checkpoint / BEGUN_WITH).read_text())
    assert record["data"]["rows"] > 0 and record["data"]["tokens"] > 0 and record["steps"] == 6
    resumed = ("--resume_from_checkpoint", checkpoint)
    train = run.data / stage / "train.jsonl"
    lines = train.read_text().splitlines(keepends=True)
    moved, mixed = tmp_path / "other" / train.name, tmp_path / "mixed" / train.name
    for path, rows in ((moved, lines), (mixed, [*lines[1:], lines[0]])):
        path.parent.mkdir()
        path.write_text("".join(rows))
    for flags, *messages in (
        (
            ("--learning_rate", 1.0, "--seed", 7),
            "--learning_rate 1.0, was 0.01",
            "--seed 7, was 42",
            "Resume with what",
        ),
        (("--train_file", mixed), f"other training data (--train_file {mixed}, was {train}): again "),
    ):
        refused = run(stage, tmp_path / "run", *flags, *resumed, "--dry_run")
        assert refused.code == 1 and "Traceback" not in refused.err
        assert all(message in refused.err for message in messages), refused.err
    refused = run(stage, tmp_path / "run", "--weight_decay", 0.5, *resumed)
    assert refused.code == 1 and "--weight_decay 0.5, was " in refused.err and not (tmp_path / "run").exists()
    changes = ("--train_file", moved, "--max_steps", 7, "--logging_steps", 2)
    done = run(stage, tmp_path / "run", *changes, *resumed)
    assert done.code == 0, done.err
    assert "--logging_steps 2.0, was 1.0" in done.out
    assert f"changed since step 2: --train_file {moved}, was {train} (the same " in done.out
    assert "; 7 steps, was 6" in done.out
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 7
