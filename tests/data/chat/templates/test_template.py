"""Thoughts, and templates that leave some of them out."""

import json

import pytest

from conftest import CHATML, build_tokenizer, conversation, learned_text, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import shown
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.examples import load_examples
from hf_recipes.data.tokenized import tokenize_dataset
from hf_recipes.metrics.text import exact_matches, without_thoughts
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer

# As Qwen3's: thoughts before the last question are left out, and the last answer has some, if empty.
QWEN3 = """
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' %}
        {%- set thoughts = '' %}
        {%- if m.reasoning_content is string %}
            {%- set thoughts = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thoughts) %}
            {%- set content = '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') %}
        {%- endif %}
        {%- for call in m.tool_calls or [] %}
            {%- set called = call.function.name + (call.function.arguments.city or '') %}
            {%- set content = content + '<tool_call>\n' + called + '\n</tool_call>' %}
            {{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}
        {%- endfor %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# As DeepSeek-R1's: no answer is shown with its thoughts, and the generation prompt begins some.
R1 = (
    "{% for m in messages %}{% set content = m['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
LEFT_OUT = "truncated: the template leaves out the thoughts of earlier turns"


def thinking(thoughts, answer, inline):
    if inline:
        return {"role": "assistant", "content": f"<think>\n{thoughts}\n</think>\n\n{answer}"}
    return {"role": "assistant", "content": answer, "reasoning_content": thoughts}


def two_turns(inline):
    question = conversation("问一", "", "问二")
    return [question[0], thinking("想一", "答一", inline), question[2], thinking("想二", "答二", inline)]


@pytest.mark.parametrize("inline", [True, False])
def test_thoughts_that_the_template_leaves_out_are_told(inline):
    tokenizer = build_tokenizer(chat_template=QWEN3)
    messages = two_turns(inline)
    one, two, last, none = ChatEncoder(tokenizer).encode([messages, messages[2:], conversation("问", "答")])
    assert (one.status, two.status) == ("kept", f"{LEFT_OUT}, each turn is an example of its own")
    for row, number in ((one, "一"), (two, "二")):
        assert learned_text(tokenizer, row) == [f"<think>\n想{number}\n</think>\n\n答{number}<|im_end|>"]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
    assert two.input_ids.tolist() == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert last.status == "kept" and learned_text(tokenizer, last) == ["<think>\n想二\n</think>\n\n答二<|im_end|>"]
    assert none.status == "kept" and learned_text(tokenizer, none) == ["<think>\n\n</think>\n\n答<|im_end|>"]
    size = len(two.input_ids) - two.prompt_length
    messages[-1]["content"] += "很长"
    _, cut = ChatEncoder(tokenizer, max_target_length=size).encode([messages])
    assert cut.status == f"{LEFT_OUT}, answer cut, each turn is an example of its own"


@pytest.mark.parametrize("inline", [True, False])
def test_thoughts_before_a_tool_call(inline):
    tokenizer = build_tokenizer(chat_template=QWEN3)
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    calling = {**thinking("要查", "", inline), "tool_calls": [call]}
    answer = [{"role": "tool", "content": ""}, thinking("看到", "三度", inline)]
    [row] = ChatEncoder(tokenizer).encode([[*conversation("天气？"), calling, *answer]])
    assert row.status == "kept"
    assert learned_text(tokenizer, row) == [
        "<think>\n要查\n</think>\n\n<tool_call>\nweather\n</tool_call><|im_end|>",
        "<think>\n看到\n</think>\n\n三度<|im_end|>",
    ]
    earlier = [*conversation("天气？"), calling, *answer, *conversation("谢谢", "不客气")]
    both, last = ChatEncoder(tokenizer).encode([earlier])
    assert last.status == f"{LEFT_OUT}, each turn is an example of its own"
    assert learned_text(tokenizer, both) == learned_text(tokenizer, row)


@pytest.mark.parametrize("inline", [True, False])
def test_thoughts_that_the_prompt_begins_are_trained_on_though_the_template_leaves_them_out(inline):
    tokenizer = build_tokenizer(chat_template=R1)
    messages = two_turns(inline)
    without = [*messages[:3], *conversation("", "答二")[1:]]
    for chat, second in ((messages, "想二\n</think>\n\n答二<|im_end|>"), (without, "\n</think>\n\n答二<|im_end|>")):
        rows = ChatEncoder(tokenizer).encode([chat])
        assert [learned_text(tokenizer, row) for row in rows] == [["想一\n</think>\n\n答一<|im_end|>"], [second]]
        assert all(tokenizer.decode(row.input_ids[: row.prompt_length]).endswith("<think>\n") for row in rows)
    silent = build_tokenizer(chat_template=R1.replace("<think>", ""))
    [bad] = ChatEncoder(silent).encode([messages])
    assert bad.status.startswith("dropped: the chat template leaves out the thoughts of the answer")


@pytest.mark.parametrize("inline", [True, False])
def test_bundled_chatml_shows_all_thoughts(tmp_path, inline):
    build_tokenizer(chat_template=None).save_pretrained(tmp_path)
    tokenizer, _ = load_tokenizer(str(tmp_path), "chatml")
    [row] = ChatEncoder(tokenizer).encode([two_turns(inline)])
    assert row.status == "kept"
    expected = [f"<think>\n想{n}\n</think>\n\n答{n}<|im_end|>" for n in "一二"]
    assert learned_text(tokenizer, row) == expected


def test_a_model_that_learned_its_row_scores_in_full(tmp_path):
    """What generation returns for a perfect model: the last learned span without its end, special tokens skipped."""
    tokenizer = build_tokenizer(chat_template=QWEN3)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
    choices = {"answer_choices": ["年龄", "性别"]}
    rows = [
        {"messages": conversation("哪一类？", "年龄"), **choices},
        {"messages": [*conversation("哪一类？"), thinking("想", "年龄", False)], **choices},
        {"messages": [*conversation("天气？"), {"role": "assistant", "tool_calls": [call]}]},
    ]
    examples = load_examples([str(write_jsonl(tmp_path / "rows.jsonl", rows))])
    encoded = tokenize_dataset(examples, ChatEncoder(tokenizer, keep_text=True))
    # What the budget cuts from the training rows is still part of the reference.
    plain = conversation("哪一类？", "年龄" * 40)
    size = len(encoded["input_ids"][1]) - encoded["prompt_length"][1]
    [cut] = ChatEncoder(tokenizer, keep_text=True, max_target_length=size).encode([plain])
    assert cut.status == "truncated: answer cut" and cut.reference == "年龄" * 40
    predictions = [
        tokenizer.decode(row["input_ids"][row["prompt_length"] : -1], skip_special_tokens=True).strip()
        for row in encoded
    ]
    assert predictions[:2] == ["<think>\n\n</think>\n\n年龄", "<think>\n想\n</think>\n\n年龄"]
    assert "weather" in predictions[2] and "<tool_call>" not in predictions[2]
    answers, references = (list(map(without_thoughts, texts)) for texts in (predictions, encoded["reference"][:]))
    assert exact_matches(answers, references) == [True, True, True]
    assert json.loads(json.dumps(encoded["reference"][2])) == without_thoughts(predictions[2])


def test_a_template_that_fails_on_some_rows_drops_those():
    failing = build_tokenizer(chat_template="{% if 'x' in messages[0]['content'] %}{{ 1 / 0 }}{% endif %}" + CHATML)
    bad, good = ChatEncoder(failing).encode([conversation("x", "答"), conversation("问", "答")])
    assert shown(bad.status) == "dropped: the chat template refuses it (ZeroDivisionError: division by zero)"
    assert good.status == "kept"
    with pytest.raises(UserError, match=r"cannot render a question: .*\(ValueError: substring not found\)"):
        ChatEncoder(build_tokenizer(chat_template="{{ messages[0].content.index('x') }}"))


def test_very_long_conversations(tokenizer):
    """As many of the oldest exchanges as it takes go at once, and no more than it takes."""
    texts = [text for n in range(1500) for text in (f"问题{n}", f"回答{n}")]
    [row] = ChatEncoder(tokenizer, max_length=200).encode([conversation(*texts)])
    assert row.status == "truncated: oldest turns left out"
    kept = tokenizer.decode(row.input_ids).count("问题")
    assert kept >= 3 and len(row.input_ids) <= 200
    [more] = ChatEncoder(tokenizer).encode([conversation(*texts[-2 * (kept + 1) :])])
    assert len(more.input_ids) > 200 and more.status == "kept"
