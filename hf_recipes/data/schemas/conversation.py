"""Conversations of any known spelling as messages, and the order that their turns must have."""

import ast
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import count
from typing import Any

from hf_recipes.core.ledger import shown, with_detail
from hf_recipes.data.schemas.thoughts import TAGS

Message = dict[str, Any]

ROLES = {
    name: role
    for role, names in {
        "system": ("system", "developer", "系统"),
        "user": (
            *("user", "human", "client", "patient", "seeker", "customer"),
            *("用户", "人类", "问", "患者", "病人", "客户", "顾客", "来访者", "求助者"),
        ),
        "assistant": (
            *("assistant", "gpt", "model", "chatgpt", "bot", "ai", "bing", "bard", "claude", "moss"),
            *("counselor", "counsellor", "therapist", "doctor"),
            *("助手", "机器人", "答", "医生", "大夫", "客服", "咨询师"),
        ),
        "tool": ("tool", "observation", "function", "tool_response", "工具"),
        "function_call": ("function_call", "tool_call"),
    }.items()
    for name in names
}
# Keys of a turn's role and, in the order in which they are looked for, of its text.
TEXT_KEYS = {
    "role": ("content", "value", "text"),
    "from": ("value", "content", "text"),
    "speaker": ("content", "text", "sentence", "utterance", "value"),
}
# Keys of a question and its answer, where both are one entry of a conversation.
EXCHANGES = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("question", "answer"),
    ("prompt", "response"),
    ("query", "response"),
    ("instruction", "output"),
    ("input", "output"),
    ("问", "答"),
    ("问题", "答案"),
    ("q", "a"),
)
# Keys of an assistant's turn that say whether it carries loss (ms-swift, OpenAI, axolotl, verl).
LOSS_KEYS = ("loss", "weight", "train", "loss_mask")
# Keys of a turn that are read besides those of its role, its text and its thoughts; of an exchange, those of loss.
READ_KEYS = {role: {"tool_calls", "function_call", *LOSS_KEYS} for role in {*ROLES.values()}}
READ_KEYS |= {"exchange": {*LOSS_KEYS}, "tool": READ_KEYS["tool"] | {"tool_call_id", "name"}}
READ_KEYS["system"] |= {"tools"}
MOSS_KEYS = ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS")
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_SPEAKER = re.compile(r"\s*(\w+)\s*[：:]\s*")
# What stands around the texts of MOSS's turns.
_MOSS_MARKS = re.compile(r"^\s*<\|[^|]*\|>\s*:?\s*|\s*<eo[a-z]>\s*$")

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


def with_thoughts_key(message: Message) -> Message:
    """`message` with the thoughts that it has under another key as `reasoning_content`.

    Raises:
        RowProblem: they are no text.
    """
    name = thoughts_name(message) if message["role"] == "assistant" else None
    if name in (None, THOUGHTS_KEYS[0]):
        return message
    return add_thoughts({key: value for key, value in message.items() if key != name}, message, name)


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


def with_objects(message: Message) -> Message:
    """`message` with the arguments of its calls as objects, where they are JSON text as in OpenAI's interface.

    Raises:
        RowProblem: a call has no name, or arguments that are not JSON.
    """
    return {**message, "tool_calls": read_calls(message["tool_calls"])} if message.get("tool_calls") else message


class FilteredRow(RowProblem):
    """Why the settings leave out a row that could be used."""


