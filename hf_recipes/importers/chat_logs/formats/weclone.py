"""Tables of type_name, is_sender, talker, room_name, msg, CreateTime: PyWxDump's csv and JSON, and WeClone's csv.

A chat has pages (``wxid_0_5000.csv``) in one folder; beside PyWxDump's, users.json has the names. WeClone's own files
(from Telegram) name people in talker, have is_forward, and blanks for line breaks.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hf_recipes.importers.chat_logs.export_file import ExportFile, as_dict, as_dicts, string
from hf_recipes.importers.chat_logs.members import EXPORTER, MYSELF, SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import (
    CARD,
    FORWARD,
    MEDIA,
    TEXT,
    ChatLog,
    Message,
    new_message,
    without_quote,
)

_COLUMNS = {"type_name", "is_sender", "talker", "room_name", "msg", "CreateTime"}
_QUOTE = re.compile(r"\s*\n\[引用\].*\Z", re.DOTALL)
_KINDS = {
    **dict.fromkeys(("text", "文本", "引用回复"), TEXT),
    **dict.fromkeys(
        ("image", "sticker", "voice", "video", "图片", "语音", "视频", "动画表情", "用户上传的GIF表情"), MEDIA
    ),
    "合并转发的聊天记录": FORWARD,
}
_NOTICES = ("系统通知", "拍一拍", "消息撤回")
USERS = "users.json"


def matches_weclone(file: ExportFile) -> bool:
    return _COLUMNS | {"is_forward"} <= set(file.columns)


def matches_csv(file: ExportFile) -> bool:
    return set(file.columns) >= _COLUMNS and "is_forward" not in file.columns


def matches_json(file: ExportFile) -> bool:
    return isinstance(file.value, list) and next(iter(as_dicts(file.value)), {}).keys() >= _COLUMNS


def read_csv(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    yield _chat(file, file.rows(), members)


def read_json(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    yield _chat(file, enumerate(as_dicts(file.value), 1), members)


def _chat(file: ExportFile, rows: Iterable[tuple[int, dict]], members: Members) -> ChatLog:
    rows = list(rows)
    room = next((string(row["room_name"]) for _, row in rows if row.get("room_name")), "")
    exporters = [string(row.get("talker")) for _, row in rows if _is_sent(row)]
    others = {string(row.get("talker")) for _, row in rows if not (_is_sent(row) or _is_notice(row))}
    chat = ChatLog(file.path, room, pages=room, accounts=_users(file))
    if exporters:
        # In some tables of private chats, the contact is the talker of both sides.
        name = "" if exporters[0] == MYSELF or others == {exporters[0]} else exporters[0]
        chat.owner = name if name in chat.accounts else EXPORTER + name
    chat.messages += [_message(chat, line, row, members) for line, row in rows]
    chat.is_group = room not in chat.senders
    return chat


def _users(file: ExportFile) -> dict[str, list[str]]:
    """The names of each account in the users.json beside a file; none if there is no such file."""
    path = Path(file.path).parent / USERS
    value = as_dict(ExportFile(str(path)).value) if path.is_file() else {}
    return {
        key: [string(as_dict(user).get(name)) for name in ("remark", "nickname", "account")]
        for key, user in value.items()
    }


def _is_sent(row: dict) -> bool:
    return string(row.get("is_sender")) == "1"


def _is_notice(row: dict) -> bool:
    return string(row.get("type_name")).startswith(_NOTICES)


def _message(chat: ChatLog, line: int, row: dict, members: Members) -> Message:
    time, text, name = row.get("CreateTime"), string(row.get("msg")), string(row.get("type_name"))
    talker = string(row.get("talker"))
    if _is_notice(row):
        return new_message(chat.path, line, time, SYSTEM, text)
    key = chat.owner if _is_sent(row) else talker
    is_account = key in chat.accounts
    names = chat.accounts[key] if is_account else [key.removeprefix(EXPORTER)]
    sender = members.add(key, *names, is_account=is_account)
    kind = FORWARD if string(row.get("is_forward")).lower() in ("true", "1") else _KINDS.get(name, CARD)
    text, repairs = without_quote(text, _QUOTE) if name == "引用回复" else (text, ())
    return new_message(chat.path, line, time, sender, text, kind, repairs)
