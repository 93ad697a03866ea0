"""One private chat and one group as every exporter writes them: the same examples, whoever of them is the assistant."""

import json
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest

from conftest import ROOT
from hf_recipes.core.errors import UserError
from hf_recipes.importers.arguments import ChatFormat, QQArguments
from hf_recipes.importers.chat_logs.convert import prepare_qq
from hf_recipes.importers.chat_logs.export_file import ExportFile
from hf_recipes.importers.chat_logs.formats.registry import FORMATS, detect
from hf_recipes.importers.chat_logs.members import Members

CASES = ROOT / "tests" / "data" / "cases" / "chats"
NAMES = sorted(path.name for path in CASES.iterdir() if path.is_dir())
WITHOUT_EXPORTER = {
    *("chatlab-jsonl", "qce-txt", "qq-desktop", "qq-desktop-names", "telegram"),
    *("wechatmsg1-txt", "wechatmsg2-csv", "wechatmsg2-txt", "weflow-txt"),
}
READ = {"telegram": 45, "telegram-full": 45, "weclone-csv": 43, "wechatmsg1-txt": 44}  # else 50: all messages
GROUP_HEAD = "老桨：大家好，集合时间定了\n周六早上七点\n地铁站A口\n带身份证\nK:不睡：收到"
OTHERS = {
    "小满 Mina": [
        [
            *("在的😂 怎么了", "想去云雾岭露营\n两天一夜\n你来不来", "来呀，几点走", "早上七点，地铁站A口"),
            '这个我看过 https://example.com/camp?id=12&from=a,b "路线"写得挺全\n收到，谢谢老板[抱拳]\n帐篷我带',
            "那我带睡垫",
        ],
        [
            *("到家没", "到啦\n\n累死了", "油费转你了", "太客气了吧 哈哈哈", "照片我传网盘了：\n2026-03-07 云雾岭"),
            "收到👌",
        ],
        [
            GROUP_HEAD,
            "@阿川 你开车吗",
            "阿川：我开，能坐四个人\nK:不睡：那我坐你车\n老桨：路线图发上面了\n阿川：@老桨 收到，停车场在哪\n"
            "老桨：就在大门左边\nK:不睡：我晕车，能坐前排吗🥺\n阿川：可以，前排留给你",
            "抢到了0.01，哈哈",
        ],
    ],
    "老桨": [
        [
            "K:不睡：收到\n小满 Mina：@阿川 你开车吗\n阿川：我开，能坐四个人\nK:不睡：那我坐你车",
            "路线图发上面了",
            "阿川：@老桨 收到，停车场在哪",
            "就在大门左边",
            "K:不睡：我晕车，能坐前排吗🥺\n阿川：可以，前排留给你\n小满 Mina：抢到了0.01，哈哈\n阿川：大家早点睡",
            "晚安",
        ]
    ],
}


def convert(folder: Path, source, *me: str, privacy: bool = False, **flags) -> list[list[str]]:
    """The texts of the turns of each example."""
    args = QQArguments(input=[str(source)], output_dir="unused", me=list(me), privacy=privacy, **flags)
    prepare_qq(args, folder)
    rows = map(json.loads, (folder / "train.jsonl").read_text("utf-8").splitlines())
    return [[turn["content"] for turn in row["messages"]] for row in rows]


def expected() -> list[list[str]]:
    rows = map(json.loads, (CASES / "expected.jsonl").read_text("utf-8").splitlines())
    return [[turn["content"] for turn in row["messages"]] for row in rows]


def in_this_format(name: str, examples: list[list[str]]) -> list[list[str]]:
    """WeClone's csv has blanks for line breaks."""
    return [[" ".join(text.split()) for text in turns] for turns in examples] if name == "weclone-csv" else examples


@pytest.mark.parametrize("name", NAMES)
def test_the_same_chat_gives_the_same_examples(name, tmp_path):
    examples = convert(tmp_path, CASES / name, *(["阿川"] if name in WITHOUT_EXPORTER else []))
    wanted = expected()
    if name == "wechatmsg1-csv":  # replies have no words in it
        wanted[0][2:8] = [
            f"{wanted[0][2]}\n{wanted[0][4]}",
            "\n".join([wanted[0][5], wanted[0][7]]),
        ]
        wanted[2] = [
            *wanted[2][:2],
            *("老桨：路线图发上面了", wanted[2][3]),
            *(f"{wanted[2][4]}\n{wanted[2][6]}", wanted[2][7]),
        ]
    assert sorted(in_this_format(name, examples)) == sorted(in_this_format(name, wanted))
    total = json.loads((tmp_path / "data_ledger.json").read_text("utf-8"))["messages"]["total"]
    assert total["read"] == READ.get(name, 50) == total["kept"] + total["dropped"]


