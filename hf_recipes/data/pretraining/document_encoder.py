"""Documents to token ids: BOS, the text, and the end token."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LONG = 1 << 18  # characters; a longer text is tokenized in sections: a tokenizer needs a few hundred bytes for a token
LINE_BEGIN = re.compile(r"(?<=\n)(?=\S)")  # which no token of a pre-tokenizer spans
# Tokenizers of one vocabulary differ in how they tokenize this.
PROBE = "春天的江南小镇，最让人难忘的是1,024条小河。\n\tdef f(x): return x ** 2  # Ünïcödé 漢字 １２３ 😀"


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase", size: int | None = None) -> str:
    """Digest of the vocabulary and of the ids of a probe.

    With `size`, special tokens added after the first `size` tokens do not count: tokenized text has none of them.
    """
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    # Tokens may be bytes, as Qwen-1's.
    vocabulary = sorted((index, str(token)) for token, index in tokenizer.get_vocab().items())
    vocabulary = [entry for entry in vocabulary if size is None or entry[0] < size or entry[0] not in special]
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return hashlib.sha256(json.dumps([vocabulary, ids], ensure_ascii=False).encode()).hexdigest()[:32]


def leading_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The special tokens that `tokenizer` puts before every text (BOS, or GLM's two); none of those it puts after."""
    bare, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    starts = (start for start in range(len(full)) if full[start : start + len(bare)] == bare)
    return full[: next(starts, 0)]


class DocumentEncoder:
    """Texts → token ids: what the tokenizer puts before a text (BOS), the text, and the end token (by default eos)."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", end_token: str | None = None):
        end_token = end_token or tokenizer.eos_token
        if end_token is None:
            raise UserError("the tokenizer has no end token; name one with --document_end_token")
        end = tokenizer.get_vocab().get(end_token)
        if end is None:
            raise UserError(f"--document_end_token {end_token}: no token of this tokenizer")
        self.tokenizer, self.end_token, self.end = tokenizer, end_token, end
        self._backend = None
        if tokenizer.is_fast:  # a copy, so that the tokenizer keeps its settings
            self._backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = True
        self.begin = leading_ids(tokenizer)
        together, *lines = (self._rows([text])[0] for text in ("山a\n水b", "山a\n", "水b"))
        self._splits_at_lines = together == lines[0] + lines[1]  # not where a tokenizer marks the beginning of a text
        self.size = len(tokenizer)
        self.dtype = np.dtype("<u2" if self.size <= 1 << 16 else "<u4")

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """(tokens,) ids of each text. Literal special tokens in a text are text."""
        if self._splits_at_lines and max(map(len, texts), default=0) > LONG:
            return [self._encode_long(text) for text in texts]
        return [np.fromiter((*self.begin, *row, self.end), self.dtype) for row in self._rows(texts)]

    def _encode_long(self, text: str) -> np.ndarray:
        sections, start = [np.array(self.begin, self.dtype)], 0
        while start < len(text):
            line = LINE_BEGIN.search(text, start + LONG)
            end = line.start() if line else len(text)
            sections.append(np.array(self._rows([text[start:end]])[0], self.dtype))
            start = end
        return np.concatenate([*sections, np.array([self.end], self.dtype)])

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        if self._backend is not None:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]

    @property
    def settings(self) -> dict[str, Any]:
        """What training compares with the tokenizer of the run."""
        return {
            "tokenizer": tokenizer_hash(self.tokenizer),
            "vocabulary": self.size,
            "begin": self.begin,
            "end": self.end,
            "end_token": self.end_token,
            "dtype": self.dtype.str,
        }
