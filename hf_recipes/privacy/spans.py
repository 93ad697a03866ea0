"""Spans of personal data, and helpers of the rules."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """The characters [start, end) of a text and their kind; `person` counts from 1."""

    start: int
    end: int
    kind: str
    person: int = 0


Rule = Callable[[str], Iterator[Span]]


def groups(kind: str, *patterns: re.Pattern) -> Rule:
    """A rule: the first group of each match of each pattern."""

    def find(text: str) -> Iterator[Span]:
        for pattern in patterns:
            for match in pattern.finditer(text):
                yield Span(*match.span(1), kind)

    return find


def overlapping(pattern: re.Pattern, text: str) -> Iterator[re.Match]:
    """All matches, including those that begin within another."""
    position = 0
    while match := pattern.search(text, position):
        yield match
        position = match.start() + 1


def before(text: str, position: int, count: int) -> str:
    return text[max(0, position - count) : position]
