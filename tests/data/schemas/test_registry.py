import json

import pytest

from conftest import write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.examples import load_examples
from hf_recipes.data.schemas.registry import Columns, detect_schema, metadata


def convert(row, **columns):
    schema = detect_schema(row, Columns(**columns), "rows.json")
    return schema.name, schema.to_example(row)


def turns(*texts, system=None):
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def sharegpt(*pairs):
    return [{"from": role, "value": text} for role, text in pairs]


@pytest.mark.parametrize(
    ("row", "columns", "name", "messages"),
    [
        ({"input": "问", "target": "答", "task_type": "cls"}, {}, "promptcblue", turns("问", "答")),
        ({"input": "问", "target": "答"}, {}, "prompt_response", turns("问", "答")),
        ({"context": "问", "target": "答"}, {}, "prompt_response", turns("问", "答")),
        ({"user": "问", "assistant": "答"}, {}, "prompt_response", turns("问", "答")),
        ({"q": "问", "a": "答", "x": 1}, {"prompt": "q", "response": "a"}, "prompt_response", turns("问", "答")),
        (
            {"q": "三", "a": "四", "h": [["一", "二"]]},
            {"prompt": "q", "response": "a", "history": "h"},
            "prompt_response",
            turns("一", "二", "三", "四"),
        ),
        (
            {"q": "问", "a": "答"},
            {"prompt": "q", "response": "a", "system_prompt": "短"},
            "prompt_response",
            turns("问", "答", system="短"),
        ),
        ({"instruction": "问", "input": "", "output": "答"}, {}, "alpaca", turns("问", "答")),
        ({"instruction": "问", "input": " \n", "output": "答", "system": " "}, {}, "alpaca", turns("问", "答")),
        ({"instruction": "译", "input": "猫", "output": "cat"}, {}, "alpaca", turns("译\n猫", "cat")),
        (
            {"instruction": "三", "output": "四", "history": [["一", "二"]], "system": "短"},
            {},
            "alpaca",
            turns("一", "二", "三", "四", system="短"),
        ),
        ({"conversations": sharegpt(("human", "问"), ("gpt", "答"))}, {}, "sharegpt", turns("问", "答")),
        (
            {"conversations": sharegpt(("system", "短"), ("user", "问"), ("assistant", "答"))},
            {},
            "sharegpt",
            turns("问", "答", system="短"),
        ),
        ({"messages": turns("问", "答", system="短")}, {}, "messages", turns("问", "答", system="短")),
        ({"dialog": turns("问", "答")}, {}, "messages", turns("问", "答")),
        ({"conversation": turns("问", "答", "再问", "再答")}, {}, "messages", turns("问", "答", "再问", "再答")),
        ({"conversations": turns("问", "答")}, {}, "messages", turns("问", "答")),
        (
            {"prompt": turns("问", system="短"), "completion": turns("问", "答")[1:]},
            {},
            "prompt_response",
            turns("问", "答", system="短"),
        ),
    ],
)
def test_shapes_become_messages(row, columns, name, messages):
    assert convert(row, **columns) == (name, {"messages": messages})


