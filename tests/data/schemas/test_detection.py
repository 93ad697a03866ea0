import json
import re

import pytest

from conftest import CHATML, build_tokenizer, conversation, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import shown
from hf_recipes.data.chat.prompts import PromptReader, read_prompts
from hf_recipes.data.chat.streamed_rows import ConversationReader
from hf_recipes.data.examples import load_examples, row_statuses, schema_of
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.schemas.registry import Columns


def turns(question=None, answer=None):
    """A conversation whose turns have these keys besides."""
    first, last = conversation("问", "答")
    return [{**first, **(question or {})}, {**last, **(answer or {})}]


@pytest.fixture
def load(tmp_path):
    def read(rows, form="messages", **columns):
        return load_examples([str(write_jsonl(tmp_path / "rows.jsonl", rows))], Columns(**columns), form, str(tmp_path))

    return read


def unused(rows, tmp_path, **columns):
    """What the description of a file names as not used."""
    [source] = find_sources([str(write_jsonl(tmp_path / "rows.jsonl", rows))])
    return list(schema_of(source, Columns(**columns)).unused)


SHAPES = [
    ({}, lambda more: {"messages": turns(more)}, ["messages[].mood"]),
    ({"schema": "messages"}, lambda more: {"chat": turns(None, more)}, ["chat[].mood"]),
    ({}, lambda more: {"messages": json.dumps(turns(more))}, ["messages[].mood"]),
    (
        {},
        lambda more: {"conversations": [{"from": "human", "value": "问", **more}, {"from": "gpt", "value": "答"}]},
        ["conversations[].mood"],
    ),
    ({}, lambda more: {"dialog": [{"question": "问", "answer": "答", **more}]}, ["dialog[].mood"]),
    ({}, lambda more: {"chat": {"turn_1": {"Human": "问", "MOSS": "答", **more}}}, ["chat[].mood"]),
    ({}, lambda more: {"query": "问", "response": "答", "history": turns(more)}, ["history[].mood"]),
    ({}, lambda more: {"prompt": turns()[:1], "completion": turns(None, more)[1:]}, ["completion[].mood"]),
    (
        {},
        lambda more: {"prompt": turns(more)[:1], "chosen": turns(None, more)[1:], "rejected": "坏"},
        ["prompt[].mood", "chosen[].mood"],
    ),
    ({"label": "label"}, lambda more: {"messages": turns(more), "label": True}, ["messages[].mood"]),
    ({"reads": "prompts"}, lambda more: {"messages": turns(more)}, ["messages[].mood"]),
    ({"reads": "documents"}, lambda more: {"messages": turns(more)}, ["messages[].mood"]),
]


@pytest.mark.parametrize(("columns", "row", "names"), SHAPES)
def test_keys_of_turns_that_no_one_reads_are_named_once(tmp_path, columns, row, names):
    rows = [row({"mood": "喜"}), row({"mood": None}), row({"mood": 0})]
    expected = [f"{name} (in 2 of the first 3 rows)" for name in names]
    assert unused(rows, tmp_path, **columns) == expected
    meaning = [row({"context": "文"})]
    names = [name.replace("mood", "context") for name in names]
    with pytest.raises(UserError, match=re.escape(f"does not use the key '{names[0]}', which usually carries meaning")):
        unused(meaning, tmp_path, **columns)
    for ignored in (names, ["context"]):
        assert unused(meaning, tmp_path, ignored=tuple(ignored), **columns) == list(ignored)


def test_a_pair_is_the_same_whatever_its_turns_have_besides(load):
    rows = [
        {"chosen": turns({"id": 1}, {"score": 5}), "rejected": [turns({"id": 2})[0], {**turns()[1], "content": "坏"}]},
        {"chosen": turns(None, {"score": 5}), "rejected": turns(None, {"score": 1})},
    ]
    examples = load(rows, "preference")
    assert examples["prompt"][0] == turns()[:1] and examples["chosen"][0] == turns()[1:]
    assert shown(list(row_statuses(examples))[1][1]) == "dropped: chosen and rejected are the same"


