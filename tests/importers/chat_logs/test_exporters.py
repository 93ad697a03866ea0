"""What exporters write beside the cases: optional columns, other engines, rarer kinds of messages."""

import json
import re
from collections import Counter

import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.importers.arguments import QQArguments
from hf_recipes.importers.chat_logs.convert import prepare_qq

NOON = 1772769600


def convert(folder, *me: str) -> list[list[str]]:
    """The texts of the turns of each example of the exports in `folder`."""
    out = folder.parent / "out"
    out.mkdir(exist_ok=True)
    prepare_qq(QQArguments(input=[str(folder)], output_dir="unused", me=list(me), privacy=False), out)
    rows = map(json.loads, (out / "train.jsonl").read_text("utf-8").splitlines())
    return [[turn["content"] for turn in row["messages"]] for row in rows]


def dropped(folder) -> dict[str, int]:
    ledger = json.loads((folder.parent / "out" / "data_ledger.json").read_text("utf-8"))["messages"]
    counts = Counter()
    for reason in ledger["reasons"]:
        counts[reason["status"]] += reason["count"]
    return {status: count for status, count in counts.items() if status.startswith("dropped")}


@pytest.fixture
def export(tmp_path):
    """``export("a.txt", text)`` or ``export("a.json", value)`` writes a file of the folder that it returns."""

    def write(name: str, content):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")
        return path.parent

    return write


def lines(*values) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def qq_row(number: str, name: str, text: str, time: int):
    content = {"text": text, "elements": [{"type": "text", "data": {"text": text}}]}
    sender = {"uid": f"u_{number}", "uin": number, "name": name}
    return {"id": str(time), "timestamp": (NOON + time) * 1000, "sender": sender, "type": "text", "content": content}


def test_qq_chats_in_which_the_exporter_writes_nothing_need_no_name(export):
    info = {"name": "群", "type": "group", "selfUid": "u_1", "selfUin": "1"}
    export("a.json", {"chatInfo": info, "messages": [qq_row("2", "乙", "谁在", 0), qq_row("1", "甲", "我在", 9)]})
    folder = export("b.json", {"chatInfo": info, "messages": [qq_row("2", "乙", "早", 0), qq_row("3", "丙", "早", 9)]})
    assert convert(folder) == [["谁在", "我在"]]
    assert dropped(folder) == {"dropped: a chat in which --me writes nothing": 2}


def test_notices_and_summaries_in_the_txt_of_qq(export):
    said = [
        ("甲", "你看到了吗"),
        ("乙", "乙 撤回了一条消息（手滑了）"),
        ("乙", "甲 撤回了 乙 的消息"),
        ("乙", "乙 拍了拍 甲 的肩膀"),
        ("乙", "对方已接收文件「计划.docx」"),
        ("乙", "通话 - 已结束"),
        ("乙", "语音通话 - 通话时长 01:20"),
        ("乙", "豆腐记录"),
        ("乙", "置顶消息"),
        ("乙", "群礼物"),
        ("乙", "表情气泡"),
        ("乙", "看到了，他撤回了一条消息"),
    ]
    folder = export(
        "a.txt",
        "           QQ聊天记录导出文件\n\n聊天名称: 甲\n聊天类型: 私聊\n\n\n"
        + "\n\n\n".join(f"{name}:\n时间: 2026-03-06 20:00:{i:02}\n内容: {text}" for i, (name, text) in enumerate(said))
        + "\n",
    )
    assert convert(folder, "乙") == [["你看到了吗", "看到了，他撤回了一条消息"]]
    assert dropped(folder) == {
        "dropped: recalled": 2,
        "dropped: system notice": 2,
        "dropped: a card, or what the client could not show": 5,
        "dropped: nothing but [图片], [表情], [语音] and the like": 1,
    }


def weflow_row(sender: dict, text: str, time: int, is_send: int, kind="文本消息", **more):
    return (
        {"localId": time, "createTime": NOON + time, "type": kind, "content": text, "isSend": is_send} | sender | more
    )


def test_the_senders_of_weflows_compact_json(export):
    senders = [
        {"senderID": 1, "accountId": "wxid_b", "displayName": "老乙", "nickname": "乙"},
        {"senderID": 2, "accountId": "wxid_a", "displayName": "甲", "nickname": "甲"},
        {"senderID": 3, "accountId": "wxid_c", "displayName": "丙", "nickname": "丙", "groupNickname": "小丙"},
    ]
    messages = [
        weflow_row({"senderID": 1}, "谁在", 0, 0),
        weflow_row({"senderID": 3}, "不在", 5, 0),
        weflow_row({"senderID": 2}, "我在[引用 谁：谁在]", 9, 1, "引用消息", quotedSender="谁", quotedContent="谁在"),
    ]
    session = {"accountId": "1@chatroom", "displayName": "群", "type": "群聊"}
    value = {"weflow": {"format": "arkme-json"}, "session": session, "senders": senders, "messages": messages}
    folder = export("a.json", value)
    assert convert(folder) == [["老乙：谁在\n丙：不在", "我在"]]
    assert convert(folder, "小丙") == [["老乙：谁在", "不在"]]


