"""Telegram Desktop's result.json: one chat, or all chats of an account."""

from collections.abc import Iterator
from typing import Any

from hf_recipes.importers.chat_logs.export_file import ExportFile, as_dict, as_dicts, string
from hf_recipes.importers.chat_logs.members import SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import (
    CARD,
    FORWARD,
    MEDIA,
    MEDIA_REMOVED,
    TEXT,
    ChatLog,
    Message,
    new_message,
)

_UNNAMED = ("saved_messages", "replies", "verification_codes")  # chats without a name
_MEDIA_TYPES = {"sticker", "voice_message", "video_message", "video_file", "animation", "audio_file"}


def matches(file: ExportFile) -> bool:
    value = as_dict(file.value)
    has_name = "name" in value or value.get("type") in _UNNAMED
    return has_name and {"type", "id", "messages"} <= value.keys() and "chatInfo" not in value


def matches_full(file: ExportFile) -> bool:
    return isinstance(as_dict(as_dict(file.value).get("chats")).get("list"), list)


def read(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    yield _chat(file, file.value, 0, None, members)


def read_full(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    number = as_dict(file.value.get("personal_information")).get("user_id")
    count = 0
    for part in ("chats", "left_chats"):
        for value in as_dicts(as_dict(file.value.get(part)).get("list")):
            yield (chat := _chat(file, value, count, f"user{number}" if number else None, members))
            count += len(chat.messages)


def _chat(file: ExportFile, value: dict, count: int, owner: str | None, members: Members) -> ChatLog:
    """The chat of `value`; `count` is the number of messages before it in the file."""
    kind = string(value.get("type"))
    chat = ChatLog(file.path, string(value.get("name")), "group" in kind or "channel" in kind, owner)
    for index, row in enumerate(as_dicts(value.get("messages")), count + 1):
        chat.messages.append(_message(file.path, index, row, members))
    return chat


def _message(path: str, index: int, row: dict[str, Any], members: Members) -> Message:
    time = row.get("date_unixtime") or row.get("date")
    if row.get("type") == "unsupported":  # it has an id, and no time
        return Message(path, index, 0, SYSTEM, "", CARD)
    if row.get("type") == "service":
        return new_message(path, index, time, SYSTEM, string(row.get("action")))
    key = string(row.get("from_id")) or string(row.get("from"))
    sender = members.add(key, string(row.get("from")), key.removeprefix("user"))
    spans = row.get("text")
    if isinstance(spans, list):
        text = "".join(span if isinstance(span, str) else string(as_dict(span).get("text")) for span in spans)
    else:
        text = string(spans)
    is_media = "photo" in row or string(row.get("media_type")) in _MEDIA_TYPES
    if "forwarded_from" in row:
        kind = FORWARD
    elif text.strip():
        kind = TEXT
    else:
        kind = MEDIA if is_media else CARD
    return new_message(path, index, time, sender, text, kind, (MEDIA_REMOVED,) if is_media and kind == TEXT else ())