@pytest.mark.parametrize("me", OTHERS)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "wechatmsg1-csv"])
def test_me_is_any_side(name, me, tmp_path):
    examples = convert(tmp_path, CASES / name, me)
    assert sorted(in_this_format(name, examples)) == sorted(in_this_format(name, OTHERS[me]))


def test_me_is_one_person_in_wechatmsgs_csv(tmp_path):
    [private, evening, group] = sorted(convert(tmp_path, CASES / "wechatmsg1-csv", "小满 Mina"))
    assert evening == OTHERS["小满 Mina"][1] or private == OTHERS["小满 Mina"][1]
    assert group[:2] == OTHERS["小满 Mina"][2][:2] and "阿川：我开，能坐四个人" in group[2]


@pytest.mark.parametrize("name", sorted(WITHOUT_EXPORTER))
def test_a_chat_that_does_not_name_its_exporter_needs_me(name, tmp_path):
    with pytest.raises(
        UserError, match=r"--me is missing: .* does not say which of 老桨, K:不睡, 小满 Mina, 阿川 you are"
    ):
        convert(tmp_path, CASES / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "me"),
    [
        ("chatlog-csv", "wxid_bed1dae1f4ad22"),
        ("chatlog-txt", "阿川"),
        ("pywxdump-csv", "阿川"),
        ("telegram", "5020010042"),
    ],
)
def test_me_in_a_group_alone(name, me, tmp_path):
    assert convert(tmp_path, CASES / name / "group", me) == expected()[2:]


def test_every_format_has_a_case_and_a_flag(tmp_path):
    files = [path for path in CASES.rglob("*") if path.is_file() and path.name not in ("users.json", "avatars.json")]
    found = {
        detect(ExportFile(str(path))).name for path in files if path.parent.name != "chunks" and path.parent != CASES
    }
    assert found == {format.name for format in FORMATS} == set(get_args(ChatFormat)) - {"auto"}
    assert len(convert(tmp_path, CASES / "weflow-csv", format="weflow-csv")) == 3
    with pytest.raises(UserError, match=r"not of --format weflow-txt; read are"):
        path = next((CASES / "weflow-csv" / "private").iterdir())
        convert(tmp_path, path, format="weflow-txt")


def test_a_folder_with_other_files(tmp_path, capsys):
    source = tmp_path / "in"
    shutil.copytree(CASES / "weflow-csv", source)
    (source / "accounts.csv").write_text("date,amount\n2026-01-01,3\n", encoding="utf-8")
    (source / "package.json").write_text('{"name": "x"}', encoding="utf-8")
    (source / "empty.txt").write_bytes(b"")
    (source / "half.json").write_text('{"name": ', encoding="utf-8")
    assert len(convert(tmp_path, source)) == 3
    printed = capsys.readouterr().out
    for skipped in (
        "accounts.csv: no chat export that is known\n",
        "package.json: no chat export that is known\n",
        "empty.txt: the file is empty\n",
        "half.json:1: broken JSON (Expecting value); export the chat again\n",
    ):
        assert f"skipped: {source}/{skipped}" in printed
    with pytest.raises(UserError, match=r"accounts.csv: no chat export that is known; read are .* are not decrypted"):
        convert(tmp_path, source / "accounts.csv")


def test_an_overview_is_printed_before_anything_is_written(tmp_path, capsys):
    convert(tmp_path, CASES / "weflow-csv")
    printed = capsys.readouterr().out
    assert "the assistant is 阿川: 16 messages; others:\n       17  小满 Mina\n" in printed
    assert printed.count("sample:\n  user: ") == 3 and "  assistant: 行\n" in printed
    assert "weflow-csv has no account numbers: two people of one nickname count as one" in printed
    ledger = json.loads((tmp_path / "data_ledger.json").read_text("utf-8"))["messages"]
    assert not any("小满" in reason["status"] or "K:不睡" in reason["status"] for reason in ledger["reasons"])


