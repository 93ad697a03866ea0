"""What a model is asked, of rows of every shape, with and without an answer."""

import pytest

from conftest import CHATML, build_tokenizer, conversation, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.prompts import PromptReader, read_prompts
from hf_recipes.data.schemas.registry import Columns

FILTERED = "<|im_start|>user\n问题<|im_end|>\n<|im_start|>assistant\n"
EARLIER = "<|im_start|>user\n早<|im_end|>\n<|im_start|>assistant\n早安<|im_end|>\n"
TURNS = [{"from": "human", "value": "早"}, {"from": "gpt", "value": "早安"}, {"from": "human", "value": "问题"}]
MESSAGES = conversation("早", "早安", "问题")
SIDE = [{"role": "assistant", "content": "答"}], [{"role": "assistant", "content": "不"}]


@pytest.mark.parametrize(
    ("row", "columns", "text", "reference"),
    [
        ({"input": "问题", "target": "答"}, {}, FILTERED, "答"),
        ({"input": "问题", "target": "", "answer_choices": ["答", "不"]}, {}, FILTERED, None),
        ({"input": "问题", "target": None}, {}, FILTERED, None),
        ({"input": "问题"}, {}, FILTERED, None),
        ({"input": "问题", "type": "cls"}, {"schema": "promptcblue"}, FILTERED, None),
        ({"question": "问题", "answer": "答"}, {}, FILTERED, "答"),
        ({"q": "问题", "a": "答"}, {"prompt": "q"}, FILTERED, None),
        ({"q": "问题", "a": "答"}, {"prompt": "q", "response": "a"}, FILTERED, "答"),
        ({"input": "问题", "target": "答"}, {"prompt": "input"}, FILTERED, "答"),
        ({"instruction": "问题", "input": "", "output": "答"}, {}, FILTERED, "答"),
        ({"instruction": "问题", "input": "文"}, {}, FILTERED.replace("问题", "问题\n文"), None),
        ({"conversations": TURNS}, {}, EARLIER + FILTERED, None),
        ({"conversations": [*TURNS, {"from": "gpt", "value": "答"}]}, {}, EARLIER + FILTERED, "答"),
        ({"conversations": [*TURNS, {"from": "gpt", "value": ""}]}, {}, EARLIER + FILTERED, None),
        ({"messages": MESSAGES}, {}, EARLIER + FILTERED, None),
        ({"messages": [*MESSAGES, SIDE[0][0]]}, {}, EARLIER + FILTERED, "答"),
        ({"prompt": "问题", "chosen": "答", "rejected": "不"}, {}, FILTERED, "答"),
        ({"content": "问题"}, {"prompt": "content"}, FILTERED, None),
        ({"prompt": MESSAGES, "solution": "答"}, {}, EARLIER + FILTERED, "答"),
        ({"prompt": MESSAGES, "completion": SIDE[0]}, {}, EARLIER + FILTERED, "答"),
    ],
)
def test_the_prompt_is_all_before_the_last_answer(tokenizer, tmp_path, row, columns, text, reference):
    reader = PromptReader([str(write_jsonl(tmp_path / "rows.jsonl", [row]))], tokenizer, Columns(**columns))
    [prompt], ledger = read_prompts(reader)
    assert (tokenizer.decode(prompt.ids), prompt.reference, prompt.question[:2]) == (text, reference, "问题")
    assert prompt.location == f"{tmp_path}/rows.jsonl:1" and ledger.totals == {"read": 1, "kept": 1}
    assert reader.stop_ids == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert prompt.is_chat and prompt.trim(" 答\n") == "答"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.txt"])
def test_bare_text_is_continued_or_asked(tmp_path, name, capfd):
    bare = build_tokenizer(chat_template=None)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"content": "春天的 "}])
    if name == "rows.txt":
        path = tmp_path / name
        path.write_text("春天的 \n", encoding="utf-8")
    [prompt], _ = read_prompts(PromptReader([str(path)], bare))
    text = "春天的 " if name == "rows.jsonl" else "春天的"
    assert (bare.decode(prompt.ids), prompt.reference, prompt.trim(" 答\n\ufffd")) == (text, None, " 答\n")
    assert "continued as it is (--text_as question asks it)" in capfd.readouterr().out
    with pytest.raises(UserError, match="no chat template"):
        PromptReader([str(path)], bare, text_as="question")
    bare.chat_template = CHATML
    [prompt], _ = read_prompts(PromptReader([str(path)], bare, Columns(system_prompt="简"), text_as="question"))
    expected = f"<|im_start|>system\n简<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert bare.decode(prompt.ids) == expected


