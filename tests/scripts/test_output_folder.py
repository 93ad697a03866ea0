"""The output folder and the checkpoint that a run begins with."""

import json
import signal

import pytest

from conftest import write_pairs
from hf_recipes.core.errors import UserError
from hf_recipes.run.output_dir import check_output_dir, check_sources, enter_output_dir, open_folder
from hf_recipes.stages.sft import SFTArguments
from hf_recipes.trainer.checkpoints.find import find_checkpoint


def test_resume_without_a_checkpoint_begins_and_says_so(tmp_path, capsys):
    assert find_checkpoint(str(tmp_path), "true") is None
    assert "starting from the beginning" in capsys.readouterr().out
    assert find_checkpoint(str(tmp_path), None) is None
    with pytest.raises(UserError, match="no such folder"):
        find_checkpoint(str(tmp_path), str(tmp_path / "checkpoint-3"))


def check(path, use_lora=True, enters=False, **settings):
    args = SFTArguments(output_dir=str(path), report_to="none", **settings)
    folder = open_folder(args)
    check_output_dir(folder, args, use_lora)
    if enters:
        enter_output_dir(folder, args)
    return folder


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def contents(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


RUN = ("checkpoint-3/trainer_state.json", "metrics.json", "README.md", "predictions/dev/step-3.jsonl", "curves.png")


def test_overwriting_clears_the_former_run_and_nothing_else(tmp_path):
    folder = check(tmp_path, enters=True)
    folder.claim((r"metrics\.json", r"README\.md"))
    put(tmp_path, *RUN)
    folder.settle()
    mine = ("notes.txt", "samples/step-1.jsonl", "predictions/mine.jsonl", "checkpoint-mine/x", "config.json")
    put(tmp_path, *mine)
    before = contents(tmp_path)
    for settings in ({}, {"resume_from_checkpoint": "false"}):
        with pytest.raises(UserError, match="the folder is not empty; resume with --resume_from_checkpoint true"):
            check(tmp_path, **settings)
    with pytest.raises(UserError, match=r"no run recorded config.json as its own, and this one would write there"):
        check(tmp_path, use_lora=False, overwrite_output_dir=True)
    put(tmp_path, "checkpoint-4/x")
    with pytest.raises(UserError, match=r"no run recorded checkpoint-4/x as its own"):
        check(tmp_path, overwrite_output_dir=True)
    (tmp_path / "checkpoint-4" / "x").unlink()
    assert contents(tmp_path) == before
    check(tmp_path, overwrite_output_dir=True, enters=True)
    assert contents(tmp_path).keys() == {".run", *mine}


@pytest.mark.parametrize("settings", [{"overwrite_output_dir": True}, {"resume_from_checkpoint": "true"}, {}])
def test_a_folder_that_no_run_made_is_refused(tmp_path, settings):
    put(tmp_path, "README.md", "samples/a.txt", "predictions/a.json", "model.safetensors")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"--output_dir {tmp_path}: "):
        check(tmp_path, enters=True, **settings)
    assert contents(tmp_path) == before


def test_resuming_beside_what_is_in_nobodys_way(tmp_path):
    put(tmp_path, "output.log")
    check(tmp_path, enters=True, resume_from_checkpoint="true")
    put(tmp_path, *(name for name in RUN if name not in ("metrics.json", "README.md")))
    check(tmp_path, enters=True, resume_from_checkpoint="true")  # it was killed
    put(tmp_path, *RUN)
    (tmp_path / ".run").unlink()  # copied without it
    with pytest.raises(UserError, match=r"no run recorded README.md and 4 more as its own"):
        check(tmp_path, resume_from_checkpoint="true")
    put(tmp_path, "run_config.yaml")
    folder = check(tmp_path, enters=True, resume_from_checkpoint="true")
    assert folder.recorded_files() == sorted((*RUN, "run_config.yaml"))


def test_a_record_that_names_no_files_is_nobodys(tmp_path):
    put(tmp_path, *RUN, "adapter_model.safetensors", "notes.txt")
    (tmp_path / ".run").write_text("host:1234")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="no record of whose the files are"):
        check(tmp_path, overwrite_output_dir=True, enters=True)
    assert contents(tmp_path) == before


def test_a_run_does_not_write_over_what_it_starts_from(tmp_path):
    model, adapter = tmp_path / "model", tmp_path / "run" / "checkpoint-3"
    for folder in (model, adapter):
        folder.mkdir(parents=True)
    for output, source in ((model, model), (tmp_path / "run", adapter), (tmp_path, model)):
        with pytest.raises(UserError, match=f"the run would write over {source}, which it starts from"):
            check_sources(output, "some/model", str(source))
    check_sources(adapter / "next", str(model), str(adapter))


