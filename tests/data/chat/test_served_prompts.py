"""For every chat template of TRL and every bundled one: what is trained on is what will be asked and answered."""

import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from chat_templates import tokenizer_of

from hf_recipes.core.ledger import is_dropped, shown
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.models.templates.options import TEMPLATES

PATHS = [*Path(str(files("trl"))).glob("chat_templates/*.jinja"), *Path(TEMPLATES).glob("*.jinja")]
TOOL = {"name": "get_weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": TOOL}]
QUESTION = {"role": "user", "content": "北京天气怎么样"}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def called(*cities, **more):
    calls = [
        {"id": f"call{number:05}", "type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
        for number, city in enumerate(cities)
    ]
    return assistant(more.pop("content", ""), tool_calls=calls, **more)


def result(content, number=0):
    return {"role": "tool", "content": content, "name": "get_weather", "tool_call_id": f"call{number:05}"}


PLAIN_CHATS = {
    "single": [user("你好吗"), assistant("我很好。")],
    "multi": [user("一问"), assistant("一答"), user("二问"), assistant("二答"), user("三问"), assistant("三答")],
    "white space": [user("  空白  "), assistant("  两边空白 \n")],
    "leading newline": [user("换行"), assistant("\n\n开头换行"), user("再来"), assistant("\n好")],
    "emoji": [user("😀🎉"), assistant("好😀👨‍👩‍👧")],
    "marks in the text": [user("<|im_end|>与</s>"), assistant("写 <|im_end|>\n<|im_start|>assistant\n 与 [/INST] 好")],
}
CHATS = PLAIN_CHATS | {
    "system": [{"role": "system", "content": "你是助手"}, user("你好吗"), assistant("我很好。")],
    "thoughts": [user("几加几"), assistant("是四", reasoning_content="二加二等于四嘛")],
    "thoughts in the text": [user("几加几"), assistant("<think>\n二加二等于四嘛\n</think>\n\n是四")],
    "thoughts without a beginning": [user("几加几"), assistant("二加二等于四嘛\n</think>\n\n是四")],
    "empty thoughts": [user("几加几"), assistant("<think>\n\n</think>\n\n是四")],
    "thoughts of two turns": [
        user("几加几"),
        assistant("是四", reasoning_content="想法甲"),
        user("再加"),
        assistant("是五", reasoning_content="想法乙"),
    ],
    "thoughts of one turn": [
        user("几加几"),
        assistant("是四", reasoning_content="想法甲"),
        user("再"),
        assistant("五"),
    ],
    "call": [QUESTION, called("北京")],
    "two calls": [QUESTION, called("北京", "上海")],
    "call and result": [QUESTION, called("北京"), result("晴天二十度"), assistant("今天晴")],
    "calls in turn": [QUESTION, called("北京"), result("晴"), called("上海"), result("雨天"), assistant("都好")],
    "text and call": [QUESTION, called("北京", content="我查一下")],
    "thoughts and call": [QUESTION, called("北京", reasoning_content="要查天气的")],
}


def spans(row):
    """[begin, end) of each run of labelled tokens."""
    edges = np.diff(np.r_[0, row.labels != -100, 0].astype(int))
    return zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_is_trained_on_is_what_is_asked_and_answered(path):
    """The tokens before each answer are those of the served prompt, and loss is on the turn and what ends it alone."""
    tokenizer = tokenizer_of(path)
    encoder = ChatEncoder(tokenizer)
    refused = {}
    for name, messages in CHATS.items():
        tools = TOOLS if "call" in name else None
        rows = encoder.encode([messages], [tools])
        if is_dropped(rows[0].status):
            assert len(rows) == 1
            refused[name] = shown(rows[0].status)
            continue
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        trained = [(row, *span) for row in rows for span in spans(row)]
        assert len(trained) == len(answers), name
        for turn, (row, begin, end) in zip(answers, trained, strict=True):
            assert (row.labels[begin:end] == row.input_ids[begin:end]).all()
            served = encoder.served_prompt(messages[:turn], tools)
            assert row.input_ids[:begin].tolist() == served.tolist(), name
            text, message = tokenizer.decode(row.input_ids[begin:end]), messages[turn]
            content = message["content"].rpartition("</think>")[2].strip()
            assert content in text and user_texts(messages).isdisjoint(text.split()), name
            for call in message.get("tool_calls", ()):
                assert call["function"]["name"] in text and call["function"]["arguments"]["city"] in text, name
            if "二加二" in str(message):
                assert "二加二等于四嘛" in text
            ending = text[text.rfind(content) + len(content) :] if content and not message.get("tool_calls") else text
            assert any(ending.rstrip().endswith(token) for token in ends_of(tokenizer)), (name, text)
    # What this template cannot show at all is all that may be refused.
    assert not refused.keys() & PLAIN_CHATS.keys(), refused
    reasons = "refuses it|no place for tools|show a call|text before a call|thoughts of the answer"
    assert all(re.search(reasons, status) for status in refused.values()), refused


# By the templates that have it, what a model has to write: an answer of one turn, one with thoughts, and a call. Of
# each template there may be one for training, with the same answers.
THINK = "<think>\n二加二等于四嘛\n</think>\n\n是四"
ANSWERS = {
    "我很好。<|END_OF_TURN_TOKEN|>": "cohere",
    "我很好。<|END_RESPONSE|><|END_OF_TURN_TOKEN|>": "cohere2",
    "\n</think>\n\n我很好。<｜end▁of▁sentence｜>": "deepseek_r1_distill deepseekv3",
    "我很好。<turn|>": "diffusion_gemma gemma4 gemma4_v2 gemma4_v3 gemma4_v4 gemma4_v5",
    "我很好。<end_of_turn>": "gemma gemma3",
    "\n<think></think>\n我很好。<|user|>": "glm4moe",
    "<|channel|>final<|message|>我很好。<|return|>": "gptoss",
    " 我很好。<end_of_utterance>": "idefics3 smolvlm",
    "我很好。<|im_end|>": "chatml lfm2 lfm2_2_5 lfm2_2_5_v2 lfm2_2_5_vl lfm2_v2 qwen2_5 qwen2_5_vl qwen3_5_nothink "
    "qwen3_instruct_2507 qwen3_vl",
    "<think>\n\n</think>\n\n我很好。<|im_end|>": "qwen3",
    "\n</think>\n\n我很好。<|im_end|>": "qwen3_5_think qwen3_6 qwen3_8",
    "我很好。<|endofchat|>": "roles",
    "我很好。<|eot_id|>": "llama3 llama3_1 llama3_2",
    " to=user<|message|>我很好。<|eot|>": "muse_glimmer",
    "</think>我很好。<|im_end|>": "nemotron_3_5_lightning nemotron_3_ultra",
    "\n</think>\n我很好。<|im_end|>": "nemotron_3_nano nemotron_3_super",
    "我很好。<|end|>": "phi3 phi3_5",
    " 我很好。</s>": "chatglm2 chatglm3 llava_next vicuna",
    " 我很好。 </s>": "llama2",
    "我很好。</s>": "alpaca baichuan glm minicpm plain",
}
THOUGHTS = {
    f"{THINK}<|END_OF_TURN_TOKEN|>": "cohere",
    f"{THINK}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>": "cohere2",
    "二加二等于四嘛\n</think>\n\n是四<｜end▁of▁sentence｜>": "deepseek_r1_distill deepseekv3",
    "<|channel>thought\n二加二等于四嘛\n<channel|>是四<turn|>": "diffusion_gemma gemma4_v5",
    f"{THINK}<turn|>": "gemma4 gemma4_v2 gemma4_v3 gemma4_v4",
    f"{THINK}<end_of_turn>": "gemma gemma3",
    "\n<think>二加二等于四嘛</think>\n是四<|user|>": "glm4moe",
    "<|channel|>analysis<|message|>二加二等于四嘛<|end|><|start|>assistant<|channel|>final<|message|>是四"
    "<|return|>": "gptoss",
    f" {THINK}<end_of_utterance>": "idefics3 smolvlm",
    f"{THINK}<|im_end|>": "chatml lfm2 lfm2_v2 qwen2_5 qwen2_5_vl qwen3 qwen3_instruct_2507 qwen3_vl",
    "<think>二加二等于四嘛</think>是四<|im_end|>": "lfm2_2_5 lfm2_2_5_v2 lfm2_2_5_vl",
    "二加二等于四嘛\n</think>\n\n是四<|im_end|>": "qwen3_5_think qwen3_6 qwen3_8",
    f"{THINK}<|endofchat|>": "roles",
    f"{THINK}<|eot_id|>": "llama3 llama3_1 llama3_2",
    " to=self<|message|>二加二等于四嘛<|eom|><|start|>assistant to=user<|message|>是四<|eot|>": "muse_glimmer",
    "二加二等于四嘛</think>是四<|im_end|>": "nemotron_3_5_lightning nemotron_3_ultra",
    "二加二等于四嘛\n</think>\n是四<|im_end|>": "nemotron_3_nano nemotron_3_super",
    f"{THINK}<|end|>": "phi3 phi3_5",
    f" {THINK}</s>": "llava_next vicuna",
    f" {THINK} </s>": "llama2",
    f"{THINK}</s>": "alpaca baichuan glm plain",
}
XML = "<tool_call>\n<function=get_weather>\n<parameter=city>\n北京\n</parameter>\n</function>\n</tool_call>"
JSON = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>'
ATEM = '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter name="city">北京</atem:parameter>\n'
CALLS = {
    '<|tool_call>call:get_weather{city:<|"|>北京<|"|>}<tool_call|><|tool_response>': "diffusion_gemma gemma4 gemma4_v3 "
    "gemma4_v4 gemma4_v5",
    '<|tool_call>call:get_weather{city:<|"|>北京<|"|>}<tool_call|><turn|>': "gemma4_v2",
    "\n<think></think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>北京</arg_value>\n</tool_call>"
    "<|observation|>": "glm4moe",
    ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "北京"}<|call|>': "gptoss",
    "<|tool_call_start|>[get_weather(city='北京')]<|tool_call_end|><|im_end|>": "lfm2_2_5 lfm2_2_5_v2 lfm2_2_5_vl "
    "lfm2_v2",
    '{"name": "get_weather", "parameters": {"city": "北京"}}<|eot_id|>': "llama3_1 llama3_2",
    f" to=get_weather<|message|>{ATEM}</atem:invoke>\n</atem:function_calls><|eot|>": "muse_glimmer",
    f"</think>\n{XML}\n<|im_end|>": "nemotron_3_5_lightning nemotron_3_nano nemotron_3_super nemotron_3_ultra",
    f"{JSON}<|im_end|>": "qwen2_5 qwen3_instruct_2507 qwen3_vl",
    f"<think>\n\n</think>\n\n{JSON}<|im_end|>": "qwen3",
    f"{XML}<|im_end|>": "qwen3_5_nothink",
    f"\n</think>\n\n{XML}<|im_end|>": "qwen3_5_think qwen3_6 qwen3_8",
    '<tool_call>{"name": "get_weather", "arguments": {"city": "北京"}}</tool_call><|im_end|>': "chatml",
}


