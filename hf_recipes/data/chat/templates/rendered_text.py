"""Where the rendering of a conversation shows what its messages hold."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hf_recipes.data.conversations.conversation import Message, RowProblem

NO_CALL = "the chat template does not show a call of a tool"


def find_text(text: str, content: str | None, position: int = 0, last: bool = False) -> tuple[int, int] | None:
    """Where `content`, without white space around it, is in `text`; as JSON where it is not there as it is."""
    content = (content or "").strip()
    for form in _forms(content):
        start = text.rfind(form, position) if last else text.find(form, position)
        if start >= 0:
            return start, start + len(form)
    return None


def _forms(content: str) -> tuple[str, ...]:
    return content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1]


def end_of_calls(whole: str, calls: list[dict], position: int) -> int:
    """Where a rendering has shown the names and texts of `calls`, which begin after `position`."""
    for call in calls:
        name = find_text(whole, call["function"]["name"], position)
        if name is None:
            raise RowProblem(NO_CALL)
        ends = [name[1]]
        for value in _strings(call["function"]["arguments"]):
            # A template may write the arguments before the name.
            span = find_text(whole, value, name[1]) or find_text(whole, value, position)
            if span is None:
                raise RowProblem(NO_CALL)
            ends.append(span[1])
        position = max(ends)
    return position


def _strings(value: Any) -> Iterator[str]:
    """The texts in the arguments of a call."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def common_length(one: Sequence, other: Sequence) -> int:
    """How many characters of two texts, or ids, are alike from the first on."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def describes_tools(messages: list[Message], tools: list) -> bool:
    """Whether the system turn has of each tool the name, and the description or all names of parameters in quotes."""
    text = messages[0]["content"] or "" if messages[0]["role"] == "system" else ""
    return bool(text) and all(
        _describes(text, tool.get("function", tool) if isinstance(tool, dict) else None) for tool in tools
    )


def _describes(text: str, function: Any) -> bool:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    name, description, parameters = (function.get(key) for key in ("name", "description", "parameters"))
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not _has_phrase(text, name):
        return False
    if properties and all(find_text(text, f'"{one}"') for one in properties):
        return True
    rest = text.replace(name, "\0") if str(description or "").strip() in name else text
    return bool(description) and _has_phrase(rest, str(description))


def _has_phrase(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text` by itself, not within a word or, in Chinese, a sentence."""
    escaped = r"(?:(?<!\w)|(?<=\\[nrt]))"  # after a line feed of JSON in JSON
    return any(re.search(rf"{escaped}{re.escape(form)}(?!\w)", text) for form in _forms(phrase.strip()))
