"""Rows 17 and 18 of the reliability scorecard, and the same result at any number of processes."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from conftest import same, weights, write_pairs
from hf_recipes.trainer.checkpoints.whole import what_is_missing

ROWS = 40  # with two processes and batches of four, the last of each epoch's rounds is not full with the 38 used here


@pytest.fixture(scope="module")
def settings(model_dir, tmp_path_factory):
    data = write_pairs(tmp_path_factory.mktemp("data"))
    return f"""--model_name_or_path {model_dir} --train_file {data}/train.json --validation_file {data}/dev.json
    --max_train_samples 38 --max_eval_samples 7 --max_target_length 16 --report_to none --logging_steps 1 --bf16 False
    --num_train_epochs 2 --learning_rate 1e-2 --eval_steps 5 --save_steps 5 --per_device_eval_batch_size 2""".split()


@pytest.fixture(scope="module")
def alone(forks, settings, tmp_path_factory):
    """One process with batches of eight, of an adapter and of all weights: output folder and losses."""
    found = {}
    for kind in ("True", "False"):
        output = tmp_path_factory.mktemp(f"alone-{kind}")
        argv = [*settings, "--use_lora", kind, "--output_dir", output, "--per_device_train_batch_size", 8]
        run = forks.run(*argv, before=SHOW_ROWS)
        assert run.code == 0, run.err
        found[kind] = output, run
    return found


# Prints, for each update, which rows it learned from.
SHOW_ROWS = """
from hf_recipes.trainer import base as trainer
clip = trainer.RunMixin._get_grad_norm
def shown(self, *args, **kwargs):
    rows = [row for inputs, _ in self._micro_batches for row in trainer.sequences(inputs)]
    print("rows", self.state.global_step, trainer.row_locations(self.data_rows, rows), flush=True)
    return clip(self, *args, **kwargs)
trainer.RunMixin._get_grad_norm = shown
"""


def rows_by_step(run) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for line in run.out.splitlines():
        if line.startswith("rows "):
            _, step, locations = line.split(" ", 2)
            found.setdefault(int(step), []).extend(json.loads(locations.replace("'", '"')))
    return {step: sorted(locations) for step, locations in found.items()}


def last_metrics(output) -> dict:
    return json.loads((output / "metrics.json").read_text())["after"]


WIDTHS = {"1 x 4, accumulated twice": (1, 4, 2), "2 x 4": (2, 4, 1), "2 x 2, accumulated twice": (2, 2, 2)}


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_same_result_at_any_width(forks, settings, alone, tmp_path, width):
    world, batch, accumulation = width
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", batch]
    run = forks.run(*argv, "--gradient_accumulation_steps", accumulation, world=world, before=SHOW_ROWS)
    assert run.code == 0, run.err
    folder, one = alone["True"]
    assert rows_by_step(run) == rows_by_step(one)
    epoch = [location for step, locations in rows_by_step(run).items() if step < 5 for location in locations]
    assert len(epoch) == len(set(epoch)) == 38
    assert run.losses() == pytest.approx(one.losses(), abs=1e-4)
    own, expected = weights(tmp_path / "run"), weights(folder)
    assert own.keys() == expected.keys()
    assert all(torch.allclose(own[key], expected[key], atol=1e-4) for key in own)
    ours, theirs = last_metrics(tmp_path / "run"), last_metrics(folder)
    for name in ("loss", "mean_token_accuracy", "rougeL"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
    answers = [
        [json.loads(line) for line in (location / "predictions" / "step-10.jsonl").read_text().splitlines()]
        for location in (tmp_path / "run", folder)
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 7


def logits_of(folder, base) -> torch.Tensor:
    """As a user gets them who has transformers and PEFT and has never heard of DeepSpeed."""
    if (folder / "adapter_config.json").exists():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model.eval()(torch.arange(5, 25)[None]).logits


# Prints the logits that the model has at the end of training, before anything of it is saved.
SHOW_LOGITS = """
import json, torch
from hf_recipes.run import train
finish = train.finish
def shown(trainer, *args):
    trainer.model_wrapped.eval()
    with torch.no_grad():
        logits = trainer.model_wrapped(torch.arange(5, 25)[None]).logits.float()
    if trainer.args.process_index == 0:
        torch.save(logits, trainer.args.output_dir + "/logits.pt")
    finish(trainer, *args)
