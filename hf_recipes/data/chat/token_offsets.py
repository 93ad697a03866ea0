"""Which tokens of a text hold which of its characters, for fast tokenizers and slow ones."""

import re
from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Iterable, MutableMapping, Sequence
from itertools import chain, pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase


class Aligned(ABC):
    """The tokens of one text, addressed by its characters."""

    text: str
    ids: Sequence[int]

    @abstractmethod
    def tokens(self, start: int, end: int) -> tuple[int, int]:
        """The range of tokens that hold any of the characters [start, end)."""

    @abstractmethod
    def begins_character(self, token: int) -> bool:
        """Whether no character is split between `token` and the one before it."""

    def boundary(self, first: int, token: int) -> int:
        """`token`, moved back (to `first` at the most) to where a character begins."""
        while first < token and not self.begins_character(token):
            token -= 1
        return token

    def cut(self, first: int, last: int, count: int, side: str) -> tuple[int, int] | None:
        """A range of at least `count` tokens to remove at one side of [first, last); what stays is whole characters.

        None where nothing would stay.
        """
        if side == "right":
            begin = self.boundary(first, max(first, last - count))
            return (begin, last) if begin > first else None
        end = first + count
        while end < last and not self.begins_character(end):
            end += 1
        return (first, end) if end < last else None


class ByteAligned(Aligned):
    """For byte-level vocabularies, whose tokens each stand for a known number of bytes: no offsets are needed."""

    def __init__(self, text: str, ids: np.ndarray, lengths: np.ndarray):
        self.text, self.ids, self._bytes = text, ids, text.encode()
        self._ends = lengths[ids].cumsum()

    @property
    def is_exact(self) -> bool:
        """Whether the tokens have all bytes of the text: a normalizer or a stripping special token can remove some."""
        return (self._ends[-1] if len(self.ids) else 0) == len(self._bytes)

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        first = len(self.text[:start].encode())
        last = first + len(self.text[start:end].encode())
        return int(self._ends.searchsorted(first, "right")), int(self._ends.searchsorted(last, "left")) + 1

    def begins_character(self, token: int) -> bool:
        return token >= len(self.ids) or self._bytes[self._ends[token - 1]] & 0xC0 != 0x80


class OffsetAligned(Aligned):
    """For any other fast tokenizer, from the offsets that it reports."""

    def __init__(self, text: str, encoding):
        self.text, self.ids, self._encoding = text, encoding.ids, encoding

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        find = self._encoding.char_to_token
        # White space that a normalizer removes has no token.
        following = (token for token in map(find, range(start, len(self.text))) if token is not None)
        first = next(following, len(self.ids))
        last = next((token for token in map(find, range(end - 1, start - 1, -1)) if token is not None), first - 1) + 1
        while first < last < len(self.ids) and self._encoding.offsets[last][0] < end:
            last += 1  # a character of several tokens
        return first, last

    def begins_character(self, token: int) -> bool:
        offsets = self._encoding.offsets
        return token >= len(offsets) or offsets[token][0] >= offsets[token - 1][1]


class PrefixAligned(Aligned):
    """For slow tokenizers: a character's token is the first at which the text and the text before it differ."""

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer, self.text = tokenizer, text
        self.ids = self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        before, until = (self._common(self.text[:position]) for position in (start, end))
        return before[0], until[0] + (not until[1])

    def _common(self, prefix: str) -> tuple[int, bool]:
        ids = self._encode(prefix)
        differing = (i for i, (one, other) in enumerate(zip(ids, self.ids, strict=False)) if one != other)
        count = next(differing, min(len(ids), len(self.ids)))
        return count, count == len(ids)

    def begins_character(self, token: int) -> bool:
        return not self._tokenizer.decode(self.ids[max(0, token - 4) : token]).endswith("\ufffd")


