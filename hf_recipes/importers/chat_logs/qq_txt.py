"""Chats in the text that QQ's desktop client exports (消息记录.txt), one or all of them in a file.

消息分组: and 消息对象: between rules of ``=`` begin a chat, ``2023-01-02 12:34:56 【title】nickname(12345)`` a message;
there may be ``nickname<mail@example.com>`` or, in private chats of some versions and in WeChatMsg's txt, the nickname
alone.

The package qq-chat-history 1.1.7 reads UTF-8 only and takes a file for one chat: headings become part of the message
before them, any line that begins with a date begins a message, titles stay in names, and errors name no line.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime

from hf_recipes.core.errors import UserError
from hf_recipes.data.files.file_io import is_text, open_text
from hf_recipes.importers.chat_logs.members import SYSTEM, Members
from hf_recipes.importers.chat_logs.sessions import ChatLog, Message

_HEADER = re.compile(
    r"(?P<date>\d{4}[-/]\d{1,2}[-/]\d{1,2}) +(?:(?P<before>[AP]M|上午|下午) *)?(?P<time>\d{1,2}:\d{2}:\d{2})"
    r"(?: +(?P<after>[AP]M))?(?:[ \t]+(?P<sender>.*?))?[ \t]*"
)
_SENDER = re.compile(r"(.*?)[ \t]*(?:\((?P<number>\d{5,12})\)|<(?P<mail>[^<>\s]+@[^<>\s]+)>)")
_TITLE = re.compile(r"【[^【】]{1,20}】(?=.)")
_RULE = re.compile("={10,}")
_SYSTEM_NUMBERS = ("10000", "1000000")
_FIRST_LINE = "消息记录"


def read_qq(path: str, members: Members) -> Iterator[ChatLog]:
    """The chats of a file, in order; their senders are added to `members`."""
    file, encoding = open_text(path)
    is_empty = True
    with file:
        try:
            for chat, lines in _split(path, file):
                is_empty = not _read_messages(chat, lines, members) and is_empty
                yield chat
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: cut short or damaged {encoding.upper()} text ({error.reason})") from None
    if is_empty:
        raise UserError(
            f"{path}: no message in it; expected QQ's export as txt, with lines such as "
            "2023-01-02 12:34:56 昵称(12345) above the text"
        )


Line = tuple[int, str]


def _split(path: str, file: Iterable[str]) -> Iterator[tuple[ChatLog, list[Line]]]:
    """Each chat, without messages yet, and its lines."""
    chat, lines, before, has_message = ChatLog(path, ""), [], "", False
    for number, line in enumerate(file, 1):
        line = line.rstrip("\r\n")
        is_heading = line.startswith(("消息分组", "消息对象")) and line[4:5] in (":", "：")
        if is_heading and (_RULE.fullmatch(before) or not has_message):
            if has_message:
                while not lines[-1][1].strip():
                    lines.pop()
                if _RULE.fullmatch(lines[-1][1]):
                    lines.pop()
                yield chat, lines
                chat, lines, has_message = ChatLog(path, ""), [], False
            if line.startswith("消息对象"):
                chat.name = line[5:].strip()
            else:
                chat.is_group = "群" in line
        else:
            lines.append((number, line))
            has_message = has_message or bool(_HEADER.fullmatch(line))
        before = line.strip() or before
    yield chat, lines


def _read_messages(chat: ChatLog, lines: list[Line], members: Members) -> bool:
    """Add the messages in `lines` to `chat`; False if there is none."""
    headers = _headers(lines)
    ends = [*(index for index, _ in headers), len(lines)][1:]
    for line, text in lines[: headers[0][0] if headers else len(lines)]:
        if text.strip() and not _RULE.fullmatch(text) and _FIRST_LINE not in text:
            chat.messages.append(Message(line, 0, SYSTEM, text, "text before the first message"))
    for (index, match), end in zip(headers, ends, strict=True):
        body = "\n".join(text for _, text in lines[index + 1 : end]).strip()
        problem = None if is_text(body) else "bytes that are no text"
        chat.messages.append(Message(lines[index][0], _time(match), _sender(match["sender"], members), body, problem))
    return bool(headers)


def _headers(lines: list[Line]) -> list[tuple[int, re.Match]]:
    """The header lines of messages, by index, as opposed to lines within a message that begin with a date.

    Where most headers follow a blank line, all do; where most have a sender's number, all have one.
    """
    headers, after_blank = [], []
    for index, (_, line) in enumerate(lines):
        if line[:1].isdigit() and (match := _HEADER.fullmatch(line)) and _time(match) is not None:
            if not headers or not lines[index - 1][1].strip():
                after_blank.append((index, match))
            headers.append((index, match))
    if 2 * len(after_blank) > len(headers):
        headers = after_blank
    bare = {index for index, match in headers if match["sender"] and not _SENDER.fullmatch(match["sender"])}
    numbered = sum(not _is_notice(match["sender"]) for _, match in headers) - len(bare)
    return [header for header in headers if header[0] not in bare] if numbered > len(bare) else headers


def _is_notice(sender: str | None) -> bool:
    match = _SENDER.fullmatch(sender or "")
    return not sender or bool(match and match["number"] in _SYSTEM_NUMBERS)


def _time(header: re.Match) -> float | None:
    """Seconds since 1970 in local time; None where there is no such time."""
    year, month, day = map(int, re.split("[-/]", header["date"]))
    hour, minute, second = map(int, header["time"].split(":"))
    half_day = header["before"] or header["after"]
    if half_day:
        hour = hour % 12 + (12 if half_day in ("PM", "下午") else 0)
    try:
        return (datetime(year, month, day, hour, minute, second) - datetime(1970, 1, 1)).total_seconds()
    except ValueError:
        return None


def _sender(text: str | None, members: Members) -> str:
    match = _SENDER.fullmatch(text or "")
    name = match[1] if match else text or ""
    if _is_notice(text) or name == "系统消息":
        return SYSTEM
    key = (match["number"] or match["mail"].lower()) if match else name
    return members.add(key, _TITLE.sub("", name, count=1) if _TITLE.match(name) else name, is_account=bool(match))
