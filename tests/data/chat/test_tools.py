"""Tools, their calls and results: ids, calls written as text, and what a template leaves out."""

import pytest

from conftest import build_tokenizer, conversation, learned_text, write_jsonl
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.chat.templates.rendered_text import describes_tools
from hf_recipes.data.examples import load_examples, row_statuses
from hf_recipes.data.schemas.columns import Columns
from hf_recipes.data.schemas.registry import detect_schema
from hf_recipes.data.tokenized import tokenize_dataset

TOOL = {"name": "weather", "description": "查天气", "parameters": {"type": "object", "properties": {"city": {}}}}
TOOLS = [{"type": "function", "function": TOOL}]
START, END = "<|im_start|>", "<|im_end|>"


def template(calls, *, opens="", before="", after="", system="", history="m.content"):
    """A ChatML template that writes `calls` of an assistant's turn; the others are expressions and statements."""
    return f"""{before}
{{%- if tools %}}<tools>{{{{ tools | tojson(ensure_ascii=False) }}}}{{% endif %}}
{{%- for m in messages %}}
    {{%- if m.role == 'assistant' and m.tool_calls %}}
        {{{{- '{START}assistant\\n' + (m.content if loop.last else {history}) + {calls} + '{END}\\n' }}}}
    {{%- else %}}
        {{{{- '{START}' + m.role + '\\n' + m.content + '{END}\\n' }}}}
    {{%- endif %}}{system}
{{%- endfor %}}
{{%- if add_generation_prompt %}}{{{{ '{START}assistant\\n{opens}' }}}}{{% endif %}}{after}"""


NAMED = "m.tool_calls[0].function.name + m.tool_calls[0].function.arguments | tojson(ensure_ascii=False)"
ONE = f"'<call>' + {NAMED} + '</call>'"
# As Mistral's: ids are shown and checked.
IDS = """
{%- for m in messages %}
    {%- set calls = m.tool_calls or [] %}
    {%- for id in ([m.tool_call_id] if m.role == 'tool' else calls | map(attribute='id')) %}
        {%- if id is not defined or id | length != 9 %}{{ raise_exception('nine!') }}{% endif %}
    {%- endfor %}
{%- endfor %}"""
SHOWN = f"m.tool_calls[0].id + {NAMED}"


BEIJING, SHANGHAI = 'weather{"city": "北京"}', 'weather{"city": "上海"}'


def encoder(text):
    return ChatEncoder(build_tokenizer(chat_template=text))


def read(*turns, tools=TOOLS):
    """The turns as a file's row of them is read."""
    row = {"messages": list(turns), "tools": tools}
    example = detect_schema(row, Columns(), "rows.jsonl").to_example(row)
    return [example["messages"]], [example.get("tools")]


def called(city="北京", content="", **more):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}, **more}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def result(content="三度", **more):
    return {"role": "tool", "content": content, **more}


def answer(content="冷"):
    return {"role": "assistant", "content": content}


[ASKED] = conversation("天气？")


@pytest.mark.parametrize(
    ("given", "shown"), [(None, ["call00000", "call00001"]), ("call_{}bcdefghijkl", ["call00000", "call00001"])]
)
def test_ids_are_those_that_the_template_accepts(given, shown):
    ids = [{"id": given.format(letter)} if given else {} for letter in "ab"]
    named = [{"tool_call_id": one["id"]} if given else {} for one in ids]
    one = encoder(template(SHOWN, before=IDS))
    chat = [ASKED, called(**ids[0]), result(**named[0]), called("上海", **ids[1]), result("雨", **named[1]), answer()]
    [row] = one.encode(*read(*chat))
    assert row.status == "kept"
    expected = [f"{shown[0]}{BEIJING}{END}", f"{shown[1]}{SHANGHAI}{END}", f"冷{END}"]
    assert learned_text(one.tokenizer, row) == expected


def test_ids_that_the_template_accepts_stay():
    for before, names in ((IDS, "a1b2c3d4e"), ("", "call_of_any_length")):
        one = encoder(template(SHOWN, before=before))
        [row] = one.encode(*read(ASKED, called(id=names), result(tool_call_id=names), answer()))
        assert learned_text(one.tokenizer, row) == [f"{names}{BEIJING}{END}", f"冷{END}"]


def test_calls_as_text_carry_loss():
    one = encoder(template(ONE))
    for call in ('<tool_call>\n{"name": "weather"}\n</tool_call>', '[weather(city="北京")]'):
        [row] = one.encode(*read(ASKED, answer(call), result(), answer(), tools=None))
        assert row.status == "kept"
        assert learned_text(one.tokenizer, row) == [call + END, f"冷{END}"]


