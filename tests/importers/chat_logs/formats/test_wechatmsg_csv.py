"""WeChatMsg's csv."""

import csv

from hf_recipes.importers.chat_logs.export_file import ExportFile
from hf_recipes.importers.chat_logs.formats.wechatmsg_csv import read_1
from hf_recipes.importers.chat_logs.members import EXPORTER, SYSTEM, Members

COLUMNS = [
    "localId",
    "TalkerId",
    "Type",
    "SubType",
    "IsSender",
    "CreateTime",
    "Status",
    "StrContent",
    "StrTime",
    "Remark",
    "NickName",
    "Sender",
]


def write(path, rows, header=COLUMNS):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *rows])
    return ExportFile(str(path))


def row(kind, is_sender, text, *more):
    return ["1", "2", kind, "0", is_sender, "1672617600", "2", text, "2023-01-02 00:00:00", *more]


def test_a_private_chat_whose_rows_end_early(tmp_path):
    rows = [
        row(1, 0, "在吗\n第二行"),
        row(3, 0, "<msg/>"),
        row(1, 1, "在"),
        row(10000, 0, "你撤回了一条消息"),
        row(49, 1, ""),
    ]
    members = Members()
    [chat] = read_1(write(tmp_path / "小满_utf8.csv", rows), members)
    assert [(message.line, message.time, message.sender, message.text) for message in chat.messages] == [
        (2, 1672617600, "小满", "在吗\n第二行"),
        (4, 1672617600, "小满", "[图片]"),
        (5, 1672617600, EXPORTER, "在"),
        (6, 1672617600, SYSTEM, "你撤回了一条消息"),
        (7, 1672617600, EXPORTER, "[链接]"),
    ]
    assert chat.name == "小满" and members.names["小满"] == ["小满"]


def test_a_group(tmp_path):
    rows = [row(1, 0, "好", "备注", "昵称", "wxid_a1"), row(1, 1, "嗯", "", "我自己", "wxid_me")]
    members = Members()
    [chat] = read_1(write(tmp_path / "群.csv", rows), members)
    assert [message.sender for message in chat.messages] == ["wxid_a1", "wxid_me"]
    assert chat.owner == "wxid_me"
    assert members.names == {"wxid_a1": ["备注", "昵称", "wxid_a1"], "wxid_me": ["我自己", "wxid_me"]}


def test_rows_that_cannot_be_used(tmp_path):
    [chat] = read_1(write(tmp_path / "a.csv", [["1", "2", "1", "0", "0", "x", "2", "好"], ["1", "2"]]), Members())
    assert [message.problem for message in chat.messages] == ["no time", "the row is cut short"]
