"""The keys of a turn, and the columns of a row, that hold thoughts."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hf_recipes.data.conversations.cells import by_key
from hf_recipes.data.conversations.conversation import Message, RowProblem
from hf_recipes.data.conversations.thoughts import TAGS

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
    "thought_process",
    "think_process",
    "thinking_content",
    "think_content",
    "thinking_trajectory",
    "deepseek_thinking_trajectory",
    "deepseek_reasoning",
    "rationale",
    "思考",
    "思考过程",
    "思考内容",
    "思维过程",
    "思维链",
    "推理过程",
    "推理内容",
)
SWITCHES = ("", "on", "off", "true", "false", "yes", "no", "none", "auto", "minimal", "low", "medium", "high")


def thoughts_name(values: Mapping[str, Any], of: str = "") -> str | None:
    """The key of thoughts in a turn or a row; with `of`, such as ``chosen``, one that has this before or after it."""
    return next((name for name in thoughts_names(tuple(values), of) if not is_switch(values[name])), None)


@lru_cache(4096)  # turns have few sets of keys
def thoughts_names(names: tuple, of: str) -> list[Any]:
    keys = by_key(names)
    forms = [form for key in THOUGHTS_KEYS for form in ((f"{of}_{key}", f"{key}_{of}") if of else (key,))]
    return [keys[form] for form in forms if form in keys]


def is_switch(value: Any) -> bool:
    """Whether a value says that, or how much, a model shall think."""
    return value is None or isinstance(value, bool) or (isinstance(value, str) and value.lower() in SWITCHES)


def add_thoughts(message: Message, values: Mapping[str, Any], name: str | None) -> Message:
    """`message` with the thoughts that `values` have under `name`, if there are any."""
    thoughts = values.get(name) if name else None
    if isinstance(thoughts, list) and len(thoughts) == 1:  # s1K
        thoughts = thoughts[0]
    if thoughts is not None and not isinstance(thoughts, str):
        raise RowProblem(f"{name!r} is a {type(thoughts).__name__}, not text")
    thoughts = (thoughts or "").strip().removeprefix(TAGS.start).removesuffix(TAGS.end).strip()
    return {**message, "reasoning_content": thoughts} if thoughts else message


def with_thoughts_key(message: Message) -> Message:
    """`message` with the thoughts that it has under another key as `reasoning_content`.

    Raises:
        RowProblem: they are no text.
    """
    name = thoughts_name(message) if message["role"] == "assistant" else None
    if name in (None, THOUGHTS_KEYS[0]):
        return message
    return add_thoughts({key: value for key, value in message.items() if key != name}, message, name)
