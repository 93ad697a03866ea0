"""The JSON of qq-chat-exporter (https://github.com/shuakami/qq-chat-exporter) 5, whole or in chunks.

A whole chat is ``{"metadata", "chatInfo", "messages": […]}``; a chunked one is a folder with that, but for the
messages, in ``manifest.json``, whose ``chunked.chunks`` names files of one message a line.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_recipes.core.errors import UserError
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

_MEDIA = {"image", "face", "market_face", "audio", "video", "giphy", "face_bubble"}
_WORDS = {"text", "at"}


def matches(file: ExportFile) -> bool:
    value = as_dict(file.value)
    return "chatInfo" in value and "messages" in value


def matches_chunked(file: ExportFile) -> bool:
    value = as_dict(file.value)
    return "chatInfo" in value and "chunked" in value


def read(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    yield _chat(file, members, ((file.path, *item) for item in enumerate(as_dicts(file.value["messages"]), 1)))


def read_chunked(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    yield _chat(file, members, _chunk_rows(file))


def _chunk_rows(file: ExportFile) -> Iterator[tuple[str, int, dict]]:
    chunked = as_dict(file.value["chunked"])
    for chunk in as_dicts(chunked.get("chunks")):
        name = string(chunk.get("relativePath")) or f"{chunked.get('chunksDir', 'chunks')}/{chunk.get('fileName')}"
        path = Path(file.path).parent / name.replace("\\", "/")
        if not path.is_file():
            raise UserError(f"{file.path}: {name}, which it names, is missing; copy the whole folder of the export")
        for line, row in ExportFile(str(path)).json_rows():
            yield str(path), line, row


def _chat(file: ExportFile, members: Members, rows: Iterator[tuple[str, int, dict]]) -> ChatLog:
    info = as_dict(file.value["chatInfo"])
    owner = string(info.get("selfUin") or info.get("selfUid")) or None
    chat = ChatLog(file.path, string(info.get("name")), info.get("type") == "group", owner)
    for path, line, row in rows:
        message, is_self = _message(path, line, row, info, members)
        chat.messages.append(message)
        chat.owner = message.sender if is_self else chat.owner
    return chat


def _message(path: str, line: int, row: dict, info: dict, members: Members) -> tuple[Message, bool]:
    """A message, and whether the exporter sent it."""
    sender, content = as_dict(row.get("sender")), as_dict(row.get("content"))
    time = row.get("timestamp") or row.get("time")
    if row.get("system") or row.get("recalled") or row.get("type") == "system":
        text = "撤回了一条消息" if row.get("recalled") and not row.get("system") else content.get("text")
        return new_message(path, line, time, SYSTEM, text), False
    uid, number = string(sender.get("uid")), string(sender.get("uin")).removeprefix("0")
    names = [string(sender.get(key)) for key in ("name", "groupCard", "remark", "nickname")]
    key = members.add(number or uid, *names)
    is_self = uid == info.get("selfUid", "") != "" or number == string(info.get("selfUin")) != ""
    text, kind, repairs = _words(content)
    return new_message(path, line, time, key, text, kind, repairs), is_self


def _words(content: dict[str, Any]) -> tuple[str, str | None, tuple[str, ...]]:
    """Text, kind and repairs of a message: its words are the texts and mentions among its elements."""
    elements = [(string(item.get("type")), as_dict(item.get("data"))) for item in as_dicts(content.get("elements"))]
    if not elements:
        return string(content.get("text")).removeprefix("[回复消息]"), None, ()
    kinds = {kind for kind, _ in elements} - {"reply"}
    text = "".join(
        string(data.get("text")) if kind == "text" else f"@{string(data.get('name')).removeprefix('@')}"
        for kind, data in elements
        if kind in _WORDS
    ).strip()
    if text:
        return text, TEXT, (MEDIA_REMOVED,) if kinds & _MEDIA else ()
    if "forward" in kinds:
        return string(content.get("text")), FORWARD, ()
    return string(content.get("text")), CARD if kinds - _MEDIA else MEDIA, ()
