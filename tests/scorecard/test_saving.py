"""Rows 1 to 4 and 8 of the reliability scorecard: whatever ends a run, it goes on to the same weights."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest

from conftest import same, weights, write_pairs
from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import Ledger
from hf_recipes.run import finish as finish_module
from hf_recipes.run.train import _write_first
from hf_recipes.trainer.checkpoints.find import find_checkpoint
from hf_recipes.trainer.checkpoints.whole import what_is_missing

LORA = '{"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target_modules": "all-linear"}'
# Writes a line before each save, so that the moment is known from outside.
ANNOUNCE = """
from hf_recipes.trainer.base import RunMixin
save = RunMixin._save_checkpoint
def announced(self, *args):
    print("saving", self.state.global_step, flush=True)
    save(self, *args)
    print("saved", self.state.global_step, flush=True)
RunMixin._save_checkpoint = announced
"""


@pytest.fixture(scope="module")
def settings(model_dir, tmp_path_factory):
    data = write_pairs(tmp_path_factory.mktemp("data"))
    (data / "lora.json").write_text(LORA)
    return f"""--model_name_or_path {model_dir} --train_file {data}/train.json --lora_config {data}/lora.json
    --report_to none --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --dataloader_num_workers 1
    --max_steps 14 --save_steps 4 --learning_rate 1e-2 --logging_steps 5""".split()


@pytest.fixture(scope="module")
def whole(forks, settings, tmp_path_factory):
    """The weights of a run that nothing interrupts."""
    output = tmp_path_factory.mktemp("whole")
    run = forks.run(*settings, "--output_dir", output)
    assert run.code == 0, run.err
    return weights(output)


def kill_in_saves(forks, settings, whole, tmp_path, count):
    draw = random.Random(0)
    survived = 0
    for index in range(count):
        output = tmp_path / f"killed-{index}"
        run = forks.start(*settings, "--output_dir", output, before=ANNOUNCE)
        run.wait_for(f"saving {draw.choice((8, 12))}")
        time.sleep(draw.uniform(0, 0.08))  # a save takes about 0.08 s
        run.signal(signal.SIGKILL)
        assert run.code == -9 or "saved 14" in run.out
        run = forks.run(*settings, "--output_dir", output, "--resume_from_checkpoint", "true")
        assert run.code == 0, run.err
        assert f"resuming from {output}/checkpoint-" in run.out
        survived += same(weights(output), whole)
        shutil.rmtree(output)
    assert survived == count


def test_row_01_kill_in_the_middle_of_a_save(forks, settings, whole, tmp_path):
    kill_in_saves(forks, settings, whole, tmp_path, 3)


@pytest.mark.slow
def test_row_01_kill_in_the_middle_of_a_save_at_20_points(forks, settings, whole, tmp_path):
    kill_in_saves(forks, settings, whole, tmp_path, 20)


def can_mount() -> bool:
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


# From the second checkpoint on no file may grow past 6 KB: the disk, as far as the writer can tell, is full.
FULL = """
import resource, signal
from hf_recipes.trainer.base import RunMixin
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = RunMixin._save_checkpoint
def limited(self, *args):
    if self.state.global_step in (8, 12):
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
    try:
        save(self, *args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
RunMixin._save_checkpoint = limited
"""


def test_row_02_disk_full_while_saving(forks, settings, whole, tmp_path):
    output = tmp_path / "full"
    run = forks.run(*settings, "--output_dir", output, "--save_total_limit", 1, before=FULL)
    assert run.code == 0, run.err
    assert f"checkpoint-8 could not be written to {output}" in run.out
    assert "checkpoint-4 is whole as before; training continues" in run.out
    assert same(weights(output), whole)
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-14"]
    assert not (output / ".saving").exists()

    # The same with the last save failing too: the run can go on from the one that is left.
    output = tmp_path / "fuller"
    run = forks.run(*settings, "--output_dir", output, before=FULL.replace("(8, 12)", "(8, 12, 14)"))
    assert run.code == 0 and [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-4"]
    for path in output.glob("*.safetensors"):
        path.unlink()
    run = forks.run(*settings, "--output_dir", output, "--resume_from_checkpoint", "true")
    assert run.code == 0 and f"resuming from {output}/checkpoint-4" in run.out
    assert same(weights(output), whole)


@pytest.mark.skipif(not can_mount(), reason="no user namespaces to mount a small disk in")
def test_row_02_a_disk_that_is_really_full(settings, tmp_path):
    """A disk of 400 KB holds the first checkpoints and not all of them, nor the results."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f'mount -t tmpfs -o size=400k disk {disk} && python scripts/sft.py "$@"; ls {disk}/*'
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{os.path.dirname(os.sys.executable)}:{os.environ['PATH']}"}
    argv = ["unshare", "-rm", "sh", "-c", command, "sh", *settings, "--output_dir", str(disk / "run")]
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert "checkpoint-12 could not be written" in done.stdout, done.stdout + done.stderr
    assert "checkpoint-8 is whole as before; training continues" in done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert "No space left on device" in done.stderr and "--resume_from_checkpoint true writes the rest" in done.stderr
    assert "checkpoint-8" in done.stdout.splitlines() and "checkpoint-12" not in done.stdout.splitlines()


# In the first process alone, every write of one kind fails.
NO_ROOM = """
import errno
from {module} import {owner}
def fails(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")
if rank == 0:
    {owner}.{method} = fails
"""


def test_row_02_one_of_two_processes_has_a_full_disk(forks, settings, tmp_path):
    output = tmp_path / "full"
    before = NO_ROOM.format(module="transformers", owner="Trainer", method="_save_optimizer_and_scheduler")
    argv = [*settings, "--output_dir", output, "--max_steps", 5, "--ddp_timeout", 60]
    run = forks.run(*argv, world=2, before=before)
    assert run.codes == [0, 0], run.err
    assert "checkpoint-4 could not be written" in run.out and "There is no earlier one; training continues" in run.out
    assert not list(output.glob("checkpoint-*")) and (output / "adapter_model.safetensors").exists()


# As FULL, for a disk that has room for the adapter and not for the optimizer's state, on the first process or the last.
FULL_LATER = FULL.replace("(8, 12)", "(4,) and rank == {rank}").replace("6000", "{size}")


def test_row_02_torch_has_words_of_its_own_for_a_full_disk(forks, settings, tmp_path):
    output = tmp_path / "full"
    run = forks.run(*settings, "--output_dir", output, "--max_steps", 5, before=FULL_LATER.format(rank=0, size=40000))
    assert run.code == 0, run.err
    assert re.search("checkpoint-4 could not be written .*(inline_container|iostream|PytorchStreamWriter)", run.out)
    assert "There is no earlier one; training continues" in run.out
    assert [path.name for path in output.glob("*checkpoint*")] == ["checkpoint-5"]


@pytest.mark.parametrize(("stage", "rank"), [(2, 1), pytest.param(3, 0, marks=pytest.mark.slow)])
def test_row_29_deepspeed_saves_on_a_full_disk(forks, settings, tmp_path, stage, rank):
    """Savers that wait for each other do so where one of them cannot write."""
    output = tmp_path / "full"
    argv = [*settings, "--output_dir", output, "--max_steps", 5, "--save_steps", 2, "--bf16", "False"]
    argv += ["--deepspeed", f"configs/deepspeed/zero{stage}.json", "--ddp_timeout", 60]
    run = forks.run(*argv, world=2, before=FULL_LATER.format(rank=rank, size=6000))
    assert run.codes == [0, 0], run.err
    assert f"checkpoint-4 could not be written to {output}" in run.out
    assert "checkpoint-2 is whole as before; training continues" in run.out
    assert sorted(path.name for path in output.glob("*checkpoint*")) == ["checkpoint-2", "checkpoint-5"]
    assert not (output / ".saving").exists() and what_is_missing(output / "checkpoint-5") is None
    shutil.rmtree(output / "checkpoint-5")
    run = forks.run(*argv, "--resume_from_checkpoint", "true", world=2)
    assert run.code == 0 and f"resuming from {output}/checkpoint-2" in run.out, run.err


def test_row_29_the_first_files_of_a_run(tmp_path, monkeypatch):
    def fails(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(tmp_path), "write_text", fails)
    parser = SimpleNamespace(save_settings=lambda path: None)
    with pytest.raises(UserError, match=rf"--output_dir {tmp_path}: cannot be written \(No space left on device\)"):
        _write_first(tmp_path, parser, {"train": Ledger()}, None, {})
    assert not list(tmp_path.iterdir())


def test_row_29_what_is_left_where_the_results_cannot_be_written(tmp_path, monkeypatch):
    def fails(*args):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path)), state=SimpleNamespace(global_step=9))
    saved = "The trained weights are whole; the figures are not. "
    for newest, where, then in (
        (None, "_save_model", "There is no checkpoint: once there is room, --overwrite_output_dir trains anew"),
        (None, "_write_results", saved + "Keep them, make room, and scripts/evaluate.py measures them"),
        ("checkpoint-8", "_save_model", "checkpoint-8 is whole. .* true writes the rest after training again from"),
        (
            "checkpoint-9",
            "_write_results",
            saved + "checkpoint-9 is whole. .* true writes the rest without training again",
        ),
    ):
        monkeypatch.setattr(finish_module, "_save_model", lambda *args: None)
        monkeypatch.setattr(finish_module, where, fails)
        monkeypatch.setattr(finish_module, "newest_whole", lambda folder, newest=newest: newest and tmp_path / newest)
        with pytest.raises(UserError, match=rf"the results could not be written \(.*unexpected pos.*\)\. {then}"):
            finish_module.finish(trainer, None)


