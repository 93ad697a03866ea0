"""Which rows of several sources a run takes."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
from stage_runs import context_of

from conftest import write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.arguments import DataArguments
from hf_recipes.run.data import mixed_files, read_rows
from hf_recipes.stages.grpo import STAGE, GRPOArguments, read_prompt_sets


@pytest.fixture
def files(tmp_path):
    paths = []
    for name, count in (("a", 60), ("b", 20)):
        rows = [{"prompt": f"{name}{number}", "response": "答"} for number in range(count)]
        paths.append(str(write_jsonl(tmp_path / f"{name}.jsonl", rows)))
    return paths


def read(seed=42, **settings) -> dict[str, Counter]:
    rows = read_rows(DataArguments(**settings), SimpleNamespace(seed=seed))
    return {name: Counter(part["source"][:]) for name, part in rows.items()}


def policy(tmp_path, value) -> str:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def test_limits_draw_of_all_sources(files, capsys):
    data = DataArguments(train_file=files, validation_file=files, max_train_samples=40, max_eval_samples=40)
    first, again, other = (read_rows(data, SimpleNamespace(seed=seed)) for seed in (1, 1, 2))
    counts = Counter(first["train"]["source"][:])
    assert counts.total() == 40 and 20 < counts["a"] < 40
    assert first["train"]["location"][:] == again["train"]["location"][:] != other["train"]["location"][:]
    assert first["validation"]["location"][:] == other["validation"]["location"][:]
    said = capsys.readouterr().out
    assert "train: 40 of 80 rows, sampled with the seed 2" in said
    assert "validation: 40 of 80 rows, sampled with the seed 42" in said


def test_limits_of_prompts(files, tokenizer, tmp_path):
    args = GRPOArguments(output_dir=str(tmp_path), report_to="none", seed=1)
    data = DataArguments(train_file=files, max_train_samples=40, validation_split_percentage=10)
    prompts = read_prompt_sets(data, context_of(STAGE, args, data, tokenizer).args, tokenizer)[0]
    locations = {name: {prompt.location for prompt in part} for name, part in prompts.items()}
    assert [len(part) for part in locations.values()] == [40, 8] and not locations["train"] & locations["validation"]
    assert any(location.startswith(files[1]) for location in locations["train"])


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        ({"by": "epochs", "sources": {"a": 0.5, "b": 2.25}}, {"a": 30, "b": 45}),
        ({"by": "documents", "sources": {"a": 0.25, "b": 0.75}}, {"a": 20, "b": 60}),
        ({"by": "documents", "sources": {"a": 1, "b": 0}}, {"a": 60}),
    ],
)
def test_a_mixture_by_rows(files, tmp_path, value, counts):
    assert read(train_file=files, mixture=policy(tmp_path, value)) == {"train": counts}


@pytest.mark.parametrize(
    ("amount", "value", "problem"),
    [
        ("", {"a": 0.5, "b": 0.5}, "by tokens is for pretraining; rows are sampled by documents or epochs"),
        ("", {"by": "epochs", "sources": {"c": 1}}, "c is not among the sources of --train_file, which are a, b"),
        ("#5", {"by": "epochs", "sources": {"a": 1}}, "leave the amount of .*a.jsonl#5 out"),
    ],
)
def test_a_mixture_that_cannot_be(files, tmp_path, amount, value, problem):
    data = DataArguments(train_file=[files[0] + amount, files[1]], mixture=policy(tmp_path, value))
    with pytest.raises(UserError, match=problem):
        mixed_files(data)