def test_rows_without_a_prompt_are_told_by_line(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"input": "问题", "target": "答"}] * 3 + [{"input": " ", "target": "答"}])
    path.write_text(path.read_text() + "not json\n")
    reader = PromptReader([str(path)], tokenizer)
    assert [prompt is None for _, prompt, _ in reader] == [False, False, False, True, True]
    with pytest.raises(UserError) as raised:
        read_prompts(reader)
    message = str(raised.value)
    assert "2 of 5 rows cannot be used" in message
    assert f"{path}:4: empty prompt" in message and f"{path}:5: broken JSON" in message


def test_long_prompts_are_cut_and_counted(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "chat.jsonl", [{"messages": conversation("早" * 40, "早安", "问题")}])
    [prompt], ledger = read_prompts(PromptReader([str(path)], tokenizer, max_source_length=30))
    assert tokenizer.decode(prompt.ids) == FILTERED and ledger.totals["truncated"] == 1
    path = write_jsonl(tmp_path / "text.jsonl", [{"content": "龘" * 20 + "终"}])
    full = tokenizer("龘" * 20 + "终")["input_ids"]
    for budget in range(4, 12):
        [prompt], ledger = read_prompts(PromptReader([str(path)], tokenizer, max_source_length=budget))
        assert budget - 3 < len(prompt.ids) <= budget and prompt.ids.tolist() == full[-len(prompt.ids) :]
        assert "\ufffd" not in tokenizer.decode(prompt.ids) and ledger.totals["truncated"] == 1


def test_a_prompt_stays_where_the_template_cannot_show_its_answer(tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    rows = [
        {"messages": [*conversation("几加几"), {"role": "assistant", "content": "是四", "reasoning_content": "想"}]},
        {"messages": conversation("几加几", "<think>\n想\n</think>\n\n是四")},
        {"messages": [*conversation("天气"), {"role": "assistant", "content": "", "tool_calls": [call]}]},
        {"messages": conversation("几加几", "是四")},
    ]
    shown = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
    tokenizer = build_tokenizer(chat_template=shown)
    prompts, ledger = read_prompts(PromptReader([str(write_jsonl(tmp_path / "rows.jsonl", rows))], tokenizer))
    assert [prompt.reference for prompt in prompts] == ["是四", "是四", None, "是四"]
    chats = [[message] for message in (*conversation("几加几"), *conversation("几加几"), *conversation("天气"))]
    expected = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    assert [prompt.ids.tolist() for prompt in prompts[:3]] == expected
    assert ledger.totals["dropped"] == 0
    reasons = [status for _, status in ledger.reasons]
    assert all(reason.startswith("kept: the answer is not as the template shows it: ") for reason in reasons)
    assert "leaves out the thoughts of the answer" in reasons[0] and "does not show" in reasons[1]


@pytest.mark.parametrize(
    "answer",
    [
        {"reward_model": {"style": "rule", "ground_truth": "七"}, "extra_info": {"index": 0}},  # verl, DAPO
        {"ground_truth": "七"},
        {"final_answer": "七", "difficulty": 5},
        {"completion": {"role": "assistant", "content": "七"}},
    ],
)
@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_what_answers_are_compared_with(tmp_path, answer, column):
    if column == "messages" and "completion" in answer:
        answer = {"solution": "七"}  # ms-swift
    row = {column: [{"role": "user", "content": "三加四？"}], **answer}
    path = str(write_jsonl(tmp_path / "rows.jsonl", [row, {**row, "reward_model": "a-model"}]))
    tokenizer = build_tokenizer(chat_template=CHATML)
    [first, second], _ = read_prompts(PromptReader([path], tokenizer))
    assert (first.question, first.reference) == ("三加四？", "七")
    assert second.reference == (None if "reward_model" in answer else "七")
