"""Messages, and the order that those of a conversation must have."""

from typing import Any

from hf_recipes.core.ledger import shown, with_detail
from hf_recipes.data.conversations.thoughts import TAGS

Message = dict[str, Any]


class RowProblem(Exception):
    """Why one row cannot be used: `reason` for the ledger, with `detail` as what of the row shows it."""

    def __init__(self, reason: str, detail: object = None):
        self.reason = reason if detail is None else with_detail(reason, detail)
        super().__init__(self.reason)

    def __str__(self) -> str:
        return shown(self.reason)


class FilteredRow(RowProblem):
    """Why the settings leave out a row that could be used."""


def with_thoughts(message: Message) -> Message:
    """`message` with the thoughts that its text begins with, up to ``</think>``, as `reasoning_content`."""
    content = message.get("content")
    if message["role"] != "assistant" or not isinstance(content, str) or not (start := TAGS.answer_start(content)):
        return message
    thoughts, answer = TAGS.split(content)[0], content[start:]
    if (known := message.get("reasoning_content")) and known.strip() != thoughts:
        return message  # the mark is a part of the text
    message = {**message, "content": answer.strip("\n") if thoughts else answer.lstrip("\n")}
    return message | ({"reasoning_content": thoughts} if thoughts and not known else {})


def with_text(message: Message) -> Message:
    """`message` with its content as one text: of parts, those of text; None where there is none.

    Raises:
        RowProblem: the content has other parts, such as images.
    """
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise RowProblem(f"the {message['role']}'s content is a list with a part that is not text", kind)
        content = "".join(part["text"] for part in content)
    elif content is not None and not isinstance(content, str):
        raise RowProblem(f"the {message['role']}'s content is a {type(content).__name__}, not text")
    return {**message, "content": content}


def check_conversation(messages: list[Message], needs_answer: bool = True) -> None:
    """Raise `RowProblem` unless the turns are well formed: an optional system turn, then user and assistant in turn.

    An assistant turn may call tools, also by a text of the row's own form; the tools' results follow, then the
    assistant again. The last turn is the assistant's; where no answer is needed, it may also be the user's or a result.
    """
    if not messages:
        raise RowProblem("empty conversation")
    before = "system"  # the role of the turn before, or "call"
    for number, message in enumerate(messages, 1):
        role, content = message["role"], message.get("content")
        if role == "system":
            if number > 1:
                raise RowProblem("a system turn that is not the first")
        elif role == "user":
            if before == "user":
                raise RowProblem("two user turns in a row")
            if before not in ("system", "assistant"):
                raise RowProblem(f"a user turn after a {before} turn")
        elif role == "assistant":
            if before == "assistant":
                raise RowProblem("two assistant turns in a row")
            if before == "system":
                raise RowProblem("the conversation begins with the assistant")
        elif before not in ("assistant", "call", "tool"):
            raise RowProblem("a tool result without a call")
        if content is not None and not isinstance(content, str):
            raise RowProblem(f"the {role}'s content is a {type(content).__name__}, not text")
        may_be_empty = role == "tool" or message.get("tool_calls")
        if not may_be_empty and (content is None or not content.strip()):
            raise RowProblem("empty answer" if role == "assistant" else f"empty {role} turn")
        before = "call" if message.get("tool_calls") else role
    if before not in ("assistant", "call") and (needs_answer or before == "system"):
        raise RowProblem(f"the conversation ends with the {before}" if before != "tool" else "ends with a tool result")
