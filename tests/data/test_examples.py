import pytest

from conftest import conversation, write_jsonl
from hf_recipes.core.errors import UserError
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
    assert row_statuses(examples)[1] == [f"dropped: {reason}"] * 15 + ["kept"] * 3
    assert examples["messages"][-1] == conversation("问", "答")


def test_rows_that_cannot_be_read_do_not_decide_either(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [GOOD])
    path.write_text("{,\n" * 50 + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert row_statuses(load_examples([str(path)]))[1].count("kept") == 1
    path.write_text("{,\n" * 50, encoding="utf-8")
    with pytest.raises(UserError, match="no row can be read") as caught:
        load_examples([str(path)])
    assert str(caught.value).count("rows.jsonl:") == 11
