"""The ChatLab format, as JSON or JSON lines.

https://github.com/hellodigua/ChatLab, docs/cn/standard/chatlab-format.md

The first line of JSON lines is ``{"_type": "header", "chatlab": {…}, "meta": {…}}``; WeFlow's streaming engine has
``{"_type": "chatlab"}`` and ``{"_type": "meta", "name": …}`` in its place, and ``account:`` above words in groups.
What ChatLab merged from qq-chat-exporter has type 0 where its text is a mark.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from hf_recipes.importers.chat_logs.export_file import ExportFile, as_dict, as_dicts, string
from hf_recipes.importers.chat_logs.formats.qq_chat_exporter_txt import REPLY, text_and_kind
from hf_recipes.importers.chat_logs.formats.weflow_text import QUOTE
from hf_recipes.importers.chat_logs.members import SYSTEM, Members
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

_REPLY, _FORWARD = "25", "26"
_KINDS = {**dict.fromkeys(("0", _REPLY), TEXT), **dict.fromkeys(("1", "2", "3", "5"), MEDIA), _FORWARD: FORWARD}
_NOTICES = ("22", "80", "81")  # tap, system, recall
_NO_MESSAGE = ("header", "member", "chatlab", "meta")


def matches(file: ExportFile) -> bool:
    return not file.is_lines and {"chatlab", "messages"} <= as_dict(file.value).keys()


def matches_lines(file: ExportFile) -> bool:
    value = as_dict(file.value)
    return file.is_lines and ("chatlab" in value or value.get("_type") == "chatlab")


def read(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    people = as_dicts(file.value.get("members"))
    yield _chat(file, file.value.get("meta"), people, enumerate(as_dicts(file.value["messages"]), 1), members)


def read_lines(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    rows = list(file.json_rows())
    people = [row for _, row in rows if row.get("_type") == "member"]
    meta = next((row for _, row in rows if row.get("_type") == "meta"), file.value.get("meta"))
    messages = ((line, row) for line, row in rows if row.get("_type") not in _NO_MESSAGE)
    yield _chat(file, meta, people, messages, members)


def _chat(
    file: ExportFile, meta: Any, people: list[dict], rows: Iterable[tuple[int, dict]], members: Members
) -> ChatLog:
    meta = as_dict(meta)
    chat = ChatLog(
        file.path, string(meta.get("name")), meta.get("type") == "group", string(meta.get("ownerId")) or None
    )
    is_qq = meta.get("platform") == "qq"
    chat.messages += [_message(file.path, line, row, is_qq, members) for line, row in rows]
    senders = chat.senders
    for person in people:  # also those who only write in forwarded records
        if (key := string(person.get("platformId"))) in senders:
            aliases = person.get("aliases") if isinstance(person.get("aliases"), list) else []
            members.add(key, *map(string, (person.get("accountName"), person.get("groupNickname"), *aliases)))
    return chat


def _message(path: str, line: int, row: dict, is_qq: bool, members: Members) -> Message:
    number, time, text = string(row.get("type")), row.get("timestamp"), string(row.get("content"))
    if number in _NOTICES:
        return new_message(path, line, time, SYSTEM, text)
    names = (string(row.get(key)) for key in ("accountName", "groupNickname"))
    sender = members.add(string(row.get("sender")), *names)
    kind = FORWARD if row.get("chatRecords") else _KINDS.get(number, CARD)
    text, repairs = without_quote(text, QUOTE) if number == _REPLY else (text.removeprefix(f"{sender}:\n"), ())
    if is_qq and kind == TEXT:
        text, kind = text_and_kind(text.removeprefix(REPLY))
    return new_message(path, line, time, sender, text, kind, repairs)