def test_chats_of_weflow_and_chatlog_in_which_the_exporter_writes_nothing(export, capsys):
    people = [{"senderUsername": "wxid_b", "senderDisplayName": "乙"}, {"senderUsername": "wxid_c"}]
    me = {"senderUsername": "wxid_a", "senderDisplayName": "甲"}
    session = {"displayName": "群", "type": "群聊"}
    export(
        "a.json",
        {"weflow": {}, "session": session, "messages": [weflow_row(people[0], "谁", 0, 0), weflow_row(me, "我", 9, 1)]},
    )
    export("b.json", {"weflow": {}, "session": session, "messages": [weflow_row(one, "早", 0, 0) for one in people]})
    chatlog = {"talker": "2@chatroom", "isChatRoom": True, "isSelf": False, "type": 1, "content": "早"}
    export("c.json", [chatlog | {"time": "2026-03-06T20:00:00+08:00", "sender": key} for key in ("wxid_b", "wxid_d")])
    head = "id,MsgSvrID,type_name,is_sender,talker,msg,src,CreateTime\n"
    export("d.csv", head + "1,1,text,0,乙,早,,2026-03-06T12:00:00.000Z\n2,2,text,0,丁,早,,2026-03-06T12:00:09.000Z\n")
    head = "id,MsgSvrID,type_name,is_sender,talker,room_name,msg,src,CreateTime\n"
    folder = export("e.csv", head + "1,1,文本,0,wxid_b,3@chatroom,早,,2026-03-06 20:00:00\n")
    assert convert(folder) == [["谁", "我"]]
    assert dropped(folder) == {"dropped: a chat in which --me writes nothing": 7}
    assert capsys.readouterr().out.count(": a chat in which 甲 writes nothing\n") == 4


def test_quotes_without_a_name_and_received_transfers_of_weflow(export):
    folder = export(
        "私聊_乙.txt",
        "2026-03-06 20:00:00 '乙'\n明天几点\n\n2026-03-06 20:00:05 '我'\n[转账收款]￥20.00\n\n"
        "2026-03-06 20:00:09 '我'\n七点[引用 明天几点\n早一点]\n\n",
    )
    assert convert(folder) == [["明天几点", "七点"]]
    row = weflow_row({"senderUsername": "wxid_a"}, "七点[引用 明天几点]", 9, 1, "引用消息", quotedContent="明天几点")
    (folder / "私聊_乙.txt").unlink()
    messages = [weflow_row({"senderUsername": "wxid_b"}, "明天几点", 0, 0), row]
    export("a.json", {"weflow": {}, "session": {"displayName": "乙", "type": "私聊"}, "messages": messages})
    assert convert(folder) == [["明天几点", "七点"]]


def test_paths_of_media_in_weflows_txt(export):
    said = [r"media\私聊_小满 Mina\images\7 (1).jpg", "media/群/voices/a.wav", "emojis/b.gif", "看 example.com/a.png"]
    folder = export("私聊_小满 Mina.txt", "".join(f"2026-03-06 20:00:0{i} '乙'\n{s}\n\n" for i, s in enumerate(said)))
    export(
        "私聊_小满 Mina.txt", (folder / "私聊_小满 Mina.txt").read_text("utf-8") + "2026-03-06 20:00:09 '我'\n好\n\n"
    )
    assert convert(folder) == [[said[-1], "好"]]


XML = '<?xml version="1.0"?>\n<msg>\n\n<appmsg><title>文章</title></appmsg></msg>'


def test_weflows_streamed_jsonl_has_raw_content(export):
    row = {"_type": "message", "timestamp": NOON, "type": 0, "platformMessageId": "1"}
    folder = export(
        "群.jsonl",
        lines(
            {"_type": "chatlab", "version": "1.0", "generator": "WeFlow Rust Exporter"},
            {"_type": "meta", "name": "群", "platform": "wechat", "type": "group"},
            row | {"sender": "wxid_b", "accountName": "乙", "content": "wxid_b:\n谁在\n在的举手"},
            row | {"sender": "wxid_c", "accountName": "丙", "content": f"wxid_c:\n{XML}", "type": 99},
            row | {"sender": "wxid_b", "accountName": "乙", "content": "乙 撤回了一条消息", "type": 80},
            row | {"sender": "wxid_a", "accountName": "我", "content": "我在"},
        ),
    )
    assert convert(folder, "我") == [["谁在\n在的举手", "我在"]]
    assert dropped(folder)["dropped: a card, or what the client could not show"] == 1


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_weflows_streamed_txt_and_csv_have_seconds_and_raw_content(kind, export):
    said = [
        ("乙", "文本", "谁在"),
        ("乙", "其他", XML),
        ("乙", "系统", "群公告更新了"),
        ("我", "表情", "<msg><emoji/></msg>"),
    ]
    said += [("我", "文本", "我在")]
    if kind == "txt":
        said.pop(2)  # nothing tells it
        text = "".join(f"{NOON + i} '{name}'\n{words}\n\n" for i, (name, _, words) in enumerate(said))
    else:
        text = "\ufeffid,MsgSvrID,type_name,is_sender,talker,msg,src,CreateTime\r\n"
        for i, (name, type_name, words) in enumerate(said):
            words = words.replace('"', '""')
            text += f'{i},{i},{type_name},{int(name == "我")},{name},"{words}",,{NOON + i}\n'
    assert convert(export(f"乙.{kind}", text)) == [["谁在", "我在"]]


