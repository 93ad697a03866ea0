"""Rows 9, 11 and 28 of the reliability scorecard: what the optimizer sees.

Row 9 of every stage and row 10 are in tests/stages/test_contract.py, row 12 in tests/data/chat/test_encoder.py.
"""

import json

import pytest
import torch
from stage_runs import trainer_of

from conftest import ROOT, json_files, same, weights, write_jsonl, write_pairs
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.run.model import build_model
from hf_recipes.stages.sft import STAGE as SFT
from hf_recipes.stages.sft import SFTArguments

# Makes the loss of every batch with `word` in it not finite, through its gradient as well.
SPOIL = """
import torch
from hf_recipes.stages import sft
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
compute = sft.Trainer.compute_loss
def spoiled(self, model, inputs, *args, **kwargs):
    loss = compute(self, model, inputs, *args, **kwargs)
    if any("%s" in self.processing_class.decode(row) for row in inputs["input_ids"]):
        loss = loss * float("%s")
    return loss
sft.Trainer.compute_loss = spoiled
"""
# The loss stays what it is; its gradient is none.
SPOIL_GRADIENT = SPOIL.replace('float("%s")', "(1 + (loss - loss.detach()).abs().sqrt())")


@pytest.fixture(scope="module")
def settings(model_dir, tmp_path_factory):
    data = write_pairs(tmp_path_factory.mktemp("data"))
    return f"""--model_name_or_path {model_dir} --train_file {data}/train.json --report_to none --logging_steps 1
    --per_device_train_batch_size 4 --max_steps 12 --learning_rate 1e-2 --save_steps 4 --bf16 False""".split()


def printed(run, what: str) -> list[str]:
    return [line for line in run.out.splitlines() if what in line]


@pytest.mark.parametrize(("world", "value"), [(1, "inf"), (2, "nan")])
def test_row_09_an_update_that_is_not_finite_is_left_out(forks, settings, tmp_path, world, value):
    output = tmp_path / "run"
    run = forks.run(*settings, "--output_dir", output, world=world, before=SPOIL % ("标准17：", value))
    assert run.code == 0, run.err
    lines = printed(run, "not finite")
    for line in lines:  # the batch's four rows, of one process alone
        assert "train.json:18," in f"{line}," and line.count("train.json:") == 4
    assert all(tensor.isfinite().all() for tensor in weights(output).values())
    history = json_files(output)[output / "checkpoint-12" / "trainer_state.json"]["log_history"]
    skipped = [entry for entry in history if "nonfinite_steps" in entry]
    assert [entry["step"] for entry in skipped] == [int(line.split()[1].rstrip(":")) for line in lines]
    assert skipped and all(entry["loss"] is None for entry in skipped)  # not 0, as if it had been learned
    assert all(entry["loss"] > 0 for entry in history if "loss" in entry and "nonfinite_steps" not in entry)


