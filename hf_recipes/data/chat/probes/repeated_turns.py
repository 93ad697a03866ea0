"""Conversations of plain texts, which a template that repeats one pattern shows in one rendering."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hf_recipes.data.chat.example import Example
from hf_recipes.data.schemas.conversation import Message

_TEXT = r"(?:'([^'\n]+)'|\"([^\"\n]+)\")"
_CUE = re.compile(rf"{_TEXT}\s+(?:not\s+)?in\b|\.(?:starts|ends)with\(\s*{_TEXT}")
MakeExample = Callable[[list[Message]], Example]


@dataclass(frozen=True)
class RepeatedTurns:
    """The pattern of a template.

    Attributes:
        generation: what stands between a question and an answer in a prompt.
        before: what the model writes before the text of an answer.
        after: what stands between an answer and a question.
        cues: the texts that the template looks for in contents, such as ``/no_think``: of a conversation with one, each
            turn may be asked for in another way.
    """

    generation: str
    before: str
    after: str
    cues: re.Pattern

    @classmethod
    def of(cls, example: MakeExample, source: str) -> "RepeatedTurns | None":
        """The pattern by the examples of probes; None where the template does not repeat one."""
        contents = [f"PROBE{number}" for number in range(6)]
        messages = [
            {"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(contents)
        ]
        examples = [example(messages[:count]) for count in (2, 4, 6)]
        one, two, three = examples
        if any(not b.prompt.startswith(a.prompt + a.answer) for a, b in pairwise(examples)):
            return None
        head, _, generation = one.prompt.partition(contents[0])
        before = one.answer.partition(contents[1])[0]
        after = two.prompt.partition(contents[1])[2].partition(contents[2])[0]
        body = "".join(
            text + (after if number % 2 else generation + before) for number, text in enumerate(contents[:4])
        )
        is_regular = three.prompt == head + body + contents[4] + generation and after.startswith(one.end)
        cues = {text for groups in _CUE.findall(source) for text in groups if text}
        pattern = re.compile("|".join(map(re.escape, sorted(cues))) or r"(?!)")
        return cls(generation, before, after, pattern) if is_regular else None

    def example(self, messages: list[Message], labelled: Sequence[int], example: MakeExample) -> Example | None:
        """The one example of a conversation, if it is of plain texts and follows the pattern."""
        plain = {"role", "content", "weight"}
        if len(labelled) < 2 or any(message.keys() - plain or message["role"] == "tool" for message in messages):
            return None
        last = example(messages)
        first = 1 if messages[0]["role"] == "system" else 0
        position = last.prompt.find(messages[first]["content"])
        for index, message in enumerate(messages[first:-1], first):
            text = message["content"]
            if text != text.strip() or self.cues.search(text) or not last.prompt.startswith(text, position):
                return None
            position += len(text)
            between = self.generation + self.before if message["role"] == "user" else self.after
            if index == len(messages) - 2:
                return last if last.prompt[position:] == self.generation else None
            if not last.prompt.startswith(between, position):
                return None
            position += len(between)
            if index + 1 in labelled:
                end = position + len(messages[index + 1]["content"]) + len(last.end)
                last.earlier.append((index + 1, position - len(self.before), end))
        return None
