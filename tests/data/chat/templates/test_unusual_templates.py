"""Templates with marks, ends and white space of their own: exactly the answer is learned, after what is served."""

import numpy as np
import pytest
from chat_templates import tokenizer_of
from tokenizers import AddedToken

from conftest import conversation
from hf_recipes.core.ledger import shown
from hf_recipes.data.chat import ChatEncoder
from hf_recipes.data.chat.templates.template import NO_THOUGHTS, THOUGHTS_AFTER_CLOSED, THOUGHTS_LEFT_OUT

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PARTS = (
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% else %}<T>{{ p.thinking }}</T>{% endif %}"
    "{% endfor %}"
)
NO_END = (
    "{% for m in messages %}{{ {'user': '<|user|>', 'assistant': '<|assistant|>', 'system': '<|system|>'}[m.role] }}"
    "{{ m.content | trim }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
INLINE = "<think>\n{}\n</think>\n\n"


def thinks(field, start, end, opens):
    """With thoughts in a field, between two marks, and a prompt that ends with `opens`."""
    thoughts = f"{{% if m.{field} %}}{start}{{{{ m.{field} }}}}{end}{{% endif %}}"
    return opened(CHATML.replace("{{ m.content }}", thoughts + "{{ m.content }}"), opens)


def opened(text, opens):
    return text + f"{{% if add_generation_prompt %}}<|im_start|>assistant\n{opens}{{% endif %}}"


# name: template, special tokens, what is learned before an answer without thoughts, around thoughts, the end
TEMPLATES = {
    "marks in brackets": (thinks("reasoning_content", "[THINK]", "[/THINK]", "[THINK]"), "[/THINK]", "{}[/THINK]"),
    "marks in brackets, in the content": (opened(CHATML, "[THINK]") + "{# [/THINK] #}", "[/THINK]", "{}[/THINK]"),
    "marks with a colon that are cut": (
        opened(CHATML.replace("m.content", "m.content.split('</seed:think>')[-1] | trim"), "<seed:think>\n"),
        "\n</seed:think>\n\n",
        "{}\n</seed:think>\n\n",
    ),
    "marks with bars": (thinks("reasoning", "<|think|>", "<|/think|>", "<|think|>"), "<|/think|>", "{}<|/think|>"),
    "channels": (
        thinks("thinking", "<|channel>thought\n", "\n<channel|>", "<|channel>thought\n"),
        "\n<channel|>",
        "{}\n<channel|>",
    ),
    "channels that are cut": (
        opened(CHATML.replace("m.content", "m.content.split('<channel|>')[-1] | trim"), "<|channel>thought\n"),
        "\n<channel|>\n\n",
        "{}\n<channel|>\n\n",
    ),
    "words of begin and end": (
        opened(CHATML, "<|begin_of_thought|>") + "{# <|end_of_thought|> #}",
        "<|end_of_thought|>",
        "{}<|end_of_thought|>",
    ),
    "Chinese marks": (thinks("reasoning_content", "【思考】", "【/思考】", "【思考】"), "【/思考】", "{}【/思考】"),
    "opened in every turn": (
        opened(CHATML.replace("\n{{ m.c", "\n{{ '<think>\n' if m.role == 'assistant' }}{{ m.c"), "<think>\n")
        + "{# </think> #}",
        "\n</think>\n\n",
        "{}\n</think>\n\n",
    ),
    "not opened": (thinks("reasoning", "<T>", "</T>", ""), "", "<T>{}</T>"),
    "closed at once": (thinks("reasoning", "<|T>x\n", "<T|>", "<|T>x\n<T|>"), "", "{}<T|>"),
    "a part of the content": (
        opened(CHATML.replace("{{ m.content }}", PARTS), ""),
        "",
        "<T>{}</T>",
    ),
    "another beginning than is asked for": (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant: {% endif %}",
        "",
        INLINE,
    ),
    "a token that only a prompt has": (opened(CHATML, "<|response|>"), "", INLINE),
    "no end": (NO_END, "", INLINE, "<|user|>"),
    "Chinese roles": (
        "{% set names = {'user': '用户', 'assistant': '助手', 'system': '系统'} %}{% for m in messages %}"
        "【{{ names[m.role] }}】{{ m.content }}【完】{% endfor %}{% if add_generation_prompt %}【助手】{% endif %}",
        "",
        INLINE,
        "【完】",
    ),
    "line feeds": (
        "\n\n{%- for m in messages %}{{- '<r>' ~ m.role ~ '</r>' }}\n\n{{ m.content }}\n\n<|im_end|>\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}<r>assistant</r>\n\n{% endif %}",
        "",
        INLINE,
        "\n\n<|im_end|>",
    ),
    "an empty block that every turn has": (
        opened(CHATML.replace("\n{{ m.c", "\n{{ '<think></think>' if m.role == 'assistant' }}{{ m.c"), "<think>"),
        "</think>",
        "{}</think>",
    ),
    "other words after the last question": (
        CHATML.replace("}}<|im_end|>", "}}{{ ' (answer)' if loop.last and m.role == 'user' }}<|im_end|>")
        + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "",
        INLINE,
    ),
    "words in place of what opens thoughts": (
        CHATML.replace(
            "{{ m.content }}", "{% if m.reasoning %}{{ m.reasoning ~ '\n[ANSWER]\n' }}{% endif %}{{ m.content }}"
        )
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\nMy steps:\n' }}{% endif %}",
        "\n[ANSWER]\n",
        "{}\n[ANSWER]\n",
    ),
    "a switch in the question": (
        CHATML
        + "{% if add_generation_prompt %}<|im_start|>assistant\n{% if '/think' in messages[-1].content %}<think>\n"
        "{% endif %}{% endif %}{# </think> #}",
        "",
        INLINE,
    ),
}
MARKS = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|response|>", "【完】"]


def thinking(question, thoughts, answer):
    first, second = conversation(question, answer)
    return [first, {**second, "reasoning_content": thoughts}]


CHATS = [
    conversation("你好吗", "我很好。"),
    conversation("一问", "一答", "二问", "二答", "三问", "三答"),
    conversation("好", "好", "好", "好"),
    conversation("user assistant", "assistant", "n", "e"),
    conversation("<|im_end|>与</s>", "写 <|im_start|>assistant\n 与 [/INST] 好"),
    conversation("什么是 <think>", "标签"),
    [{"role": "system", "content": "你好"}, *conversation("你好吗", "很好")],
    thinking("几加几", "二加二", "是四"),
    [*thinking("几加几", "想甲", "四"), *thinking("想甲对吗", "想乙", "五")],
    [*thinking("问", "想法", "想法"), *conversation("再", "五")],
    conversation("几 /think", "四", "五", "五"),
]


def encoder_of(tmp_path, template, tokens=(*MARKS, "[THINK]", "[/THINK]")):
    path = tmp_path / "template.jinja"
    path.write_text(template, encoding="utf-8")
    tokenizer = tokenizer_of(path)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in tokens], special_tokens=True)
    return ChatEncoder(tokenizer)


