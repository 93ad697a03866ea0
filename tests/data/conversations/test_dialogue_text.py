import json

import pytest

from conftest import write_jsonl
from hf_recipes.core.ledger import shown
from hf_recipes.data.examples import load_examples, row_statuses
from hf_recipes.data.schemas.columns import Columns
from hf_recipes.data.schemas.registry import detect_schema

CHATML = "<|im_start|>{}\n{}<|im_end|>\n"


def chatml(*turns):
    return "".join(CHATML.format(*turn) for turn in turns)


def texts(messages):
    return [(message["role"][0], message["content"]) for message in messages]


def read(row, **columns):
    return detect_schema(row, Columns(**columns), "rows.jsonl").to_example(row)


WHOLE = [("u", "几点\n开门？"), ("a", "八点。")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": chatml(("user", "几点\n开门？"), ("assistant", "八点。"))}, WHOLE),
        (
            {"text": chatml(("system", "短"), ("user", "问"), ("assistant", "答"))},
            [("s", "短"), ("u", "问"), ("a", "答")],
        ),
        ({"text": chatml(("user", "几点\n开门？"), ("assistant", "八点。")) + "<|endoftext|>\n"}, WHOLE),
        ({"text": "\n\nHuman: 几点\n开门？\n\nAssistant: 八点。"}, WHOLE),
        ({"text": "Human: 几点\n开门？\nAssistant: 八点。\n"}, WHOLE),
        ({"text": "用户：几点\n开门？\n助手：八点。"}, WHOLE),
        ({"text": "<s>Human: 几点\n开门？\n</s><s>Assistant: 八点。\n</s>"}, WHOLE),
        ({"text": "### Human: 几点\n开门？### Assistant: 八点。"}, WHOLE),
        ({"text": "<human>:几点\n开门？\n<bot>:八点。\n"}, WHOLE),
        ({"text": "<|user|>\n几点\n开门？</s>\n<|assistant|>\n八点。</s>\n"}, WHOLE),
        (
            {
                "text": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n几点\n开门？<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n八点。<|eot_id|>"
            },
            WHOLE,
        ),
        ({"plain_text": "[Human]: 几点\n开门？<eoh> [MOSS]: 八点。<eoa> ", "num_turns": 1}, WHOLE),
        ({"plain_text": "[Human]: 问<eoh>\n[MOSS]: 答<eoa>", "prefix": "短"}, [("s", "短"), ("u", "问"), ("a", "答")]),
        ({"conversation": "Human: 几点\n开门？\nAssistant: 八点。"}, WHOLE),
        ({"text": "User: 一段日志\nSystem: 另一段"}, None),
        ({"text": "请看 <|im_start|>user\n问<|im_end|>"}, None),
    ],
)
def test_a_conversation_in_one_text(row, expected):
    example = read(row)
    assert texts(example["messages"]) == expected if expected else example == row
    document = detect_schema(row, Columns(reads="documents"), "rows.jsonl")
    if "text" in row:
        assert document.to_example(row)["text"] == row["text"]


def test_thoughts_of_a_text():
    row = {"text": chatml(("user", "问"), ("assistant", "<think>\n想\n</think>\n\n答"))}
    assert read(row)["messages"][1] == {"role": "assistant", "content": "答", "reasoning_content": "想"}


