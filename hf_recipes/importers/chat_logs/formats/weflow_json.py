"""WeFlow's JSON of one chat; in its compact form, messages have the `senderID` of an item of `senders`."""

from collections.abc import Iterator

from hf_recipes.importers.chat_logs.export_file import ExportFile, as_dict, as_dicts, string
from hf_recipes.importers.chat_logs.formats.weflow_text import QUOTE
from hf_recipes.importers.chat_logs.members import EXPORTER, SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import (
    CARD,
    FORWARD,
    MEDIA,
    QUOTE_REMOVED,
    TEXT,
    ChatLog,
    Message,
    new_message,
    without_quote,
)
from hf_recipes.importers.chat_logs.notices import is_notice

_KINDS = {
    **dict.fromkeys(("文本消息", "引用消息"), TEXT),
    **dict.fromkeys(("图片消息", "语音消息", "视频消息", "动画表情"), MEDIA),
    "聊天记录": FORWARD,
}


def matches(file: ExportFile) -> bool:
    value = as_dict(file.value)
    return {"session", "messages"} <= value.keys() and ("weflow" in value or "chatlab" not in value)


def read(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    session = as_dict(file.value["session"])
    name = string(session.get("displayName") or session.get("nickname"))
    chat = ChatLog(file.path, name, "群" in string(session.get("type")), EXPORTER)
    people = {string(one.get("senderID")): one for one in as_dicts(file.value.get("senders"))}
    for index, row in enumerate(as_dicts(file.value["messages"]), 1):
        message = _message(file.path, index, row, people.get(string(row.get("senderID")), {}), members)
        chat.messages.append(message)
        if row.get("isSend") == 1 and message.sender != SYSTEM:
            chat.owner = message.sender
    yield chat


def _message(path: str, index: int, row: dict, person: dict, members: Members) -> Message:
    time, text, name = row.get("createTime"), string(row.get("content")), string(row.get("type"))
    kind = _KINDS.get(name, CARD)
    if row.get("isSend") is None or name == "系统消息" or (kind == CARD and is_notice(text)):
        return new_message(path, index, time, SYSTEM, text)
    names = [string(row.get(key)) for key in ("senderDisplayName", "senderRemark", "senderNickname")]
    names += [string(person.get(key)) for key in ("displayName", "remark", "nickname", "groupNickname")]
    sender = members.add(string(row.get("senderUsername") or person.get("accountId")) or EXPORTER, *names)
    repairs = ()
    if name == "引用消息":
        quote = f"[引用 {string(row.get('quotedSender'))}：{string(row.get('quotedContent'))}]"
        if text.endswith(quote):
            text, repairs = text.removesuffix(quote), (QUOTE_REMOVED,)
        else:
            text, repairs = without_quote(text, QUOTE)
    return new_message(path, index, time, sender, text, kind, repairs)