def read_turns(turns: Any, column: str) -> list[Message]:
    """The value of `column` as messages: `role`, `content` and, where given, `tool_calls` or `reasoning_content`.

    It may be JSON text; turns with role and text, exchanges of a question and its answer, texts by turns, or the
    numbered turns of MOSS. A tool's result has the `tool_call_id` and `name` that it has in the file. A turn without
    loss has the `weight` 0; `mark` is the key that takes it, or that asks for loss on another's turn. `unused` are the
    keys that no message is made of, as names such as ``messages[].emotion``, each with its value.
    """
    turns = parsed(turns)
    if isinstance(turns, dict) and "turn_1" in turns:
        return _moss_turns(turns, column)
    if not isinstance(turns, list):
        raise RowProblem(f"{column!r} is not a list of turns")
    first = turns[0] if turns else None
    if isinstance(first, str):
        return _spoken(turns, column)
    role_key = next((key for key in TEXT_KEYS if isinstance(first, dict) and key in first), None)
    if turns and role_key is None:
        return read_exchanges(turns, column)
    if not all(isinstance(turn, dict) for turn in turns):
        raise RowProblem(f"{column!r} is not a list of turns")
    messages: list[Message] = []
    before, text_keys = None, TEXT_KEYS.get(role_key, ())
    for turn in turns:
        text_key = text_keys[0] if text_keys[0] in turn else next((key for key in text_keys if key in turn), None)
        if role_key not in turn or (text_key is None and not (turn.get("tool_calls") or turn.get("function_call"))):
            raise RowProblem(f"a turn without {role_key!r} and {text_keys[0]!r}")
        name = turn[role_key]
        role = (ROLES.get(name) or ROLES.get(name.strip().lower())) if isinstance(name, str) else None
        if role is None:
            raise RowProblem("unknown role", repr(name))
        message = _message(turn, role, turn.get(text_key))
        if len(turn) > 2:
            _mark(message, turn)
            _keep_unused(message, turn, column, role, role_key, text_key)
        if role == before == "function_call" and messages[-1].get("weight") == message.get("weight"):
            messages[-1]["tool_calls"] += message["tool_calls"]
            messages[-1].setdefault("unused", []).extend(message.get("unused", ()))
        else:
            messages.append(message)
        before = role
    return messages


def _message(turn: Mapping[str, Any], role: str, content: Any) -> Message:
    if role == "function_call":
        message = {"role": "assistant", "content": "", "tool_calls": read_calls(content)}
        return add_thoughts(message, turn, thoughts_name(turn))
    tool_calls = parsed(turn.get("tool_calls"))
    if not tool_calls and turn.get("function_call"):  # OpenAI's older interface
        tool_calls = [parsed(turn["function_call"])]
    if tool_calls and not (isinstance(tool_calls, list) and all(isinstance(call, dict) for call in tool_calls)):
        raise RowProblem("'tool_calls' is not a list of calls")
    message: Message = {"role": role, "content": content}
    if isinstance(content, list):
        message = with_text(message)
    if tool_calls:
        message["tool_calls"] = read_calls(tool_calls)
    if role == "tool":
        message |= {key: str(turn[key]) for key in ("tool_call_id", "name") if turn.get(key)}
        if isinstance(content, dict):
            message["content"] = json.dumps(content, ensure_ascii=False)
    if role == "tool" or tool_calls:
        message["content"] = message["content"] or ""
    if role == "system" and turn.get("tools"):
        message["tools"] = turn["tools"]
    if role == "assistant":
        message = with_thoughts(add_thoughts(message, turn, thoughts_name(turn)))
    return message


def _mark(message: Message, turn: Mapping[str, Any]) -> None:
    """Take the loss from a turn that the file takes it from."""
    for key in LOSS_KEYS if not turn.keys().isdisjoint(LOSS_KEYS) else ():
        value = turn.get(key)
        if value is None:
            continue
        carries = LABELS.get(str(value).strip().lower())
        if carries is None:
            raise RowProblem(f"{key!r} is neither 0 nor 1; another weight of a turn is not supported", value)
        is_answer = message["role"] == "assistant"
        if is_answer and not carries:
            message["weight"] = 0
        if is_answer != carries:
            message["mark"] = key


@lru_cache(4096)  # turns have few sets of keys
def _unread_keys(column: str, names: tuple, role: str, read: tuple) -> tuple[list[tuple[str, Any]], bool]:
    """The keys of a turn that are not read, each after its name, and whether some are of thoughts."""
    unread = [(f"{column}[].{name}", name) for name in names if name not in read and name not in READ_KEYS[role]]
    return unread, not {key for _, key in unread}.isdisjoint(_thoughts_names(names, ""))


def _keep_unused(message: Message, turn: Mapping[str, Any], column: str, role: str, *read: str) -> None:
    """Keep what a turn has under keys that its message is not made of."""
    unread, has_thoughts = _unread_keys(column, tuple(turn), role, read)
    if has_thoughts:
        used = thoughts_name(turn) if message["role"] == "assistant" else None
        used = {key for key in _thoughts_names(tuple(turn), "") if key == used or _is_switch(turn[key])}
        unread = [(name, key) for name, key in unread if key not in used]
    if unread:
        message["unused"] = [(name, turn[key]) for name, key in unread]


def pop_unused(messages: Iterable[Message]) -> list[tuple[str, Any]]:
    """Take from messages the names and values of keys that they do not use."""
    return [pair for message in messages for pair in message.pop("unused", ())]


