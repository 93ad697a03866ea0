"""scripts/prepare_qq.py: what comes out, what the ledger says of the rest, and bad input."""

import csv
import json
import os
from pathlib import Path

import pytest

SAMPLE = "datasets/qq/全部消息记录.txt"
MEDIA = "[图片], [表情], [语音] and the like"


def export(*messages: str, heading: str = "") -> str:
    """``"HH:MM name(number)|text"`` for each message."""
    text = heading
    for message in messages:
        head, _, said = message.partition("|")
        time, _, sender = head.partition(" ")
        text += f"2023-01-02 {time}:00 {sender}\n{said}\n\n"
    return text


def heading(group: str, name: str) -> str:
    rule = "=" * 64
    return f"\n{rule}\n消息分组:{group}\n{rule}\n消息对象:{name}\n{rule}\n\n"


@pytest.fixture
def prepare(script, tmp_path):
    """``prepare(text or path, "--flag", value, …)`` → (exit code, stdout, stderr)."""

    def run(given, *flags):
        if isinstance(given, str) and "\n" in given:
            path = tmp_path / "消息记录.txt"
            path.write_text(given, encoding="utf-8-sig", newline="\r\n")
            given = path
        return script("prepare_qq.py", "--input", given, "--output_dir", tmp_path / "out", *flags)

    return run