def test_row_02_a_disk_too_full_for_curves_and_answers(forks, settings, pairs, tmp_path):
    output = tmp_path / "full"
    before = "import time\nfrom hf_recipes.trainer.reports import progress\nprogress.CURVES_EVERY = 0\n"
    before += NO_ROOM.format(module="hf_recipes.evaluation.reports", owner="plots", method="png_of")
    before += "import os\nmake = os.makedirs\ndef makedirs(path, *args, **kwargs):\n"
    before += "    return fails() if str(path).endswith('predictions') else make(path, *args, **kwargs)\n"
    before += "os.makedirs = makedirs\n"
    argv = [*settings, "--output_dir", output, "--validation_file", pairs / "dev.json", "--eval_steps", 4]
    run = forks.run(*argv, "--max_steps", 8, "--max_target_length", 4, before=before)
    assert run.code == 0, run.err
    for then in ("training continues", "weights and metrics.json are whole"):
        assert f"curves.png could not be written (No space left on device); {then}" in run.out
    assert "step-4.jsonl could not be written (No space left on device); training continues" in run.out
    assert what_is_missing(output / "checkpoint-8") is None and (output / "metrics.json").is_file()


def test_row_03_a_checkpoint_with_a_part_missing_or_cut(forks, settings, tmp_path):
    output = tmp_path / "run"
    assert forks.run(*settings, "--output_dir", output).code == 0
    newest, older = output / "checkpoint-14", output / "checkpoint-12"
    assert find_checkpoint(str(output), "true") == str(newest)
    parts = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors", "trainer_state.json")
    for name in (*parts, "adapter_config.json"):
        kept = (newest / name).read_bytes()
        (newest / name).write_bytes(kept[: len(kept) // 2])
        assert what_is_missing(newest) == f"{name} is cut short"
        (newest / "files.json").rename(tmp_path / "files.json")  # as other programs leave a checkpoint: without a list
        assert what_is_missing(newest) == f"{name} is cut short"
        (tmp_path / "files.json").rename(newest / "files.json")
        assert find_checkpoint(str(output), "true") == str(older)
        (newest / name).unlink()
        assert "missing" in what_is_missing(newest)
        with pytest.raises(UserError, match="is missing, so the run could not resume as it was"):
            find_checkpoint(str(output), str(newest))
        (newest / name).write_bytes(kept)
    assert what_is_missing(newest) is None
    with pytest.raises(UserError, match=r"written by 1 processes, and this run has 2.*--inexact_resume"):
        find_checkpoint(str(output), "true", world_size=2)
    assert find_checkpoint(str(output), "true", world_size=2, inexact=True) == str(newest)


KILL_AT = """
import importlib, os, signal
from hf_recipes.run import finish
from hf_recipes.trainer import base
from hf_recipes.trainer.checkpoints import save
def deadly(owner, name, nth, last=""):
    original, calls = getattr(owner, name), 0
    def replacement(*args, **kwargs):
        nonlocal calls
        calls += str(args[-1]).endswith(last)
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    setattr(owner, name, replacement)
"""


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("base.RunMixin, 'training_step', 21", "checkpoint-8"),  # in the middle of step 11
        ("save, 'write_manifest', 2", "checkpoint-4"),  # checkpoint-8 without its list of files
        ("save.os, 'replace', 1, '/killed/checkpoint-8'", "checkpoint-4"),  # written, not yet in its place
        ("finish, '_write_results', 1", "checkpoint-14"),  # after the last checkpoint, before the results
    ],
    ids=["training", "a save", "before the rename", "before the results"],
)
def test_row_04_kill_and_resume(forks, settings, whole, tmp_path, target, expected):
    output = tmp_path / "killed"
    argv = [*settings, "--output_dir", str(output)]
    run = forks.run(*argv, before=f"{KILL_AT}\ndeadly({target})")
    assert run.code == -9, run.err
    run = forks.run(*argv, "--resume_from_checkpoint", "true")
    assert run.code == 0, run.err
    assert f"resuming from {output}/{expected}" in run.out
    assert same(weights(output), whole)
    assert not (output / ".saving").exists()
    assert "step 15" not in run.out


