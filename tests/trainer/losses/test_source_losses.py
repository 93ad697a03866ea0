"""The loss and the share of each source of a mixture, in the stages that learn from rows."""

import pytest
from accumulation_runs import CONVERSATIONS, PAIRS, RATED
from stage_runs import context_of

from conftest import same, write_jsonl
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.loading import load_config
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.run.model import build_model, build_reference
from hf_recipes.stages.table import STAGES

ROWS = {"sft": CONVERSATIONS, "kto": RATED}
SETTINGS = {"report_to": "none", "bf16": False, "save_strategy": "no", "logging_steps": 1}
CASES = {
    "sft": {},
    "sft packed": {"packing": True, "max_length": 64, "shuffle_dataset": True},
    "sft smoothed": {"label_smoothing_factor": 0.1},
    "reward": {},
    "orpo": {},
    "dpo": {},
    "dpo sft": {"loss_type": ["sigmoid", "sft"]},
    "kto": {},
}


def trained(case, model_dir, tmp_path, specs=None, resume=None, **more):
    """The trainer of a case after an epoch on two sources, of 12 and of 5 rows."""
    stage = STAGES[case.split()[0]]
    rows = ROWS.get(stage.name, PAIRS)
    files = [write_jsonl(tmp_path / "a.jsonl", rows), write_jsonl(tmp_path / "b.jsonl", rows)]
    specs = specs or [str(files[0]), f"few={files[1]}#5"]
    args = stage.arguments(output_dir=str(tmp_path / "run"), num_train_epochs=1, **{**SETTINGS, **CASES[case], **more})
    model_args = ModelArguments(model_dir)
    tokenizer, added = load_tokenizer(model_dir, or_plain=True)
    context = context_of(stage, args, stage.data(train_file=specs), tokenizer, model_args)
    context.config = load_config(model_args, False)
    data = stage.read(context)
    make = stage.load_model(context)
    model = build_model(model_args, args, tokenizer, added, make=make, task_type=stage.task_type)
    reference = {"reference": build_reference(model_args, args, tokenizer)} if args.has_reference else {}
    trainer = stage.trainer(context, data, model, {}, **reference)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("case", CASES)
def test_losses_by_source_make_up_the_loss(case, model_dir, tmp_path, capsys):
    trainer = trained(case, model_dir, tmp_path, per_device_train_batch_size=4, learning_rate=0.03)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    if "smoothed" not in case:
        for entry in entries:
            counts = {name: entry.get(f"items_{name}", 0) for name in ("a", "few")}
            total = sum(entry[f"loss_{name}"] * count for name, count in counts.items() if count)
            assert entry["loss"] == pytest.approx(total / sum(counts.values()), rel=1e-4)
    capsys.readouterr()
    found = trainer.training_metrics()["sources"]
    sizes = {"a": 12, "few": 5}
    assert {name: source["target"] for name, source in found.items()} == {
        name: pytest.approx(source["realised"]) for name, source in found.items()
    }
    if not case.startswith("sft"):
        assert {name: source["items"] for name, source in found.items()} == sizes
    assert capsys.readouterr().out.splitlines()[0].split() == ["source", "target", "realised", "items", "loss"]


def test_packed_rows_have_the_losses_of_single_ones(model_dir, tmp_path):
    runs = (trained(case, model_dir, tmp_path, learning_rate=0.0) for case in ("sft packed", "sft"))
    packed, single = (run.training_metrics()["sources"] for run in runs)
    for name in ("a", "few"):
        assert packed[name]["items"] == single[name]["items"]
        assert packed[name]["loss"] == pytest.approx(single[name]["loss"], rel=1e-4)


def test_one_source_is_logged_as_before(model_dir, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", CONVERSATIONS)
    trainer = trained("sft", model_dir, tmp_path, [str(path)])
    assert not [key for entry in trainer.state.log_history for key in entry if key.startswith(("loss_", "items_"))]
    assert trainer.training_metrics() == {} and trainer.train_dataset.column_names == ["input_ids", "labels"]


@pytest.mark.parametrize("case", ["sft packed", "dpo"])
def test_a_resumed_run_has_the_losses_of_the_whole_one(case, model_dir, tmp_path):
    settings = {"per_device_train_batch_size": 2, "learning_rate": 0.03, "save_strategy": "steps", "save_steps": 2}
    whole = trained(case, model_dir, tmp_path, **settings)
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    resumed = trained(case, model_dir, tmp_path, resume=checkpoint, **settings)
    assert resumed.first_step == 2 < resumed.state.global_step
    assert resumed.training_metrics() == whole.training_metrics()
    assert same(resumed.model.state_dict(), whole.model.state_dict())
