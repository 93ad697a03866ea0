"""WeFlow's txt and its csv for WeClone, in which messages that are no text are known by their texts alone.

The csv has id, MsgSvrID, type_name, is_sender, talker, msg, src, CreateTime (UTC). In the txt, ``2023-01-02 12:34:56
'name'`` stands above each message; in private chats the exporter is ``'我'``. Notices are given to the other side.
A streaming engine of it writes times in seconds, Chinese type names, and the XML of messages that are no text.
"""

import re
from collections.abc import Iterator

from hf_recipes.importers.chat_logs.export_file import ExportFile
from hf_recipes.importers.chat_logs.members import EXPORTER, MYSELF, SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import CARD, FORWARD, MEDIA, TEXT, ChatLog, new_message, without_quote
from hf_recipes.importers.chat_logs.notices import is_notice

# At the end of a reply, over several lines where the quoted message has them.
QUOTE = re.compile(r"\s*\[引用 (?:(?P<name>[^\n]*?)：)?.*\]\Z", re.DOTALL)
_RAW_SENDER = re.compile(r"wxid_\w+:\n")
_HEADER = re.compile(r"(?:\A\n*|\n\n)(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\d{10}) '(?P<name>[^\n]*)'\n")
_KINDS = {
    FORWARD: re.compile(r"\[转发的聊天记录\]"),
    MEDIA: re.compile(
        r"\[(?:图片|语音|语音消息[^\]\n]*|语音转文字|其他消息|动画表情|表情(?:包)?(?:：[^\]\n]*)?)\]"
        r"|\[视频\](?: ?\d+s)?\Z|(?:[^\\/\n]+[\\/])*(?:images|videos|voices|emojis|files)[\\/][^\\/\n]+\.\w+\Z"
    ),
    CARD: re.compile(
        r"\[(?:链接|文件|位置|名片|红包|转账(?:收款)?|音乐|小程序|群公告|笔记|微信笔记|接龙|卡片|直播|视频号[^\]\n]*|语音通话|视频通话|通话|引用消息)\]"
        r"|微信(?:红包|转账)\Z|\[[^\]\n]+\]\(https?://\S+\)\Z|<(?:\?xml|msg|sysmsg|voipmsg)\b"
    ),
}
_TYPE_NAMES = {
    **dict.fromkeys(("image", "sticker", "video", "voice", "图片", "表情", "视频", "语音"), MEDIA),
    **dict.fromkeys(("location", "file", "位置"), CARD),
    "系统": SYSTEM,
}


def matches_txt(file: ExportFile) -> bool:
    return bool(_HEADER.match(file.head))


def matches_csv(file: ExportFile) -> bool:
    if not {"type_name", "is_sender", "talker", "msg", "CreateTime"} <= set(file.columns):
        return False
    # Others of these columns have a room_name: WeClone's with is_forward, PyWxDump's with Chinese types.
    _, row = next(file.rows(), (0, {}))
    return "room_name" not in file.columns or ("is_forward" not in file.columns and row.get("type_name", "").isascii())


def read_txt(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    rows = [
        (line, header["time"], header["name"], header["name"] == MYSELF, None, text)
        for line, header, text in file.sections(_HEADER)
    ]
    yield _chat(file, rows, members)


def read_csv(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    rows = [
        (
            line,
            row.get("CreateTime"),
            row.get("talker", ""),
            row.get("is_sender") == "1",
            _TYPE_NAMES.get(row.get("type_name", "")),
            row.get("msg", ""),
        )
        for line, row in file.rows()
    ]
    chat = _chat(file, rows, members)
    chat.owner = chat.owner or EXPORTER
    yield chat


def _chat(file: ExportFile, rows: list[tuple], members: Members) -> ChatLog:
    chat = ChatLog(file.path, re.sub(r"\A(?:私聊|群聊)_", "", file.stem), "群聊_" in file.stem)
    quoted: set[str] = set()
    for line, time, name, is_me, type_kind, text in rows:
        text = text.strip()
        if raw := _RAW_SENDER.match(text):
            text = text[raw.end() :]
        if name.endswith("@chatroom") or type_kind == SYSTEM or (type_kind is None and is_notice(text)):
            chat.messages.append(new_message(file.path, line, time, SYSTEM, text))
            continue
        if is_me:
            name = "" if name == MYSELF else name
            sender = chat.owner = members.add(chat.owner or EXPORTER + name, name)
        else:
            sender = members.add(name, name, is_account=False)
        kind = type_kind or next((kind for kind, marks in _KINDS.items() if marks.match(text)), TEXT)
        repairs = ()
        if kind == TEXT:
            if quote := QUOTE.search(text):
                quoted.add(quote["name"] or "")
            text, repairs = without_quote(text, QUOTE)
        chat.messages.append(new_message(file.path, line, time, sender, text, kind, repairs))
    if chat.owner and len(others := chat.senders - {chat.owner, SYSTEM}) == 1:
        members.add(
            chat.owner, *(quoted - others - {MYSELF})
        )  # in a private chat, who is quoted and not the other is me
    return chat