train.finish = shown
"""


@pytest.mark.parametrize(
    ("stage", "use_lora"),
    [
        (2, "True"),
        (3, "False"),
        pytest.param(2, "False", marks=pytest.mark.slow),
        pytest.param(3, "True", marks=pytest.mark.slow),
    ],
)
def test_row_17_zero_saves_what_plain_libraries_load(forks, settings, alone, model_dir, tmp_path, stage, use_lora):
    output = tmp_path / "zero"
    argv = [*settings, "--use_lora", use_lora, "--output_dir", output, "--per_device_train_batch_size", 4]
    argv += ["--deepspeed", f"configs/deepspeed/zero{stage}.json"]
    run = forks.run(*argv, world=2, before=SHOW_LOGITS)
    assert run.code == 0, run.err
    folder, one = alone[use_lora]
    assert run.losses() == pytest.approx(one.losses(), abs=1e-4)
    assert last_metrics(output)["loss"] == pytest.approx(last_metrics(folder)["loss"], abs=1e-4)
    own, expected = weights(output), weights(folder)
    assert own.keys() >= expected.keys()
    assert all(torch.allclose(own[key], expected[key], atol=1e-4) for key in expected)
    trained = torch.load(output / "logits.pt", weights_only=True)
    assert torch.allclose(logits_of(output, model_dir), trained, atol=1e-5)

    if (stage, use_lora) in ((2, "True"), (3, "False")):  # and a killed run goes on to the same weights
        for path in (*output.glob("*.safetensors"), output / "checkpoint-10" / "latest"):
            path.unlink()
        run = forks.run(*argv, "--resume_from_checkpoint", "true", world=2)
        assert run.code == 0, run.err
        assert f"{output}/checkpoint-10 is left aside: latest is missing" in run.out
        assert f"resuming from {output}/checkpoint-5" in run.out
        assert same(weights(output), own)
    assert what_is_missing(output / "checkpoint-10") is None


def test_processes_that_were_started_differently_are_refused(forks, settings, tmp_path):
    argv = [*settings, "--output_dir", tmp_path / "run"]
    rate = "import sys\nif rank: sys.argv[sys.argv.index('--learning_rate') + 1] = '1e-3'"
    run = forks.run(*argv, world=2, before=rate)
    assert run.codes == [1, 1] and "rank 0 has --learning_rate 0.01, rank 1 on " in run.err, run.err
    other = "import sys\nfrom hf_recipes.run import output_dir\noutput_dir.SHARING = 1\n"
    other += "if rank: sys.argv[sys.argv.index('--output_dir') + 1] += '-elsewhere'"
    run = forks.run(*argv, "--overwrite_output_dir", world=2, before=other)
    assert run.codes == [1, 1] and "not the same folder for rank 1 on " in run.err, run.err


def test_the_mean_loss_is_that_of_all_steps_and_processes(forks, settings, alone, tmp_path):
    argv = [*settings, "--per_device_train_batch_size", 4, "--logging_steps", 100, "--save_steps", 100]
    run = forks.run(*argv, "--output_dir", tmp_path / "run", world=2)
    assert run.code == 0, run.err
    found = [json.loads((path / "metrics.json").read_text())["train"] for path in (tmp_path / "run", alone["True"][0])]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-4) and found[0]["tokens"] == found[1]["tokens"]


def test_row_18_a_rank_dies(forks, settings, tmp_path):
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 4, "--ddp_timeout", 20]
    dies = """
import os, signal
from hf_recipes.trainer.base import RunMixin
step = RunMixin.training_step
def deadly(self, *args, **kwargs):
    if self.state.global_step == 3 and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
RunMixin.training_step = deadly
"""
    run = forks.run(*argv, world=2, before=dies)
    assert run.codes[1] == -9 and run.codes[0] != 0


@pytest.mark.slow
def test_row_18_a_good_run_ends_well_50_times_of_50(forks, settings, tmp_path):
    """gloo's threads can abort a process at its end when the processes do not leave together."""
    for number in range(50):
        argv = [*settings, "--output_dir", tmp_path / str(number), "--per_device_train_batch_size", 4]
        run = forks.run(*argv, "--max_steps", 2, "--max_eval_samples", 2, world=2)
        assert run.codes == [0, 0], f"run {number}: {run.codes}\n{run.err}"


def test_row_18_ranks_disagree(forks, settings, tmp_path):
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 4, "--ddp_timeout", 10]
    disagree = """
import time, torch.distributed as dist
from hf_recipes.trainer.base import RunMixin
step = RunMixin.training_step
def other(self, *args, **kwargs):
    if self.state.global_step == 3 and rank == 1:
        print("disagree", flush=True)
        while True:
            time.sleep(1)
    return step(self, *args, **kwargs)
RunMixin.training_step = other
"""
    run = forks.start(*argv, world=2, before=disagree)
    run.wait_for("disagree")
    run.wait()
    assert all(code != 0 for code in run.codes)
    assert "no batch ended for 10 s (--ddp_timeout)" in run.err


def test_a_killed_run_of_two_processes_goes_on_in_its_second_epoch(forks, settings, tmp_path):
    argv = [*settings, "--per_device_train_batch_size", 4, "--save_steps", 7]
    assert forks.run(*argv, "--output_dir", tmp_path / "whole", world=2).code == 0
    dies = """
import os, signal
from hf_recipes.trainer.base import RunMixin
step = RunMixin.training_step
def deadly(self, *args, **kwargs):
    if self.state.global_step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
RunMixin.training_step = deadly
"""
    assert forks.run(*argv, "--output_dir", tmp_path / "run", world=2, before=dies).codes == [-9, -9]
    run = forks.run(*argv, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "true", world=2)
    assert run.code == 0, run.err
    assert "checkpoint-7" in run.out
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_signal_to_two_processes_stops_both_at_the_same_step(forks, settings, tmp_path):
    import signal

    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 4, "--num_train_epochs", 40]
    run = forks.start(*argv, world=2)
    run.wait_for("step 3/")
    run.signal(signal.SIGTERM, slice(1, 2))  # one of them is told, as where a single node is reclaimed
    assert run.code == 0 and run.codes == [0, 0], run.err
    step = int(run.out.split("stopped by ")[1].split("after step ")[1].split()[0])
    assert what_is_missing(tmp_path / "run" / f"checkpoint-{step}") is None