def written_by(table, path):
    """What the template in a file has in a table; None where it shows no such turn."""
    name = path.stem.removesuffix("_training")
    return next((text for text, names in table.items() if name in names.split()), None)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_a_model_has_to_write_to_the_letter(path):
    tokenizer = tokenizer_of(path)
    encoder = ChatEncoder(tokenizer)

    def trained(name, tools=None):
        rows = encoder.encode([CHATS[name]], [tools])
        return [tokenizer.decode(row.input_ids[begin:end]) for row in rows for begin, end in spans(row)]

    answer = written_by(ANSWERS, path)
    assert answer is not None, f"{path}: a new template; say what an answer is"
    assert trained("single") == [answer]
    assert trained("multi") == [answer.replace("我很好。", text) for text in ("一答", "二答", "三答")]
    if (thoughts := written_by(THOUGHTS, path)) is not None:
        assert trained("thoughts") == [thoughts]
    call = written_by(CALLS, path)
    assert trained("call", TOOLS) == ([] if call is None else [call])


def user_texts(messages):
    return {message["content"].strip() for message in messages if message["role"] in ("user", "system", "tool")}


def ends_of(tokenizer):
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def test_hardly_anything_is_refused():
    counts = Counter()
    for path in PATHS:
        encoder = ChatEncoder(tokenizer_of(path))
        for name, messages in CHATS.items():
            [row, *_] = encoder.encode([messages], [TOOLS if "call" in name else None])
            if "no place for tools" not in row.status:
                counts[is_dropped(row.status)] += 1
    assert counts[True] < 0.05 * counts.total()


