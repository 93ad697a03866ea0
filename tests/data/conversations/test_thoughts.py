"""Thoughts in a column of their own belong to the answer of the row."""

import pytest

from conftest import conversation as turns
from conftest import write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.examples import load_examples
from hf_recipes.data.schemas.registry import Columns, detect_schema


def convert(row, **columns):
    schema = detect_schema(row, Columns(**columns), "rows.json")
    return schema.name, schema.to_example(row)


THINKING = [*turns("问"), {"role": "assistant", "content": "答", "reasoning_content": "想一想"}]


@pytest.mark.parametrize(
    "column",
    ["reasoning_content", "reasoning", "thinking", "think", "cot", "CoT", "Complex_CoT", "rationale", "思考过程"],
)
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "问", "response": "答"},
        {"Question": "问", "Response": "答"},
        {"input": "问", "content": "答"},
        {"instruction": "问", "input": "", "output": "答"},
        {"input": "问", "target": "答", "task_type": "cls"},
        {"messages": turns("问", "答")},
        {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
        {"prompt": turns("问"), "completion": turns("", "答")[1:]},
    ],
    ids=lambda row: "-".join(row),
)
def test_a_column_of_thoughts_is_read(column, row):
    assert convert(row | {column: "想一想"})[1] == {"messages": THINKING}
    assert convert(row | {column: "<think>\n想一想\n</think>"})[1] == {"messages": THINKING}
    for nothing in (None, "", "on", "low", True):  # the last say whether a model shall think
        assert convert(row | {column: nothing})[1] == {"messages": turns("问", "答")}
    assert convert(row | {column: "想一想"}, thoughts="none")[1] == {"messages": turns("问", "答")}


def test_a_turn_has_its_thoughts_under_any_of_the_names():
    answer = {"role": "assistant", "content": "答"}
    for key in ("think", "cot", "Complex_CoT", "推理过程"):
        assert convert({"messages": [*turns("问"), answer | {key: "想一想"}]})[1] == {"messages": THINKING}
    own = {"messages": THINKING, "cot": "别的"}
    assert convert(own)[1] == {"messages": THINKING}
    inline = {"prompt": "问", "response": "<think>\n甲\n</think>\n\n答", "cot": "乙"}
    assert convert(inline)[1]["messages"] == turns("问", inline["response"])


def test_thoughts_of_pairs_are_of_a_side():
    row = {"prompt": "问", "chosen": "好", "rejected": "坏"}
    good, bad = ({"role": "assistant", "content": content} for content in ("好", "坏"))
    thoughts = {"chosen_reasoning": "甲", "rejected_reasoning": "乙"}
    for more in (thoughts, {"cot_chosen": "甲", "cot_rejected": "乙"}):
        example = convert(row | more)[1]
        assert example["chosen"] == [good | {"reasoning_content": "甲"}]
        assert example["rejected"] == [bad | {"reasoning_content": "乙"}]
    assert convert(row | {"chosen_reasoning": "甲"})[1]["rejected"] == [bad]
    assert convert(row | {"reasoning": "甲"})[1]["chosen"] == [good]  # of which one?
    assert convert(row | thoughts, thoughts="none")[1]["chosen"] == [good]


def test_thoughts_of_an_answer_with_a_label():
    row = {"prompt": turns("问"), "completion": turns("", "答")[1:], "label": True, "cot": "想一想"}
    assert convert(row)[1] == {"prompt": turns("问"), "completion": THINKING[1:], "label": True}


def test_the_column_is_said_and_may_be_named(tmp_path, capsys):
    path = str(write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "问", "response": "答", "cot": "甲", "why": "乙"}]))
    load_examples([path])
    assert (
        "schema prompt_response (prompt → response), thoughts from 'cot' (--thoughts_column)" in capsys.readouterr().out
    )
    [row] = load_examples([path], Columns(thoughts="why"))
    assert row["messages"][1]["reasoning_content"] == "乙"
    with pytest.raises(UserError, match="--thoughts_column 'no' is not a column; there are prompt, response, cot, why"):
        load_examples([path], Columns(thoughts="no"))


def test_thoughts_that_are_no_text_are_a_problem_of_the_row():
    with pytest.raises(RowProblem, match="'cot' is a list, not text"):
        convert({"prompt": "问", "response": "答", "cot": ["想", "再想"]})
