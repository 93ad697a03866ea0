"""Row 19 of the reliability scorecard: no token in any byte that is written, and no code run from a checkpoint."""

import os
import shutil

import pytest
import torch

from conftest import write_pairs
from hf_recipes.errors import UserError
from hf_recipes.training.checkpoints import find_checkpoint, what_would_run

TOKEN = "hf_SecretSecretSecretSecretSecret"


@pytest.fixture(scope="module")
def zero_run(forks, model_dir, tmp_path_factory):
    """A folder with DeepSpeed checkpoints, written with a token on the command line and in the environment."""
    data, output = write_pairs(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("zero")
    argv = f"""--model_name_or_path {model_dir} --train_file {data}/train.json --validation_file {data}/dev.json
    --report_to none --max_steps 4 --save_steps 2 --eval_steps 2 --max_target_length 8 --bf16 False
    --deepspeed configs/deepspeed/zero2.json --hub_token {TOKEN} --output_dir {output} --overwrite_output_dir""".split()
    run = forks.run(*argv, HF_TOKEN=TOKEN)
    assert run.code == 0, run.err
    return output, argv, run


def test_row_19_a_token_is_in_no_output_byte(zero_run):
    output, _, run = zero_run
    files = [path for path in output.rglob("*") if path.is_file()]
    assert len(files) > 20 and not any(path.name == "training_args.bin" for path in files)
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in run.out + run.err


class Payload:
    """What a pickle can do: here it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_row_19_a_crafted_checkpoint_runs_nothing(forks, zero_run, tmp_path):
    output, argv, _ = zero_run
    checkpoint = tmp_path / "crafted"
    shutil.copytree(output / "checkpoint-4", checkpoint)
    assert what_would_run(checkpoint) is None
    assert find_checkpoint(str(output), str(checkpoint)) == str(checkpoint)

    [victim] = checkpoint.glob("global_step4/*optim_states.pt")
    contents = torch.load(victim, weights_only=False)
    torch.save({**contents, "extra": Payload(tmp_path / "executed")}, victim)
    (checkpoint / "files.json").unlink()
    argv = [*argv, "--resume_from_checkpoint", checkpoint]
    argv.remove("--overwrite_output_dir")
    run = forks.run(*argv)
    assert run.code == 1 and "Traceback" not in run.err
    assert "loading it would run code from its files" in run.err and "mkdir" in run.err
    assert not (tmp_path / "executed").exists()
    with pytest.raises(UserError, match="--trust_checkpoint"):
        find_checkpoint(str(output), str(checkpoint))
    run = forks.run(*argv, "--trust_checkpoint")
    assert (tmp_path / "executed").is_dir(), "the test's own check: it does run where the user allows it"


def test_row_19_other_checkpoints_are_read_with_restrictions(forks, model_dir, tmp_path):
    """transformers reads its own files so; this is what keeps it so."""
    data, output = write_pairs(tmp_path / "data"), tmp_path / "run"
    argv = f"""--model_name_or_path {model_dir} --train_file {data}/train.json --report_to none --max_steps 4
    --save_steps 2 --output_dir {output}""".split()
    assert forks.run(*argv).code == 0
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        path = output / "checkpoint-2" / name
        kept = path.read_bytes()
        torch.save({"state": Payload(tmp_path / "executed")}, path)
        (output / "checkpoint-2" / "files.json").unlink(missing_ok=True)
        assert forks.run(*argv, "--resume_from_checkpoint", output / "checkpoint-2").code != 0
        assert not (tmp_path / "executed").exists()
        path.write_bytes(kept)