def test_a_call_as_text_ends_with_what_begins_its_result():
    """Where a turn ends with the next role's token (GLM), that of the tool's."""
    text = (
        "{% for m in messages %}{{ {'user': '<|im_start|>', 'assistant': '<think>', 'tool': '<result>'}[m.role]"
        " + m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    )
    tokenizer = build_tokenizer(chat_template=text)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "<result>"]})
    one = ChatEncoder(tokenizer)
    rows = one.encode(*read(ASKED, answer("weather(北京)"), result(), answer(), tools=None))
    labels = [text for row in rows for text in learned_text(tokenizer, row)]
    assert labels == ["weather(北京)<result>", f"冷{START}"]


def test_tools_that_the_system_turn_describes_are_shown_once():
    one, status = encoder(template(ONE)), "kept: the system turn describes the tools; those of the row are not shown"
    for text in ("可用：weather，查天气", 'weather: {"city": {}}', '{"description": "\\u67e5\\u5929\\u6c14 weather"}'):
        system = {"role": "system", "content": text}
        chats, tools = read(system, ASKED, called(), result(), answer())
        [row] = one.encode(chats, tools)
        assert row.status.startswith(status)
        shown = one.tokenizer.decode(row.input_ids)
        assert "<tools>" not in shown and text in shown
        assert row.input_ids[: row.prompt_length].tolist() == one.served_prompt(chats[0][:-1], tools[0]).tolist()
    for text in ("可用 weather", "查天气", "查 city"):
        [row] = one.encode(*read({"role": "system", "content": text}, ASKED, answer()))
        assert row.status == "kept" and "<tools>" in one.tokenizer.decode(row.input_ids)


def test_text_before_an_earlier_call_that_is_left_out_is_reported():
    chat = [ASKED, called(content="我查"), result(), answer()]
    *_, row = encoder(template(ONE, history="''")).encode(*read(*chat))
    assert row.status == (
        "truncated: the template leaves out the text before an earlier call, each turn is an example of its own"
    )
    [kept] = encoder(template(ONE)).encode(*read(*chat))
    assert kept.status == "kept"
    [dropped] = encoder(template(ONE).replace("m.content if loop.last", "'' if loop.last")).encode(*read(*chat))
    assert dropped.status == "dropped: the chat template leaves out or changes a text before a call"


def test_earlier_calls_that_the_template_leaves_out():
    one = ChatEncoder(
        build_tokenizer(chat_template=template(f"({ONE} if loop.last else '')")),
        train_on="last",
    )
    [row] = one.encode(*read(ASKED, called(), result(), answer()))
    assert row.status == "dropped: the chat template does not show a call of a tool"


def test_the_form_of_calls_does_not_depend_on_the_rows_before():
    """Of a template that takes arguments as text."""
    text = template("m.tool_calls[0].function.name + m.tool_calls[0].function.arguments")
    [row] = encoder(text).encode(*read(ASKED, called()))
    assert row.status == "kept"


def test_a_call_where_the_prompt_opens_thoughts():
    text = template(ONE, opens="<think>\\n", before="{# </think> #}")
    one = encoder(text)
    [row] = one.encode(*read(ASKED, called()))
    assert learned_text(one.tokenizer, row) == [f"\n</think>\n\n<call>{BEIJING}</call>{END}"]


def test_an_argument_with_the_mark_closes_no_thoughts():
    one = encoder(template(ONE, opens="<think>\\n", before="{# </think> #}"))
    [row] = one.encode(*read(ASKED, called("</think>")))
    assert learned_text(one.tokenizer, row) == [f'\n</think>\n\n<call>weather{{"city": "</think>"}}</call>{END}']


def test_a_turn_that_ends_before_its_call():
    [row] = encoder(template(f"'{END}\\n{START}assistant\\n' + {ONE}")).encode(*read(ASKED, called(content="我查")))
    assert row.status == "dropped: the chat template ends the turn before its call"


