"""Where the rendering of a conversation shows what its messages hold."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hf_recipes.data.schemas.conversation import Message, RowProblem


def find_text(text: str, content: str | None, position: int = 0, last: bool = False) -> tuple[int, int] | None:
    """Where `content`, without white space around it, is in `text`; as JSON where it is not there as it is."""
    content = (content or "").strip()
    for form in (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1]):
        start = text.rfind(form, position) if last else text.find(form, position)
        if start >= 0:
            return start, start + len(form)
    return None


def end_of_calls(whole: str, calls: list[dict], position: int) -> int:
    """Where a rendering has shown `calls`, which begin after `position`."""
    for call in calls:
        name = find_text(whole, call["function"]["name"], position)
        values = [name and find_text(whole, value, name[1]) for value in _strings(call["function"]["arguments"])]
        if name is None or None in values:
            raise RowProblem("the chat template does not show a call of a tool")
        position = max(end for _, end in [name, *values])
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
    return bool(text) and all(_describes(text, tool.get("function", tool)) for tool in tools)


def _describes(text: str, function: Any) -> bool:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    description, parameters = function.get("description"), function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    options = [[description] if description else [], [f'"{name}"' for name in properties or ()]]
    return find_text(text, function["name"]) is not None and any(
        some and all(find_text(text, str(one)) for one in some) for some in options
    )
