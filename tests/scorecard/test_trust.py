"""Row 19 of the reliability scorecard: no token in any byte that is written, and no code run from a checkpoint."""

import json
import os
import pickle
import re
import shutil

import pytest
import torch

from conftest import tiny_model, write_pairs
from hf_recipes.core.errors import UserError
from hf_recipes.models.adapters.saved_adapter import load_adapter
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.loading import load_model
from hf_recipes.trainer.checkpoints.find import find_checkpoint
from hf_recipes.trainer.checkpoints.untrusted_code import what_would_run

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


def crafted(output, tmp_path):
    """A checkpoint to spoil, and a folder of DeepSpeed's files beside it that run code."""
    checkpoint, state = tmp_path / "crafted", tmp_path / "state"
    shutil.copytree(output / "checkpoint-4", checkpoint)
    (checkpoint / "files.json").unlink()
    shutil.copytree(checkpoint / "global_step4", state)
    for path in state.iterdir():
        torch.save({"extra": Payload(tmp_path / "executed")}, path)
    return checkpoint, state


def name_another_folder(name, wanted="../state"):
    def spoil(checkpoint, state):
        (checkpoint / name).write_text(wanted.format(state=state) + "\n")

    return spoil


def link_the_folder(checkpoint, state):
    shutil.rmtree(checkpoint / "global_step4")
    (checkpoint / "global_step4").symlink_to("../state")


def link_a_file(checkpoint, state):
    [victim] = checkpoint.glob("global_step4/*optim_states.pt")
    victim.unlink()
    victim.symlink_to(state / victim.name)


def link_deep_inside(checkpoint, state):
    (checkpoint / "global_step4" / "a").mkdir()
    (checkpoint / "global_step4" / "a" / ".zero").symlink_to(state)


def link_back_to_the_top(checkpoint, state):
    """Files on top are read by transformers with restrictions, and by DeepSpeed without, if it comes to them."""
    for path in state.iterdir():
        shutil.copy(path, checkpoint)
    (checkpoint / "step").symlink_to(".")
    (checkpoint / "latest").write_text("step")


def hide_in_a_folder(name):
    def spoil(checkpoint, state):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(state.iterdir()), checkpoint / name)

    return spoil


def call_another_the_best(checkpoint, state):
    """It is what DeepSpeed loads at the end, with --load_best_model_at_end."""
    path, best = checkpoint / "trainer_state.json", checkpoint.parent / "best"
    path.write_text(json.dumps({**json.loads(path.read_text()), "best_model_checkpoint": str(best)}))
    best.mkdir()
    (best / "latest").write_text("../state")


def pickle_the_metadata(checkpoint, state):
    """A distributed checkpoint's list of tensors is a plain pickle."""
    (checkpoint / "optimizer_0").mkdir()
    with open(checkpoint / "optimizer_0" / ".metadata", "wb") as file:
        pickle.dump({"state": Payload(state.parent / "executed")}, file)


CRAFTED = {
    "latest beside": (name_another_folder("latest"), "latest names '../state', which is no folder in it"),
    "latest absolute": (name_another_folder("latest", "{state}"), "latest names '/"),
    "latest through": (name_another_folder("latest", "global_step4/../../state"), "latest names 'global_step4/"),
    "latest above": (name_another_folder("latest", ".."), "latest names '..'"),
    "universal": (name_another_folder("latest_universal"), "latest_universal names '../state'"),
    "folder": (link_the_folder, "global_step4 is a link to ../state"),
    "file": (link_a_file, "optim_states.pt is a link to /"),
    "deep": (link_deep_inside, "global_step4/a/.zero is a link to /"),
    "top": (link_back_to_the_top, "step is a link to ."),
    "hidden": (hide_in_a_folder("global_step4/.b/.c.pt"), r"global_step4/.b/.c.pt: \w+.mkdir"),
    "suffix": (hide_in_a_folder("other/fp32.PT"), r"other/fp32.PT: \w+.mkdir"),
    "best": (call_another_the_best, "latest names '../state'"),
    "metadata": (pickle_the_metadata, r"optimizer_0/.metadata: \w+.mkdir"),
}


