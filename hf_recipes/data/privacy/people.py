"""The members of a chat, found by their names."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        self._anywhere = _any_of(self._numbers.keys() - ordinary)
        words = _any_of(ordinary)
        self._ordinary = words and re.compile(
            rf"(?:[@＠]|回复 ?)(?P<mention>{words.pattern})(?=[\s,，。:：!！?？@＠]|$)"
            rf"|^(?P<head>{words.pattern})(?=\s?(?:[:：(（]|<[\w.+-]+@))",
            re.M,
        )

    def find(self, text: str) -> Iterator[Span]:
        if self._anywhere:
            for match in self._anywhere.finditer(text):
                start, end = match.span()
                joined = _joined_digits if match[0].isdigit() else _joined
                if not (joined(text[max(0, start - 1) : start + 1]) or joined(text[end - 1 : end + 1])):
                    yield Span(start, end, "person", self._numbers[match[0]])
        if self._ordinary:
            for match in self._ordinary.finditer(text):
                name = match.lastgroup
                yield Span(*match.span(name), "person", self._numbers[match[name]])


def _any_of(names: Iterable[str]) -> re.Pattern | None:
    """One pattern for all names, the longest first, as a tree of their letters: many cost little more than a few."""
    tree: dict = {}
    for name in names:
        node = tree
        for letter in name:
            node = node.setdefault(letter, {})
        node[""] = {}
    return re.compile(_branches(tree)) if tree else None


def _branches(tree: dict) -> str:
    options = [re.escape(letter) + _branches(node) for letter, node in tree.items() if letter]
    if not options:
        return ""
    joined = options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"
    return f"(?:{joined})?" if "" in tree else joined
