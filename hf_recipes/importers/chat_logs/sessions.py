"""Chats and their members: what of a message is text, where a session ends, and which turns make an example."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hf_recipes.importers.arguments import QQArguments
from hf_recipes.importers.chat_logs.members import ME, SYSTEM, Members


class Message(NamedTuple):
    """One message; `time` in seconds, `sender` a key of `Members`, `problem` why it cannot be used at all."""

    line: int
    time: float
    sender: str
    text: str
    problem: str | None = None


@dataclass
class Chat:
    """The messages of one chat, in the order of the file; `name` is of the group or the contact."""

    path: str
    name: str
    is_group: bool = False
    messages: list[Message] = field(default_factory=list)


_RECALLED = re.compile(r".{0,40}撤回了.{0,40}一条(?:群|成员)?消息[。\s]*(?:重新编辑)?")
_MEDIA = re.compile(r"\[(?:图片|照片|表情|动画表情|自定义表情|原创表情|表情包|涂鸦|语音|视频)\]")
_CARD = re.compile(
    r"<\?xml|<msg\b|\{\"app\"\s*:|\[[^\[\]\n]{0,40}聊天记录\]|\[(?:QQ红包|红包|转账|合并转发|转发多条消息|分享|链接|QQ小程序"
    r"|小程序|应用|名片|推荐好友|推荐群|位置|位置共享|音乐|音乐分享|礼物|戳一戳|闪照|文件|群签到|群投票|群公告|语音通话|视频通话)\]"
)
_NOT_SHOWN = re.compile(
    r"(?:请(?:使用|升级|用|在)|可以?在).{0,16}(?:手机QQ|版本|手机).{0,8}(?:查看|查收|体验|领取)|暂不支持(?:查看|显示)|QQ版本不支持"
)
_BLANK_LINES = re.compile(r"\s*\n\s*")


class Rules:
    """What of a message is said, and why it is not."""

    def __init__(self, args: QQArguments, members: Members):
        self._args = args
        names = {name for names in members.names.values() for name in names} | {"全体成员"}
        longest_first = sorted(map(re.escape, names), key=len, reverse=True)
        self._mention = (
            re.compile(f"[@＠](?:{'|'.join(longest_first)})[ \u2005]?") if args.mentions == "strip" else None
        )

    def judge(self, message: Message) -> tuple[str, list[str], str | None]:
        """What is said, what was changed, and the reason to drop it or None."""
        args, text, repairs = self._args, message.text.strip(), []
        if args.recalled == "drop" and _RECALLED.fullmatch(text):
            return text, [], "recalled"
        if message.sender == SYSTEM and args.system_notices == "drop":
            return text, [], "system notice"
        if args.cards == "drop" and (_CARD.match(text) or (len(text) < 120 and _NOT_SHOWN.search(text))):
            return text, [], "a card, or what the client could not show"
        if args.media_marks == "strip" and (stripped := _MEDIA.sub("", text)) != text:
            repairs.append("[图片], [表情], [语音] and the like taken out")
            text = _BLANK_LINES.sub("\n", stripped).strip()
            if not text:
                return text, [], "nothing but [图片], [表情], [语音] and the like"
        if self._mention and (stripped := self._mention.sub("", text)) != text:
            repairs.append("@mentions taken out")
            text = stripped.strip()
        return text, repairs, None if text else "empty"


class Run(NamedTuple):
    """Messages of one person in a row, by their places in the chat."""

    sender: str
    locations: list[int]


def sessions(messages: Sequence[Message], locations: Iterable[int], mine: set[str], gap: float) -> Iterator[list[Run]]:
    """The runs between silences of more than `gap` minutes; those of `mine` have the sender `ME`."""
    runs: list[Run] = []
    before = None
    for location in locations:
        message = messages[location]
        if before is not None and abs(message.time - before) > 60 * gap:
            yield runs
            runs = []
        before = message.time
        sender = ME if message.sender in mine else message.sender
        if runs and runs[-1].sender == sender:
            runs[-1].locations.append(location)
        else:
            runs.append(Run(sender, [location]))
    if runs:
        yield runs


def cut(runs: Sequence[Run], max_turns: int, dropped: dict[int, str]) -> Iterator[list[Run]]:
    """Examples of up to `max_turns` runs, from somebody else's to one of `ME`; no run is in two.

    Args:
        dropped: gets the reason of what is in none, by the message's place.
    """

    def drop(own: Iterable[Run], reason: str) -> None:
        dropped.update((location, reason) for run in own for location in run.locations)

    example: list[Run] = []
    answered = 0  # runs up to the last of mine
    for run in runs:
        if run.sender == ME and not example:
            drop([run], "begins a session: there is nothing that it answers")
            continue
        if len(example) == max_turns:
            if answered:
                yield example[:answered]
                example = example[answered:]
                answered = 0
            else:
                drop(example[:1], "more than --max_turns before my answer")
                example = example[1:]
        example.append(run)
        if run.sender == ME:
            answered = len(example)
    if answered:
        yield example[:answered]
    drop(example[answered:], "nothing of mine follows in its session")