def conversations(folder: Path, side: str = "train") -> list[list[str]]:
    """The turns of each example, which user and assistant take by turns."""
    found = []
    for line in (folder / "out" / f"{side}.jsonl").read_text("utf-8").splitlines():
        messages = [message for message in json.loads(line)["messages"] if message["role"] != "system"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        found.append([message["content"] for message in messages])
    return found


def ledger(folder: Path) -> dict:
    found = json.loads((folder / "out" / "data_ledger.json").read_text("utf-8"))["messages"]
    assert found["total"]["read"] == found["total"].get("kept", 0) + found["total"].get("dropped", 0)
    return found


def row_statuses(folder: Path) -> dict[str, int]:
    return {row["status"]: row["count"] for row in ledger(folder)["reasons"]}


PRIVATE = export("09:00 小满(20010088)|早呀", "09:01 小满(20010088)|腿还酸吗", "09:02 阿豆(20010042)|酸")
GROUP = export("09:00 甲乙丙(10001)|几点", "09:01 【群主】丁戊己(10002)|七点", "09:02 阿豆(20010042)|@甲乙丙 到了")


def test_a_private_chat(prepare, tmp_path):
    code, out, err = prepare(PRIVATE, "--me", "阿豆")
    assert (code, err) == (0, "")
    assert conversations(tmp_path) == [["早呀\n腿还酸吗", "酸"]]
    assert sorted(os.listdir(tmp_path / "out")) == ["data_ledger.json", "run_config.yaml", "train.jsonl"]
    [row] = map(json.loads, (tmp_path / "out" / "train.jsonl").read_text().splitlines())
    assert (row["chat"], row["session"]) == (1, 1) and len(row["messages"]) == 2
    assert "train.jsonl: 1 example\n" in out


@pytest.mark.parametrize(
    ("flags", "turns"),
    [
        ((), ["用户1：几点\n用户2：七点", "@用户1 到了"]),
        (("--privacy", "False"), ["甲乙丙：几点\n丁戊己：七点", "@甲乙丙 到了"]),
        (("--speakers", "never"), ["几点\n七点", "@用户1 到了"]),
        (("--mentions", "strip"), ["用户1：几点\n用户2：七点", "到了"]),
    ],
)
def test_a_group(prepare, tmp_path, flags, turns):
    code, _, err = prepare(GROUP, "--me", "20010042", *flags)
    assert code == 0, err
    assert conversations(tmp_path) == [turns]


def test_several_chats_and_files(prepare, tmp_path):
    (tmp_path / "in").mkdir()
    both = "消息记录（此消息记录为文本格式，不支持重新导入）\n" + heading("我的QQ群", "徒步") + GROUP
    both += heading("我的好友", "小满") + PRIVATE
    (tmp_path / "in" / "a.txt").write_bytes(both.encode("utf-16"))
    bare = heading("我的好友", "老师") + export("10:00 老师|交作业", "10:01 阿豆|好的")
    (tmp_path / "in" / "b.txt").write_bytes(bare.encode("gb18030"))
    with open(tmp_path / "in" / "微信好友_utf8.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["localId", "TalkerId", "Type", "SubType", "IsSender", "CreateTime", "Status", "StrContent", "StrTime"]
        )
        writer.writerow([1, 2, 1, 0, 0, 1672617600, 2, "在吗", "2023-01-02 00:00:00"])
        writer.writerow([2, 2, 1, 0, 1, 1672617601, 2, "在", "2023-01-02 00:00:01"])
    code, out, err = prepare(tmp_path / "in", "--me", "20010042", "--system_prompt", "你是阿豆。")
    assert code == 0, err
    assert conversations(tmp_path)[-1] == ["交作业", "好的"]
    assert "微信好友_utf8.csv: a chat in which 阿豆 writes nothing; add 我 to --me if that is you" in out
    flags = ("--me", "20010042", "我", "--overwrite_output_dir")
    code, _, err = prepare(tmp_path / "in", *flags, "--system_prompt", "你是阿豆。")
    assert code == 0, err
    assert conversations(tmp_path) == [
        ["用户1：几点\n用户2：七点", "@用户1 到了"],
        ["早呀\n腿还酸吗", "酸"],
        ["交作业", "好的"],
        ["在吗", "在"],
    ]
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [row["messages"][0] for row in rows] == [{"role": "system", "content": "你是阿豆。"}] * 4
    assert [row["chat"] for row in rows] == [1, 2, 3, 4]
    assert set(ledger(tmp_path)["sources"]) == {
        str(tmp_path / "in" / name) for name in ("a.txt", "b.txt", "微信好友_utf8.csv")
    }


def test_silence_and_max_turns(prepare, tmp_path):
    asks = [f"0{hour}:00 a(12341)|{hour}a" for hour in (1, 2, 3)]
    answers = [f"0{hour}:10 b(12342)|{hour}b" for hour in (1, 2, 3)]
    text = export(*(message for pair in zip(asks, answers, strict=True) for message in pair))
    code, _, err = prepare(text, "--me", "b")
    assert code == 0, err
    assert conversations(tmp_path) == [["1a", "1b", "2a", "2b", "3a", "3b"]]
    for flags in (("--session_gap", 30), ("--max_turns", 2)):
        assert prepare(text, "--me", "b", "--overwrite_output_dir", *flags)[0] == 0
        assert conversations(tmp_path) == [["1a", "1b"], ["2a", "2b"], ["3a", "3b"]]


def test_everything_that_is_no_talk_is_in_the_ledger(prepare, tmp_path):
    text = export(
        "09:00 我(20010042)|先说一句",
        "09:01 小满(20010088)|[图片]",
        "09:02 小满(20010088)|看这个[表情]",
        "09:03 系统消息(10000)|小满撤回了一条消息",
        "09:04 系统消息(1000000)|小红加入本群",
        "09:05 小满(20010088)|[QQ红包]我发了一个红包，请使用新版手机QQ查收红包。",
        "09:06 我(20010042)|谢谢",
        "09:07 小满(20010088)|",
        "09:08 小满(20010088)|不客气",
    )
    code, _, err = prepare(text, "--me", "20010042")
    assert code == 0, err
    assert conversations(tmp_path) == [["看这个", "谢谢"]]
    assert row_statuses(tmp_path) == {
        "dropped: begins a session: there is nothing that it answers": 1,
        f"dropped: nothing but {MEDIA}": 1,
        f"repaired: {MEDIA} removed": 1,
        "dropped: recalled": 1,
        "dropped: system notice": 1,
        "dropped: a card, or what the client could not show": 1,
        "dropped: empty": 1,
        "dropped: nothing of mine follows in its session": 1,
    }
    flags = ("--system_notices", "keep", "--recalled", "keep", "--media_marks", "keep", "--cards", "keep")
    assert prepare(text, "--me", "20010042", "--overwrite_output_dir", *flags, "--speakers", "always")[0] == 0
    [[question, _]] = conversations(tmp_path)
    assert question.split("\n") == [
        "用户2：[图片]",
        "看这个[表情]",
        "系统消息：用户2撤回了一条消息",
        "小红加入本群",
        "用户2：[QQ红包]我发了一个红包，请使用新版手机QQ查收红包。",
    ]


def test_personal_data_goes_unless_it_is_asked_for(prepare, tmp_path):
    text = heading("我的好友", "备注名字") + export(
        "09:00 小满满(20010088)|加我微信zhao_12345，电话13912345678，备注名字写小满满，QQ20010088",
        "09:01 阿豆豆(20010042)|好的小满满，我是阿豆豆",
    )
    code, out, err = prepare(text, "--me", "阿豆豆")
    assert code == 0, err
    assert conversations(tmp_path) == [
        ["加我微信<微信号>，电话<手机号>，用户1写用户1，QQ用户1", "好的用户1，我是用户2"]
    ]
    assert row_statuses(tmp_path) == {
        "repaired: personal data (mobile)": 1,
        "repaired: personal data (person)": 2,
        "repaired: personal data (wechat)": 1,
    }
    written = "".join((tmp_path / "out" / name).read_text("utf-8") for name in ("train.jsonl", "data_ledger.json"))
    for secret in ("13912345678", "zhao_", "小满满", "备注名字", "20010088"):
        assert secret not in written
    assert "13912345678" not in out and "1  小满满" in out  # names are printed, and written nowhere
    assert prepare(text, "--me", "阿豆豆", "--privacy", "False", "--overwrite_output_dir")[0] == 0
    assert "13912345678" in conversations(tmp_path)[0][0] and row_statuses(tmp_path) == {}


def test_the_split_is_by_session(prepare, tmp_path):
    lines = [
        f"{hour:02}:{minute:02} {'我' if minute % 2 else '她'}|{hour}.{minute}"
        for hour in range(10)
        for minute in range(8)
    ]
    flags = ("--me", "我", "--session_gap", 30, "--max_turns", 2)
    code, _, err = prepare(export(*lines), *flags, "--test_size", 6, "--total", 20)
    assert code == 0, err
    train, test = ([turns[0].split(".")[0] for turns in conversations(tmp_path, side)] for side in ("train", "test"))
    assert (len(train), len(test)) == (14, 6) and not set(train) & set(test)
    assert row_statuses(tmp_path) == {
        "dropped: not sampled for --total": 36,
        "dropped: its session is in test.jsonl, which is full": 4,
    }


@pytest.mark.parametrize(
    ("me", "message"),
    [
        ((), "--me is missing: your nickname or number in the exported chats"),
        (("--me", "小刚"), "--me 小刚: nobody of this name or number writes here, but 小满, 阿豆 do"),
        (("--me", "小满"), "is left"),
    ],
)
def test_me(prepare, tmp_path, me, message):
    code, _, err = prepare(PRIVATE, *me)
    assert code == 1 and message in err and err.startswith("error: ")
    assert not list(tmp_path.glob("out*"))


def test_two_people_of_one_name(prepare):
    code, _, err = prepare(export("09:00 小明(10001)|一", "09:01 小明(10002)|二"), "--me", "小明")
    assert code == 1 and "--me 小明: 2 people have this nickname; give one of 10001, 10002" in err


def test_wrong_input(prepare, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mht").write_text("MIME")
    (tmp_path / "poem.txt").write_text("床前明月光\n疑是地上霜\n")
    for given, message in (
        (tmp_path / "none.txt", "no such file"),
        (tmp_path / "empty", "no .txt, .csv, .json or .jsonl in this folder; read are "),
        (
            tmp_path / "a.mht",
            "a.mht: no chat export that is known; read are the exports of QQ's desktop client (txt), ",
        ),
        (tmp_path / "poem.txt", "poem.txt: no chat export that is known; read are"),
    ):
        code, _, err = prepare(given, "--me", "我")
        assert code == 1 and message in err and "Traceback" not in err


def test_the_sample_is_learned_from(prepare, sft, model_dir, tmp_path):
    code, _, err = prepare(SAMPLE, "--me", "豆包不加糖", "--test_size", 2)
    assert code == 0, err
    assert (len(conversations(tmp_path)), len(conversations(tmp_path, "test"))) == (6, 2)
    assert ledger(tmp_path)["total"]["read"] == 79
    text = "".join((tmp_path / "out" / f"{side}.jsonl").read_text() for side in ("train", "test"))
    assert "豆包不加糖" not in text and "小满" not in text
    code, _, err = sft(
        *("--model_name_or_path", model_dir, "--train_file", tmp_path / "out" / "train.jsonl"),
        *("--output_dir", tmp_path / "run", "--max_steps", 2, "--max_length", 256, "--report_to", "none"),
    )
    assert code == 0, err
    assert (tmp_path / "run" / "adapter_config.json").exists()


def test_a_groups_name_is_nobodys(prepare, tmp_path):
    text = heading("我的QQ群", "周末徒步小队") + export("09:00 小满满(10001)|周末徒步小队好", "09:01 阿豆豆(10002)|好")
    code, _, err = prepare(text, "--me", "10002")
    assert code == 0, err
    assert conversations(tmp_path) == [["周末徒步小队好", "好"]]


def test_members_who_only_are_mentioned_have_placeholders_too(prepare, tmp_path):
    text = export("09:00 甲乙丙(10001)|@丁戊己 几点 @全体成员 听着", "09:01 阿豆(20010042)|丁戊己不去")
    code, _, err = prepare(text, "--me", "20010042")
    assert code == 0, err
    assert conversations(tmp_path) == [["@用户3 几点 @全体成员 听着", "用户3不去"]]


def test_people_are_numbered_in_each_chat(prepare, tmp_path):
    text = heading("我的QQ群", "徒步") + GROUP
    text += heading("我的QQ群", "做饭") + export(
        "09:00 丁戊己(10002)|甲乙丙不在这里", "09:01 庚辛壬(10003)|丁戊己说得对", "09:02 阿豆(20010042)|嗯"
    )
    code, _, err = prepare(text, "--me", "20010042")
    assert code == 0, err
    assert conversations(tmp_path)[1] == ["用户1：甲乙丙不在这里\n用户2：用户1说得对", "嗯"]