def test_row_08_ctrl_c_ends_the_run_with_a_checkpoint(forks, settings, whole, tmp_path):
    """SIGTERM, in every stage: tests/stages/test_contract.py."""
    output = tmp_path / "stopped"
    argv = [*settings, "--output_dir", output, "--save_strategy", "no", "--logging_steps", 1]
    run = forks.start(*argv)
    run.wait_for("step 3/14")
    run.signal(signal.SIGINT)
    assert run.code == 0, run.err
    [checkpoint] = output.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert what_is_missing(checkpoint) is None and 3 <= step < 14
    assert f"stopped by SIGINT after step {step} of 14; resume with the same command and --resume_from" in run.out
    run = forks.run(*argv, "--resume_from_checkpoint", "true")
    assert run.code == 0 and same(weights(output), whole)


def test_row_08_a_signal_in_the_last_save(forks, settings, whole, pairs, tmp_path):
    output = tmp_path / "stopped"
    argv = [*settings, "--output_dir", output, "--validation_file", pairs / "dev.json", "--max_target_length", 4]
    last = "import os, signal\nfrom hf_recipes.trainer.base import RunMixin\nsave = RunMixin._complete\n"
    last += "def saved(self, path):\n    save(self, path)\n    if path.name == 'checkpoint-14':\n"
    last += "        os.kill(os.getpid(), signal.SIGTERM)\nRunMixin._complete = saved\n"
    run = forks.run(*argv, before=last)
    assert run.code == 0 and "stopped by SIGTERM after step 14 of 14" in run.out, run.err
    assert json.loads((output / "metrics.json").read_text())["after"] is None  # the last evaluation is still to come
    logged = [line.split() for line in run.out.splitlines() if line.startswith("step ") and "  loss " in line]
    assert [words[1] for words in logged] == [f"{step}/14" for step in (4, 5, 8, 10, 12, 14)]  # at each save too
    mean = sum(n * loss for n, loss in zip((4, 1, 3, 2, 2, 2), run.losses(), strict=True)) / 14
    run = forks.run(*argv, "--resume_from_checkpoint", "true")
    assert run.code == 0 and same(weights(output), whole), run.err
    assert "all 14 steps were trained before, mean training loss" in run.out
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["train"]["loss"] == pytest.approx(mean, abs=1e-4) and metrics["train"]["from_step"] == 14


