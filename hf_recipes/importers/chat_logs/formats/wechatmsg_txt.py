"""The txt of WeChatMsg (留痕), 1 and 2: ``2023-01-02 12:34:56 name`` above each message.

Version 1 has notices in the place of the name (and no text), ``[图片]`` and a last line ``引用:name:…``; version 2 has
notices below a time alone, ``【图片】`` and ``引用：name: …``. Taps (拍一拍) stand under a member's name.
"""

import re
from collections.abc import Iterator

from hf_recipes.importers.chat_logs.export_file import ExportFile
from hf_recipes.importers.chat_logs.formats import qq_desktop
from hf_recipes.importers.chat_logs.members import SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import CARD, FORWARD, MEDIA, TEXT, ChatLog, new_message, without_quote
from hf_recipes.importers.chat_logs.notices import is_notice

QUOTE = re.compile(r"(?:\A|\n)引用[:：][^\n]*[:：].*\Z", re.DOTALL)
_KINDS = {
    MEDIA: re.compile(r"\[(?:图片|表情包|语音|视频)\]\Z|【(?:图片|表情包|语音|视频)】"),
    FORWARD: re.compile(r"[【\[]合并转发的聊天记录[】\]]"),
    CARD: re.compile(
        r"【(?:文件|分享链接|视频号|音视频通话|位置分享|名片|发起转账|已收款|已退还|非实时转账收款|发起非实时转账|未知|红包|笔记)】|MessageType\.\w+\n"
        r"|\[(?:文件|链接|音乐|音乐与音频|小程序|视频号|转账|红包|名片|位置|语音通话|视频通话|音视频通话)\](?:\Z|[:：])"
    ),
}


def matches(file: ExportFile) -> bool:
    return qq_desktop.has_headers(file.head) and not qq_desktop.is_of_qq(file.head)


def read(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    chat = ChatLog(file.path, file.stem)
    lines = list(enumerate(file.text.split("\n"), 1))
    for line, header, body in qq_desktop.bodies(lines, qq_desktop.find_headers(lines)):
        time, name = qq_desktop.to_time(header), header["sender"]
        if not name or not body or is_notice(body):
            chat.messages.append(new_message(file.path, line, time, SYSTEM, body or name))
            continue
        kind = next((kind for kind, marks in _KINDS.items() if marks.match(body)), TEXT)
        text, repairs = without_quote(body, QUOTE) if kind == TEXT else (body, ())
        sender = members.add(name, name, is_account=False)
        chat.messages.append(new_message(file.path, line, time, sender, text, kind, repairs))
    chat.is_group = chat.name not in chat.senders
    yield chat
