"""Plain conversations are read from one rendering each, with the rows that two give."""

from pathlib import Path

import pytest
import trl
from chat_templates import tokenizer_of

from conftest import CHATML, build_tokenizer
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.encoder import ChatEncoder

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
TEXTS = [
    "你",
    "user",
    "今天天气不错，出去走走？",
    "assistant\n",
    "a\n\nb",
    " 有空格 ",
    "</think>\n\n好",
    "/no_think 几点",
    "<b>&amp;</b>",
]


def conversations():
    for number in range(3 * len(TEXTS)):
        texts = [TEXTS[(number + turn) % len(TEXTS)] for turn in range(5)]
        count = (2, 4, 2)[number // len(TEXTS)]
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts[:count])]
        yield [{"role": "system", "content": texts[-1]}, *turns] if number >= 2 * len(TEXTS) else turns


def check_same_rows(fast, slow):
    slow.template._repeated = None
    messages = list(conversations())
    expected = [(row.input_ids.tolist(), row.labels.tolist(), row.status) for row in slow.encode(messages)]
    assert [(row.input_ids.tolist(), row.labels.tolist(), row.status) for row in fast.encode(messages)] == expected


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_rows_are_those_of_two_renderings(path):
    try:
        fast, slow = (ChatEncoder(tokenizer_of(path), keep_rest=True) for _ in range(2))
    except UserError as error:  # one that shows no plain turn
        assert "template" in str(error)
        return
    check_same_rows(fast, slow)


@pytest.mark.parametrize(
    "test",
    [
        "messages[-1].content[:9] == '/no_think'",
        "messages[-1]['content']=='/no_think 几点'",
        "'/no_think 几点' == messages[-1].content",
        "messages[-1].content.split('no_think') | length > 1",
        "messages[-1].content.count('no_think')",
        "messages[-1].content | replace('no_think', '') != messages[-1].content",
    ],
)
def test_a_prompt_that_depends_on_the_question(test):
    """In another way than the probes, which only the rendering of the prompt shows."""
    template = CHATML.removesuffix("{% endif %}") + f"{{% if {test} %}}!!{{% endif %}}{{% endif %}}"
    check_same_rows(*(ChatEncoder(build_tokenizer(chat_template=template), keep_rest=True) for _ in range(2)))


def test_a_plain_conversation_is_rendered_once(tokenizer, monkeypatch):
    encoder, rendered = ChatEncoder(tokenizer), []
    render = type(tokenizer).apply_chat_template
    monkeypatch.setattr(
        type(tokenizer), "apply_chat_template", lambda *args, **kwargs: rendered.append(1) or render(*args, **kwargs)
    )
    rows = [[{"role": "user", "content": f"问{i}"}, {"role": "assistant", "content": f"答{i}"}] for i in range(50)]
    assert all(row.status == "kept" for row in encoder.encode(rows))
    assert len(rendered) < 55
