"""Conversations of any known spelling as messages, and the order that their turns must have."""

import json
from collections.abc import Mapping
from itertools import count
from typing import Any

from hf_recipes.core.ledger import shown, with_detail
from hf_recipes.data.schemas.thoughts import TAGS

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
}

# Keys and columns of thoughts, without regard to case, in the order in which they are looked for.
THOUGHTS_KEYS = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "think",
    "thoughts",
    "thought",
    "complex_cot",
    "cot",
    "chain_of_thought",
    "reasoning_process",
    "reasoning_trace",
    "thinking_process",
    "thinking_content",
    "think_content",
    "thinking_trajectory",
    "deepseek_thinking_trajectory",
    "deepseek_reasoning",
    "rationale",
    "思考",
    "思考过程",
    "思维链",
    "推理过程",
)
SWITCHES = ("", "on", "off", "true", "false", "yes", "no", "none", "auto", "minimal", "low", "medium", "high")


class RowProblem(Exception):
    """Why one row cannot be used: `reason` for the ledger, with `detail` as what of the row shows it."""

    def __init__(self, reason: str, detail: object = None):
        self.reason = reason if detail is None else with_detail(reason, detail)
        super().__init__(self.reason)

    def __str__(self) -> str:
        return shown(self.reason)


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
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise RowProblem(f"the {message['role']}'s content has parts that are not text")
        content = "".join(part["text"] for part in content)
    elif content is not None and not isinstance(content, str):
        raise RowProblem(f"the {message['role']}'s content is a {type(content).__name__}, not text")
    return {**message, "content": content}


def with_objects(message: Message) -> Message:
    """`message` with the arguments of its calls as objects, where they are JSON text as in OpenAI's interface.

    Raises:
        RowProblem: a call has no name, or arguments that are not JSON.
    """
    return {**message, "tool_calls": _calls(message["tool_calls"])} if message.get("tool_calls") else message


class FilteredRow(RowProblem):
    """Why the settings leave out a row that could be used."""


def read_turns(turns: Any, column: str, role_key: str, text_key: str) -> list[Message]:
    """The value of `column` as messages: `role`, `content` and, where given, `tool_calls` or `reasoning_content`.

    A tool's result has the `tool_call_id` and `name` that it has in the file.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowProblem(f"{column!r} is not a list of turns")
    messages = []
    for turn in turns:
        if role_key not in turn or (text_key not in turn and not turn.get("tool_calls")):
            raise RowProblem(f"a turn without {role_key!r} and {text_key!r}")
        tool_calls = _parsed(turn.get("tool_calls"))
        if tool_calls and not (isinstance(tool_calls, list) and all(isinstance(call, dict) for call in tool_calls)):
            raise RowProblem("'tool_calls' is not a list of calls")
        role = ROLES.get(turn[role_key]) if isinstance(turn[role_key], str) else None
        if role is None:
            raise RowProblem("unknown role", repr(turn[role_key]))
        message: Message = {"role": role, "content": turn.get(text_key)}
        if role == "function_call":
            message = {"role": "assistant", "content": "", "tool_calls": _calls(turn.get(text_key))}
        elif tool_calls:
            message["tool_calls"] = _calls(tool_calls)
        if role == "tool":
            message |= {key: str(turn[key]) for key in ("tool_call_id", "name") if turn.get(key)}
        if role == "tool" or tool_calls:
            message["content"] = message["content"] or ""
        if message["role"] == "assistant":
            message = with_thoughts(add_thoughts(message, turn, thoughts_name(turn)))
        messages.append(message)
    return messages


def thoughts_name(values: Mapping[str, Any], of: str = "") -> str | None:
    """The key of thoughts in a turn or a row; with `of`, such as ``chosen``, one that has this before or after it."""
    names = {name.lower(): name for name, value in values.items() if not _is_switch(value)}
    keys = [form for key in THOUGHTS_KEYS for form in ((f"{of}_{key}", f"{key}_{of}") if of else (key,))]
    return next((names[key] for key in keys if key in names), None)


def _is_switch(value: Any) -> bool:
    """Whether a value says that, or how much, a model shall think."""
    return value is None or isinstance(value, bool) or (isinstance(value, str) and value.lower() in SWITCHES)


def add_thoughts(message: Message, values: Mapping[str, Any], name: str | None) -> Message:
    """`message` with the thoughts that `values` have under `name`, if there are any."""
    thoughts = values.get(name) if name else None
    if thoughts is not None and not isinstance(thoughts, str):
        raise RowProblem(f"{name!r} is a {type(thoughts).__name__}, not text")
    thoughts = (thoughts or "").strip().removeprefix(TAGS.start).removesuffix(TAGS.end).strip()
    return {**message, "reasoning_content": thoughts} if thoughts else message


def _parsed(value: Any) -> Any:
    """The value of JSON text; anything else, and text that is not JSON, as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _calls(value: Any) -> list[dict]:
    """One or several tool calls, as JSON text or parsed, in the form that chat templates expect."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
        calls = calls if isinstance(calls, list) else [calls]
        read = []
        for call in calls:
            function = call.get("function", call)
            arguments = function.get("arguments") or {}
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            one = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
            read.append({"id": str(call["id"]), **one} if call.get("id") else one)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise RowProblem("a tool call that is not JSON with a name and arguments") from None
    return read


def link_results(messages: list[Message]) -> None:
    """Give every call an id and every result the id and name of its call: the one that it names, else the next.

    A call written as text has no id, and the result after it none.
    """
    taken = {call.get("id") for message in messages for call in message.get("tool_calls", ())}
    free = (name for name in (f"call{number:05}" for number in count()) if name not in taken)
    calls: dict[str, dict] = {}  # all before, by id
    waiting: list[str] = []  # the ids of those of the turn before that have no result
    for message in messages:
        if message["role"] == "assistant":
            for call in message.get("tool_calls", ()):
                call["id"] = call.get("id") or next(free)
                calls[call["id"]] = call
            waiting = [call["id"] for call in message.get("tool_calls", ())]
        elif message["role"] == "tool" and waiting:
            identifier = message.setdefault("tool_call_id", waiting[0])
            if identifier not in calls:
                raise RowProblem("a tool result with the id of no call", identifier)
            message.setdefault("name", calls[identifier]["function"]["name"])
            if identifier in waiting and len(waiting) > 1:
                waiting.remove(identifier)


def read_tools(tools: Any) -> list[dict]:
    """Descriptions of functions, as JSON text or parsed, in the form that chat templates expect."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            raise RowProblem("'tools' is not JSON") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowProblem("'tools' is not a list of function descriptions")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


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