@pytest.mark.parametrize("name", ["weflow-csv", "pywxdump-csv", "weclone-csv", "wechatmsg2-csv", "chatlog-csv"])
def test_a_long_message(name, tmp_path):
    source = tmp_path / "in"
    shutil.copytree(CASES / name, source)
    for path in source.rglob("*.csv"):
        text = path.read_text("utf-8")
        path.write_text(text.replace("太客气了吧 哈哈哈", "长" * 200_000), encoding="utf-8")
    assert "长" * 200_000 in [text for turns in convert(tmp_path, source, "阿川") for text in turns]


def test_pages_are_one_chat_in_the_order_of_their_numbers(tmp_path):
    source = tmp_path / "in"
    shutil.copytree(CASES / "pywxdump-csv" / "private", source)
    [path] = source.rglob("*.csv")
    lines = path.read_text("utf-8").splitlines(keepends=True)
    middle = next(number for number, line in enumerate(lines) if line.startswith("15,"))
    path.write_text("".join(lines[:middle]), encoding="utf-8")
    path.with_name("wxid_91b827e257ee22_5000_10000.csv").write_text(
        "".join(lines[:1] + lines[middle:]), encoding="utf-8"
    )
    assert convert(tmp_path, source) == expected()[:2]


def test_a_chunk_that_is_missing(tmp_path):
    source = tmp_path / "in"
    shutil.copytree(CASES / "qce-chunked" / "private", source)
    next(source.rglob("c000002.jsonl")).unlink()
    with pytest.raises(UserError, match=r"manifest.json: chunks/c000002.jsonl, which it names, is missing"):
        convert(tmp_path, source)


ABSOLUTE = {
    *("chatlab-json", "chatlab-jsonl", "chatlog-json", "qce-json", "telegram", "weflow-csv", "weflow-json"),
    "wechatmsg1-csv",
}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"telegram-full", "qce-chunked"}))
def test_a_message_has_its_line_and_time(name):
    [path] = (path for path in (CASES / name / "private").rglob("*.*") if path.is_file() and path.name != "users.json")
    file = ExportFile(str(path))
    [chat] = detect(file).read(file, Members())
    [message] = (message for message in chat.messages if message.text == "行")
    time = message.time % (24 * 3600) if name == "chatlog-txt" else message.time - 1772755200  # it has no year
    assert time == (12 if name in ABSOLUTE else 20) * 3600 + 760  # 2026-03-06 20:12:40 in China
    if not file.is_json or file.is_lines:
        lines = path.read_text("utf-8-sig").split("\n")
        line = next(number for number, line in enumerate(lines, 1) if re.search(r"(?:^|[ ,\"])行(?:$|[,\"])", line))
        above = 2 if name == "qce-txt" else 1 if path.suffix == ".txt" else 0  # the header
        assert message.line == line - above


def test_two_exporters_of_one_chat_are_two(tmp_path):
    head = "id,MsgSvrID,type_name,is_sender,talker,msg,src,CreateTime\n"
    (tmp_path / "in").mkdir()
    for sent, contact in ("01", "乙"), ("10", "甲"):
        rows = f"1,1,text,{sent[0]},乙,谁来,,2026-03-09T11:00:40Z\n2,2,text,{sent[1]},甲,我来,,2026-03-09T11:00:50Z\n"
        (tmp_path / "in" / f"私聊_{contact}.csv").write_text(head + rows, encoding="utf-8")
    with pytest.raises(UserError, match=r"--me is missing: several people exported these chats \(乙, 甲\)"):
        convert(tmp_path, tmp_path / "in")
    assert convert(tmp_path, tmp_path / "in", "甲") == [["谁来", "我来"]] * 2


def test_privacy_hides_names_of_members_and_no_words(tmp_path):
    text = "2026-03-06 20:00:40 '小满满'\n阿川川用什么 exporter\n\n2026-03-06 20:00:50 '{}'\n小满满你用exporter就行\n"
    source = tmp_path / "私聊_小满满.txt"
    source.write_text(text.format("我"), encoding="utf-8")
    assert convert(tmp_path, source, privacy=True) == [["阿川川用什么 exporter", "用户1你用exporter就行"]]
    source.write_text(text.format("阿川川"), encoding="utf-8")
    assert convert(tmp_path, source, "阿川川", privacy=True) == [["用户2用什么 exporter", "用户1你用exporter就行"]]
    examples = convert(tmp_path, CASES / "weflow-txt", "阿川", privacy=True)
    assert not any(name in text for turns in examples for text in turns for name in ("小满 Mina", "K:不睡", "老桨"))