@pytest.mark.parametrize(
    ("begin", "opener", "end"),
    [
        ("", "A:", END),
        (f"{START}assistant\n", f"{START}assistant\n", END),
        ("### Response:\n", "### Response:\n", f"\n{END}\n"),  # DeepSeek-Coder
        ("Source: assistant\n", "Source: assistant\nTo: user\n", f" {END} "),  # CodeLlama 70B
        (f"{START}assistant\n[A]", f"{START}assistant\n", END),  # Command A, which adds [A] if asked
    ],
)
def test_an_answer_that_a_template_opens_unasked_is_no_part_of_the_one_before(begin, opener, end):
    turns = f"{{{{ {{'user': {START!r} ~ 'user\n', 'assistant': {begin!r}}}[m.role] ~ m.content ~ {end!r} }}}}"
    asked = "{{ '[A]' if add_generation_prompt }}" if "[A]" in begin else ""
    one = encoder(f"{{% for m in messages %}}{turns}{{% endfor %}}{{{{ {opener!r} }}}}{asked}")
    chat = conversation("一", "甲", "二", "乙")
    rows = one.encode([chat])
    assert [text for row in rows for text in learned_text(one.tokenizer, row)] == [
        f"{text}{end.rstrip()}" for text in "甲乙"
    ]
    sent = one.tokenizer.apply_chat_template(chat[:3], add_generation_prompt=True, return_dict=False)
    assert rows[-1].input_ids[: rows[-1].prompt_length].tolist() == sent


def test_a_mark_behind_a_call_does_not_end_the_turn():
    one = encoder(template(f"{ONE} + '{START}\\n'"))
    assert learned_text(one.tokenizer, one.encode(*read(ASKED, called()))[0]) == [
        f"<call>{BEIJING}</call>{START}\n{END}"
    ]


def test_thoughts_before_a_call_that_closes_them_otherwise_than_an_answer():
    """Cohere's: the mark that begins an answer's text is no part of what closes thoughts before a call."""
    thoughts = "('[T]' + m.reasoning + '[/T]' if m.reasoning else '')"
    text = template(f"{thoughts} + {ONE}", opens="[T]").replace(
        "m.role + '\\n' + m.content",
        f"m.role + '\\n' + {thoughts} + ('[A]' if m.role == 'assistant' else '') + m.content",
    )
    one = encoder(text)
    chats = [[ASKED, {**turn, "reasoning_content": "想"}] for turn in (answer(), called())]
    chats += [[ASKED, turn] for turn in (answer(), called())]
    assert [learned_text(one.tokenizer, row) for row in one.encode(chats, [TOOLS] * 4)] == [
        [f"想[/T][A]冷{END}"],
        [f"想[/T]<call>{BEIJING}</call>{END}"],
        [f"[/T][A]冷{END}"],
        [f"[/T]<call>{BEIJING}</call>{END}"],
    ]