def test_row_08_a_signal_in_an_evaluation(forks, settings, whole, pairs, tmp_path):
    output = tmp_path / "stopped"
    validation = ["--validation_file", pairs / "dev.json", "--eval_steps", 6, "--max_target_length", 40]
    slow = "import time\nfrom hf_recipes.trainer.base import RunMixin\ncheck = RunMixin.check_stop\n"
    slow += "def checked(self):\n    print('evaluating', flush=True)\n    time.sleep(1)\n    check(self)\n"
    run = forks.start(*settings, *validation, "--output_dir", output, before=f"{slow}RunMixin.check_stop = checked")
    run.wait_for("evaluating")
    run.signal(signal.SIGTERM)
    assert run.code == 0, run.err
    assert "stopped by SIGTERM after step 6 of 14" in run.out
    run = forks.run(*settings, *validation, "--output_dir", output, "--resume_from_checkpoint", "true")
    assert run.code == 0, run.err
    assert "checkpoint-6" in run.out and same(weights(output), whole)


def test_what_only_shows_the_results_may_fail(sft, model_dir, pairs, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise IndexError("list index out of range")

    monkeypatch.setattr("hf_recipes.run.train.model_card", fail)
    monkeypatch.setattr("hf_recipes.run.finish.describe", fail)
    monkeypatch.setattr("hf_recipes.trainer.reports.trackers.TrackersCallback.finish", fail)
    monkeypatch.setattr("hf_recipes.trainer.reports.trackers.read_predictions", fail)
    for name in ("plots.draw_curves", "tables.samples"):
        monkeypatch.setattr(f"hf_recipes.evaluation.reports.{name}", fail)
    monkeypatch.setattr("hf_recipes.trainer.reports.progress.draw_curves", fail)
    output = tmp_path / "run"
    settings = ["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--output_dir", output]
    settings += ["--validation_file", pairs / "dev.json", "--max_target_length", 4, "--max_steps", 2, "--eval_steps", 1]
    code, out, err = sft(*settings, "--report_to", "tensorboard")
    assert code == 0, err
    reason = "could not be written (IndexError: list index out of range);"
    for what in ("the line about memory", "README.md", "curves.png", "the trackers' last entries", "the report"):
        assert f"{what} {reason} weights and metrics.json are whole" in out
    assert f"eval/samples for the trackers {reason} training continues" in out
    assert json.loads((output / "metrics.json").read_text())["after"]["loss"] > 0 and weights(output)


@pytest.mark.parametrize(
    "error", [UserError("--rewards own: failed"), KeyError("score"), OSError(28, "No space left on device")], ids=repr
)
def test_weights_and_metrics_outlive_the_last_evaluation(sft, model_dir, pairs, tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        metrics.append(json.loads((output / "metrics.json").read_text()))
        raise error

    metrics, output = [], tmp_path / "run"
    monkeypatch.setattr("hf_recipes.run.evaluate_callback.run_method", fail)
    settings = ["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--output_dir", output]
    settings += ["--validation_file", pairs / "dev.json", "--max_target_length", 4, "--max_steps", 1]
    code, out, err = sft(*settings, "--report_to", "none", "--save_strategy", "no")
    assert code == 0, err
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    assert f"the last evaluation failed ({kind}{error}); the weights and the other figures are in {output}" in out
    assert any(value.any() for name, value in weights(output).items() if "lora_B" in name)
    assert all((output / name).is_file() for name in ("data_ledger.json", "README.md", "curves.png"))
    last = json.loads((output / "metrics.json").read_text())
    assert metrics == [{**last, "memory": metrics[0]["memory"]}]  # which has grown
    assert last["after"] is None and last["train"]["steps"] == 1


def test_weights_outlive_metrics_that_find_no_room(sft, model_dir, pairs, tmp_path, monkeypatch):
    def fail(path, *args, **kwargs):
        if path.name == "metrics.json":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_recipes.run.finish.write_json", fail)
    output = tmp_path / "run"
    settings = ["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--output_dir", output]
    settings += ["--validation_file", pairs / "dev.json", "--max_target_length", 4, "--max_steps", 1]
    code, _, err = sft(*settings, "--report_to", "none", "--save_strategy", "no")
    assert code == 1 and "the results could not be written" in err and "--overwrite_output_dir" not in err
    assert any(value.any() for name, value in weights(output).items() if "lora_B" in name)
    assert (output / "data_ledger.json").is_file() and not (output / "metrics.json").exists()


def test_row_26_an_adapter_that_begins_in_the_base_is_saved_and_resumed_as_it_is_trained(forks, settings, tmp_path):
    """Each checkpoint is a plain LoRA for the base, and the run goes on from it to the same weights."""
    config = tmp_path / "pissa.json"
    config.write_text(LORA.replace("{", '{"init_lora_weights": "pissa_niter_4", '))
    argv = [*settings, "--lora_config", config, "--max_steps", 4, "--save_steps", 2, "--bf16", "False"]
    run = forks.run(*argv, "--output_dir", tmp_path / "run")
    assert run.code == 0, run.err
    first = tmp_path / "run" / "checkpoint-2"
    run = forks.run(*argv, "--output_dir", tmp_path / "again", "--resume_from_checkpoint", first)
    assert run.code == 0, run.err
    assert same(weights(tmp_path / "run"), weights(tmp_path / "again"))
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-2"):
        saved = json.loads((folder / "adapter_config.json").read_text())
        assert (saved["init_lora_weights"], saved["r"], saved["lora_alpha"]) == (True, 8, 16)
        assert weights(folder)["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (8, 32)