@pytest.mark.parametrize("columns", [{}, {"schema": "messages"}])
def test_keys_that_begin_late_are_in_the_ledger(load, tmp_path, columns):
    rows = [{"messages": turns()}] * 120
    rows += [{"messages": turns({"mood": "喜"}), "topic": "店"}, {"messages": turns({"mood": ""})}]
    examples = load(rows, **columns)
    statuses = [status for _, status in row_statuses(examples)]
    assert statuses[120:] == ["kept: not used: topic, messages[].mood", "kept"]
    [source] = find_sources([str(tmp_path / "rows.jsonl")])
    reader = ConversationReader(source, schema_of(source, Columns(**columns)))
    assert [document.status for document in reader.read()][120:] == statuses[120:]
    _, ledger = read_prompts(PromptReader([source.path], build_tokenizer(chat_template=CHATML), Columns(**columns)))
    assert [status for _, status in ledger.reasons] == [statuses[120]]
    rows[-1] = {"messages": turns({"system": "短"})}
    with pytest.raises(UserError, match=r"rows.jsonl:122: .* the key 'messages\[\].system'"):
        load(rows, **columns)
    assert list(row_statuses(load(rows, **columns, ignored=("system",))))[121][1] == "kept"


@pytest.mark.parametrize(
    ("form", "columns", "row"),
    [
        ("messages", {"prompt": "q", "response": "a"}, {"q": "问", "a": "答"}),
        ("messages", {"schema": "messages"}, {"messages": turns()}),
        ("unpaired", {"label": "label"}, {"prompt": "问", "completion": "答", "label": True}),
        ("preference", {"schema": "preference"}, {"prompt": "问", "chosen": "答", "rejected": "坏"}),
    ],
)
def test_columns_that_begin_late_are_used_or_stop_also_where_columns_are_named(load, form, columns, row):
    examples = load([row] * 120 + [{**row, "system": "短"}], form, **columns)
    messages = examples["messages" if form == "messages" else "prompt"]
    assert messages[120][0] == {"role": "system", "content": "短"} and messages[0][0]["role"] == "user"
    with pytest.raises(UserError, match="the column 'knowledge'"):
        load([row] * 120 + [{**row, "knowledge": "文"}], form, **columns)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ({}, {"reasoning_content": "想", "reasoning": "想", "thinking": "on"}),  # a copy, and a switch
        ({"context": ""}, {"tool_calls": None, "name": None}),
        ({"tools": None}, {"loss": True, "system": []}),
    ],
)
def test_what_says_nothing_more_does_not_stop_a_run(load, question, answer):
    assert load([{"messages": turns(question, answer)}])["messages"][0][1]["content"] == "答"


