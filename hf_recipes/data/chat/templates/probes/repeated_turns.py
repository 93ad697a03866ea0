"""Conversations of plain texts, of which a template that repeats one pattern needs one rendering."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hf_recipes.data.chat.example import Example
from hf_recipes.data.conversations.conversation import Message

_TEXT = r"(?:'([^'\n]+)'|\"([^\"\n]+)\")"
# Texts that a template looks for, or gives to a method or filter of strings; and those with which it compares others.
_CUE = re.compile(
    rf"{_TEXT}\s*(?:[!=]=|(?:not\s+)?in\b)"
    r"|(?:\.(?:starts|ends)with|\.r?(?:split|partition|find|index)|[.|]\s*replace|\.count|\.[lr]?strip"
    rf"|\.remove(?:pre|suf)fix)\(\s*{_TEXT}"
)
_COMPARED = re.compile(rf"((?:[\w.]|\[[^\]]*\])+)\s*[!=]=\s*{_TEXT}")
_NO_CONTENT = re.compile(r"(?:role|type)['\"\]]*$")
MakeExample = Callable[[list[Message]], Example]
Render = Callable[[list[Message]], str]


@dataclass
class RepeatedTurns:
    """The pattern of a template.

    Attributes:
        generation: what stands between a question and an answer in a prompt.
        before: what the model writes before the text of an answer.
        after: what stands between an answer and a question.
        end, rest, remarks: as an `Example` has them.
        cues: the texts that the template looks for in contents, such as ``/no_think``: of a conversation with one, each
            turn may be asked for in another way.
    """

    generation: str
    before: str
    after: str
    end: str
    rest: str
    remarks: list[str]
    cues: re.Pattern
    _is_read: dict[tuple[bool, int], bool] = field(default_factory=dict)

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
        compared = [*_CUE.findall(source)]
        compared += [texts for left, *texts in _COMPARED.findall(source) if not _NO_CONTENT.search(left)]
        cues = {text for texts in compared for text in texts if text}
        pattern = re.compile("|".join(map(re.escape, sorted(cues))) or r"(?!)")
        ending = one.end, one.rest, one.remarks
        return cls(generation, before, after, *ending, pattern) if is_regular else None

    def example(
        self, messages: list[Message], labelled: Sequence[int], example: MakeExample, render: Render
    ) -> Example | None:
        """The one example of a conversation, if it is of plain texts and follows the pattern.

        Its last answer, and with it the prompt, are read from the rendering with the answer alone, where the first
        conversation of the same length, with or without a system turn, had the same `example`.
        """
        if not all(self._is_plain(message) for message in messages):
            return None
        shape = messages[0]["role"] == "system", len(messages)
        if shape not in self._is_read:
            last = example(messages)
            self._is_read[shape] = self._last(messages, render) == last
        else:
            last = self._last(messages, render) if self._is_read[shape] else None
            if last is None and len(labelled) < 2:
                return None
            last = last or example(messages)
        first = 1 if messages[0]["role"] == "system" else 0
        position = last.prompt.find(messages[first]["content"])
        if first and messages[0]["content"] not in last.prompt[: max(0, position)]:
            return None
        for index, message in enumerate(messages[first:-1], first):
            text = message["content"]
            if not last.prompt.startswith(text, position):
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

    def _is_plain(self, message: Message) -> bool:
        text = message["content"]
        is_plain = message.keys() <= {"role", "content", "weight"} and message["role"] != "tool"
        return bool(is_plain and text) and text == text.strip() and not self.cues.search(text)

    def _last(self, messages: list[Message], render: Render) -> Example | None:
        """The last turn, without the answers before it, from the rendering with it."""
        whole, answer = render(messages), self.before + messages[-1]["content"] + self.end
        if not whole.endswith(self.generation + answer + self.rest):
            return None
        prompt = whole[: len(whole) - len(answer + self.rest)]
        is_labelled = messages[-1].get("weight") != 0
        return Example(
            prompt, len(messages), answer, self.end, self.rest, is_labelled=is_labelled, remarks=list(self.remarks)
        )
