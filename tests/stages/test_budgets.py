"""Rows over a budget: how many there are, and the budgets that keep them, before a run trains."""

import re

import pytest
from stage_runs import rows_of

from conftest import write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.stages import dpo, kto, orpo, reward, sft

LONG = "甲乙丙丁戊己庚辛壬癸"  # 30 tokens
HINT = re.compile(r"note: train: (\d+) of (\d+) answers are (.*); (--max.*) keeps all whole")


def read(stage, path, tokenizer, data=(), **settings):
    args = stage.arguments(output_dir="run", report_to="none", bf16=False, **settings)
    return rows_of(stage, args, stage.data(train_file=[str(path)], **dict(data)), tokenizer)


@pytest.mark.parametrize(
    "budgets", [{"max_target_length": 8}, {"max_length": 50}, {"max_source_length": 40, "max_target_length": 8}]
)
def test_answers_that_are_cut_are_counted_with_the_budgets_that_cut_none(tokenizer, tmp_path, capsys, budgets):
    rows = [{"prompt": f"{LONG}{n}", "response": LONG * (1 + n % 2) if n < 4 else "年龄"} for n in range(9)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    read(sft.STAGE, path, tokenizer, **budgets)
    count, read_rows, effect, flags = HINT.search(capsys.readouterr().out).groups()
    assert (count, read_rows) == ("4", "9") and effect == "cut, and each teaches to stop in the middle"
    enough = {name.removeprefix("--"): int(size) for name, size in zip(*[iter(flags.split())] * 2, strict=True)}

    read(sft.STAGE, path, tokenizer, **{**budgets, **enough})
    assert "answer cut" not in capsys.readouterr().out
    name = next(iter(enough))  # of which less is too little
    read(sft.STAGE, path, tokenizer, **{**budgets, **enough, name: enough[name] - 1})
    assert "answer cut" in capsys.readouterr().out

    data = read(sft.STAGE, path, tokenizer, **budgets, truncation="drop")
    assert HINT.search(capsys.readouterr().out)[3] == "left out"
    assert len(data.train) == 5 and data.ledgers["train"].totals["dropped by settings"] == 4
    [(status, entry)] = [(s, e) for (_, s), e in data.ledgers["train"].reasons.items() if s.startswith("dropped")]
    assert status == "dropped by settings: the answer is over its budget (--max_target_length, --max_length)"
    assert [location.rpartition(":")[2] for location in entry.locations] == ["1", "2", "3", "4"]


def test_a_run_is_not_left_without_rows(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "几岁？", "response": LONG}])
    with pytest.raises(UserError, match=r"no row is left; 1 of 1 answers are left out; --max_target_length \d+"):
        read(sft.STAGE, path, tokenizer, max_target_length=4, truncation="drop")


@pytest.mark.parametrize("stage", [reward.STAGE, dpo.STAGE, orpo.STAGE, kto.STAGE], ids=lambda stage: stage.name)
def test_rows_that_are_too_long_name_the_budget_that_keeps_them(stage, tokenizer, tmp_path):
    answers = ["年龄" * (2 + n % 5) for n in range(199)] + [LONG * 9]
    if stage is kto.STAGE:
        rows = [{"prompt": "几岁？", "completion": text, "label": n % 2 == 0} for n, text in enumerate(answers)]
    else:
        rows = [{"prompt": "几岁？", "chosen": text, "rejected": "药"} for text in answers]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    message = r"(\d+) of 200 rows are longer than --max_length 20; (\d+) keeps all, (\d+) keeps 99 %"
    with pytest.raises(UserError, match=message) as error:
        read(stage, path, tokenizer, max_length=20)
    count, every, most = map(int, re.search(message, str(error.value)).groups())
    assert count > 2
    for length, kept in ((every, 200), (every - 1, 199), (most, 199)):
        assert len(read(stage, path, tokenizer, max_length=length).train) == kept
    assert len(read(stage, path, tokenizer, {"max_drop_ratio": 1}, max_length=most - 1).train) < 198
