"""tiktoken's vocabularies: a line for each token, its bytes in base64 and its rank, which is its id too."""

import base64
import binascii
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import regex

from hf_recipes.core.errors import UserError
from hf_recipes.models.tokenizers.pretokenizers import PATTERNS, pre_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Ranks:
    """A vocabulary, and tiktoken's own algorithm on it: of all neighbours those of the lowest rank merge first.

    Args:
        pattern: what splits texts, a key of `PATTERNS`.
        composes: whether texts are brought to NFC before.
    """

    def __init__(self, path: Path, pattern: str, composes: bool = False):
        self.pattern, self.composes = pattern, composes
        try:
            lines = [line.split() for line in path.read_bytes().splitlines() if line]
            self.ranks: Mapping[bytes, int] = {base64.b64decode(token): int(rank) for token, rank in lines}
        except (ValueError, binascii.Error):
            raise UserError(f"{path}: not a vocabulary of tiktoken (tokens in base64 and their ranks)") from None
        if sorted(self.ranks.values()) != list(range(len(self.ranks))) or len(self.ranks) < 256:
            raise UserError(f"{path}: its ranks are not 0, 1, 2, … to the last; the file is damaged, download it again")

    @cached_property
    def tokens(self) -> list[bytes]:
        return sorted(self.ranks, key=self.ranks.__getitem__)

    def encode(self, text: str) -> list[int]:
        if self.composes:
            text = unicodedata.normalize("NFC", text)
        pieces = regex.findall("|".join(PATTERNS[self.pattern]), text)
        return [index for piece in pieces for index in self._merge(piece.encode())]

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.tokens[index] for index in ids).decode(errors="replace")

    def _merge(self, piece: bytes) -> list[int]:
        if piece in self.ranks:
            return [self.ranks[piece]]
        parts = [piece[index : index + 1] for index in range(len(piece))]
        while True:
            ranks = [self.ranks.get(left + right) for left, right in pairwise(parts)]
            lowest = min((rank for rank in ranks if rank is not None), default=None)
            if lowest is None:
                return [self.ranks[part] for part in parts]
            index = ranks.index(lowest)
            parts[index : index + 2] = [parts[index] + parts[index + 1]]


def as_tokenizer(vocabulary: Ranks, special: Iterable[str]) -> "Tokenizer":
    """The tokenizer.json of a vocabulary, with `special` tokens behind it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    signs = bytes_to_unicode()
    names = {token: "".join(signs[byte] for byte in token) for token in vocabulary.tokens}
    merges = [
        (names[token[:cut]], names[token[cut:]])
        for token in vocabulary.tokens
        for cut in range(1, len(token))
        if token[:cut] in names and token[cut:] in names
    ]
    ids = {names[token]: index for token, index in vocabulary.ranks.items()}
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=True))
    if vocabulary.composes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer(vocabulary.pattern)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer
