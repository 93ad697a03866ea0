"""Single answers that are good or bad: which shapes they come in, what is learned of them, and what is left out."""

import numpy as np
import pytest

from conftest import conversation, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import FILTERED, Ledger, shown
from hf_recipes.data.chat.preference import UnpairedEncoder
from hf_recipes.data.examples import load_examples, row_statuses
from hf_recipes.data.schemas.registry import Columns
from hf_recipes.data.tokenized import tokenize_dataset

LIKES = {"label": "likes", "threshold": 10.0}


def load(tmp_path, rows, **columns):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    return load_examples([str(path)], Columns(**columns), "unpaired")


SHAPES = [
    ({"prompt": "几岁？", "completion": "十八岁", "label": True}, {}),
    ({"prompt": conversation("几岁？"), "completion": conversation("", "十八岁")[1:], "label": True}, {}),
    ({"messages": conversation("几岁？", "十八岁"), "label": True}, {}),
    ({"instruction": "几岁？", "input": "", "output": "十八岁", "liked": "True"}, {"label": "liked"}),
    ({"dialog": conversation("几岁？", "十八岁"), "ok": 1}, {"label": "ok"}),
    ({"query": "几岁？", "response": "十八岁", "likes": "128"}, LIKES),
]  # fmt: skip


@pytest.mark.parametrize(("row", "columns"), SHAPES)
def test_shapes(tokenizer, tmp_path, row, columns):
    [example] = load(tmp_path, [row], **columns)
    assert example["prompt"] == conversation("几岁？") and example["label"] is True
    assert example["completion"] == [{"role": "assistant", "content": "十八岁"}]
    [one] = UnpairedEncoder(tokenizer).encode([example])
    whole = conversation("几岁？", "十八岁")
    assert one.input_ids.tolist() == tokenizer.apply_chat_template(whole, return_dict=False)
    assert tokenizer.decode(one.labels[one.labels != -100]) == "十八岁<|im_end|>"
    assert tokenizer.decode(one.input_ids[one.prompt_length :]) == "十八岁<|im_end|>\n"


def test_only_the_completion_is_learned(tokenizer, tmp_path):
    before, after = conversation("一", "二", "三"), conversation("", "四", "五", "六")[1:]
    rows = [{"prompt": before, "completion": after, "label": False}, {"messages": before + after[:1], "label": False}]
    for row, labelled in zip(rows, ("四<|im_end|>六<|im_end|>", "四<|im_end|>"), strict=True):
        [example] = load(tmp_path, [row])
        [one] = UnpairedEncoder(tokenizer).encode([example])
        assert tokenizer.decode(one.labels[one.labels != -100]) == labelled
        assert np.flatnonzero(one.labels != -100)[0] == one.prompt_length


def test_likes_become_labels_and_the_middle_is_left_out(tokenizer, tmp_path):
    likes = ["10", "9", 3, 2.5, "-1", 1000]
    rows = [{"prompt": "问", "completion": f"答{number}", "likes": value} for number, value in enumerate(likes)]
    examples = load(tmp_path, rows, **LIKES, low=3.0)
    ledger = Ledger().add_all(row_statuses(examples))
    assert [row["label"] for row in examples if row["status"] == "kept"] == [True, False, False, True]
    [((_, reason), entry)] = ledger.reasons.items()
    assert reason == f"{FILTERED}: likes from 3 to below 10, neither good nor bad"
    assert [location.rpartition(":")[2] for location in entry.locations] == ["2", "3"]
    assert ledger.totals["read"] == ledger.totals["kept"] + ledger.totals["dropped"] == 6
    ledger.check(max_drop_ratio=0)  # they are no rows that cannot be used
    ledger.add("rows.jsonl:7", "dropped: no 'likes'")
    with pytest.raises(UserError, match=r"1 of 5 rows cannot be used, .*:\n  rows.jsonl:7: no 'likes'$"):
        ledger.check(max_drop_ratio=0.1)
    assert {row["label"] for row in load(tmp_path, rows, **LIKES)} == {True, False}


def test_what_a_row_lacks_is_said(tokenizer, tmp_path):
    good = {"prompt": "问", "completion": "答", "label": True}
    bad = [{**good, "label": None}, {**good, "label": 5}, {**good, "completion": ""}, {**good, "prompt": None}]
    bad += [{**good, "completion": "答" * 60}]
    examples = load(tmp_path, [good, *bad], label="label")
    tokenized = tokenize_dataset(examples.filter(lambda row: row["status"] == "kept"), UnpairedEncoder(tokenizer, 64))
    found = [
        shown(status).removeprefix("dropped: ")
        for _, status in [*list(row_statuses(examples))[1:5], list(row_statuses(tokenized))[1]]
    ]
    assert found == [
        "no 'label'",
        "'label' is neither true nor false (from which number on: --label_threshold) (5)",
        "empty answer",
        "no 'prompt'",
        "longer than 64 tokens",
    ]
    [text] = [row["status"] for row in load(tmp_path, [{**good, "likes": "多"}], **LIKES)]
    assert shown(text) == "dropped: 'likes' is not a number ('多')"


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(UserError, match=r"says what is good\? --label_column must name one of question, answer"):
        load(tmp_path, [{"question": "问", "answer": "答"}], label="label")
    with pytest.raises(UserError, match=r"its schema is preference, which makes preference examples; .* from unpaired"):
        load(tmp_path, [{"prompt": "问", "chosen": "好", "rejected": "坏"}], label="label")
    path = write_jsonl(tmp_path / "rated.jsonl", [{"prompt": "问", "completion": "答", "label": False}])
    with pytest.raises(UserError, match=r"its schema is unpaired, .* this stage learns from messages examples"):
        load_examples([str(path)])  # what people disliked is nothing to imitate
    [row] = load_examples([str(path)], Columns(schema="prompt_response"))
    assert row["messages"] == conversation("问", "答")