def test_keys_of_turns_that_are_left_out_are_not_read(load):
    [example] = load(
        [{"messages": turns(None, {"thinking": "想", "loss": 0})}], ignored=("messages[].thinking", "messages[].loss")
    )
    assert example["messages"] == turns() and example["status"] == "kept"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"question": "首都是？", "A": "北京", "B": "上海", "C": "天津", "D": "重庆", "answer": "A"}, "A"),  # C-Eval
        ({"question": "首都是？", "options": ["北京", "上海"], "answer": "A"}, "options"),
        ({"question": "怎么办？", "description": "我睡不着。", "answer": "散步。"}, "description"),  # PsyQA
        ({"conversation": ["问", "答"], "knowledge": [["甲", "是", "乙"]]}, "knowledge"),  # DuConv
        ({"input": "问", "output": "答", "reference": ["第一条"]}, "reference"),  # DISC-Law-SFT
        ({"prompt": "问", "response": "答", "safety": "unsafe"}, "safety"),
        ({"prompt": "问", "response": "答", "rejected_answer": "坏"}, "rejected_answer"),
    ],
)
def test_columns_that_a_question_or_answer_needs_stop_the_run(load, row, name):
    with pytest.raises(
        UserError, match=f"the columns? '{name}'.*, which usually carr.* meaning.*--ignore_columns {name}"
    ):
        load([row])
    assert load([row], ignored=(name, "B", "C", "D"))["messages"][0][1]["content"]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (conversation("问", "答"), "each row is one turn; write a row for each conversation: "),
        (
            [{"text": "新闻", "category": "体育", "output": "体育"}],
            "its schema is text, .*; its texts are in text, category, output, such as --prompt_column text "
            "--response_column output, without category",
        ),
        ([{"编号": "1", "客人": "多少钱？", "店员": "十元。"}], "--prompt_column 客人 --response_column 店员"),
        (
            [{"comment_id": "1", "video_id": "2", "content": "好", "nickname": "甲"}],
            "make conversations .* prepare-bilibili",
        ),
        (
            [{"conversation": [{"input": "一", "output": "二"}, {"system": "短", "input": "三", "output": "四"}]}],
            r"the key 'conversation\[\].system'",
        ),
    ],
)
def test_what_cannot_be_read_says_how_it_could(load, rows, problem):
    with pytest.raises(UserError, match=problem):
        load(rows)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns(), "images": ["a.jpg"]},
        {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}], "image": "a.jpg"},
        {"query": "问", "response": "答", "audios": ["a.wav"]},
        {"instruction": "问", "input": "", "output": "答", "videos": ["a.mp4"]},
    ],
)
def test_a_text_that_speaks_of_a_picture_is_not_learned_without_it(load, row):
    [name] = row.keys() & {"images", "image", "audios", "videos"}
    mark = f"<{name.removesuffix('s')}>"
    marked = json.loads(json.dumps(row, ensure_ascii=False).replace("问", f"{mark}问"))
    reason = f"dropped: {mark} in its text stands for '{name}', which is not trained on"
    statuses = [status for _, status in row_statuses(load([row, marked, {**marked, name: []}]))]
    assert statuses == ["kept", reason, "kept"]


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        ({"r1_reasoning": "想"}, "read it with --thoughts_column r1_reasoning"),
        ({"推理": "想"}, "read it with --thoughts_column '推理'"),
        ({"previous_turns": [["一", "二"]]}, "rename it history"),
        ({"api_docs": [{"name": "f"}]}, "rename it tools"),
        ({"角色设定": "店员"}, "rename it system"),
        ({"retrieved_passages": ["文"]}, "rename it context"),
        ({"原文": "文"}, "rename it context"),
        ({"option_a": "甲", "option_b": "乙"}, "write it into the question, or leave them out .* option_a option_b"),
        ({"A": "甲", "B": "乙"}, "write it into the question, or leave them out with --ignore_columns A B"),
        ({"toxic": True}, "take out the rows that it says are not wanted"),
        ({"weight": 0.5}, "take out the rows that it says are not wanted"),
        ({"is_correct": False}, "take out the rows that it says are not wanted"),
        ({"是否正确": "false"}, "take out the rows that it says are not wanted"),
        ({"is_deleted": 1}, "take out the rows that it says are not wanted"),
        ({"loss_mask": [0, 1]}, "take out the rows that it says are not wanted"),
    ],
)
def test_other_names_of_what_carries_meaning(load, more, remedy):
    row = {"question": "问", "answer": "答", **more}
    with pytest.raises(UserError, match=f"which usually carr.* meaning; {remedy}"):
        load([row])
    assert load([row], ignored=tuple(more))["messages"][0] == turns()


def test_what_is_only_said_about_it_does_not_stop_a_run(tmp_path):
    names = ["history_len", "context_id", "thinking_time", "is_reasoning_complete", "knowledge_points", "tool_names"]
    row = {"question": "问", "answer": "答", **dict.fromkeys(names, "七"), "uses_tools": False}
    verdicts = {"toxic": False, "weight": 1, "is_good": True, "deleted": "0", "bad_words": "七"}
    assert unused([{**row, **verdicts}], tmp_path) == [*names, "uses_tools", *verdicts]
    pair = {"prompt": "问", "chosen": "好", "rejected": "坏", "rejected_is_correct": False}
    assert unused([pair], tmp_path) == ["rejected_is_correct"]


@pytest.mark.parametrize(
    ("more", "before"),
    [
        ({"system_message": "短"}, [{"role": "system", "content": "短"}]),
        ({"系统提示词": "短"}, [{"role": "system", "content": "短"}]),
        ({"chat_history": [["一", "二"]]}, conversation("一", "二")),
        ({"对话历史": conversation("一", "二")}, conversation("一", "二")),
    ],
)
def test_other_names_of_what_belongs_to_a_conversation(load, more, before):
    assert load([{"query": "问", "response": "答", **more}])["messages"][0] == before + turns()


