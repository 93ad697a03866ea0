"""The txt of qq-chat-exporter 5: ``name:`` above ``时间: …`` and ``内容: …``, two blank lines between messages.

Below the text may stand 资源: with the files, 提及: with mentioned members, and 回复: with a quote, in this order.
"""

import re
from collections.abc import Iterator

from hf_recipes.importers.chat_logs.export_file import ExportFile
from hf_recipes.importers.chat_logs.members import SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import (
    CARD,
    FORWARD,
    MEDIA,
    QUOTE_REMOVED,
    TEXT,
    ChatLog,
    Message,
    new_message,
)

_HEADER = re.compile(r"(?:\A|\n)(?:\[\d+\]\n)?(?P<name>[^\n]*):\n时间: (?P<time>[^\n]*)(?:\n类型: [^\n]*)?\n内容: ?")
_FOOT = re.compile(r"\n\n={20,}\n +导出完成\n={20,}\n总计导出 \d+ 条消息\n.*\Z", re.DOTALL)
_TITLE = re.compile(r"\A\[[^\[\]]{1,20}\] (?=.)")
_FILES = re.compile(r"\n资源: \d+ 个文件(?:\n  - [^\n]*)*\Z")
_MENTIONS = re.compile(r"\n提及: [^\n]*\Z")
REPLY, _QUOTE = "[回复消息]", re.compile(r"\n回复: .*\Z", re.DOTALL)
_KINDS = {
    FORWARD: re.compile(r"\[转发消息(?:: \d+条)?\]"),
    CARD: re.compile(
        r"\[(?:文件:[^\n]*|位置消息|JSON消息|长消息|通话记录|Markdown消息|内联键盘|日历|YOLO游戏结果|推荐消息|操作栏|无文本内容|file消息)\]\Z"
        r"|\[?(?:豆腐记录|置顶消息)\]?\Z|(?:红包/钱包消息|群礼物)\Z|(?:语音|视频)?通话 - [^\n]*\Z"
    ),
    MEDIA: re.compile(r"(?:(?:\[[^\[\]\n]{1,100}\]\s*)+|表情气泡)\Z"),  # stickers have their own name as a mark
}
# The client's, also under the name of who did it.
_NOTICE = re.compile(
    r"[^\n]{1,60} 撤回了(?:一条消息| [^\n]{1,60} 的消息)(?:（[^\n]*）)?|[^\n]{1,60} 拍了拍 [^\n]{1,80}"
    r"|对方已接收文件「[^\n]*」"
)
_MARK = re.compile(r"\[(?:图片|视频|语音):[^\[\]\n]*\]|\[表情\d*\]")


def matches(file: ExportFile) -> bool:
    return "QQ聊天记录导出文件" in file.head[:1000] or bool(_HEADER.search(file.head))


def read(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    top = file.text.partition("\n时间: ")[0]
    name = re.search(r"^聊天名称: (.*)$", top, re.MULTILINE)
    chat = ChatLog(file.path, name[1] if name else "", "聊天类型: 群聊" in top)
    for line, header, body in file.sections(_HEADER):
        chat.messages.append(_message(chat, line, header, _FOOT.sub("", body), members))
    yield chat


def _message(chat: ChatLog, line: int, header: re.Match, body: str, members: Members) -> Message:
    body = body.strip("\n")
    name, repairs = _TITLE.sub("", header["name"]) if chat.is_group else header["name"], ()
    if body.startswith(REPLY):
        body, repairs = _QUOTE.sub("", body.removeprefix(REPLY)), (QUOTE_REMOVED,)
    if "@" in body:
        body = _MENTIONS.sub("", body)
    body = _FILES.sub("", body).strip()
    if name == "系统消息" or _NOTICE.fullmatch(body):
        return new_message(chat.path, line, header["time"], SYSTEM, body)
    text, kind = text_and_kind(body)
    return new_message(chat.path, line, header["time"], members.add(name, name, is_account=False), text, kind, repairs)


def text_and_kind(text: str) -> tuple[str, str]:
    """The text and the kind of a message, by the marks in its text."""
    kind = next((kind for kind, marks in _KINDS.items() if marks.match(text)), TEXT)
    return _MARK.sub("[图片]", text) if kind == TEXT else text, kind  # a mark that the rules for messages know
