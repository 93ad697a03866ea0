"""The members of a chat, found by their names."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files

from hf_recipes.data.privacy.spans import Span

_joined = re.compile("[A-Za-z0-9_]{2}").fullmatch  # an ASCII name is a whole word, a number a whole number
_joined_digits = re.compile("[0-9]{2}").fullmatch
_COMMON = 10  # how often jieba's corpus has to have a word for it to be an ordinary one


@cache
def _ordinary_words() -> frozenset[str]:
    """Words of jieba's dictionary (a word, its count and its part of speech a line) that are not people's names."""
    rows = (line.split(" ") for line in (files("jieba") / "dict.txt").read_text("utf-8").splitlines())
    return frozenset(word for word, count, tag in rows if int(count) >= _COMMON and not tag.startswith("nr"))


def _is_ordinary(name: str) -> bool:
    if len(name) == 1 or (name.isascii() and len(name) < 3) or (name.isdigit() and len(name) < 5):
        return True
    return name in _ordinary_words()


class People:
    """Where people are named; see `Redactor`."""

    def __init__(self, people: Mapping[str, Iterable[str]] | Sequence[str]):
        named = people if isinstance(people, Mapping) else dict.fromkeys(people, ())
        self._numbers: dict[str, int] = {}
        for number, (name, others) in enumerate(named.items(), 1):
            for each in (name, *others):
                self._numbers.setdefault(each.strip(), number)
        # A member who is called like a placeholder has no other name to hide.
        for name in ("", *(f"用户{number}" for number in range(1, len(named) + 1))):
            self._numbers.pop(name, None)
        ordinary = {name for name in self._numbers if _is_ordinary(name)}
        self._words = _Names(ordinary)
        self._names = _Names(self._numbers.keys() - ordinary)

    def find(self, text: str) -> Iterator[Span]:
        for start, end in self._names.find(text):
            name = text[start:end]
            joined = _joined_digits if name.isdigit() else _joined
            if not (joined(text[max(0, start - 1) : start + 1]) or joined(text[end - 1 : end + 1])):
                yield Span(start, end, "person", self._numbers[name])
        for address in _ADDRESS.finditer(text) if self._words else ():
            start = address.end()
            end = self._words.end(text, start)
            if end and (_AFTER_HEAD if address[0] == "" else _AFTER_MENTION).match(text, end):
                yield Span(start, end, "person", self._numbers[text[start:end]])


_ADDRESS = re.compile("[@＠]|回复 ?|^", re.M)
_AFTER_MENTION = re.compile(r"[\s,，。:：!！?？@＠]|$")
_AFTER_HEAD = re.compile(r"\s?(?:[:：(（]|<[\w.+-]+@)")


class _Names:
    """Names as a tree of their characters: a long list costs little more than a short one."""

    def __init__(self, names: Collection[str]):
        self._tree: dict = {}
        for name in names:
            node = self._tree
            for sign in name:
                node = node.setdefault(sign, {})
            node[""] = {}
        self._first = re.compile(f"[{''.join(map(re.escape, self._tree))}]") if names else None

    def __bool__(self) -> bool:
        return self._first is not None

    def end(self, text: str, start: int) -> int:
        """Where the longest name that begins at `start` ends, or 0."""
        node, end = self._tree, 0
        for position in range(start, len(text)):
            node = node.get(text[position])
            if node is None:
                break
            if "" in node:
                end = position + 1
        return end

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        position = 0
        for first in self._first.finditer(text) if self._first else ():
            start = first.start()
            if start >= position and (end := self.end(text, start)):
                yield start, end
                position = end
