"""QQ's export as text: heads, chats, encodings."""

from pathlib import Path

import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.importers.chat_logs.export_file import ExportFile
from hf_recipes.importers.chat_logs.formats import qq_desktop
from hf_recipes.importers.chat_logs.members import SYSTEM, Members

RULE = "=" * 64
HEADING = "消息记录（此消息记录为文本格式，不支持重新导入）\n\n"


def heading(group: str, name: str) -> str:
    return f"{RULE}\n消息分组:{group}\n{RULE}\n消息对象:{name}\n{RULE}\n\n"


def read(tmp_path: Path, text: str, encoding: str = "utf-8"):
    path = tmp_path / "全部消息记录.txt"
    path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    members = Members()
    return list(qq_desktop.read(ExportFile(str(path)), members)), members


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030", "gbk"])
def test_encodings(tmp_path, encoding):
    text = HEADING + heading("我的好友", "小满") + "2023-03-06 9:00:21 小满(20010088)\n早呀，腿还酸吗\n第二行\n\n"
    [chat], members = read(tmp_path, text, encoding)
    assert (chat.name, members.names) == ("小满", {"20010088": ["小满"]})
    assert [(message.line, message.sender, message.text, message.problem) for message in chat.messages] == [
        (9, "20010088", "早呀，腿还酸吗\n第二行", None)
    ]


def test_several_chats_in_one_file(tmp_path):
    text = (
        HEADING
        + heading("我的QQ群", "徒步")
        + "2023-03-03 19:02:11 甲乙(10001)\n一\n\n2023-03-03 19:02:12 丙(10002)\n二\n\n"
    )
    text += (
        heading("我的好友", "空的") + heading("我的好友", "丙") + "2023-03-03 19:02:13 丙(10002)\n==========\n三\n\n"
    )
    chats, members = read(tmp_path, text)
    assert [(chat.name, [message.text for message in chat.messages]) for chat in chats] == [
        ("徒步", ["一", "二"]),
        ("丙", ["==========\n三"]),
    ]
    assert members.names == {"10001": ["甲乙"], "10002": ["丙"]}


@pytest.mark.parametrize(
    ("sender", "key", "name"),
    [
        ("阿树(20010017)", "20010017", "阿树"),
        ("【群主】老桨<LaoJiang@example.com>", "laojiang@example.com", "老桨"),
        ("【管理员】【吃货】小(明)(12345)", "12345", "【吃货】小(明)"),
        ("【吃货】(12345)", "12345", "【吃货】"),
        ("a b  c(12345)", "12345", "a b  c"),
        ("2023-01-02 12:34:56 小明(12345)", "12345", "2023-01-02 12:34:56 小明"),
        ("<b>(12345)", "12345", "<b>"),
        ("(99999)<a@b.cn>", "a@b.cn", "(99999)"),
        ("小明", "小明", "小明"),
        ("(^_^)", "(^_^)", "(^_^)"),
    ],
)
def test_senders(tmp_path, sender, key, name):
    [chat], members = read(tmp_path, f"2023-01-02 12:34:56 {sender}\n好\n\n")
    assert [(message.sender, message.text) for message in chat.messages] == [(key, "好")]
    assert members.names == {key: [name]}


@pytest.mark.parametrize("sender", [" 系统消息(10000)", " 系统消息(1000000)", ""])
def test_system_notices(tmp_path, sender):
    [chat], members = read(tmp_path, f"2023-01-02 12:34:56 小明\n好\n\n2023-01-02 12:34:57{sender}\n甲加入本群\n\n")
    assert [message.sender for message in chat.messages] == ["小明", SYSTEM]
    assert members.names == {"小明": ["小明"]}


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("2023-01-02 0:00:00", 0),
        ("2023/1/2 00:00:01", 1),
        ("2023-01-02 8:43:38 PM", 20 * 3600 + 43 * 60 + 38),
        ("2023-01-02 12:00:00 AM", 0),
        ("2023-01-02 下午 1:00:00", 13 * 3600),
    ],
)
def test_times(tmp_path, time, seconds):
    [chat], _ = read(tmp_path, f"{time} 小明(12345)\n好\n\n")
    assert chat.messages[0].time == 1672617600 + seconds


def test_a_date_within_a_message_is_text(tmp_path):
    said = "2023-01-01 10:00:00 别人(54321)\n抄来的\n\n2023-01-09 10:00:00 开会\n2023-13-01 10:00:00 别人(54321)"
    [chat], members = read(
        tmp_path, f"2023-01-02 12:34:56 小明(12345)\n{said}\n\n2023-01-02 12:35:00 小红(12346)\n好\n\n"
    )
    assert [message.text for message in chat.messages] == [said, "好"]
    assert list(members.names) == ["12345", "12346"]


def test_an_export_without_blank_lines(tmp_path):
    [chat], _ = read(
        tmp_path, HEADING + "消息分组:x\n消息对象:甲\n2023-01-02 12:00:00 我\n一\n2023-01-02 12:00:01 甲\n二\n三\n"
    )
    assert [(message.sender, message.text) for message in chat.messages] == [("我", "一"), ("甲", "二\n三")]
    assert chat.name == "甲"


def test_what_is_no_text_is_a_problem_of_its_message(tmp_path):
    path = tmp_path / "a.txt"
    good = "2023-01-02 12:00:00 小明(12345)\n今天天气很好\n\n" * 3
    path.write_bytes("乱\n".encode() + good.encode() + b"2023-01-02 12:00:01 A(12346)\n\xff\xfe\n")
    [chat] = qq_desktop.read(ExportFile(str(path)), Members())
    assert [message.problem for message in chat.messages] == [
        "text before the first message",
        None,
        None,
        None,
        "bytes that are no text",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        ("2023-01-02 12:00:00 小明\n好".encode("utf-16")[:-1], "cut short or damaged UTF-16 text"),
        (b"2023 \x81\xff\xff\n" * 9, "not UTF-8 text, and not all of it is GB18030"),
    ],
)
def test_other_files(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        qq_desktop.matches(ExportFile(str(path)))


def test_text_without_messages_is_not_lost(tmp_path):
    text = (
        heading("我的好友", "甲")
        + "2023-01-02 12:34:56 甲(12345)\n好\n\n"
        + heading("我的好友", "乙")
        + "不知道是什么\n"
    )
    chats, _ = read(tmp_path, text)
    assert [(message.text, message.problem) for chat in chats for message in chat.messages] == [
        ("好", None),
        ("不知道是什么", "text before the first message"),
    ]
