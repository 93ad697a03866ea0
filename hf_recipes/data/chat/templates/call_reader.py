"""Calls of tools in what a model wrote, read by how its chat template writes them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.templates.rendered_text import common_length
from hf_recipes.data.conversations.conversation import RowProblem

if TYPE_CHECKING:
    from hf_recipes.data.chat.encoder import ChatEncoder

NAME, KEYS, VALUES = "PROBEcall", ("PROBEkey", "PROBEother"), ("PROBEvalue", "PROBEanother")
NUMBERS = (1234567, 7654321)
_QUESTION = {"role": "user", "content": "PROBEquestion"}
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class CallReader:
    """The texts around the name and the arguments of a call.

    Attributes:
        opening: before the first name.
        between: from the arguments of one call to the name of the next.
        middle: from a name to its arguments.
        closing: after the last arguments.
        pair: where the arguments are not written as JSON, the texts between two of them, before a key, between it and
            a text, after the text, and between a key and a value that is no text.
    """

    opening: str
    between: str
    middle: str
    closing: str
    pair: tuple[str, ...] | None = None

    @classmethod
    def of(cls, encoder: "ChatEncoder") -> "CallReader | None":
        """That of the encoder's chat template; None where it shows no call."""
        text = _written(encoder, 1)
        opening, _, rest = (text or "").partition(NAME)
        if any(word not in rest for word in (*KEYS, *VALUES)):
            return None
        begin = rest.rfind("{", 0, rest.index(KEYS[0]))
        pair, arguments = None, _json(rest, begin)
        if arguments and arguments[0] == dict(zip(KEYS, VALUES, strict=True)):
            middle, closing = rest[:begin], rest[arguments[1] :]
        else:
            head, rest_of_first = rest.split(KEYS[0], 1)
            joint, rest_of_first = rest_of_first.split(VALUES[0], 1)
            gap, suffix = rest_of_first.split(KEYS[1], 1)[0], rest.split(VALUES[1], 1)[1]
            before = head[len(head) - common_length(head[::-1], gap[::-1]) :]
            after = suffix[: common_length(gap.removesuffix(before), suffix)]
            middle, closing = head.removesuffix(before), suffix.removeprefix(after)
            numbers = (_written(encoder, 1, NUMBERS) or text).partition(KEYS[0])[2].partition(str(NUMBERS[0]))
            pair = (
                gap.removesuffix(before).removeprefix(after),
                before,
                joint,
                after,
                numbers[0] if numbers[1] else joint,
            )
        both = _written(encoder, 2)
        end = opening + NAME + rest.removesuffix(closing)
        following = both.removeprefix(end).partition(NAME) if both and both.startswith(end) else ("", "", "")
        between = following[0] if following[1] else closing + opening
        return cls(opening, between, middle, closing, pair)

    @property
    def mark(self) -> str:
        """What a call begins with."""
        return re.match(r"<[^<>]+>|\[\w+\]|\S", self.opening.lstrip() or NAME)[0]

    def read(self, text: str, tools: Sequence[dict]) -> tuple[str, list[dict]]:
        """The text around the calls, and the calls in OpenAI's form; all of the text where there are none.

        Arguments that are not JSON take the types of the tools' parameters.
        """
        named = r"(?P<name>[\w.\-]+)"
        first = re.compile(_flexible(self.opening) + named + _flexible(self.middle))
        others = re.compile(_flexible(self.between) + named + _flexible(self.middle))
        types = {
            tool["function"].get("name"): (tool["function"].get("parameters") or {}).get("properties") or {}
            for tool in tools
        }
        calls: list[dict] = []
        match, start, end = first.search(text), len(text), len(text)
        while match:
            arguments = self._arguments(text, match.end(), types.get(match["name"], {}))
            if arguments is None:
                break
            start = start if calls else match.start()
            values, end = arguments
            calls.append({"name": match["name"], "arguments": json.dumps(values, ensure_ascii=False)})
            match = others.match(text, end) or first.search(text, end)
        if not calls:
            return text, []
        closing = re.compile(_flexible(self.closing)).match(text, end)
        return (text[:start] + (text[closing.end() :] if closing else "")).strip(), calls

    def _arguments(self, text: str, position: int, types: dict) -> tuple[dict, int] | None:
        """The arguments that begin at `position`, and where they end."""
        if self.pair is None:
            arguments = _json(text, position)
            return arguments if arguments and isinstance(arguments[0], dict) else None
        gap, before, joint, after, other_joint = map(_flexible, self.pair)
        key = rf"(?:{gap})?{before}(?P<key>[^\s<>:=]+?)"
        a_text = re.compile(rf"{key}{joint}(?P<value>.*?){after}", re.DOTALL)
        another, values = re.compile(f"{key}{other_joint}"), dict[str, Any]()
        while True:
            if match := a_text.match(text, position):
                values[match["key"]] = _typed(match["value"], types.get(match["key"]))
                position = match.end()
            elif (match := another.match(text, position)) and (value := _json(text, match.end())):
                values[match["key"]], position = value
            else:
                break
        sign = _flexible(self.closing.strip()[:1])  # else an argument is of another form
        return (values, position) if re.compile(sign).match(text, position) else None


def _written(encoder: "ChatEncoder", count: int, values: Sequence = VALUES) -> str | None:
    """What a model writes to call a tool `count` times, without thoughts and what ends the turn."""
    properties = {key: {"type": "string"} for key in KEYS}
    function = {"name": NAME, "description": "PROBE", "parameters": {"type": "object", "properties": properties}}
    called = {"name": NAME, "arguments": dict(zip(KEYS, values, strict=True))}
    calls = [{"id": f"call{number:05}", "type": "function", "function": called} for number in range(count)]
    messages = [_QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}]
    try:
        example = encoder.template.example(messages, [{"type": "function", "function": function}])
    except (RowProblem, UserError):
        return None
    return encoder.template.split_thoughts(example.answer.removesuffix(example.end))[1]


def _flexible(text: str) -> str:
    """A pattern of `text` with any white space between its words and signs."""
    return r"\s*".join(["", *map(re.escape, re.findall(r"\w+|[^\w\s]", text)), ""])


def _json(text: str, position: int) -> tuple[Any, int] | None:
    try:
        return _DECODER.raw_decode(text, position)
    except ValueError:
        return None


def _typed(text: str, schema: Any) -> Any:
    """An argument that was written as text: a text where its schema says so, else what it is as JSON."""
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