def test_row_09_the_weights_stay_as_they_were(forks, settings, tmp_path):
    """With every batch spoiled from the fifth step on, the run ends with the weights of the fourth."""
    late = SPOIL.replace("if any", "if self.state.global_step >= 4 and any") % ("标准", "nan")
    for limit in (3, 5):
        output = tmp_path / f"run-{limit}"
        run = forks.run(*settings, "--output_dir", output, "--max_nonfinite_steps", limit, before=late)
        assert run.code == 1
        assert f"error: {limit} updates in a row had a loss that is not finite (--max_nonfinite_steps" in run.err
        assert "Traceback" not in run.err and len(printed(run, "not finite")) == limit
    fourth, eighth = (weights(tmp_path / "run-5" / f"checkpoint-{step}") for step in (4, 8))
    assert same(fourth, eighth)
    run = forks.run(*settings, "--output_dir", tmp_path / "run-3", "--resume_from_checkpoint", "true")
    assert run.code == 0 and "resuming from" in run.out and "checkpoint-4" in run.out
    spoiled = tmp_path / "run-5"  # its log has losses that were no numbers
    run = forks.run(*settings, "--output_dir", spoiled, "--resume_from_checkpoint", "true")
    assert run.code == 0 and "checkpoint-8" in run.out, run.err
    found = json_files(spoiled)
    history = found[spoiled / "checkpoint-12" / "trainer_state.json"]["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[4:8] == [None] * 4 and None not in losses[:4] + losses[8:]
    kept = losses[:4] + losses[8:]
    assert found[spoiled / "metrics.json"]["train"]["loss"] == pytest.approx(sum(kept) / 8)


def test_row_09_packed_rows_are_named_too(forks, settings, tmp_path):
    argv = [*settings, "--output_dir", tmp_path / "run", "--packing", "--max_length", 64, "--num_train_epochs", 1]
    argv[argv.index("--max_steps") + 1] = -1
    argv[argv.index("--per_device_train_batch_size") + 1] = 1
    run = forks.run(*argv, before=SPOIL % ("标准17：", "nan"))
    assert run.code == 0, run.err
    [line] = printed(run, "not finite")
    assert "train.json:18" in line and line.count("train.json:") < 8


# So that float16 is tried on a processor that has no instructions for it; torch computes in it, if slowly.
FP16 = "import deepspeed\ntype(deepspeed.get_accelerator()).is_fp16_supported = lambda self: True\n"
DTYPES = {"fp32": ["--bf16", "False"], "bf16": ["--bf16", "True"], "fp16": ["--fp16", "True"]}


@pytest.fixture(scope="module")
def plain(forks, settings, tmp_path_factory):
    """What a run without DeepSpeed makes of a batch that is not finite: its log and weights."""
    output = tmp_path_factory.mktemp("plain")
    run = forks.run(*settings, "--output_dir", output, "--max_steps", 6, before=SPOIL % ("标准17：", "nan"))
    assert run.code == 0, run.err
    return log_of(output, 6), weights(output)


def log_of(output, step) -> list[dict]:
    log = json.loads((output / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "learning_rate" in entry]


def zero(stage, tmp_path, **fp16) -> list[str]:
    config = json.loads((ROOT / f"configs/deepspeed/zero{stage}.json").read_text())
    config["fp16"] |= fp16
    (tmp_path / "zero.json").write_text(json.dumps(config))
    return ["--deepspeed", str(tmp_path / "zero.json")]


def check_left_out(forks, settings, plain, tmp_path, stage, dtype, what="loss", world=1):
    output = tmp_path / "run"
    output.mkdir(parents=True)
    scaled = zero(stage, tmp_path, initial_scale_power=8)  # which is no reason to leave an update out
    argv = [*settings, "--output_dir", output, *scaled, *DTYPES[dtype], "--max_steps", 6]
    argv += ["--per_device_train_batch_size", 2 // world, "--gradient_accumulation_steps", 2, "--save_steps", 1]
    spoil = SPOIL % ("标准17：", "nan") if what == "loss" else SPOIL_GRADIENT % "标准17："
    run = forks.run(*argv, world=world, before=FP16 + spoil)
    assert run.code == 0, run.err
    [line] = printed(run, "this update is left out")
    assert f"the {what} is not finite" in line and "train.json:18" in line
    step = int(line.split()[1].rstrip(":"))
    before, after, later = (weights(output / f"checkpoint-{number}") for number in (step - 1, step, step + 1))
    assert same(before, after) and not same(after, later)
    log, trained = plain
    exact, own = dtype == "fp32", log_of(output, 6)
    assert [entry["learning_rate"] for entry in own] == [entry["learning_rate"] for entry in log]
    if what == "loss":
        losses = [[entry["loss"] for entry in entries] for entries in (own, log)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4 if exact else 1e-2, nan_ok=True)
    if exact:  # so the optimizer's moments are as if the batch had not been
        assert all(torch.allclose(tensor, trained[key], atol=1e-4) for key, tensor in weights(output).items())
    return run


@pytest.mark.parametrize(("stage", "dtype"), [(1, "bf16"), (2, "fp16"), (3, "fp32")])
def test_row_28_deepspeed_leaves_out_what_is_not_finite(forks, settings, plain, tmp_path, stage, dtype):
    check_left_out(forks, settings, plain, tmp_path, stage, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_row_28_every_stage_and_dtype(forks, settings, plain, tmp_path, stage, dtype):
    check_left_out(forks, settings, plain, tmp_path / "nan", stage, dtype, world=2)
    if dtype != "fp16":  # there it may be the scale's fault
        check_left_out(forks, settings, plain, tmp_path / "gradient", stage, dtype, what="gradient")


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_row_28_float16_searches_its_scale(forks, settings, tmp_path, stage):
    """It begins too large; that ends no run. At the smallest scale the gradient itself is what is not finite."""
    argv = [*settings, *DTYPES["fp16"], "--max_steps", 12, "--output_dir"]
    scale = {"initial_scale_power": 24, "hysteresis": 1}
    search = [*argv, tmp_path / "search", "--max_nonfinite_steps", 1]
    run = forks.run(*search, *zero(stage, tmp_path, **scale), before=FP16)
    assert run.code == 0, run.err
    lines = printed(run, "too large for float16's loss scale, which is lowered; this update is left out. Rows: ")
    assert 1 <= len(lines) < 12 and not printed(run, "is not finite") and all("train.json:" in line for line in lines)
    losses = [entry["loss"] for entry in log_of(tmp_path / "search", 12)]
    assert losses[-1] < losses[0] - 0.1

    run = forks.run(*argv, tmp_path / "stop", *zero(stage, tmp_path, **scale, min_loss_scale=2**24), before=FP16)
    assert run.code == 1 and "Traceback" not in run.err, run.err
    assert "error: 3 updates in a row had a gradient that is not finite (--max_nonfinite_steps 3)" in run.err
    assert len(printed(run, "step 3: the gradient is not finite; this update is left out. Rows: ")) == 1


@pytest.mark.parametrize(("stage", "dtype"), [(3, "fp16")])
def test_row_28_the_run_ends_with_the_weights_as_they_were(forks, settings, tmp_path, stage, dtype):
    late = SPOIL.replace("if any", "if self.state.global_step >= 1 and any") % ("标准", "nan")
    argv = [*settings, "--output_dir", tmp_path / "run", *DTYPES[dtype], "--save_steps", 1]
    run = forks.run(*argv, *zero(stage, tmp_path), before=FP16 + late)
    assert run.code == 1 and "error: 3 updates in a row had a loss that is not finite" in run.err
    assert "Traceback" not in run.err and len(printed(run, "not finite")) == 3
    assert same(*(weights(tmp_path / "run" / f"checkpoint-{step}") for step in (1, 3)))


def test_deepspeed_settings_that_would_let_them_through(forks, settings, tmp_path):
    """float16 where the device has none, and no ZeRO: refused before anything is loaded."""
    forbid = FP16.replace("True", "False")
    run = forks.run(*settings, "--output_dir", tmp_path / "run", "--fp16", "True", *zero(2, tmp_path), before=forbid)
    assert run.code == 1 and run.err.startswith("error: --fp16: this device does not compute in float16"), run.err
    (tmp_path / "none.json").write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    run = forks.run(*settings, "--output_dir", tmp_path / "run", "--deepspeed", tmp_path / "none.json")
    assert run.code == 1 and "--deepspeed: ZeRO stage 0 spreads nothing" in run.err, run.err


def test_row_11_packed_and_separate_rows(model_dir, pairs, tmp_path):
    """One batch of packs with all rows against one padded batch of them: what the optimizer sees is the same.

    Each pack is a row of its own: joined, attention would work on as many tokens squared.
    """
    found = {}
    for packing in (False, True):
        args = SFTArguments(
            output_dir=str(tmp_path / str(packing)),
            report_to="none",
            bf16=False,
            packing=packing,
            max_length=96,
            per_device_train_batch_size=40,
        )
        tokenizer, added = load_tokenizer(model_dir)
        model = build_model(ModelArguments(model_dir, dtype="float32"), args, tokenizer, added)
        trainer, data = trainer_of(SFT, args, pairs / "train.json", tokenizer, model)
        assert (len(trainer.train_dataset) < 40) is packing
        [batch] = list(trainer.get_train_dataloader())
        assert ("attention_mask" in batch) is not packing
        assert batch["input_ids"].shape[0] == len(trainer.train_dataset) and batch["input_ids"].shape[1] <= 96
        assert trainer.tokens_in(batch) == sum(map(len, data.train["input_ids"]))
        assert len(trainer.locations_of([batch])) == 40
        model.train()
        torch.manual_seed(0)
        loss = trainer.compute_loss(model, batch, num_items_in_batch=(batch["labels"][:, 1:] != -100).sum())
        loss.backward()
        found[packing] = loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found[True][0] == pytest.approx(found[False][0], abs=1e-5)
    for name, gradient in found[False][1].items():
        assert torch.allclose(gradient, found[True][1][name], atol=1e-5), name


def test_packs_of_two_processes_are_those_of_one(forks, settings, tmp_path):
    """The last step of an epoch has a pack for one of the processes alone."""
    losses = []
    for world in (1, 2):
        argv = [*settings, "--output_dir", tmp_path / str(world), "--packing", "--max_length", 100]
        argv[argv.index("--per_device_train_batch_size") + 1] = 4 // world
        argv[argv.index("--max_steps") + 1] = 4
        run = forks.run(*argv, world=world)
        assert run.code == 0, run.err
        losses.append(run.losses())
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_out_of_memory_names_the_batch_and_the_flags(forks, settings, tmp_path):
    """With an address space that the model fits in and the batch does not."""
    data = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "问" * 3000, "response": "答" * 3000} for _ in range(64)])
    limit = """
import resource
from hf_recipes.trainer.base import RunMixin
train = RunMixin.train
def limited(self, *args, **kwargs):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, resource.RLIM_INFINITY))
    return train(self, *args, **kwargs)
RunMixin.train = limited
"""
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 64, "--max_length", 4000]
    run = forks.run(*argv, "--train_file", data, before=limit)
    assert run.code == 1 and "Traceback" not in run.err, run.err[-2000:]
    [line] = [line for line in run.err.splitlines() if line.startswith("error")]
    assert "out of memory in a training batch of 64 × 3,999 tokens" in line
    assert "--per_device_train_batch_size 32 --gradient_accumulation_steps 2" in line
    assert "--gradient_checkpointing True" in line and "--load_in_4bit" in line
