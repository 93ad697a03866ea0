"""The output folder and the checkpoint that a run begins with."""

import pytest

from hf_recipes.arguments import SFTArguments
from hf_recipes.errors import UserError
from hf_recipes.training.checkpoints import find_checkpoint
from hf_recipes.training.folder import check_output_dir, enter_output_dir


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


def test_a_run_does_not_write_over_what_it_starts_from(tmp_path):
    model, adapter = tmp_path / "model", tmp_path / "run" / "checkpoint-3"
    for folder in (model, adapter):
        folder.mkdir(parents=True)
    for output, source in ((model, model), (tmp_path / "run", adapter), (tmp_path, model)):
        with pytest.raises(UserError, match=f"the run would write over {source}, which it starts from"):
            check_output_dir(folder_args(output, overwrite_output_dir=True), "some/model", str(source))
    check_output_dir(folder_args(adapter / "next"), str(model), str(adapter))
