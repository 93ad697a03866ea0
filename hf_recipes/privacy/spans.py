"""Spans of personal data, and helpers of the rules."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unicodedata import normalize

# Full-width, circled, mathematical and raised letters and digits → ASCII, character by character.
_STYLED = [0xB2, 0xB3, 0xB9, *range(0x2070, 0x2500), *range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D800)]
_ASCII = {code: ascii for code in _STYLED if len(ascii := normalize("NFKC", chr(code))) == 1 and ascii.isalnum()}
_ASCII |= {ord(wide): ascii for wide, ascii in zip("＠．－＿＋＃［］", "@.-_+#[]", strict=True)}
_is_styled = re.compile("[²³¹⁰-⓿０-９Ａ-Ｚａ-ｚ＠．－＿＋＃［］\U0001d400-\U0001d7ff]").search

_NUMERALS = "零〇一二三四五六七八九幺两壹贰叁肆伍陆柒捌玖"
_DIGITS = str.maketrans(_NUMERALS + "，,、", "0012345678912123456789   ")
_has_numeral = re.compile(f"[{_NUMERALS}]").search
_SPELT = re.compile(rf"[{_NUMERALS}0-9](?:[ ,，、.·•・･—–/-]?[{_NUMERALS}0-9]){{4,}}(?![十百千万亿])")


def plain(text: str) -> str:
    """`text` with styled letters, and runs of five or more digits with Chinese ones, in ASCII; of equal length."""
    if _is_styled(text):
        text = text.translate(_ASCII)
    if not _has_numeral(text):
        return text
    return _SPELT.sub(lambda run: run[0].translate(_DIGITS) if _has_numeral(run[0]) else run[0], text)


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


def around(text: str, match: re.Match, count: int) -> str:
    return f"{before(text, match.start(), count)} {text[match.end() : match.end() + count]}"
