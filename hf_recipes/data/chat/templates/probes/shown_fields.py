"""Which fields of messages a chat template shows, inferred by giving it other values for them.

That a text stands in a rendering does not tell: a short one may be a part of another turn, or of the template.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any

from hf_recipes.data.chat.templates.rendered_text import NO_CALL
from hf_recipes.data.chat.templates.rendering import Renderer
from hf_recipes.data.conversations.conversation import Message, RowProblem

Path = tuple[int | str, ...]  # of a value in a list of messages
MAX_SHAPES = 10_000


class ShownFields:
    """Tells which contents, thoughts and arguments of calls a template shows.

    One rendering answers for all conversations of one shape: the same roles and kinds of values in the same order.
    """

    def __init__(self, render: Renderer):
        self._render = render
        self._known: dict[tuple, set[int]] = {}  # the values that are shown, by their number, of each shape

    def hidden(
        self, messages: list[Message], tools: list | None, is_prompt: bool, is_wanted: Callable[[Path], bool]
    ) -> list[Path]:
        """The paths of those values for which `is_wanted` holds that the rendering does not show."""
        values = list(_values(messages))
        shape = (is_prompt, bool(tools), *(message["role"] for message in messages))
        shape += tuple((path[:2], type(value)) for path, value in values)
        if (shown := self._known.get(shape)) is None:
            if len(self._known) == MAX_SHAPES:
                self._known.clear()
            shown = self._known[shape] = self._shown_together(messages, tools, is_prompt, values)
        paths = []
        for number, (path, value) in enumerate(values):
            if is_wanted(path) and number not in shown:
                if self._is_shown(messages, tools, is_prompt, path, value):
                    shown.add(number)
                else:
                    paths.append(path)
        return paths

    def check(self, messages: list[Message], tools: list | None, is_prompt: bool, indices: Collection[int]) -> None:
        """Raise `RowProblem` unless the rendering shows the texts and calls of the turns at `indices`.

        Thoughts, and text beside an earlier call, may be left out.
        """

        def is_needed(path: tuple) -> bool:
            index, name, *_ = path
            return index in indices and (
                name == "tool_calls" or (name == "content" and not (is_prompt and messages[index].get("tool_calls")))
            )

        for index, name, *_ in self.hidden(messages, tools, is_prompt, is_needed):
            if name == "tool_calls":
                raise RowProblem(NO_CALL)
            raise RowProblem("the chat template does not show every turn", messages[index]["role"])

    def _shown_together(self, messages: list[Message], tools: list | None, is_prompt: bool, values: list) -> set[int]:
        others = {path: _other(value, number) for number, (path, value) in enumerate(values)}
        try:
            text = self._render(_replaced(messages, others), tools, is_prompt)
        except RowProblem:
            return set()
        numbered = enumerate(others.values())
        return {number for number, other in numbered if not isinstance(other, bool) and str(other) in text}

    def _is_shown(self, messages: list[Message], tools: list | None, is_prompt: bool, path: Path, value: Any) -> bool:
        """Whether the rendering has another value in place of this one."""
        other = _other(value, 0)
        try:
            text = self._render(_replaced(messages, {path: other}), tools, is_prompt)
        except RowProblem:
            return True  # the template checks it
        if isinstance(other, bool):
            return text != self._render(messages, tools, is_prompt)
        return str(other) in text


def _values(messages: list[Message]) -> Iterator[tuple[Path, Any]]:
    """What messages say, by path: texts that are not blank, and any value in the arguments of calls."""
    for index, message in enumerate(messages):
        for name in ("content", "reasoning_content"):
            if (message.get(name) or "").strip():
                yield (index, name), message[name]
        for number, call in enumerate(message.get("tool_calls") or ()):
            path = (index, "tool_calls", number, "function", "arguments")
            yield from _leaves(path, call["function"]["arguments"])


def _leaves(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves((*path, key), item)
    elif value != "":
        yield path, value


def _other(value: Any, number: int) -> Any:
    """Another value of the same type, which stands nowhere else."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return type(value)(7_310_000 + number)
    return f"PROBE{number}value"


def _replaced(value: Any, others: dict[Path, Any], path: Path = ()) -> Any:
    """`value` with those of `others` at their paths."""
    if path in others:
        return others[path]
    if isinstance(value, dict):
        return {key: _replaced(item, others, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, others, (*path, index)) for index, item in enumerate(value)]
    return value
