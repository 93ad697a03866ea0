"""Calls are read back from what each template writes for them."""

import json

import pytest

from conftest import CHATML, build_tokenizer
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.chat.templates.call_reader import CallReader
from hf_recipes.models.templates.options import TEMPLATES

HEAD = "{% if tools %}{{ tools | tojson }}{% endif %}"
HEAD += "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
FOOT = "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
EACH = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
TEXTS = "{% for k, v in f.arguments.items() %}"
AS_TEXT = "{{ v if v is string else v | tojson }}"
FORMS = {
    # Llama 3.1's keys, in one object without marks.
    "object": EACH + """{{ '{"name": "' + f.name + '", "parameters": ' + f.arguments | tojson + '}' }}{% endfor %}""",
    # Mistral's list.
    "list": "{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{% set f = c.function %}"
    """{{ '{"name": "' + f.name + '", "arguments": ' + f.arguments | tojson + '}' }}"""
    "{{ ', ' if not loop.last }}{% endfor %}]{% endif %}",
    # DeepSeek-V3's sections.
    "sections": "{% if m.tool_calls %}<calls>{% for c in m.tool_calls %}{% set f = c.function %}"
    "{{ '<call>function<sep>' + f.name + '\n```json\n' + f.arguments | tojson + '\n```</call>' }}"
    "{% endfor %}</calls>{% endif %}",
    # Qwen3.5's and GLM-4.5's tags, whose values are bare texts.
    "parameters": EACH
    + "{{ '\n<tool_call>\n<function=' + f.name + '>\n' }}"
    + TEXTS
    + "{{ '<parameter=' + k + '>\n' }}"
    + AS_TEXT
    + "{{ '\n</parameter>\n' }}{% endfor %}{{ '</function>\n</tool_call>' }}{% endfor %}",
    "keys and values": EACH
    + "{{ '\n<tool_call>' + f.name + '\n' }}"
    + TEXTS
    + "{{ '<arg_key>' + k + '</arg_key>\n<arg_value>' }}"
    + AS_TEXT
    + "{{ '</arg_value>\n' }}{% endfor %}{{ '</tool_call>' }}{% endfor %}",
    # LFM2.5's calls of Python.
    "python": "{% if m.tool_calls %}<|call|>[{% for c in m.tool_calls %}{% set f = c.function %}{{ f.name + '(' }}"
    + TEXTS
    + "{{ k }}={% if v is string %}'{{ v }}'{% else %}{{ v | tojson }}{% endif %}{{ ', ' if not loop.last }}"
    + "{% endfor %}){{ ', ' if not loop.last }}{% endfor %}]<|end|>{% endif %}",
}
PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "where": {"type": "object"}}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": {"properties": PROPERTIES}}}
    for name in ("weather", "rain-fall")
]
ARGUMENTS = [{"city": "北京 {a}", "days": 3}, {"city": "20", "where": {"x": [1, True]}}]


def reader(template: str) -> tuple[ChatEncoder, CallReader | None]:
    encoder = ChatEncoder(build_tokenizer(chat_template=template))
    return encoder, CallReader.of(encoder)


def templates() -> dict[str, str]:
    return {name: HEAD + form + FOOT for name, form in FORMS.items()} | {
        "chatml": (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
    }


@pytest.mark.parametrize("name", [*FORMS, "chatml"])
def test_what_a_template_writes_is_read(name):
    encoder, calls_of = reader(templates()[name])
    calls = [
        {
            "id": f"call{number:05}",
            "type": "function",
            "function": {"name": tool["function"]["name"], "arguments": given},
        }
        for number, (tool, given) in enumerate(zip(TOOLS, ARGUMENTS, strict=True))
    ]
    for count in (1, 2):
        for text in ("", "先查一下。"):
            answer = {"role": "assistant", "content": text, "tool_calls": calls[:count]}
            example = encoder.template.example([{"role": "user", "content": "问"}, answer], TOOLS)
            written = example.answer.removesuffix(example.end)
            assert calls_of.mark in written
            content, read = calls_of.read(written, TOOLS)
            assert content == text and [one["name"] for one in read] == ["weather", "rain-fall"][:count]
            assert [json.loads(one["arguments"]) for one in read] == ARGUMENTS[:count]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<tool_call>\n{ "name" : "f", "arguments": {} }\n</tool_call>', ("", ["f"])),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}', ("", ["f"])),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call> 好', ("好", ["f"])),
        ('<tool_call>{"name": "f", "arguments": {"a": ', None),
        ('<tool_call>{"name": "f", "arguments": 5}</tool_call>', None),
        ("说 <tool_call> 是什么", None),
    ],
)
def test_what_a_model_may_write(text, expected):
    content, calls = reader(templates()["chatml"])[1].read(text, TOOLS)
    assert (content, [call["name"] for call in calls]) == (expected or (text, []))


def test_a_template_without_calls_has_no_reader():
    assert reader(CHATML)[1] is None