def telegram(messages: list, **more):
    rows = ({"id": i, "type": "message", "date_unixtime": str(NOON + i)} | row for i, row in enumerate(messages))
    return {"name": "乙", "type": "personal_chat", "id": 7} | more | {"messages": list(rows)}


A, B = {"from": "甲", "from_id": "user1"}, {"from": "乙", "from_id": "user2"}


def test_messages_that_telegram_cannot_export_have_no_time(export):
    row = {"id": 2, "type": "unsupported"}
    value = telegram([B | {"text": "谁在"}, A | {"text": "我在", "reactions": [{"type": "emoji", "recent": [B]}]}])
    value["messages"].insert(1, row)
    folder = export("result.json", value)
    assert convert(folder, "甲") == [["谁在", "我在"]]
    assert dropped(folder) == {"dropped: system notice": 1}


def test_control_characters_in_telegrams_json(export):
    text = json.dumps(telegram([B | {"text": "C:\\x1 谁\x1f在"}, A | {"text": "我\x0b在"}]), ensure_ascii=False)
    folder = export("result.json", re.sub(r"\\u00(1f|0b)", lambda match: rf"\x{match[1].upper()}", text))
    assert r"\x1F" in (folder / "result.json").read_text("utf-8")
    assert convert(folder, "甲") == [["C:\\x1 谁\x1f在", "我\x0b在"]]


def test_telegrams_saved_messages_have_no_name(export):
    value = telegram([A | {"text": "买菜"}], type="saved_messages")
    del value["name"]
    with pytest.raises(UserError, match="no message that --me 甲 answers is left"):
        convert(export("result.json", value), "甲")


def test_comments_in_chatlabs_jsonl(export):
    row = {"_type": "message", "timestamp": NOON, "type": 0}
    header = {"_type": "header", "chatlab": {"version": "0.0.2"}, "meta": {"name": "乙", "ownerId": "1"}}
    said = [row | {"sender": "2", "content": "谁在"}, row | {"sender": "1", "content": "我在"}]
    folder = export("a.jsonl", "# made by hand\n" + lines(header, said[0]) + "# a gap\n" + lines(said[1]))
    assert convert(folder) == [["谁在", "我在"]]
    assert dropped(folder) == {}


def test_marks_of_qq_in_what_chatlab_merged(export):
    said = [
        ("2", "谁在"),
        ("2", "[转发消息: 1条]\n  丙: 我不在"),
        ("1", "[回复消息]我在[图片:a.jpg]"),
        ("1", "[JSON消息]"),
    ]
    messages = [
        {"sender": key, "accountName": key, "timestamp": NOON + i, "type": 0, "content": text}
        for i, (key, text) in enumerate(said)
    ]
    meta = {"name": "群", "platform": "qq", "type": "group", "sources": []}
    folder = export("a.json", {"chatlab": {"version": "0.0.1"}, "meta": meta, "members": [], "messages": messages})
    assert convert(folder, "1") == [["谁在", "我在"]]


def test_a_table_for_weclone_with_the_contact_as_talker_of_both_sides(export):
    head = "id,MsgSvrID,type_name,is_sender,talker,room_name,msg,src,CreateTime\n"
    rows = "1,1,文本,0,wxid_b,某人,谁在,,2024/10/4 11:42\n2,2,文本,1,wxid_b,某人,我在,,2024/10/4 11:43\n"
    folder = export("a.csv", head + rows)
    assert convert(folder) == [["谁在", "我在"]]
    assert convert(folder, "我") == [["谁在", "我在"]]
    export("users.json", {"wxid_b": {"nickname": "乙", "remark": "", "account": ""}})
    assert convert(folder) == [["谁在", "我在"]]


def test_a_folder_of_pages_alone_names_what_is_read(export):
    folder = export("聊天记录.html", "<html></html>")
    with pytest.raises(
        UserError, match=r"no \.txt, \.csv, \.json or \.jsonl in this folder; read are .* qq-chat-exporter"
    ):
        convert(folder)
