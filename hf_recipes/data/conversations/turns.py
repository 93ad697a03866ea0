"""Turns of any known spelling as messages."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from hf_recipes.data.conversations.calls import read_calls
from hf_recipes.data.conversations.cells import parsed
from hf_recipes.data.conversations.conversation import Message, RowProblem, with_text, with_thoughts
from hf_recipes.data.conversations.thought_columns import add_thoughts, is_switch, thoughts_name, thoughts_names

ROLES = {
    name: role
    for role, names in {
        "system": ("system", "developer", "系统"),
        "user": (
            *("user", "human", "prompter", "client", "patient", "seeker", "customer"),
            *("用户", "人类", "问", "患者", "病人", "客户", "顾客", "来访者", "求助者"),
        ),
        "assistant": (
            *("assistant", "gpt", "model", "chatgpt", "bot", "ai", "bing", "bard", "claude", "moss"),
            *("counselor", "counsellor", "therapist", "doctor"),
            *("助手", "机器人", "答", "医生", "大夫", "客服", "咨询师"),
        ),
        "tool": (
            "tool",
            "observation",
            "function",
            "tool_response",
            "tool_result",
            "function response",
            "ipython",
            "工具",
        ),
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
LOSS_KEYS = ("loss", "weight", "train", "training", "trainable", "loss_mask", "loss_scale", "loss_weight")
# Keys of a turn that are read besides those of its role, its text and its thoughts; of an exchange, those of loss.
READ_KEYS = {role: {"tool_calls", "function_call", *LOSS_KEYS} for role in {*ROLES.values()}}
READ_KEYS |= {"exchange": {*LOSS_KEYS}, "tool": READ_KEYS["tool"] | {"tool_call_id", "name"}}
READ_KEYS["system"] |= {"tools"}
MOSS_KEYS = ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS")
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_SPEAKER = re.compile(r"\s*(\w+)\s*[：:]\s*")
# What stands around the texts of MOSS's turns.
_MOSS_MARKS = re.compile(r"^\s*<\|[^|]*\|>\s*:?\s*|\s*<eo[a-z]>\s*$")


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
        lowered = [{str(key).lower(): turn[key] for key in turn} for turn in turns if isinstance(turn, dict)]
        if not TEXT_KEYS.keys().isdisjoint(lowered[0] if lowered else ()):
            return read_turns(lowered, column)
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


def is_turn(values: Mapping[str, Any]) -> bool:
    """Whether the keys, in any case, are those of a turn with a role that is known."""
    lowered = {str(key).lower(): value for key, value in values.items()}
    role = next(
        (lowered[key] for key, texts in TEXT_KEYS.items() if key in lowered and {*texts} & lowered.keys()), None
    )
    return isinstance(role, str) and role.strip().lower() in ROLES


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
    return unread, not {key for _, key in unread}.isdisjoint(thoughts_names(names, ""))


def _keep_unused(message: Message, turn: Mapping[str, Any], column: str, role: str, *read: str) -> None:
    """Keep what a turn has under keys that its message is not made of."""
    unread, has_thoughts = _unread_keys(column, tuple(turn), role, read)
    if has_thoughts:
        used = thoughts_name(turn) if message["role"] == "assistant" else None
        used = {key for key in thoughts_names(tuple(turn), "") if key == used or is_switch(turn[key])}
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
