import json

import pytest

from conftest import conversation, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.examples import load_examples, row_statuses
from hf_recipes.data.schemas.registry import Columns

GOOD = {"input": "问", "target": "答"}


@pytest.mark.parametrize(
    ("first", "rest", "columns", "reason"),
    [
        ({"input": "问"}, GOOD, Columns(), "no 'target'"),
        ({"input": "问"}, GOOD, Columns(prompt="input", response="target"), "no 'target'"),
        ({"other": 1}, GOOD, Columns(), "no 'input'"),
        ({"messages": []}, {"messages": conversation("问", "答")}, Columns(), "empty conversation"),
        ({"messages": None}, {"messages": conversation("问", "答")}, Columns(), "'messages' is not a list of turns"),
        ({"conversations": []}, {"conversations": conversation("问", "答")}, Columns(), "empty conversation"),
    ],
)
def test_the_first_row_alone_does_not_decide_the_schema(tmp_path, first, rest, columns, reason):
    examples = load_examples([str(write_jsonl(tmp_path / "rows.jsonl", [first] * 15 + [rest] * 3))], columns)
    assert [status for _, status in row_statuses(examples)] == [f"dropped: {reason}"] * 15 + ["kept"] * 3
    assert examples["messages"][-1] == conversation("问", "答")


def test_rows_that_cannot_be_read_do_not_decide_either(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [GOOD])
    path.write_text("{,\n" * 50 + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert [status for _, status in row_statuses(load_examples([str(path)]))].count("kept") == 1
    path.write_text("{,\n" * 50, encoding="utf-8")
    with pytest.raises(UserError, match="no row can be read") as caught:
        load_examples([str(path)])
    assert str(caught.value).count("rows.jsonl:") == 11


def test_thoughts_that_pairs_do_not_use_are_an_error(tmp_path):
    pair = {"prompt": "问", "chosen": "好", "rejected": "坏", "mulling": "想", "chosen_reasoning": "想"}
    path = str(write_jsonl(tmp_path / "a.jsonl", [pair]))
    with pytest.raises(UserError, match="--thoughts_column 'mulling' has no effect on the schema preference"):
        load_examples([path], Columns(thoughts="mulling"), form="preference")
    for name in ("chosen_reasoning", "none", None):
        [row] = load_examples([path], Columns(thoughts=name), form="preference")
        assert row["chosen"][0].get("reasoning_content") == (None if name == "none" else "想")


def test_wrong_labels_are_one_reason_without_values(tmp_path):
    rows = [{"prompt": "问", "completion": "答", "label": f"张三{number}"} for number in range(30)]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    for columns in (Columns(label="label"), Columns(label="label", threshold=1.0)):
        ledger = Ledger().add_all(row_statuses(load_examples([path], columns, form="unpaired")))
        [(reason, entry)] = ledger.reasons.items()
        assert entry.count == 30 and "张三" not in json.dumps([reason, ledger.to_dict()], ensure_ascii=False)
