"""The split of chats into sessions and examples."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from hf_recipes.importers.chat_logs.messages import Message

ME = "\0me"  # the sender of the groups of the assistant


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
