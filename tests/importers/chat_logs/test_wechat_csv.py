"""WeChatMsg's csv, and its txt, which QQ's reader takes."""

import csv

import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.importers.chat_logs.members import ME, SYSTEM, Members
from hf_recipes.importers.chat_logs.qq_txt import read_qq
from hf_recipes.importers.chat_logs.wechat_csv import read_wechat

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
    return str(path)


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
    [chat] = read_wechat(write(tmp_path / "小满_utf8.csv", rows), members)
    assert [(message.line, message.time, message.sender, message.text) for message in chat.messages] == [
        (2, 1672617600, "小满", "在吗\n第二行"),
        (4, 1672617600, "小满", "[图片]"),
        (5, 1672617600, ME, "在"),
        (6, 1672617600, SYSTEM, "你撤回了一条消息"),
        (7, 1672617600, ME, "[链接]"),
    ]
    assert chat.name == "小满" and members.names["小满"] == ["小满"]


def test_a_group(tmp_path):
    rows = [row(1, 0, "好", "备注", "昵称", "wxid_a1"), row(1, 1, "嗯", "", "我自己", "wxid_me")]
    members = Members()
    [chat] = read_wechat(write(tmp_path / "群.csv", rows), members)
    assert [message.sender for message in chat.messages] == ["wxid_a1", ME]
    assert members.names == {"wxid_a1": ["备注", "昵称", "wxid_a1"], ME: ["我自己", "wxid_me"]}


def test_rows_that_cannot_be_used(tmp_path):
    [chat] = read_wechat(write(tmp_path / "a.csv", [["1", "2", "1", "0", "0", "x", "2", "好"], ["1", "2"]]), Members())
    assert [message.problem for message in chat.messages] == ["no number in CreateTime", "no number in CreateTime"]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["id", "MsgSvrID", "content"], [], "no column Type in id, MsgSvrID, content; expected WeChatMsg's csv"),
        (COLUMNS, [], "no message in it"),
    ],
)
def test_other_files(tmp_path, header, rows, message):
    with pytest.raises(UserError, match=message):
        list(read_wechat(write(tmp_path / "a.csv", rows, header), Members()))


def test_the_txt_of_wechatmsg(tmp_path):
    path = tmp_path / "小满.txt"
    path.write_text("2023-01-02 12:00:00 小满\n在吗\n\n2023-01-02 12:00:01 我\n[图片]\n\n", encoding="utf-8")
    [chat] = read_qq(str(path), Members())
    assert [(message.sender, message.text) for message in chat.messages] == [("小满", "在吗"), ("我", "[图片]")]
