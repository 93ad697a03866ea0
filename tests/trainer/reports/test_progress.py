"""The log that a run writes while it trains."""

import json
from types import SimpleNamespace

import pytest

from hf_recipes.trainer.reports.progress import LogFile


@pytest.fixture
def logged(tmp_path):
    """``logged(*entries)`` as a trainer logs them, after those of its `history`; what is then in the file."""

    def run(*entries, history=()):
        args, state = SimpleNamespace(output_dir=tmp_path), SimpleNamespace(is_world_process_zero=True, log_history=[])
        state.log_history += history
        callback = LogFile()
        callback.on_train_begin(args, state, None)
        for entry in entries:
            state.log_history.append(entry)
            callback.on_log(args, state, None)
        lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [{key: value for key, value in json.loads(line).items() if key in ("step", "loss")} for line in lines]

    return run


def test_a_resumed_run_goes_on_from_its_checkpoint(logged):
    first, second, third = ({"step": step, "loss": 2.0 - step} for step in (1, 2, 3))
    assert logged(first, second, third) == [first, second, third]
    again = {"step": 2, "loss": float("nan")}
    assert logged(again, history=[first]) == [first, {"step": 2, "loss": None}]


def test_a_disk_that_is_full_ends_no_run(logged, tmp_path, capfd):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        logged({"step": 1})
    assert "log.jsonl could not be written (Is a directory); training continues" in capfd.readouterr().out