def test_rows_in_two_languages_ask_for_one(load):
    row = {"instruction": "q", "input": "", "output": "a", "instruction_zh": "问", "input_zh": "文", "output_zh": "答"}
    with pytest.raises(UserError, match="the columns 'output', 'output_zh' could each be the answer"):
        load([row])
    question, answer = load([row], response="output_zh")["messages"][0]
    assert (question["content"], answer["content"]) == ("问\n文", "答")
    assert load([row], response="output", ignored=("input_zh",))["messages"][0][0]["content"] == "q"


def test_an_attempt_is_not_read_with_anothers_thoughts(load):
    row = {"question": "问", "solution": "甲", "deepseek_thinking_trajectory": "想", "deepseek_attempt": "答"}
    with pytest.raises(UserError, match="'solution', 'deepseek_attempt' could each be the answer"):
        load([row])
    answer = load([row], response="deepseek_attempt")["messages"][0][1]
    assert (answer["reasoning_content"], answer["content"]) == ("想", "答")


@pytest.mark.parametrize(
    "row",
    [
        {"msgs": turns()},
        {"Messages": [{"Role": "user", "Content": "问"}, {"Role": "assistant", "Content": "答"}]},
        {"id": 7, "dialogues": [{"from": "prompter", "value": "问"}, {"from": "gpt", "value": "答"}]},
        {"回合": json.dumps(turns())},
        {"prompt": "问", "completion": turns()[1:]},
        {"prompt": "问", "response": turns()},
        {"chat": "USER: 问\n\n\nASSISTANT: 答 <|endoftext|>\n\n\n"},
    ],
)
def test_turns_in_a_column_of_another_name(load, row):
    assert load([row])["messages"][0] == turns()


@pytest.mark.parametrize("key", ["loss", "train", "training", "trainable", "loss_scale", "loss_weight"])
def test_marks_of_loss_under_other_names(load, key):
    [row] = load([{"messages": [*turns(None, {key: 0}), *turns(None, {key: 1})]}])["messages"]
    assert [turn.get("weight") for turn in row] == [None, 0, None, None]


@pytest.mark.parametrize("key", ["mask", "ignore", "train_detail"])
def test_marks_that_could_mean_either_are_refused(load, key):
    rows = [{"messages": turns(None, {key: True})}]
    with pytest.raises(UserError, match=f"the key 'messages.*{key}', .*write it as loss, false on turns that"):
        load(rows)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "问", "chosen": "答", "rejected": "坏"}, {"prompt": "prompt", "response": "chosen"}),
        ({"chosen": turns(), "rejected": turns()[:1]}, {"schema": "turns"}),
        (
            {"conversations": turns()[:1], "chosen": turns()[1], "rejected": turns()[1]},
            {"prompt": "conversations", "response": "chosen"},
        ),
        ({"context": turns()[:1], "chosen": turns()[1], "rejected": "坏"}, {"prompt": "context", "response": "chosen"}),
        ({"messages": turns(), "rejected_response": "坏"}, {}),
    ],
)
def test_the_flags_with_which_better_answers_alone_are_trained_on(load, row, columns):
    worse = list(row)[-1]
    flags = [f"--{name.removesuffix('_column')}_column {value} " for name, value in columns.items() if name != "schema"]
    flags = "".join(flags) or "--schema turns " * bool(columns)
    with pytest.raises(UserError, match=f"the better answers alone: {flags}--ignore_columns {worse}"):
        load([row])
    assert load([row], **columns, ignored=(worse,))["messages"][0] == turns()


@pytest.mark.parametrize(
    ("better", "worse"),
    [("good_answer", "bad_answer"), ("winner", "loser"), ("accepted", "rejected"), ("好的回答", "差的回答")],
)
def test_sides_by_words_of_their_names(load, better, worse):
    [pair] = load([{"question": "问", better: "答", worse: "坏", "good_score": 5, "bad_score": 1}], "preference")
    assert [pair[side][0]["content"] for side in ("prompt", "chosen", "rejected")] == ["问", "答", "坏"]