def test_tool_calls():
    row = {
        "conversations": sharegpt(
            ("human", "天气？"),
            ("function_call", '{"name": "weather", "arguments": {"city": "北京"}}'),
            ("observation", '{"temp": 3}'),
            ("gpt", "三度"),
        ),
        "tools": '[{"name": "weather", "description": "", "parameters": {}}]',
    }
    name, example = convert(row)
    call = {"id": "call00000", "type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
    assert name == "sharegpt"
    assert example["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "content": '{"temp": 3}', "tool_call_id": "call00000", "name": "weather"}
    assert example["messages"][2] == result
    assert example["tools"] == [
        {"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}
    ]


def test_tool_calls_as_json_text_and_results_that_are_empty():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        *turns("问"),
        {"role": "assistant", "content": None, "tool_calls": json.dumps([call])},
        {"role": "tool", "content": ""},
        {"role": "tool", "content": None},
        {"role": "assistant", "content": "答"},
    ]
    _, example = convert({"messages": messages})
    assert example["messages"][1:4] == [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call00000", **call}]},
        {"role": "tool", "content": "", "tool_call_id": "call00000", "name": "f"},
        {"role": "tool", "content": "", "tool_call_id": "call00000", "name": "f"},
    ]


def linked(calls, results):
    """The ids of calls, and id and name of each result, after reading."""
    calling = {"role": "assistant", "content": "", "tool_calls": calls}
    _, example = convert({"messages": [*turns("问"), calling, *results, {"role": "assistant", "content": "答"}]})
    _, calling, *results, _ = example["messages"]
    return [call["id"] for call in calling["tool_calls"]], [(r["tool_call_id"], r["name"]) for r in results]


def test_calls_and_their_results_are_linked():
    f, g = ({"type": "function", "function": {"name": name, "arguments": '{"x": 1}'}} for name in "fg")
    result = {"role": "tool", "content": "1"}
    assert linked([f, g], [result, result]) == (["call00000", "call00001"], [("call00000", "f"), ("call00001", "g")])
    known = [{"id": "call00001", **f}, g, {"id": "c", **g}]
    named = [{**result, "tool_call_id": "c", "name": "own"}, {**result, "tool_call_id": None, "name": ""}, result]
    assert linked(known, named) == (
        ["call00001", "call00000", "c"],
        [("c", "own"), ("call00001", "f"), ("call00000", "g")],
    )
    with pytest.raises(RowProblem, match=r"a tool result with the id of no call \(d\)"):
        linked(known, [{**result, "tool_call_id": "d"}])


def test_calls_as_text():
    """They and their results are what the row has; a result needs an answer of the assistant before it."""
    chat = [*turns("问", "[f(x=1)]"), {"role": "tool", "content": "1"}, {"role": "assistant", "content": "答"}]
    assert convert({"messages": chat})[1] == {"messages": chat}
    with pytest.raises(RowProblem, match="a tool result without a call"):
        convert({"messages": [chat[0], *chat[2:]]})


def test_thoughts_are_kept_for_the_template():
    answer = {"role": "assistant", "content": "答", "reasoning_content": "想一想"}
    assert convert({"messages": [*turns("问"), answer]})[1] == {"messages": [*turns("问"), answer]}
    without = {**answer, "reasoning_content": None}
    assert convert({"messages": [*turns("问"), without]})[1] == {"messages": turns("问", "答")}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "问", "chosen": "好", "rejected": "坏"},
        {"prompt": "问", "selected": "好", "rejected": "坏"},
        {"chosen": turns("问", "好"), "rejected": turns("问", "坏")},
        {
            "conversations": sharegpt(("human", "问")),
            "chosen": {"from": "gpt", "value": "好"},
            "rejected": {"from": "gpt", "value": "坏"},
        },
    ],
)
def test_preferences(row):
    name, example = convert(row)
    assert name == "preference"
    assert example == {
        "prompt": turns("问"),
        "chosen": [{"role": "assistant", "content": "好"}],
        "rejected": [{"role": "assistant", "content": "坏"}],
    }


Q, A, B = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b")))
S = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q", "messages": [Q, A], "chosen": [Q, A], "rejected": [Q, B]}, [Q]),  # UltraFeedback
        ({"messages": [S, Q, A], "chosen": [Q, A], "rejected": [Q, B]}, [S, Q]),
        ({"prompt": [Q], "chosen": [Q, A], "rejected": [Q, B]}, [Q]),
        ({"messages": [{**Q, "content": "p"}, A], "chosen": [Q, A], "rejected": [Q, B]}, [{**Q, "content": "p"}, A, Q]),
    ],
)
def test_whole_dialogues_repeat_the_prompt_once(row, prompt):
    _, example = convert(row)
    assert (example["prompt"], example["chosen"], example["rejected"]) == (prompt, [A], [B])


def test_several_worse_answers_are_refused():
    with pytest.raises(RowProblem, match="'rejected_response' holds several answers; write a row for each"):
        convert({"messages": [Q, A], "rejected_response": ["b", "c"]})


@pytest.mark.parametrize("arguments", ['{"city": "柳湾"}', {"city": "柳湾"}])
def test_calls_of_openais_older_interface(arguments):
    call = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": arguments}}
    _, example = convert({"messages": [Q, call, {"role": "function", "name": "weather", "content": "晴"}, A]})
    [called] = example["messages"][1]["tool_calls"]
    assert called["function"] == {"name": "weather", "arguments": {"city": "柳湾"}}
    assert example["messages"][2] == {"role": "tool", "content": "晴", "name": "weather", "tool_call_id": called["id"]}