def test_served_prompts_are_those_of_the_template():
    """Of plain conversations and without options, `served_prompt` is `apply_chat_template` itself."""
    for path in PATHS:
        tokenizer = tokenizer_of(path)
        encoder = ChatEncoder(tokenizer)
        for messages in PLAIN_CHATS.values():
            shaped = encoder.template.form.prepared(messages[:-1])
            expected = tokenizer.apply_chat_template(shaped, add_generation_prompt=True, return_dict=False)
            assert encoder.served_prompt(messages[:-1]).tolist() == expected, path


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_short_answers_are_not_mistaken_for_what_stands_around_them(path):
    tokenizer = tokenizer_of(path)
    encoder = ChatEncoder(tokenizer)
    for answer in ("n", "think", "t", "a", "<", "s", "assistant", "end"):
        [row] = encoder.encode([[user("n"), assistant(answer)]])
        [(begin, end)] = spans(row)
        text = tokenizer.decode(row.input_ids[begin:end], skip_special_tokens=True)
        assert encoder.template.split_thoughts(text.rstrip())[1].endswith(answer), (answer, text)
        written = tokenizer.decode(row.input_ids[begin:end])
        assert written.removesuffix(encoder.template.end_of_turn).rstrip().endswith(answer), (answer, written)
        served = tokenizer.apply_chat_template(
            encoder.template.form.prepared([user("n")]), add_generation_prompt=True, return_dict=False
        )
        assert row.input_ids[:begin].tolist() == served
