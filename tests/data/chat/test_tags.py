"""Tags at the end of prompts and in texts, which are thoughts' or are not."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
from chat_templates import tokenizer_of

from conftest import build_tokenizer, conversation, learned_text
from hf_recipes.data.chat import ChatEncoder
from hf_recipes.data.conversations.conversation import with_thoughts
from hf_recipes.data.conversations.turns import read_turns

TEMPLATES = Path(str(files("trl"))) / "chat_templates"
TAGGED = (
    "{% for m in messages %}{{ '<' + m['role'] + '>\\n' + m['content'] + '\\n</' + m['role'] + '>\\n' }}{% endfor %}"
    "{# </assistant> #}{% if add_generation_prompt %}{{ '<assistant>\\n' }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "天气", "parameters": {}}}]


def test_a_tag_around_an_answer_opens_no_thoughts():
    tokenizer = build_tokenizer(chat_template=TAGGED)
    encoder = ChatEncoder(tokenizer)
    [row] = encoder.encode([conversation("你好", "我好")])
    assert learned_text(tokenizer, row) == ["我好\n</assistant>\n<|im_end|>"] and row.status == "kept"
    assert not encoder.template.marks.expected


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "nemotron_3_nano", "qwen3_6"])
def test_a_question_about_the_tag_is_answered_after_closed_thoughts(name):
    tokenizer = tokenizer_of(TEMPLATES / f"{name}.jinja")
    for question in ("什么是 <think> 标签？", "<think>"):
        [row] = ChatEncoder(tokenizer).encode([conversation(question, "一个标签")])
        [text] = learned_text(tokenizer, row)
        assert text.partition("一个标签")[0].strip() == "</think>", text


@pytest.mark.parametrize("name", ["llama3_1", "qwen2_5", "gptoss", "glm4moe", "qwen3_8", "qwen3"])
def test_arguments_as_text_are_those_of_an_object(name):
    tokenizer = tokenizer_of(TEMPLATES / f"{name}.jinja")
    arguments, chats = {"city": "北京"}, []
    for value in (arguments, json.dumps(arguments, ensure_ascii=False)):
        calls = [{"id": "call00000", "type": "function", "function": {"name": "get_weather", "arguments": value}}]
        chats.append([*conversation("天气"), {"role": "assistant", "content": "", "tool_calls": calls}])
    one, two = ChatEncoder(tokenizer).encode(chats, [TOOLS, TOOLS])
    assert one.input_ids.tolist() == two.input_ids.tolist() and len(one.input_ids)


def test_a_closing_tag_in_an_answer_stays_where_its_thoughts_are_known():
    answer = {"role": "assistant", "content": "<think>想</think>标签 </think> 收尾"}
    once = with_thoughts(answer)
    assert once == {"role": "assistant", "content": "标签 </think> 收尾", "reasoning_content": "想"}
    assert with_thoughts(once) == once
    both = {"role": "assistant", "content": "<think>\n甲\n</think>\n\n答", "reasoning_content": "甲"}
    assert with_thoughts(both) == {"role": "assistant", "content": "答", "reasoning_content": "甲"}
    other = {**both, "reasoning_content": "乙"}
    assert with_thoughts(other) == other


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_of_a_turn_are_read_by_any_of_their_names(key):
    turns = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答", key: "想"}]
    assert read_turns(turns, "messages")[1]["reasoning_content"] == "想"
    tokenizer = tokenizer_of(TEMPLATES / "qwen2_5.jinja")
    [row] = ChatEncoder(tokenizer).encode([turns])
    assert learned_text(tokenizer, row) == ["<think>\n想\n</think>\n\n答<|im_end|>"]


def test_a_closing_tag_in_a_sentence_is_a_part_of_the_answer():
    text = "用 </think> 结束标签"
    tokenizer = tokenizer_of(TEMPLATES / "qwen2_5.jinja")
    [row] = ChatEncoder(tokenizer).encode([conversation("怎么写", text)])
    assert learned_text(tokenizer, row) == [f"{text}<|im_end|>"]
    tokenizer = tokenizer_of(TEMPLATES / "qwen3.jinja")  # which takes what is before any tag for thoughts
    mention, thoughts = ChatEncoder(tokenizer).encode(
        [conversation("怎么写", text), conversation("二", "想\n</think>\n\n四")]
    )
    assert mention.status == "dropped: the chat template leaves out or changes a turn's text"
    assert learned_text(tokenizer, thoughts) == ["<think>\n想\n</think>\n\n四<|im_end|>"]
