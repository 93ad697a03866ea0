"""Messages of chats, as every reader gives them."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from hf_recipes.data.files.file_io import is_text

# What a message is, where the export says so; None: its text has the client's marks, such as [图片].
TEXT, MEDIA, CARD, FORWARD = "text", "media", "card", "forward"
MEDIA_REMOVED = "[图片], [表情], [语音] and the like removed"
QUOTE_REMOVED = "quoted message removed"

_TIME = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})[T ]+(\d{1,2}):(\d{2})(?::(\d{2}))?")  # as Excel writes it
_MILLISECONDS = 100_000_000_000  # in seconds, the year 5138


class Message(NamedTuple):
    """One message; `time` in seconds, `sender` a key of `Members`, `problem`: why it cannot be used."""

    path: str
    line: int  # in arrays of JSON: the number of the message
    time: float
    sender: str
    text: str
    kind: str | None = None
    repairs: tuple[str, ...] = ()
    problem: str | None = None


@dataclass
class ChatLog:
    """The messages of one chat, in the order of the export; `name` is the group's or the contact's.

    `owner` is the sender whose account was exported, where the export says so. Files of one folder with the same
    `pages` are one chat. `accounts` are the names of all who write in it, by account, where the export lists them.
    """

    path: str
    name: str = ""
    is_group: bool = False
    owner: str | None = None
    pages: str | None = None
    accounts: dict[str, list[str]] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)

    @property
    def senders(self) -> set[str]:
        return {message.sender for message in self.messages}


def new_message(
    path: str, line: int, time: Any, sender: str, text: Any, kind: str | None = None, repairs: tuple[str, ...] = ()
) -> Message:
    """A message with a problem where `time` is none, or `text` has bytes that are no text."""
    seconds, text = to_seconds(time), text.replace("\r\n", "\n").strip() if isinstance(text, str) else ""
    problem = None
    if seconds is None:
        problem = "no time"
    elif not is_text(text):
        problem = "bytes that are no text"
    return Message(path, line, seconds or 0, sender, text, kind, repairs, problem)


def to_seconds(time: Any) -> float | None:
    """Seconds since 1970 of a time stamp (s or ms), ISO text, or a local time, whose zone counts as UTC."""
    try:
        if not isinstance(time, str) or time.strip().isdigit():
            number = float(time)
            return number / 1000 if number > _MILLISECONDS else number
        if match := _TIME.fullmatch(time.strip()):
            moment = datetime(*map(int, match.groups(default="0")))
        else:
            moment = datetime.fromisoformat(time.strip())
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def without_quote(text: str, quote: re.Pattern) -> tuple[str, tuple[str, ...]]:
    """A text without what it quotes, and what was repaired in it."""
    answer = quote.sub("", text, count=1)
    return answer.strip(), (QUOTE_REMOVED,) if answer != text else ()
