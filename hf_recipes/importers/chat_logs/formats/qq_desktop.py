"""The text that QQ's desktop client exported (消息记录.txt), one or all chats in a file.

消息分组: and 消息对象: between rules of ``=`` begin a chat, ``2023-01-02 12:34:56 【title】nickname(12345)`` a message;
there may be ``nickname<mail@example.com>`` or, in private chats of some versions, the nickname alone.

The package qq-chat-history 1.1.7 reads UTF-8 only and takes a file for one chat: headings become part of the message
before them, any line that begins with a date begins a message, titles stay in names, and errors name no line.
"""

import re
from collections.abc import Iterator

from hf_recipes.importers.chat_logs.export_file import ExportFile
from hf_recipes.importers.chat_logs.members import SYSTEM, Members
from hf_recipes.importers.chat_logs.messages import ChatLog, new_message, to_seconds

_HEADER = re.compile(
    r"(?P<date>\d{4}[-/]\d{1,2}[-/]\d{1,2}) +(?:(?P<before>[AP]M|上午|下午) *)?(?P<time>\d{1,2}:\d{2}:\d{2})"
    r"(?: +(?P<after>[AP]M))?(?:[ \t]+(?P<sender>[^\n]*?))?[ \t]*"
)
_HEADER_LINE = re.compile(f"^{_HEADER.pattern}$", re.MULTILINE)
_SENDER = re.compile(r"(.*?)[ \t]*(?:\((?P<number>\d{5,12})\)|<(?P<mail>[^<>\s]+@[^<>\s]+)>)")
_TITLE = re.compile(r"【[^【】]{1,20}】(?=.)")
_RULE = re.compile("={10,}")
_SYSTEM_NUMBERS = ("10000", "1000000")
_FIRST_LINE = "消息记录"
_HEADING = re.compile(r"^(?:消息记录|消息分组[:：]|消息对象[:：])", re.MULTILINE)

Line = tuple[int, str]


def matches(file: ExportFile) -> bool:
    return has_headers(file.text if _HEADING.search(file.head) else file.head)


def has_headers(text: str) -> bool:
    return any(to_time(match) is not None for match in _HEADER_LINE.finditer(text))


def is_of_qq(text: str) -> bool:
    """Whether `text` has QQ's headings, or numbers of senders."""
    return bool(_HEADING.search(text)) or any(
        _SENDER.fullmatch(match["sender"] or "") for match in _HEADER_LINE.finditer(text)
    )


def read(file: ExportFile, members: Members) -> Iterator[ChatLog]:
    for chat, lines in _split(file):
        _read_messages(chat, lines, members)
        yield chat


def _split(file: ExportFile) -> Iterator[tuple[ChatLog, list[Line]]]:
    """Each chat, without messages yet, and its lines."""
    chat, lines, before, has_message = ChatLog(file.path), [], "", False
    for number, line in enumerate(file.text.split("\n"), 1):
        is_heading = line.startswith(("消息分组", "消息对象")) and line[4:5] in (":", "：")
        if is_heading and (_RULE.fullmatch(before) or not has_message):
            if has_message:
                while not lines[-1][1].strip():
                    lines.pop()
                if _RULE.fullmatch(lines[-1][1]):
                    lines.pop()
                yield chat, lines
                chat, lines, has_message = ChatLog(file.path), [], False
            if line.startswith("消息对象"):
                chat.name = line[5:].strip()
            else:
                chat.is_group = "群" in line
        else:
            lines.append((number, line))
            has_message = has_message or bool(_HEADER.fullmatch(line))
        before = line.strip() or before
    yield chat, lines


def _read_messages(chat: ChatLog, lines: list[Line], members: Members) -> None:
    headers = find_headers(lines)
    for line, text in lines[: headers[0][0] if headers else len(lines)]:
        if text.strip() and not _RULE.fullmatch(text) and _FIRST_LINE not in text:
            message = new_message(chat.path, line, 0, SYSTEM, text)
            chat.messages.append(message._replace(problem="text before the first message"))
    for line, header, body in bodies(lines, headers):
        sender = _sender(header["sender"], members)
        chat.messages.append(new_message(chat.path, line, to_time(header), sender, body))


def bodies(lines: list[Line], headers: list[tuple[int, re.Match]]) -> Iterator[tuple[int, re.Match, str]]:
    """The number of each header's line, the header, and the text below it."""
    ends = [*(index for index, _ in headers), len(lines)][1:]
    for (index, match), end in zip(headers, ends, strict=True):
        yield lines[index][0], match, "\n".join(text for _, text in lines[index + 1 : end]).strip()


def find_headers(lines: list[Line]) -> list[tuple[int, re.Match]]:
    """The header lines of messages, by index, as opposed to lines within a message that begin with a date.

    Where most headers follow a blank line, all do; where most have a sender's number, all have one.
    """
    headers, after_blank = [], []
    for index, (_, line) in enumerate(lines):
        if line[:1].isdigit() and (match := _HEADER.fullmatch(line)) and to_time(match) is not None:
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


def to_time(header: re.Match) -> float | None:
    """Seconds since 1970 in local time; None where there is no such time."""
    seconds = to_seconds(f"{header['date']} {header['time']}")
    half_day = header["before"] or header["after"]
    if seconds is None or not half_day:
        return seconds
    hour = int(header["time"].split(":")[0])
    return seconds + 3600 * (hour % 12 + (12 if half_day in ("PM", "下午") else 0) - hour)


def _sender(text: str | None, members: Members) -> str:
    match = _SENDER.fullmatch(text or "")
    name = match[1] if match else text or ""
    if _is_notice(text) or name == "系统消息":
        return SYSTEM
    key = (match["number"] or match["mail"].lower()) if match else name
    return members.add(key, _TITLE.sub("", name, count=1) if _TITLE.match(name) else name, is_account=bool(match))
