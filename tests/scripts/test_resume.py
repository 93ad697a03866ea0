"""A run that is killed goes on to the weights, bit for bit, of one that was not."""

import subprocess
import sys

import pytest

from conftest import ROOT, same, weights
from hf_recipes.arguments import SFTArguments
from hf_recipes.errors import UserError
from hf_recipes.training.checkpoints import find_checkpoint, what_is_missing
from hf_recipes.training.run import check_output_dir, enter_output_dir

# Runs scripts/sft.py with `target` replaced by something that kills the process at its `nth` call.
DRIVER = """
import importlib, os, runpy, signal, sys
target, nth, half = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "half"
module, name = target.rsplit(":", 1)
owner = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, name), 0
def deadly(*args, **kwargs):
    global calls
    calls += 1
    if calls == nth:
        if half:
            open(args[1], "wb").write(b"PK half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(owner, name, deadly)
sys.argv = ["sft.py", *sys.argv[4:]]
runpy.run_path("scripts/sft.py", run_name="__main__")
"""
LORA = '{"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target_modules": "all-linear"}'


@pytest.fixture
def settings(model_dir, pairs, tmp_path):
    (tmp_path / "lora.json").write_text(LORA)
    return f"""--model_name_or_path {model_dir} --train_file {pairs}/train.json --lora_config {tmp_path}/lora.json
    --report_to none --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --dataloader_num_workers 1
    --max_steps 14 --save_steps 4 --learning_rate 1e-2 --logging_steps 5""".split()


@pytest.fixture
def whole(sft, settings, tmp_path):
    assert sft(*settings, "--output_dir", tmp_path / "whole")[0] == 0
    return weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("target", "nth", "half", "expected"),
    [
        ("hf_recipes.training.trainer:RunMixin.training_step", 21, "no", "checkpoint-8"),  # in the middle of step 11
        ("torch:save", 6, "half", "checkpoint-4"),  # the optimizer of checkpoint-8 half written
        ("hf_recipes.training.trainer:sync", 3, "no", "checkpoint-4"),  # checkpoint-8 written, not yet in its place
    ],
    ids=["training", "half a save", "before the rename"],
)
def test_kill_and_resume(sft, settings, whole, tmp_path, target, nth, half, expected):
    output = tmp_path / "killed"
    argv = [*settings, "--output_dir", str(output)]
    killed = subprocess.run(
        [sys.executable, "-c", DRIVER, target, str(nth), half, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -9, killed.stderr[-2000:]
    code, out, err = sft(*argv, "--resume_from_checkpoint", "true")
    assert code == 0, err
    assert f"going on from {output}/{expected}" in out
    assert same(weights(output), whole)
    assert not (output / ".saving").exists()


def test_a_checkpoint_with_a_part_missing_is_refused_or_passed_over(sft, settings, tmp_path):
    output = tmp_path / "run"
    assert sft(*settings, "--output_dir", output)[0] == 0
    newest, older = output / "checkpoint-14", output / "checkpoint-12"
    assert find_checkpoint(str(output), "true") == str(newest)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors", "trainer_state.json"):
        kept = (newest / name).read_bytes()
        (newest / name).write_bytes(kept[: len(kept) // 2] if name != "trainer_state.json" else b"")
        assert what_is_missing(newest) == f"{name} is cut short"
        assert find_checkpoint(str(output), "true") == str(older)
        (newest / name).unlink()
        assert "missing" in what_is_missing(newest)
        with pytest.raises(UserError, match="is missing, so the run could not go on as it was"):
            find_checkpoint(str(output), str(newest))
        (newest / name).write_bytes(kept)
    assert what_is_missing(newest) is None


def test_resume_without_a_checkpoint_begins_and_says_so(tmp_path, capsys):
    assert find_checkpoint(str(tmp_path), "true") is None
    assert "starting from the beginning" in capsys.readouterr().out
    assert find_checkpoint(str(tmp_path), None) is None
    with pytest.raises(UserError, match="no such folder"):
        find_checkpoint(str(tmp_path), str(tmp_path / "checkpoint-3"))


def folder_args(path, **settings) -> SFTArguments:
    return SFTArguments(output_dir=str(path), report_to="none", **settings)


def test_overwriting_clears_the_former_run_and_nothing_else(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").touch()
    (tmp_path / "checkpoint-mine").mkdir()
    for name in ("metrics.json", "adapter_model.safetensors", "adapter_config.json", "notes.txt"):
        (tmp_path / name).touch()
    args = folder_args(tmp_path, overwrite_output_dir=True)
    check_output_dir(args)
    assert len(list(tmp_path.iterdir())) == 6
    assert enter_output_dir(args) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run", "checkpoint-mine", "notes.txt"]
    for refused in ({}, {"resume_from_checkpoint": "false"}):
        with pytest.raises(UserError, match="not empty"):
            check_output_dir(folder_args(tmp_path, **refused))
