"""Kinds of characters, and which of them the tokens of a vocabulary join."""

import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import pairwise

DIGIT, SPACE, SIGN = "digit", "white space", "sign"


@cache
def kind_of(character: str) -> str:
    """`DIGIT`, `SPACE`, `SIGN`, or the script of a letter, as Unicode names begin with it (``CJK``, ``LATIN``)."""
    if character.isspace():
        return SPACE
    category = unicodedata.category(character)
    if category[0] == "N":
        return DIGIT
    if category[0] not in "LM":
        return SIGN
    return unicodedata.name(character, SIGN).split(" ")[0]


class Joins:
    """Which neighbouring characters a new token may join.

    Letters of one script, and signs, always; a digit and its neighbour, letters of two scripts, white space and
    whatever follows it, or a sign and a letter, where one of the `tokens` of the old vocabulary joins such a pair.
    """

    def __init__(self, tokens: Iterable[str]):
        self._pairs = {(kind_of(a), kind_of(b)) for token in tokens for a, b in pairwise(token)}

    def admit(self, text: str) -> bool:
        return all(self.may_join(a, b) for a, b in pairwise(text))

    def may_join(self, left: str, right: str) -> bool:
        kinds = kind_of(left), kind_of(right)
        return kinds in self._pairs or (kinds[0] == kinds[1] and kinds[0] not in (DIGIT, SPACE))
