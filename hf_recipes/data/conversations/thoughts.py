"""The thoughts that an answer begins with, and what stands around them."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ThoughtMarks:
    """What stands around thoughts in an answer; by default what files and other programs write.

    Attributes:
        start, end: around thoughts. A prompt may end with `start`, so that the answer has only `end`.
        close: `end` with the white space that the template puts before it.
        direct: what stands before an answer without thoughts, such as gpt-oss's ``<|channel|>final<|message|>``; empty
            where the template writes empty thoughts there, or nothing.
        expected: whether the template opens thoughts, or writes something in place of those that an answer lacks.
    """

    start: str = "<think>"
    end: str = "</think>"
    close: str = "\n</think>"
    direct: str = ""
    expected: bool = False

    def opened_by(self, prompt: str) -> bool:
        """Whether an answer to `prompt` begins within thoughts."""
        return prompt.rstrip().endswith(self.start)

    def answer_start(self, text: str, opened: bool = False) -> int | None:
        """Where the answer begins in what a model wrote, 0 where there are no thoughts, None within thoughts.

        Thoughts may lack `start`, as in data of DeepSeek-R1. Then `end` closes some where it begins a line, or ends a
        paragraph right after a text; within a sentence it is only mentioned.
        A longer text of the same beginning has its answer at the same position, once that is more than 0.
        """
        begin = len(text) - len(text.lstrip())
        if self.direct and text.startswith(self.direct, begin):
            return begin + len(self.direct)
        is_thinking = opened or text.startswith(self.start, begin)
        if self._next_message:
            end = self._next_answer(text) if is_thinking else None
        elif is_thinking:
            end = text.find(self.end) + len(self.end)
            end = None if end < len(self.end) else end
        else:
            closing = self._closing(text) if self.end in text else None
            end = closing.end() if closing and self.start not in text[: closing.end()] else None
        return end or (None if is_thinking else 0)

    def split(self, text: str, opened: bool = False) -> tuple[str, str]:
        """The thoughts of what a model wrote, and its answer: empty where the text ends within thoughts."""
        start = self.answer_start(text, opened)
        if start == 0:
            return "", text
        thoughts = text[:start].strip()
        for mark in (self.end, self.direct, self._next_message.strip()):
            thoughts = thoughts.removesuffix(mark)
        return thoughts.removeprefix(self.start).strip(), text[start:].lstrip() if start else ""

    def _closing(self, text: str) -> re.Match | None:
        """Where `end` closes thoughts that have no `start`."""
        end, blank = re.escape(self.end), r"[^\S\n]*"
        pattern = rf"\A\s*{end}(?={blank}(?:\n|\Z))|\n{blank}{end}|(?<=\S){end}(?={blank}\n{blank}\n)"
        return re.search(pattern, text)

    @property
    def _next_message(self) -> str:
        """What begins another message, where thoughts are a message of their own."""
        return self.end.removesuffix(self.direct) if self.direct and self.end.endswith(self.direct) else ""

    def _next_answer(self, text: str) -> int | None:
        """Where the first message begins that holds no thoughts; an answer's is without its `direct`."""
        position = text.find(self._next_message)
        while position >= 0:
            position += len(self._next_message)
            rest = text[position:]
            if rest.startswith(self.direct):
                return position + len(self.direct)
            if not rest.startswith(self.start) and not (self.start.startswith(rest) or self.direct.startswith(rest)):
                return position
            position = text.find(self._next_message, position)
        return None


TAGS = ThoughtMarks()