BELLE = "Human:写诗\n两首\nAssistant:好\n一\n\n二\nHuman:再写\nAssistant:"
TURNS = [("u", "写诗\n两首"), ("a", "好\n一\n\n二"), ("u", "再写")]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (BELLE, TURNS),
        (BELLE.replace("Human:", "用户：").replace("Assistant:", "助手："), TURNS),
        ("\n\n" + BELLE.replace("\nHuman:", "\n\nHuman: ").replace("\nAssistant:", "\n\nAssistant:"), TURNS),
        ("Human: 问\nAssistant: ", [("u", "问")]),
        ("[Human]: 问<eoh> [MOSS]:", [("u", "问")]),
        (chatml(("system", "短"), ("user", "问")) + "<|im_start|>assistant\n<think>\n", [("s", "短"), ("u", "问")]),
        (chatml(("user", "问")), [("u", "问")]),
        # Texts that only quote a dialogue.
        (BELLE + "\n把上面的对话译成英文。", None),
        ("续写对话：\n" + BELLE, None),
        (BELLE.removesuffix("\nAssistant:"), None),
        ("Human: 一\nHuman: 二\nAssistant:", None),
        ("Human: 一\nAssistant:\nHuman: 二\nAssistant:", None),
        (chatml(("user", "问")) + "请解释这段标记。", None),
        ("\n\nHuman: 这是谁写的？", None),
        ("请解释 Human: 与 Assistant: 的含义", None),
    ],
)
def test_a_prompt_that_is_a_dialogue_is_read_as_its_turns(tmp_path, prompt, expected):
    rows = {
        "messages": {"instruction": prompt, "input": "", "output": "答"},
        "preference": {"prompt": prompt, "chosen": "答", "rejected": "坏"},
        "unpaired": {"prompt": prompt, "completion": "答", "label": True},
    }
    for form, row in rows.items():
        path = str(write_jsonl(tmp_path / f"{form}.jsonl", [row]))
        columns = Columns(label="label") if form == "unpaired" else Columns()
        examples = load_examples([path], columns, form, str(tmp_path))
        messages = examples["messages"][0][:-1] if form == "messages" else examples["prompt"][0]
        assert texts(messages) == (expected or [("u", prompt)])
        name = "instruction" if form == "messages" else "prompt"
        remark = f"kept: '{name}' read as the turns that it holds"
        assert [shown(status) for _, status in row_statuses(examples)] == [remark if expected else "kept"]
    assert texts(read({"prompt": prompt}, reads="prompts")["messages"]) == (expected or [("u", prompt)])


def test_an_answer_that_quotes_a_dialogue_is_a_text():
    quoted = "Human: 你好\nAssistant: 您好"
    assert read({"prompt": "写", "response": quoted})["messages"][1]["content"] == quoted
    assert texts(read({"prompt": "写", "chosen": quoted, "rejected": "坏"})["chosen"]) == [("a", quoted)]
    sides = {name: chatml(("user", "问"), ("assistant", name)) for name in ("chosen", "rejected")}
    example = read(sides)
    assert [texts(example[name]) for name in ("prompt", *sides)] == [
        [("u", "问")],
        [("a", "chosen")],
        [("a", "rejected")],
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"qid": "1", "category": "店", "title": "问", "desc": "说明", "answer": "答"},
            [("u", "问\n说明"), ("a", "答")],
        ),
        ({"qid": "1", "title": "问", "desc": "", "answer": "答"}, [("u", "问"), ("a", "答")]),
        (
            {"qid": 1, "title": "问", "desc": "说明", "topic": "店", "star": 3, "content": "答", "answer_id": 2},
            [("u", "问\n说明"), ("a", "答")],
        ),
        (
            {
                "conversation": [{"system": "短", "input": "一", "output": "二"}, {"input": "三", "output": "四"}]
            },  # XTuner
            [("s", "短"), ("u", "一"), ("a", "二"), ("u", "三"), ("a", "四")],
        ),
        (
            {"messages": [{"role": "client", "content": "问"}, {"role": "counselor", "content": "答"}]},
            [("u", "问"), ("a", "答")],
        ),
        (
            {"dialogue": [{"speaker": "患者", "sentence": "问"}, {"speaker": "医生", "sentence": "答"}]},
            [("u", "问"), ("a", "答")],
        ),
    ],
)
def test_other_shapes_of_conversations(row, expected):
    assert texts(read(row)["messages"]) == expected


@pytest.mark.parametrize("name", ["problem", "ask", "问题", "Question", "title"])
def test_a_prompt_needs_no_answer_whatever_its_name(name):
    row = {name: "问", **({"desc": ""} if name == "title" else {})}
    assert texts(read(row, reads="prompts")["messages"]) == [("u", "问")]


@pytest.mark.parametrize("key", ["data", "items", "train", "rows", "RECORDS"])
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_under_a_key_of_one_object(tmp_path, capfd, key, indent):
    row = {"prompt": "问", "response": "答"}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": "1", key: [row, row], "test": [row]}, indent=indent), encoding="utf-8")
    assert len(load_examples([str(path)], cache_dir=str(tmp_path))) == 2
    assert f", rows under {key} (not read: test)" in capfd.readouterr().out


def test_one_conversation_is_no_object_of_rows(tmp_path):
    row = {
        "messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}],
        "results": [{"x": 1}],
    }
    examples = load_examples([str(write_jsonl(tmp_path / "rows.jsonl", [row]))], cache_dir=str(tmp_path))
    assert texts(examples["messages"][0]) == [("u", "问"), ("a", "答")]