@pytest.mark.parametrize(
    "roles", [("人类", "机器人"), ("患者", "医生"), ("客户", "客服"), ("user", "bing"), ("human", "Claude")]
)
def test_speakers_by_other_names(roles):
    assert convert({"conversations": sharegpt((roles[0], "问"), (roles[1], "答"))})[1]["messages"] == turns("问", "答")


def test_the_tools_of_a_pair_are_kept():
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert convert({"prompt": "问", "chosen": "好", "rejected": "坏", "tools": tools})[1]["tools"] == tools


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("年龄，性别", ["年龄", "性别"]),
        ("年龄、性别、 职业", ["年龄", "性别", "职业"]),
        ("头痛、头晕，发热", ["头痛、头晕", "发热"]),
        ("a, b; c", ["a, b", "c"]),
        ("是|否", ["是", "否"]),
        ('["年龄", "性别"]', ["年龄", "性别"]),
        ("['年龄', '性别']", ["年龄", "性别"]),  # as pandas writes a list
        ("年龄", ["年龄"]),
        ([1, 2], ["1", "2"]),
    ],
)
def test_choices_of_a_text(text, choices):
    assert metadata({"answer_choices": text}) == {"answer_choices": choices}


def test_an_empty_system_prompt_is_none():
    for prompt in ("", " "):
        _, example = convert({"prompt": "问", "response": "答"}, system_prompt=prompt)
        assert example["messages"] == turns("问", "答")


def test_texts():
    assert convert({"text": "一篇文章"}) == ("text", {"text": "一篇文章"})


def test_metadata_is_kept_apart():
    row = {"input": "问", "target": "甲", "type": "cls", "answer_choices": ["甲", "乙"], "sample_id": "7", "other": 1}
    assert metadata(row) == {"answer_choices": ["甲", "乙"], "task_type": "cls", "sample_id": "7"}
    assert "甲，乙" not in str(convert(row)[1]["messages"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input": "问", "target": None}, "no 'target'"),
        ({"input": "问", "target": "  "}, "empty answer"),
        ({"input": "", "target": "答"}, "empty prompt"),
        ({"input": ["问"], "target": "答"}, "'input' is a list, not text"),
        ({"conversations": sharegpt(("human", "问"), ("human", "问"), ("gpt", "答"))}, "two user turns in a row"),
        ({"conversations": sharegpt(("human", "问"), ("gpt", "答"), ("human", "问"))}, "ends with the user"),
        ({"conversations": sharegpt(("gpt", "答"), ("human", "问"), ("gpt", "答"))}, "begins with the assistant"),
        ({"conversations": sharegpt(("human", "问"), ("robot", "答"))}, r"unknown role \('robot'\)"),
        ({"conversations": sharegpt(("human", "问"), ("gpt", ""))}, "empty answer"),
        ({"conversations": sharegpt(("human", "问"), ("system", "短"), ("gpt", "答"))}, "not the first"),
        ({"conversations": sharegpt(("human", "问"), ("observation", "{}"), ("gpt", "答"))}, "without a call"),
        ({"conversations": sharegpt(("human", "问"), ("function_call", "{"), ("gpt", "答"))}, "not JSON"),
        ({"messages": [*turns("问"), {"role": "assistant", "tool_calls": "weather"}]}, "not a list of calls"),
        ({"conversations": [*sharegpt(("human", "问")), {"from": "function_call", "tool_calls": [{}]}]}, "not JSON"),
        (
            {"messages": [*turns("问"), {"role": "assistant", "content": [1], "tool_calls": [{"name": "f"}]}]},
            "is a list",
        ),
        ({"messages": [*turns("问"), {"role": "assistant", "content": ["答"]}]}, "the assistant's content is a list"),
        (
            {"messages": [*turns("问"), {**turns("", "答")[1], "reasoning_content": ["想", "再"]}]},
            "is a list, not text",
        ),
        ({"conversations": [{"from": "human"}]}, "a turn without"),
        ({"conversations": []}, "empty conversation"),
        ({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "答"}]}, "empty user turn"),
        ({"prompt": "问", "chosen": "同", "rejected": "同"}, "the same"),
        ({"instruction": "问", "output": "答", "history": "不是"}, "history"),
    ],
)
def test_a_bad_row_says_why(row, reason):
    with pytest.raises(RowProblem, match=reason):
        convert(row)


