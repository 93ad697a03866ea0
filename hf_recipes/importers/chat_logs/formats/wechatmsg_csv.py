"""The csv files of WeChatMsg (留痕, https://github.com/LC044/WeChatMsg), one chat a file.

Version 1: localId, TalkerId, Type, SubType, IsSender, CreateTime, Status, StrContent, StrTime, Remark, NickName,
Sender; rows of private chats may end with StrTime, and replies have no text. Version 2: 消息ID, 类型, 发送人, 时间,
内容, 备注, 昵称, 更多信息.
"""

from collections.abc import Iterator

from hf_recipes.importers.chat_logs.export_file import ExportFile
from hf_recipes.importers.chat_logs.formats.wechatmsg_txt import QUOTE
from hf_recipes.importers.chat_logs.members import EXPORTER, SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import CARD, FORWARD, MEDIA, TEXT, ChatLog, new_message, without_quote

_TEXT, _NOTICE = "1", "10000"
# Marks of version 1's messages that are not text, by Type.
_MEDIA = {"3": "[图片]", "34": "[语音]", "43": "[视频]", "47": "[表情]"}
_CARDS = {"42": "[名片]", "48": "[位置]", "50": "[语音通话]"}
_KINDS = {
    **dict.fromkeys(("文本", "引用消息"), TEXT),
    **dict.fromkeys(("图片", "表情包", "语音", "视频"), MEDIA),
    "合并转发的聊天记录": FORWARD,
}
_NOTICES = ("系统消息", "拍一拍")


def matches_1(file: ExportFile) -> bool:
    return {"Type", "IsSender", "CreateTime", "StrContent"} <= set(file.columns)


def read_1(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    contact = file.stem.removesuffix("_utf8")
    chat = ChatLog(file.path, contact, owner=EXPORTER)
    for line, row in file.rows():
        number, text = row.get("Type", ""), row.get("StrContent", "")
        names = [row[column] for column in ("Remark", "NickName", "Sender") if row.get(column)]
        kind = TEXT if number in (_TEXT, _NOTICE) else MEDIA if number in _MEDIA else CARD
        if kind != TEXT:
            text = _MEDIA.get(number) or _CARDS.get(number, "[链接]")
        if number == _NOTICE:
            sender, kind = SYSTEM, None
        elif row.get("IsSender") == "1":
            sender = chat.owner = members.add(row.get("Sender") or EXPORTER, *names)
        else:
            key = row.get("Sender")
            sender = members.add(key or contact, *(names or [contact]), is_account=bool(key))
        message = new_message(file.path, line, row.get("CreateTime"), sender, text, kind)
        chat.messages.append(message if "StrContent" in row else message._replace(problem="the row is cut short"))
    chat.is_group = contact not in chat.senders
    yield chat


def matches_2(file: ExportFile) -> bool:
    return {"类型", "发送人", "时间", "内容"} <= set(file.columns)


def read_2(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    chat = ChatLog(file.path, file.stem)
    for line, row in file.rows():
        name, kind = row.get("发送人", ""), _KINDS.get(row.get("类型", ""), CARD)
        text, repairs = without_quote(row.get("内容", ""), QUOTE) if kind == TEXT else (row.get("内容", ""), ())
        if not name or row["类型"] in _NOTICES:
            sender, kind = SYSTEM, None
        else:
            sender = members.add(name, name, row.get("备注", ""), row.get("昵称", ""), is_account=False)
        chat.messages.append(new_message(file.path, line, row.get("时间"), sender, text, kind, repairs))
    chat.is_group = chat.name not in chat.senders
    yield chat
