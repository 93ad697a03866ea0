"""The csv, txt and JSON of chatlog (https://github.com/sjzar/chatlog).

The csv has Time, SenderName, Sender, TalkerName, Talker, Content; in the txt, ``name(wxid) 15:04:05`` stands above each
message, with month and day or the year too where it spans more. In both, ``![图片](…)``, ``[链接|title](…)`` and the
like are in place of messages that are not text, and the lines of a quote begin with ``> ``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hf_recipes.importers.chat_logs.export_file import ExportFile, as_dict, as_dicts, string
from hf_recipes.importers.chat_logs.members import EXPORTER, MYSELF, SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import CARD, FORWARD, MEDIA, TEXT, ChatLog, new_message, without_quote
from hf_recipes.importers.chat_logs.notices import is_notice

_SYSTEM = "系统消息"
_TIME = r"(?:(?:\d{4}-)?\d\d-\d\d )?\d\d:\d\d:\d\d"
_HEADER = re.compile(
    r"(?:\A\n*|\n\n)(?:(?P<name>[^\n]+)\((?P<account>[^()\s]+)\)|"
    rf"(?P<bare>{_SYSTEM}|{MYSELF}|(?!\d{{4}}-\d\d-\d\d )[A-Za-z0-9_@.-]+))"
    rf"(?: \[(?P<room>[^\n]+)\])? (?P<time>{_TIME})\n"
)
_QUOTE = re.compile(
    rf"\A> (?:\[引用\]|(?:(?P<name>[^\n]+)\((?P<account>[^()\s]+)\)|[^\n]*?) ?(?P<time>{_TIME}))"
    r"(?:\n|\Z)(?:> ?(?P<first>[^\n]*)(?:\n|\Z))?(?:> ?[^\n]*(?:\n|\Z))*"
)
_MARKS = {
    MEDIA: re.compile(r"!\[(?:图片|视频|动画表情)\]\(.*\)\Z|\[语音\](?:\(.*\))?\Z|\[(?:动画表情|GIF表情)\]\Z"),
    FORWARD: re.compile(r"\[合并转发(?:\||\]\Z)"),
    CARD: re.compile(
        r"\[(?:链接|文件|位置|转账|笔记|小程序|视频号|视频号直播|群公告|音乐)(?:\||\]\Z)|\[(?:名片|红包|红包封面|分享|语音通话|引用)\]\Z"
        r"|Type: \d+ Content: "
    ),
}
# By type and, of shares (49), subtype; a link, a file, a payment and the like otherwise.
_KINDS = {"1": TEXT, "49/57": TEXT, "49/19": FORWARD, **dict.fromkeys(("3", "34", "43", "47", "49/8"), MEDIA)}
_SHARE, _NOTICES = "49", ("10000", "49/62")  # system, tap


def matches_csv(file: ExportFile) -> bool:
    return {"Time", "Sender", "SenderName", "Talker", "Content"} <= set(file.columns)


def matches_txt(file: ExportFile) -> bool:
    return bool(_HEADER.match(file.head))


def matches_json(file: ExportFile) -> bool:
    return (
        isinstance(file.value, list)
        and {"talker", "sender", "isSelf", "content"} <= next(iter(as_dicts(file.value)), {}).keys()
    )


def read_csv(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    chats: dict[str, _Chat] = {}
    for line, row in file.rows():
        talker, account = row.get("Talker", ""), row.get("Sender", "")
        is_group = talker.endswith("@chatroom")
        chat = chats.setdefault(talker, _Chat(file.path, row.get("TalkerName") or talker, is_group))
        sender = chat.add(line, row.get("Time"), account, row.get("SenderName", ""), row.get("Content", ""), members)
        if not is_group and sender not in (SYSTEM, talker):
            chat.owner = sender
    for chat in chats.values():
        chat.name_quoted(members)
        yield chat


def read_txt(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    chats: dict[str, _Chat] = {}
    for line, header, text in file.sections(_HEADER):
        room = header["room"] or ""
        chat = chats.setdefault(room, _Chat(file.path, room, "@chatroom" in (room or file.stem)))
        account, name = header["account"] or header["bare"], header["name"] or ""
        chat.add(line, _with_year(header["time"]), account, name, text, members)
    for chat in chats.values():
        chat.name_quoted(members)
        yield chat


def read_json(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    chats: dict[str, ChatLog] = {}
    for index, row in enumerate(as_dicts(file.value), 1):
        talker, account = string(row.get("talker")), string(row.get("sender"))
        name = string(row.get("talkerName")) or talker
        chat = chats.setdefault(talker, ChatLog(file.path, name, bool(row.get("isChatRoom")), EXPORTER))
        kind = string(row.get("type"))
        kind += f"/{row.get('subType')}" if kind == _SHARE else ""
        if account == _SYSTEM or kind in _NOTICES:
            sender = SYSTEM
        else:
            sender = members.add(account, string(row.get("senderName")))
            chat.owner = sender if row.get("isSelf") else chat.owner
        quoted = as_dict(as_dict(row.get("contents")).get("refer"))
        if quoted.get("sender") and quoted.get("senderName"):
            members.add(string(quoted["sender"]), string(quoted["senderName"]))
        text = row.get("content")
        chat.messages.append(new_message(file.path, index, row.get("time"), sender, text, _KINDS.get(kind, CARD)))
    yield from chats.values()


def _with_year(time: str) -> str:
    """A time of the txt with year, month and day; without a year, in a leap year."""
    return time if len(time) > 14 else f"2024-{time}" if len(time) > 8 else f"2024-01-01 {time}"


@dataclass
class _Chat(ChatLog):
    """A chat of the csv or txt; `quotes` has the name and account in each quote, the time and the first line."""

    quotes: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, line: int, time: str, account: str, name: str, text: str, members: Members) -> str:
        """Add a message; returns its sender."""
        text, repairs = text.strip(), ()
        if account == _SYSTEM or is_notice(text):
            sender, kind = SYSTEM, None
        else:
            sender = members.add(EXPORTER, name) if account == MYSELF else members.add(account, name)
            self.owner = EXPORTER if account == MYSELF else self.owner
            kind = next((kind for kind, marks in _MARKS.items() if marks.match(text)), TEXT)
            if kind == TEXT and (quote := _QUOTE.match(text)):
                if quote["account"]:
                    self.quotes.append((quote["name"], quote["account"], quote["time"][-8:], quote["first"] or ""))
                text, repairs = without_quote(text, _QUOTE)
        self.messages.append(new_message(self.path, line, time, sender, text, kind, repairs))
        return sender

    def name_quoted(self, members: Members) -> None:
        """Add the names of quoted accounts to members, and the account and name of the exporter, who writes as 我."""
        senders = self.senders
        mine = {
            (f"{datetime.fromtimestamp(message.time, UTC):%H:%M:%S}", message.text.split("\n")[0])
            for message in self.messages
            if message.sender == EXPORTER
        }
        for name, account, time, first in self.quotes:
            if account in senders:
                members.add(account, name)
            elif (time, first) in mine:
                members.add(EXPORTER, name, account)
