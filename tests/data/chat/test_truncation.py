"""What a budget may cut of an answer: the end of its text, and never thoughts or a call."""

from importlib.resources import files
from pathlib import Path

import pytest
from chat_templates import tokenizer_of

from conftest import conversation, learned_text
from hf_recipes.data.chat import ChatEncoder

TEMPLATES = Path(str(files("trl"))) / "chat_templates"
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {}}}]
THINKING = {"role": "assistant", "content": "是四，" * 20, "reasoning_content": "二加二等于四，" * 5}
FLAGS = "(--max_target_length, --max_length)"


def calling(content="", **more):
    function = {"name": "weather", "arguments": {"city": "北京" * 20}}
    calls = [{"id": "call00000", "type": "function", "function": function}]
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        *((name, "max_target_length") for name in ("qwen3", "gptoss", "deepseek_r1_distill", "glm4moe", "qwen3_8")),
        ("qwen3", "max_length"),  # a long prompt of a template would be cut first
    ],
)
def test_thoughts_are_not_cut(name, budget):
    tokenizer = tokenizer_of(TEMPLATES / f"{name}.jinja")
    messages = [*conversation("几加几"), THINKING]
    [whole] = ChatEncoder(tokenizer).encode([messages])
    answer = len(whole.input_ids) - whole.prompt_length
    text = tokenizer.decode(whole.input_ids[whole.prompt_length :])
    before = len(tokenizer(text[: text.index("是四")], add_special_tokens=False)["input_ids"])
    over = whole.prompt_length if budget == "max_length" else 0
    for size, status in (
        (answer, "kept"),
        (answer - 1, "truncated: answer cut"),
        (before + 10, "truncated: answer cut"),
        (before, f"dropped: the budget of an answer is too small for thoughts {FLAGS}"),
        (before - 9, f"dropped: the budget of an answer is too small for thoughts {FLAGS}"),
    ):
        [row] = ChatEncoder(tokenizer, **{budget: over + size}).encode([messages])
        assert row.status == status, size
        if size in (answer - 1, before + 10):
            [cut] = learned_text(tokenizer, row)
            [full] = learned_text(tokenizer, whole)
            end = tokenizer.decode(row.input_ids[-1:])
            assert cut.startswith(text[: text.index("是四") + 2]) and cut.endswith(end) and len(cut) < len(full)


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gptoss", "glm4moe"])
def test_calls_are_not_cut(name):
    tokenizer = tokenizer_of(TEMPLATES / f"{name}.jinja")
    chat, reason = conversation("天气"), f"dropped: the budget of an answer is too small for a call {FLAGS}"
    [whole] = ChatEncoder(tokenizer).encode([[*chat, calling()]], [TOOLS])
    answer = len(whole.input_ids) - whole.prompt_length
    for size in (10, answer // 2, answer - 1):
        [row] = ChatEncoder(tokenizer, max_target_length=size).encode([[*chat, calling()]], [TOOLS])
        assert row.status == reason and len(row.input_ids) == 0
    assert ChatEncoder(tokenizer, max_target_length=answer).encode([[*chat, calling()]], [TOOLS])[0].status == "kept"


def test_calls_in_a_text_are_not_cut():
    tokenizer = tokenizer_of(TEMPLATES / "qwen3.jinja")
    encoder = ChatEncoder(tokenizer, max_target_length=60)
    text = f'weather(city="{"北京" * 40}")'
    chats = [conversation("天气", text), conversation("天气", "晴" * 200)]
    called, plain = encoder.encode(chats, [TOOLS, TOOLS])
    assert called.status.startswith("dropped: the budget of an answer is too small for a call")
    assert plain.status == "truncated: answer cut"
    # Without a description of the tools, a result says that the text before it is a call.
    result = {"role": "tool", "content": "晴"}
    answers = {"role": "assistant", "content": "今天晴"}
    [row] = encoder.encode([[*conversation("天气", text), result, answers]])
    assert learned_text(tokenizer, row) == ["<think>\n\n</think>\n\n今天晴<|im_end|>"]
    assert f"a turn is left out: the budget of an answer is too small for a call {FLAGS}" in row.status


def test_turns_before_an_answer_that_does_not_fit_stay():
    tokenizer = tokenizer_of(TEMPLATES / "qwen2_5.jinja")
    first, second = conversation("一", "二"), [*conversation("几加几"), THINKING]
    chat, left_out = [*first, *conversation("三", "四"), *second], "a turn is left out: the budget of an answer is too"
    [row] = ChatEncoder(tokenizer, max_target_length=40).encode([chat])
    assert learned_text(tokenizer, row) == ["二<|im_end|>", "四<|im_end|>"]
    assert row.status == f"truncated: {left_out} small for thoughts {FLAGS}"
    assert tokenizer.decode(row.input_ids).endswith("四<|im_end|>")
    # Of rows to evaluate the last answer is what is asked for.
    [row] = ChatEncoder(tokenizer, max_target_length=40, keep_text=True).encode([chat])
    assert row.status == f"dropped: the budget of an answer is too small for thoughts {FLAGS}"


def test_a_turn_whose_thoughts_do_not_fit_is_left_out():
    tokenizer = tokenizer_of(TEMPLATES / "qwen3.jinja")
    short = {**THINKING, "content": "是四", "reasoning_content": "四"}
    chat = [*conversation("几加几"), THINKING, *conversation("再说"), short]
    [row] = ChatEncoder(tokenizer, max_target_length=40).encode([chat])
    assert learned_text(tokenizer, row) == ["<think>\n四\n</think>\n\n是四<|im_end|>"]
    assert f"a turn is left out: the budget of an answer is too small for thoughts {FLAGS}" in row.status
