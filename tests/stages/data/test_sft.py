"""Fine-tuning on rows that are encoded while training: which rows, and the same ones where a run is resumed."""

import json
import shutil

import pytest
import torch
from stage_runs import rows_of, trainer_of

from conftest import conversation, same, tiny_model, weights, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.arguments import DataArguments
from hf_recipes.data.chat import streamed_rows
from hf_recipes.data.pretraining import document_stream
from hf_recipes.stages.sft import STAGE, SFTArguments

SETTINGS = {"report_to": "none", "bf16": False, "logging_steps": 1, "per_device_train_batch_size": 4}
SETTINGS |= {"save_strategy": "no", "learning_rate": 0.01, "streaming": True, "max_steps": 7}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files of 24 and 8 rows, each of which is several windows."""
    monkeypatch.setattr(document_stream, "CHUNK_DOCUMENTS", 3)
    monkeypatch.setattr(streamed_rows, "WINDOW_CHUNKS", 2)
    paths = []
    for name, count in (("a", 24), ("b", 8)):
        rows = [{"messages": conversation(f"{name}{number}", "年龄" * (number % 3 + 1))} for number in range(count)]
        paths.append(str(write_jsonl(tmp_path / f"{name}.jsonl", rows)))
    return paths


def run(files, tokenizer, tmp_path, resume=None, data=None, **settings):
    args = SFTArguments(output_dir=str(tmp_path / "run"), **{**SETTINGS, **settings})
    torch.manual_seed(0)
    model = tiny_model(len(tokenizer))
    data = DataArguments(train_file=files, cache_dir=str(tmp_path / "cache"), max_drop_ratio=0.5, **(data or {}))
    trainer, rows = trainer_of(STAGE, args, data, tokenizer, model)
    seen = []
    collate = trainer._collate

    def recorded(batch):
        seen.extend(row["location"] for row in batch)
        return collate(batch)

    trainer._collate = recorded
    trainer.train(resume_from_checkpoint=resume)
    return trainer, seen, rows


def test_an_epoch_has_every_row_once_in_another_order(files, tokenizer, tmp_path):
    trainer, seen, rows = run(files[:1], tokenizer, tmp_path, max_steps=12)
    first, second = seen[:24], seen[24:]
    assert sorted(first) == sorted(second) == sorted(f"{files[0]}:{number}" for number in range(1, 25))
    assert first != second != sorted(second)
    assert trainer.state.epoch == pytest.approx(2)
    ledger = rows.ledgers["train"]
    assert ledger.totals == {"read": 24, "kept": 24}


def test_rows_are_the_same_in_two_processes(files, tokenizer, tmp_path):
    args = SFTArguments(output_dir=str(tmp_path / "run"), **SETTINGS)
    data = DataArguments(train_file=files, cache_dir=str(tmp_path / "cache"))

    def batches(rank, world):
        mixture = rows_of(STAGE, args, data, tokenizer).train
        return [[row["location"] for row in batch] for batch in mixture.stream(0, 40, 2, rank, world, 4)]

    one, two = batches(0, 2), batches(1, 2)
    together = [row for pair in zip(one, two, strict=True) for batch in pair for row in batch]
    assert together == [row for batch in batches(0, 1) for row in batch] and len(together) == 40


@pytest.mark.slow
def test_two_processes_resume_to_the_same_adapter(forks, files, model_dir, tmp_path):
    argv = ["--model_name_or_path", model_dir, "--train_file", *files, "--streaming", "True", "--max_steps", "4"]
    argv += ["--save_steps", "2", "--per_device_train_batch_size", "2", "--report_to", "none", "--bf16", "False"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    run = forks.run(*argv, "--output_dir", whole, world=2)
    assert run.code == 0, run.err
    shutil.copytree(whole / "checkpoint-2", again / "checkpoint-2")
    shutil.copy(whole / "run_config.yaml", again)
    resumed = forks.run(*argv, "--output_dir", again, "--resume_from_checkpoint", "true", world=2)
    assert resumed.code == 0, resumed.err
    assert same(weights(whole), weights(again))
    metrics, ledgers = (
        [json.loads((folder / name).read_text()) for folder in (whole, again)]
        for name in ("metrics.json", "data_ledger.json")
    )
    assert metrics[0]["train"]["sources"] == metrics[1]["train"]["sources"] and ledgers[0] == ledgers[1]


def test_validation_rows_of_a_stream(files, tokenizer, tmp_path):
    args = SFTArguments(output_dir=str(tmp_path / "run"), eval_steps=2, **SETTINGS)
    data = DataArguments(train_file=files[:1], validation_file=files[1:], max_eval_samples=3)
    found = rows_of(STAGE, args, data, tokenizer)
    assert len(found.validation) == 3 and found.ledgers["validation"].totals["read"] == 3


def test_rows_of_several_sources(files, tokenizer, tmp_path):
    trainer, seen, _ = run(files, tokenizer, tmp_path, max_steps=8)
    found = trainer.training_metrics()["sources"]
    assert found["a"]["target"] == pytest.approx(0.75, abs=0.02)
    assert sum(location.startswith(files[0]) for location in seen) in range(21, 28)
    for entry in trainer.state.log_history[:-1]:
        items = {name: entry.get(f"items_{name}", 0) for name in "ab"}
        total = sum(entry[f"loss_{name}"] * count for name, count in items.items() if count)
        assert entry["loss"] == pytest.approx(total / sum(items.values()), rel=1e-4)


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_resumed_run_is_the_same_bit_by_bit(files, tokenizer, tmp_path, step):
    more = {"save_strategy": "steps", "save_steps": 1}
    whole, seen, rows = run(files, tokenizer, tmp_path, **more)
    checkpoint = str(tmp_path / "run" / f"checkpoint-{step}")
    resumed, rest, again = run(files, tokenizer, tmp_path, checkpoint, **more)
    assert rest == seen[4 * step :]
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert resumed.training_metrics() == whole.training_metrics()
    assert again.ledgers["train"].to_dict() == rows.ledgers["train"].to_dict()


def test_other_data_is_not_resumed(files, tokenizer, tmp_path):
    run(files, tokenizer, tmp_path, save_strategy="steps", save_steps=2)
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(UserError, match="was written with other data"):
        run(files[:1], tokenizer, tmp_path, checkpoint)


def test_rows_that_cannot_be_used_are_counted(files, tokenizer, tmp_path):
    with open(files[0], "a", encoding="utf-8") as file:
        file.write('{"messages": []}\nnot JSON\n')
    _, _, rows = run(files[:1], tokenizer, tmp_path, max_steps=8)
    assert rows.ledgers["train"].totals == {"read": 26, "kept": 24, "dropped": 2}


def test_what_does_not_go_with_a_stream(files, tokenizer, tmp_path):
    for settings, problem in (
        ({"max_steps": -1}, "--streaming needs --max_steps"),
        ({"packing": True}, "--packing needs all rows"),
        ({"train_sampling_strategy": "group_by_length"}, "--train_sampling_strategy has no effect"),
    ):
        with pytest.raises(ValueError, match=problem):
            SFTArguments(output_dir=str(tmp_path), **{**SETTINGS, **settings})
    for settings in ({"validation_split_percentage": 5.0}, {"max_train_samples": 5}):
        with pytest.raises(UserError, match="needs all rows, which --streaming does not read before"):
            run(files, tokenizer, tmp_path, data=settings)