@pytest.mark.parametrize(("spoil", "what"), CRAFTED.values(), ids=CRAFTED)
def test_row_19_what_is_scanned_is_what_would_be_read(zero_run, tmp_path, spoil, what):
    checkpoint, state = crafted(zero_run[0], tmp_path)
    assert what_would_run(checkpoint) is None
    spoil(checkpoint, state)
    with pytest.raises(UserError, match=f"would run code from its files .*{what}.*--trust_checkpoint"):
        find_checkpoint(str(tmp_path), str(checkpoint))
    assert not (tmp_path / "executed").exists()


def test_row_19_latest_names_a_folder_beside_the_checkpoint(forks, zero_run, tmp_path):
    checkpoint, state = crafted(zero_run[0], tmp_path)
    name_another_folder("latest")(checkpoint, state)
    argv = [word for word in zero_run[1] if word != "--overwrite_output_dir"]
    run = forks.run(*argv, "--resume_from_checkpoint", checkpoint)
    assert run.code == 1 and "Traceback" not in run.err
    assert "latest names '../state'" in run.err and not (tmp_path / "executed").exists()


def save_distributed(folder, **state):
    from torch.distributed import checkpoint

    checkpoint.save(state, storage_writer=checkpoint.FileSystemWriter(folder / "optimizer_0"))


def test_a_distributed_checkpoint_needs_no_trust(tmp_path):
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_distributed(tmp_path, model=model.state_dict(), optimizer=optimizer.state_dict())
    assert (tmp_path / "optimizer_0" / ".metadata").is_file() and what_would_run(tmp_path) is None


@pytest.mark.parametrize("path", [None, "../state", "{folder}/state"])
def test_a_distributed_checkpoint_with_a_value_that_runs_code(tmp_path, path):
    """What is no tensor is a pickle within its files, which torch loads without restrictions."""
    value = Payload(tmp_path / "executed") if path is None else 0.1
    save_distributed(tmp_path / "crafted", before=0.1, optimizer={"lr": value}, after=[0.9])
    metadata = tmp_path / "crafted" / "optimizer_0" / ".metadata"
    if path is not None:
        values = pickle.loads(metadata.read_bytes())
        for stored in values.storage_data.values():
            stored.relative_path = path.format(folder=tmp_path)
        metadata.write_bytes(pickle.dumps(values))
    what = r"\w+.mkdir" if path is None else r"cannot be read \(\w+ is in .*state\)"
    assert re.fullmatch(rf"optimizer_0/.metadata: {what}", what_would_run(tmp_path / "crafted"))
    metadata.rename(metadata.with_name("__0.metadata"))  # of one process
    assert re.fullmatch(rf"optimizer_0/__0.metadata: {what}", what_would_run(tmp_path / "crafted"))
    assert not (tmp_path / "executed").exists()


def test_a_base_whose_weights_are_a_crafted_pickle(tokenizer, tmp_path):
    base = tmp_path / "base"
    model = tiny_model(len(tokenizer))
    model.config.save_pretrained(base)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(weights, base / "pytorch_model.bin")
    how = {"trains_all": False, "bf16": False}
    assert load_model(ModelArguments(str(base)), **how).num_parameters() == model.num_parameters()
    torch.save({**weights, "extra": Payload(tmp_path / "executed")}, base / "pytorch_model.bin")
    with pytest.raises(UserError, match="its weights are a pickle with more than tensors in it"):
        load_model(ModelArguments(str(base)), **how)
    assert not (tmp_path / "executed").exists()


def test_an_adapter_that_is_a_pickle(model_dir, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "CAUSAL_LM"}')
    torch.save({"extra": Payload(tmp_path / "executed")}, tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"no adapter_model.safetensors \(other formats are not loaded\)"):
        load_adapter(tiny_model(600), str(tmp_path))
    assert not (tmp_path / "executed").exists()


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
        run = forks.run(*argv, "--resume_from_checkpoint", output / "checkpoint-2")
        assert run.code == 1 and "holds more than tensors and plain values" in run.err and "Traceback" not in run.err
        assert not (tmp_path / "executed").exists()
        path.write_bytes(kept)