def test_unknown_columns_are_listed():
    with pytest.raises(UserError, match=r"--response_column 'c' is not a column; there are a, b"):
        detect_schema({"a": 1, "b": 2}, Columns(prompt="a", response="c"), "rows.json")
    with pytest.raises(UserError, match=r"no known schema in the columns a, b"):
        detect_schema({"a": 1, "b": 2}, Columns(), "rows.json")


@pytest.mark.parametrize(
    ("row", "named", "left"),
    [
        ({"questions": "问", "answers": "答"}, ("questions", "answers"), None),
        ({"uid": "7", "answers": "答", "my_questions": "问"}, ("my_questions", "answers"), "uid"),
        ({"id": "7", "甲": "问", "乙": "答"}, ("甲", "乙"), None),
        ({"question": "问", "context": "文", "answers": ["答"]}, ("question", "answers"), None),
        ({"甲": "问", "乙": "文", "丙": "答"}, ("甲", "丙"), "乙"),
    ],
)
def test_the_flags_that_are_offered_lose_no_column_in_silence(row, named, left):
    with pytest.raises(UserError) as error:
        detect_schema(row, Columns(), "rows.json")
    flags = "--prompt_column {} --response_column {}".format(*named)
    assert f"such as {flags}" in str(error.value)
    assert (f"{flags}, without {left}: rename" in str(error.value)) == bool(left)
    schema = detect_schema(row, Columns(prompt=named[0], response=named[1]), "rows.json")
    example = json.dumps(schema.to_example(row), ensure_ascii=False)
    assert {name for name, value in row.items() if value[0] not in example} == {left, "id"} & row.keys()


@pytest.mark.parametrize(
    ("row", "columns", "hint"),
    [
        (
            {"first": [{"role": "user", "content": "问"}], "second": [{"role": "user", "content": "问"}]},
            {},
            "there are turns in first, second: rename one messages",
        ),
        ({"text": "问", "role": "prompter", "lang": "zh"}, {}, "each row is one turn"),
        ({"话题": "七", "utterances": ["问", "答"]}, {}, "where the turns are in utterances, rename it messages"),
        ({"法规": "民法典", "条文": "第一条，正文。"}, {"reads": "documents"}, "--prompt_column 条文, without 法规"),
        (dict.fromkeys(map(str, range(99)), 1), {}, "38, 39 and 59 more; name them"),
    ],
)
def test_what_is_offered_fits_the_row(row, columns, hint):
    with pytest.raises(UserError, match=hint):
        detect_schema(row, Columns(**columns), "rows.json")


def test_lists_of_questions_and_answers_are_turns():
    with pytest.raises(UserError, match="no text is in questions, answers: write the turns of a row as a list in one"):
        detect_schema({"questions": ["一", "二"], "answers": ["三", "四"]}, Columns(), "rows.json")


def test_rows_of_one_answer_are_no_pairs(tmp_path):
    row = {"prompt": "问", "completion": "好", "label": True, "like_count": "128"}
    with pytest.raises(UserError, match="a row needs two answers, the better one chosen and the other rejected"):
        load_examples([str(write_jsonl(tmp_path / "a.jsonl", [row]))], form="preference", cache_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"prompt": "问", "first": "好", "second": "坏"}, "rename of first and second the better one chosen"),
        ({"question": "问", "answer": "好", "bad": "坏"}, "rename of answer and bad the better one chosen"),
        ({"messages": [{"role": "user", "content": "问"}], "a": "好", "b": "坏"}, "rename of a and b the better one"),
        ({"甲": "问", "乙": "好", "丙": "坏"}, "of the two answers' .* name that of the question with --prompt_column"),
    ],
)
def test_unknown_sides_of_pairs_are_renamed(tmp_path, row, hint):
    question, better, worse = row
    renamed = {question: row[question], "chosen": row[better], "rejected": row[worse]}
    paths = [str(write_jsonl(tmp_path / name, [one])) for name, one in (("row.jsonl", row), ("renamed.jsonl", renamed))]
    settings = {"form": "preference", "cache_dir": str(tmp_path)}
    with pytest.raises(UserError, match=hint):
        load_examples(paths[:1], **settings)
    [example] = load_examples(paths[1:], Columns(prompt="甲" if "甲" in row else None), **settings)
    assert [example[name][-1]["content"] for name in ("prompt", "chosen", "rejected")] == ["问", "好", "坏"]