def read_exchanges(entries: Any, column: str) -> list[Message]:
    """Questions with their answers as messages: pairs, or objects with a key for each."""
    messages: list[Message] = []
    for entry in entries:
        keys = ()
        if isinstance(entry, dict):
            keys = next((pair for pair in EXCHANGES if pair[0] in entry and pair[1] in entry), ())
        texts = [entry[key] for key in keys] if keys else entry
        if not isinstance(texts, (list, tuple)) or len(texts) != 2:
            raise RowProblem(f"{column!r} is not a list of turns")
        answer = {"role": "assistant", "content": texts[1]}
        if keys and len(entry) > 2:
            answer = add_thoughts(answer, entry, thoughts_name(entry))
            _mark(answer, entry)
            is_first = not messages
            if is_first and entry.get("system"):  # XTuner
                messages.append({"role": "system", "content": entry["system"]})
            _keep_unused(answer, entry, column, "exchange", *keys, *(("system",) if is_first else ()))
        messages += [{"role": "user", "content": texts[0]}, with_thoughts(answer)]
    return messages


def _spoken(texts: list, column: str) -> list[Message]:
    """Texts by turns, the user's first, or each with its speaker before it: ``问：…``, ``答：…``."""
    if not all(isinstance(text, str) for text in texts):
        raise RowProblem(f"{column!r} is not a list of turns")
    speakers = [_SPEAKER.match(text) for text in texts]
    roles = [ROLES.get(speaker[1].lower()) if speaker else None for speaker in speakers]
    if all(role in ("user", "assistant", "system") for role in roles):
        texts = [text[speaker.end() :] for text, speaker in zip(texts, speakers, strict=True)]
    else:
        roles = ["assistant" if index % 2 else "user" for index in range(len(texts))]
    return [with_thoughts({"role": role, "content": text}) for role, text in zip(roles, texts, strict=True)]


def _moss_turns(turns: Mapping[str, Any], column: str) -> list[Message]:
    """The numbered turns of moss-003-sft-data, whose texts are between marks, with ``None`` for nothing."""
    messages: list[Message] = []
    for name in sorted(
        turns, key=lambda name: int(name.rpartition("_")[2]) if name.rpartition("_")[2].isdigit() else 0
    ):
        texts = {key: _MOSS_MARKS.sub("", value) for key, value in turns[name].items() if isinstance(value, str)}
        texts = {key: "" if text in ("None", "null") else text for key, text in texts.items()}
        thoughts = texts.get("Inner Thoughts", "").strip()
        said = {"reasoning_content": thoughts} if thoughts else {}
        messages.append({"role": "user", "content": texts.get("Human", "")})
        _keep_unused(messages[-1], turns[name], column, "exchange", *MOSS_KEYS)
        if command := texts.get("Commands"):
            messages.append({"role": "assistant", "content": command, **said})
            messages.append({"role": "tool", "content": texts.get("Tool Responses", "")})
            said = {}
        messages.append({"role": "assistant", "content": texts.get("MOSS", ""), **said})
    return messages


@lru_cache(4096)
def keys_of(name: Any) -> tuple[str, str]:
    """A column's name as the tables of names write it: ``systemPrompt`` is ``system_prompt``."""
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", str(name)).lower(), str(name).lower()


def by_key(names: Iterable[Any]) -> dict[str, Any]:
    """Each of `names` by its `keys_of`."""
    return {key: name for name in names for key in keys_of(name)}


def thoughts_name(values: Mapping[str, Any], of: str = "") -> str | None:
    """The key of thoughts in a turn or a row; with `of`, such as ``chosen``, one that has this before or after it."""
    return next((name for name in _thoughts_names(tuple(values), of) if not _is_switch(values[name])), None)


@lru_cache(4096)  # turns have few sets of keys
def _thoughts_names(names: tuple, of: str) -> list[Any]:
    keys = by_key(names)
    forms = [form for key in THOUGHTS_KEYS for form in ((f"{of}_{key}", f"{key}_{of}") if of else (key,))]
    return [keys[form] for form in forms if form in keys]


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


def parsed(value: Any) -> Any:
    """The value of JSON text, or of the text of a Python literal that pandas writes for lists; else `value`."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        pass
    if not value.lstrip().startswith(("[{'", "['", "[[", "{'")):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def read_calls(value: Any) -> list[dict]:
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
