"""Chats in the csv files of WeChatMsg (留痕, https://github.com/LC044/WeChatMsg), one chat a file.

Columns: localId, TalkerId, Type, SubType, IsSender, CreateTime, Status, StrContent, StrTime, and in groups Remark,
NickName, Sender; rows of private chats may end with StrTime.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from hf_recipes.core.errors import UserError
from hf_recipes.data.files.file_io import is_text, open_text
from hf_recipes.importers.chat_logs.members import ME, SYSTEM, Members
from hf_recipes.importers.chat_logs.sessions import ChatLog, Message

_NEEDED = ("Type", "IsSender", "CreateTime", "StrContent")
# In place of a message that is not text; the rules treat these like QQ's marks.
_MARKS = {
    "3": "[图片]",
    "34": "[语音]",
    "42": "[名片]",
    "43": "[视频]",
    "47": "[表情]",
    "48": "[位置]",
    "49": "[链接]",
    "50": "[语音通话]",
}
_TEXT, _NOTICE = "1", "10000"


def read_wechat(path: str, members: Members) -> Iterator[ChatLog]:
    """The chat of a file; its senders are added to `members`."""
    contact = Path(path).name.split(".")[0].removesuffix("_utf8")
    chat = ChatLog(path, contact)
    file, encoding = open_text(path)
    with file:
        rows = csv.reader(file)
        try:
            header = next(rows)
            for column in _NEEDED:
                if column not in header:
                    raise UserError(f"{path}: no column {column} in {', '.join(header)}; expected WeChatMsg's csv")
            end = rows.line_num
            for fields in rows:
                line, end = end + 1, rows.line_num  # a quoted field can span lines
                if fields:
                    chat.messages.append(_message(line, dict(zip(header, fields, strict=False)), chat.name, members))
        except csv.Error as error:
            raise UserError(f"{path}:{rows.line_num}: broken CSV ({error}); mend this line") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: cut short or damaged {encoding.upper()} text ({error.reason})") from None
    if not chat.messages:
        raise UserError(f"{path}: no message in it")
    chat.is_group = all(message.sender != contact for message in chat.messages)
    yield chat


def _message(line: int, row: dict[str, str], contact: str, members: Members) -> Message:
    kind, time = row.get("Type", ""), row.get("CreateTime", "")
    text = row.get("StrContent", "").strip() if kind in (_TEXT, _NOTICE) else _MARKS.get(kind, "[链接]")
    problem = None
    if not time.isdigit():
        problem = "no number in CreateTime"
    elif "StrContent" not in row:
        problem = "the row is cut short"
    elif not is_text(text):
        problem = "bytes that are no text"
    names = [row[column] for column in ("Remark", "NickName", "Sender") if row.get(column)]
    if kind == _NOTICE:
        sender = SYSTEM
    elif row.get("IsSender") == "1":
        sender = members.add(ME, *names)
    else:
        sender = members.add(row.get("Sender") or contact, *(names or [contact]))
    return Message(line, int(time) if time.isdigit() else 0, sender, text, problem)