class Aligner:
    """Tokenizes texts, without special tokens but those that they hold."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._byte_lengths = byte_lengths(tokenizer)
        self._borders = special_token_pattern(tokenizer)
        self._prepared: dict[str, Aligned] = {}
        self._pieces: dict[str, np.ndarray] = {}

    def __call__(self, text: str) -> Aligned:
        return self._prepared.get(text) or self._align([text], ChainMap({}, self._pieces))[0]

    def prepare(self, texts: Iterable[str]) -> None:
        """Tokenize at once `texts`, which will be asked for, and forget those before."""
        different = list(dict.fromkeys(texts))
        self._pieces = {}
        self._prepared = dict(zip(different, self._align(different, self._pieces), strict=True))

    def _align(self, texts: list[str], known: MutableMapping[str, np.ndarray]) -> list[Aligned]:
        """The tokens of `texts`; `known` has those of pieces, and gets those of new ones."""
        if not self._tokenizer.is_fast:
            return [PrefixAligned(text, self._tokenizer) for text in texts]
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        if self._byte_lengths is None:
            encodings = backend.encode_batch(texts, add_special_tokens=False)
            return [OffsetAligned(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]
        split = [self._split(text) for text in texts]
        new = [piece for piece in dict.fromkeys(chain.from_iterable(split)) if piece not in known]
        for piece, encoding in zip(new, backend.encode_batch_fast(new, add_special_tokens=False), strict=True):
            known[piece] = np.array(encoding.ids, dtype=np.int32)
        aligned: list[Aligned] = []
        for text, pieces in zip(texts, split, strict=True):
            ids = np.concatenate([known[piece] for piece in pieces]) if len(pieces) > 1 else known[pieces[0]]
            one = ByteAligned(text, ids, self._byte_lengths)
            aligned.append(one if one.is_exact else OffsetAligned(text, backend.encode(text, add_special_tokens=False)))
        return aligned

    def _split(self, text: str) -> list[str]:
        """`text` in pieces whose tokens do not depend on each other: what is before a special token, and from it on.

        The frame of a chat template is the same in all rows, and earlier turns in the prompts of the later ones.
        """
        if self._borders is None:
            return [text]
        starts = [0, *(match.start() for match in self._borders.finditer(text) if match.start()), len(text)]
        return [text[start:end] for start, end in pairwise(starts)]

    def after(self, prompt: Aligned, answer: str) -> tuple[Aligned, int]:
        """The tokens of an answer after its prompt: those of a text from an index on.

        Byte-level tokenizers give them of the answer alone; others may put a space before a text, and give them of the
        answer behind its prompt, where that leaves the prompt's tokens as they are.
        """
        alone = self(answer)
        if not isinstance(alone, ByteAligned):
            whole, size = self(prompt.text + answer), len(prompt.ids)
            if list(whole.ids[:size]) == list(prompt.ids):
                return whole, size
        return alone, 0

    def begins_alike(self, aligned: Aligned, end: int, count: int) -> bool:
        """Whether the first `end` characters of a text have, by themselves, its first `count` tokens."""
        return list(self(aligned.text[:end]).ids) == list(aligned.ids[:count])


def special_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern | None:
    """The tokens that are found in a text before anything else is; None where one takes part of its surroundings."""
    tokens = [token for token in tokenizer.added_tokens_decoder.values() if not token.normalized]
    if not tokens or any(token.lstrip or token.single_word for token in tokens):
        return None
    return re.compile("|".join(map(re.escape, sorted(map(str, tokens), key=len, reverse=True))))


def byte_lengths(tokenizer: PreTrainedTokenizerBase) -> np.ndarray | None:
    """How many bytes of text each id stands for, or None where the vocabulary is not byte-level."""
    if not tokenizer.is_fast or type(tokenizer.backend_tokenizer.decoder).__name__ != "ByteLevel":
        return None
    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int32)
    for token, index in vocabulary.items():
        lengths[index] = len(token)  # a character of a byte-level token is a byte
    for index, token in tokenizer.added_tokens_decoder.items():
        lengths[index] = len(str(token).encode())
    return lengths