def test_a_system_turn_may_stand_in_the_last_question():
    text = (
        "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
        "{% if m.role == 'user' %}<|im_start|>{{ system if messages[loop.index0:] | selectattr('role', 'equalto', "
        "'user') | list | length == 1 else '' }}{{ m.content }}{% elif m.role == 'assistant' %}"
        "A:{{ m.content }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    one = ChatEncoder(build_tokenizer(chat_template=text), max_length=40)
    chat = [{"role": "system", "content": "短"}, *conversation("问一", "答一", "问二", "答二")]
    rows = one.encode([chat])
    assert [row.status for row in rows] == ["kept", "split: each turn is an example of its own"]
    assert [learned_text(one.tokenizer, row) for row in rows] == [[f"答一{END}"], [f"答二{END}"]]
    [*_, cut] = one.encode([[*chat[:1], *conversation(*["很长的话"] * 20)]])
    assert "oldest turns left out" in cut.status and "短" in one.tokenizer.decode(cut.input_ids)


def test_rows_without_thoughts_where_the_prompt_opens_some_are_counted(tmp_path):
    tokenizer = build_tokenizer(chat_template=template(ONE, opens="<think>\\n", before="{# </think> #}"))
    rows = [{"messages": conversation("问", "答")}] * 2 + [{"messages": conversation("问", "想\n</think>\n\n答")}]
    examples = load_examples([str(write_jsonl(tmp_path / "rows.jsonl", rows))])
    ledger = Ledger().add_all(row_statuses(tokenize_dataset(examples, ChatEncoder(tokenizer))))
    assert ledger.totals == {"read": 3, "kept": 3}
    [(status, entry)] = [(status, entry) for (_, status), entry in ledger.reasons.items()]
    assert status.startswith("kept: no thoughts, though the prompt opens some") and "--thinking off" in status
    assert entry.count == 2


# Without an end of turns, and with special tokens in calls: the next role's token ends a turn.
ROLES = "{{ {'user': '<user>', 'assistant': '<model>', 'system': '<system>', 'tool': '<result>'}[m.role] }}"
NO_END = (
    "{{ tools | tojson if tools }}{% for m in messages %}" + ROLES + "{{ m.content | trim }}"
    "{% for c in m.tool_calls or [] %}<tool>{{ c.function.name }}<sep>"
    "{{ c.function.arguments | tojson(ensure_ascii=False) }}AFTER{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)


@pytest.mark.parametrize("after", ["<end>", "}", ""])
def test_nothing_after_a_turn_without_an_end_is_learned(after):
    tokenizer = build_tokenizer(chat_template=NO_END.replace("AFTER", after))
    names = ["<user>", "<model>", "<system>", "<result>", "<tool>", "<sep>", "<end>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    call = f'<tool>weather<sep>{{"city": "北京"}}{after}<result>'
    for first, learned in (
        (called(), call),
        (called(content="我查 "), "我查" + call),
        (answer(" 查北京 "), "查北京<result>"),
    ):
        for end in ([], [result(), answer()]):
            rows = ChatEncoder(tokenizer).encode(*read(ASKED, first, *end))
            texts = [text for row in rows for text in learned_text(tokenizer, row)]
            known = [learned, "冷<user>"] if end else [learned.replace("查北京<result>", "查北京<user>")]
            assert texts == known


STRINGS = (
    "'<call>' + m.tool_calls[0].function.name ~ m.tool_calls[0].function.arguments.values() | select('string') | join"
)


@pytest.mark.parametrize(("value", "is_shown"), [(3, False), (True, False), ({"days": [3.5]}, False), ("三", True)])
def test_arguments_that_are_no_text_are_noticed_where_a_template_drops_them(value, is_shown):
    for text, shows in ((template(ONE), True), (template(STRINGS), is_shown)):
        turn = called()
        turn["tool_calls"][0]["function"]["arguments"]["more"] = value
        [row] = encoder(text).encode(*read({**ASKED, "content": "3 true 三"}, turn))
        assert row.status == ("kept" if shows else "dropped: the chat template does not show a call of a tool")


def test_arguments_before_the_name_and_text_after_the_call():
    function = "m.tool_calls[0].function"
    one = encoder(template(f"{function}.arguments | tojson(ensure_ascii=False) + {function}.name"))
    [row] = one.encode(*read(ASKED, called(), result(), answer()))
    assert learned_text(one.tokenizer, row) == [f'{{"city": "北京"}}weather{END}', f"冷{END}"]
    one = encoder(template(f"{ONE} + m.content", history="''").replace("m.content if loop.last", "'' if loop.last"))
    [row] = one.encode(*read(ASKED, called(content="我查")))
    assert learned_text(one.tokenizer, row) == [f"<call>{BEIJING}</call>我查{END}"]


def test_thoughts_that_a_template_shows_only_beside_calls():
    one = encoder(template(f"('[T]' + m.reasoning + '[/T]' if m.reasoning else '') + {ONE}"))
    [row] = one.encode(*read(ASKED, {**called(), "reasoning_content": "要查"}, result(), answer()))
    assert learned_text(one.tokenizer, row) == [f"[T]要查[/T]<call>{BEIJING}</call>{END}", f"冷{END}"]


def test_no_tools_are_those_of_a_server_without_tools():
    one = encoder("{% if tools is not none %}TOOLS{% endif %}" + template(ONE))
    without, empty = one.encode([[ASKED, answer()]] * 2, [None, []])
    assert without.input_ids.tolist() == empty.input_ids.tolist()
    assert one.served_prompt([ASKED], []).tolist() == one.served_prompt([ASKED]).tolist()


def test_a_call_without_content_and_a_content_in_parts():
    one = encoder(template(ONE))
    calling = called()
    del calling["content"]
    parts = {"role": "user", "content": [{"type": "text", "text": "天气"}, {"type": "text", "text": "？"}]}
    image = {"role": "user", "content": [{"type": "image"}]}
    call, text, picture = one.encode([[ASKED, calling], [parts, answer()], [image, answer()]])
    assert learned_text(one.tokenizer, call) == [f"<call>{BEIJING}</call>{END}"]
    assert text.input_ids.tolist() == one.encode([[ASKED, answer()]])[0].input_ids.tolist()
    assert picture.status == "dropped: the user's content is a list with a part that is not text\x1fimage"


@pytest.mark.parametrize(
    ("system", "expected"),
    [("你是天气助手 weather", False), ("use_weather：天气", False), ("weather：天气", True), ("天气：weather。", True)],
)
def test_a_description_is_no_part_of_a_sentence(system, expected):
    tools = [{"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {}}}]
    assert describes_tools([{"role": "system", "content": system}], tools) is expected
    same = [{"name": "weather", "description": "weather"}]
    assert not describes_tools([{"role": "system", "content": "ask for weather"}], same)