@pytest.fixture(scope="module")
def settings(model_dir, tmp_path_factory):
    data = write_pairs(tmp_path_factory.mktemp("data"))
    return f"""--model_name_or_path {model_dir} --train_file {data}/train.json --validation_file {data}/dev.json
    --report_to none --max_steps 2 --save_steps 1 --eval_on_start --max_target_length 4 --logging_steps 1""".split()


# Two runs, each of one process, where the launcher starts one of two; the second when the first is at a step.
TWO = """
import os, time
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    del os.environ[name]
"""
SECOND = (
    TWO
    + """
if rank:
    while not os.path.exists("FLAG"):
        time.sleep(0.02)
else:
    from hf_recipes.trainer.base import RunMixin
    step = RunMixin.training_step
    def slow(self, *args, **kwargs):
        open("FLAG", "w").close()
        if self.state.global_step:
            print("the first step is saved", flush=True)
            time.sleep(120)
        return step(self, *args, **kwargs)
    RunMixin.training_step = slow
"""
)


# Whoever has the folder keeps it until the other one was refused.
TRAINS_AFTER = """
from hf_recipes.trainer.base import RunMixin
step = RunMixin.training_step
def waits(self, *args, **kwargs):
    while not os.path.exists("{}/refused"):
        time.sleep(0.02)
    return step(self, *args, **kwargs)
RunMixin.training_step = waits
"""


def test_two_runs_begin_in_one_folder_and_one_is_refused(forks, settings, tmp_path):
    output = tmp_path / "run"
    meet = f"open('{tmp_path}/' + str(rank), 'w')\nwhile not os.path.exists('{tmp_path}/' + str(1 - rank)): pass\n"
    run = forks.start(*settings, "--output_dir", output, world=2, before=TWO + meet + TRAINS_AFTER.format(tmp_path))
    try:
        run.wait_for("another process is writing", of="err")
    finally:
        (tmp_path / "refused").touch()
    assert sorted(run.wait().codes) == [0, 1], run.err
    loser = (run.logs / f"err{run.codes.index(1)}").read_text()
    assert f"error: --output_dir {output}: another process is writing to this folder" in loser
    assert json.loads((output / "metrics.json").read_text())["steps"] == 2 and not (output / ".lock").exists()


def test_a_run_keeps_its_folder_until_it_ends(forks, settings, script, model_dir, pairs, tmp_path):
    output, flag = tmp_path / "run", tmp_path / "flag"
    argv = [*settings, "--output_dir", output, "--resume_from_checkpoint", "true"]
    run = forks.start(*argv, world=2, before=SECOND.replace("FLAG", str(flag)))
    run.wait_for("step 1/2")
    error = f"error: --output_dir {output}: another process is writing to this folder; wait for its end"
    run.wait_for(error, of="err1")
    run.wait_for("the first step is saved")
    before = contents(output)
    for flags in (["--resume_from_checkpoint", "true", "--learning_rate", 1], ["--overwrite_output_dir"], []):
        code, _, err = script("sft.py", *settings, "--output_dir", output, *flags)
        assert code == 1 and error in err
    evaluate = ["--model_name_or_path", model_dir, "--eval_files", f"dev={pairs}/dev.json", "--output_dir", output]
    code, _, err = script("evaluate.py", *evaluate)
    assert code == 1 and error in err
    assert contents(output) == before
    assert script("sft.py", *settings, "--output_dir", output, "--dry_run", "--overwrite_output_dir")[0] == 0

    run.signal(signal.SIGKILL)
    assert -signal.SIGKILL in run.wait().codes
    run = forks.run(*argv)
    assert run.code == 0 and f"resuming from {output}/checkpoint-1" in run.out, run.err
    code, _, err = script("evaluate.py", *evaluate, "--overwrite_output_dir")
    assert code == 1 and f"--output_dir {output}: the folder of a training run; name another, or one in it" in err

    (output / "notes.txt").write_text("mine")
    (output / "checkpoint-1").rename(tmp_path / "elsewhere")
    (output / "checkpoint-1").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path)
    run = forks.run(*settings, "--output_dir", output, "--overwrite_output_dir", "--max_steps", 1)
    assert run.code == 1 and "checkpoint-1 is a link, which is not followed" in run.err
    assert contents(tmp_path) == before
    (output / "checkpoint-1").unlink()
    run = forks.run(*settings, "--output_dir", output, "--overwrite_output_dir", "--max_steps", 1)
    assert run.code == 0, run.err
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-1"]
    assert sorted(path.name for path in output.glob("predictions/*")) == ["step-0.jsonl", "step-1.jsonl"]
    assert (output / "notes.txt").read_text() == "mine" and (tmp_path / "elsewhere" / "optimizer.pt").is_file()
    record = json.loads((output / ".run").read_text())
    assert record["claims"] == [] and {"notes.txt", ".lock"}.isdisjoint(record["files"])
    assert {"adapter_model.safetensors", "tokenizer.json", "metrics.json", "README.md"} <= set(record["files"])