def learned(rows):
    """Each labelled span: its row, the ids before it, its own."""
    for row in rows:
        edges = np.diff(np.r_[0, row.labels != -100, 0])
        for begin, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            yield row.input_ids[:begin].tolist(), row.input_ids[begin:end].tolist()


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answer_and_its_end_are_learned_after_what_is_served(tmp_path, name):
    template, without, around, end = (*TEMPLATES[name], "<|im_end|>")[:4]
    encoder = encoder_of(tmp_path, template)
    tokenizer = encoder.tokenizer
    for messages in CHATS:
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        rows = encoder.encode([messages])
        spans = list(learned(rows))
        assert len(spans) == len(answers), [row.status for row in rows]
        for index, (before, ids) in zip(answers, spans, strict=True):
            sent = encoder.template.form.prepared(messages[:index])
            served = tokenizer.apply_chat_template(sent, add_generation_prompt=True, return_dict=False)
            assert before == served
            thoughts = messages[index].get("reasoning_content")
            expected = around.format(thoughts) if thoughts else without
            if tokenizer.decode(served).endswith("<think>\n") and "/think" in str(messages):
                expected = "\n</think>\n\n"
            text = tokenizer.decode(ids)
            assert "".join(text.split()) == "".join((expected + messages[index]["content"] + end).split())
            assert text.startswith(expected)


def test_what_closes_thoughts_in_a_prompt_opens_none_whatever_its_white_space(tmp_path):
    encoder = encoder_of(
        tmp_path,
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}  <|assistant|>   </think>  "
        "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> </think>{% endif %}{# '<|assistant|></think>' #}",
    )
    [row] = encoder.encode([CHATS[0]])
    [(_, ids)] = learned([row])
    assert row.status == "kept" and encoder.tokenizer.decode(ids) == "我很好。<|im_end|>"


def test_thoughts_that_prompt_and_row_disagree_on_are_remarked(tmp_path):
    rows = encoder_of(tmp_path, TEMPLATES["marks in brackets"][0]).encode([CHATS[0], CHATS[7]])
    assert [row.status for row in rows] == [f"kept: {NO_THOUGHTS}", "kept"]
    rows = encoder_of(tmp_path, TEMPLATES["closed at once"][0]).encode([CHATS[0], CHATS[7]])
    assert [row.status for row in rows] == ["kept", f"kept: {THOUGHTS_AFTER_CLOSED}"]


def test_what_only_stands_elsewhere_is_not_shown(tmp_path):
    no_system = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'system' }}")
    [row] = encoder_of(tmp_path, opened(no_system, "")).encode([CHATS[6]])
    assert shown(row.status) == "dropped: the chat template does not show every turn (system)"
    cut = thinks("reasoning", "<T>", "</T>", "").replace("if m.reasoning", "if m.reasoning and loop.last")
    rows = encoder_of(tmp_path, cut).encode([CHATS[8]])
    assert rows[-1].status.startswith(f"truncated: {THOUGHTS_LEFT_OUT}")


def test_marks_are_those_of_the_template(tmp_path):
    for name, start, end in (
        ("marks in brackets", "[THINK]", "[/THINK]"),
        ("channels", "<|channel>thought", "<channel|>"),
        ("channels that are cut", "<|channel>thought", "<channel|>"),
        ("closed at once", "<|T>x", "<T|>"),
    ):
        marks = encoder_of(tmp_path, TEMPLATES[name][0]).template.marks
        assert (marks.start, marks.end, marks.expected) == (start, end, name != "closed at once")
