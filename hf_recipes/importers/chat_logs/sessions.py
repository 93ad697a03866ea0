"""Messages of chats, the rules for them, and their split into sessions and examples."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hf_recipes.importers.arguments import QQArguments
from hf_recipes.importers.chat_logs.members import ME, SYSTEM, Members


class Message(NamedTuple):
    """One message; `time` in seconds, `sender` a key of `Members`, `problem`: why it cannot be used."""

    line: int
    time: float
    sender: str
    text: str
    problem: str | None = None


@dataclass
class ChatLog:
    """The messages of one chat, in the order of the file; `name` is the group's or the contact's."""

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
    """Which messages are used, and which marks are removed from them."""

    def __init__(self, args: QQArguments, members: Members):
        self._args = args
        names = {name for names in members.names.values() for name in names} | {"全体成员"}
        longest_first = sorted(map(re.escape, names), key=len, reverse=True)
        mention = re.compile(f"[@＠](?:{'|'.join(longest_first)})[ \u2005]?")
        self._mention = mention if args.mentions == "strip" else None

    def apply(self, message: Message) -> tuple[str, list[str], str | None]:
        """The text, what was changed in it, and the reason to drop the message, or None."""
        args, text, repairs = self._args, message.text.strip(), []
        if args.recalled == "drop" and _RECALLED.fullmatch(text):
            return text, [], "recalled"
        if message.sender == SYSTEM and args.system_notices == "drop":
            return text, [], "system notice"
        if args.cards == "drop" and (_CARD.match(text) or (len(text) < 120 and _NOT_SHOWN.search(text))):
            return text, [], "a card, or what the client could not show"
        if args.media_marks == "strip" and (stripped := _MEDIA.sub("", text)) != text:
            repairs.append("[图片], [表情], [语音] and the like removed")
            text = _BLANK_LINES.sub("\n", stripped).strip()
            if not text:
                return text, [], "nothing but [图片], [表情], [语音] and the like"
        if self._mention and (stripped := self._mention.sub("", text)) != text:
            repairs.append("@mentions removed")
            text = stripped.strip()
        return text, repairs, None if text else "empty"


class MessageGroup(NamedTuple):
    """Consecutive messages of one person; `indices` into the chat's messages."""

    sender: str
    indices: list[int]


Session = list[MessageGroup]


def split_sessions(messages: Sequence[Message], usable: Iterable[int], me: set[str], gap: float) -> Iterator[Session]:
    """The message groups of each session: between silences of more than `gap` minutes.

    Messages of the keys `me` have the sender `ME`. `usable` are the indices of the messages to use.
    """
    session: Session = []
    last_time = None
    for index in usable:
        message = messages[index]
        if last_time is not None and abs(message.time - last_time) > 60 * gap:
            yield session
            session = []
        last_time = message.time
        sender = ME if message.sender in me else message.sender
        if session and session[-1].sender == sender:
            session[-1].indices.append(index)
        else:
            session.append(MessageGroup(sender, [index]))
    if session:
        yield session


def split_session(
    session: Session, max_turns: int, drop: Callable[[Sequence[MessageGroup], str], None]
) -> Iterator[list[MessageGroup]]:
    """Examples of up to `max_turns` groups, the first of somebody else, the last of `ME`; no group is in two.

    Groups that are in no example go to `drop`, with the reason.
    """
    example: list[MessageGroup] = []
    answered = 0  # number of groups up to my last one
    for group in session:
        if group.sender == ME and not example:
            drop([group], "begins a session: there is nothing that it answers")
            continue
        if len(example) == max_turns:
            if answered:
                yield example[:answered]
                example = example[answered:]
                answered = 0
            else:
                drop(example[:1], "more than --max_turns before my answer")
                example = example[1:]
        example.append(group)
        if group.sender == ME:
            answered = len(example)
    if answered:
        yield example[:answered]
    drop(example[answered:], "nothing of mine follows in its session")
