"""The byte-pair encoding of a tokenizer (tokenizer.json), as it can be continued.

Tokens are strings of the vocabulary's own alphabet: one sign for each byte (GPT-2's byte-level BPE), or characters with
``▁`` for a space and ``<0xE4>`` for a byte of any other character (SentencePiece's BPE).
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError
from hf_recipes.vocabulary.characters import Joins

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PARTS = re.compile(rf"{SPACE}*[^{SPACE}\n]+|{SPACE}+")


def byte_signs() -> dict[int, str]:
    """The sign of each byte in byte-level BPE (GPT-2's bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_SIGNS = byte_signs()
_BYTES = {sign: byte for byte, sign in _SIGNS.items()}
# Bytes that occur in UTF-8.
UTF8_BYTES = [byte for byte in range(256) if byte not in (0xC0, 0xC1) and byte < 0xF5]


def hex_of(token: str) -> str:
    """The bytes of a byte-level token, as ``<e4 b8>``; a byte of another vocabulary as it is."""
    return token if _BYTE.fullmatch(token) else f"<{bytes(_BYTES[sign] for sign in token).hex(' ')}>"


class Bpe:
    """Reads `backend`, whose tokenizer is named `name` in errors."""

    def __init__(self, backend: "Tokenizer", name: str):
        self.backend, self.name = backend, name
        self.settings: dict[str, Any] = json.loads(backend.to_str())
        model = self.settings["model"]
        if model["type"] != "BPE":
            why = {
                "WordPiece": "its words are looked up whole, longest first, so any new piece changes old cuts",
                "WordLevel": "it knows whole words alone",
                "Unigram": "give its tokenizer.model, which is extended with scores",
            }.get(model["type"], "its kind is not known here")
            raise UserError(f"{name}: {model['type']} tokenizers are not extended: {why}")
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
            raise UserError(
                f"{name}: its BPE marks word ends, continues words with a prefix or drops merges at random, which is "
                "not extended; byte-level BPE and SentencePiece are"
            )
        self.is_byte_level = _names(self.settings, "ByteLevel")
        if not (self.is_byte_level or model.get("byte_fallback")):
            raise UserError(
                f"{name}: its BPE is neither byte-level nor falls back to bytes, so some characters have no tokens; "
                "train a tokenizer of your own (train_tokenizer.py)"
            )
        self.vocabulary: dict[str, int] = model["vocab"]
        self._whole: dict[str, bool] = {}
        self.special = {token["content"]: token["id"] for token in self.settings["added_tokens"]}

    @property
    def next_id(self) -> int:
        return max(*self.vocabulary.values(), *self.special.values(), -1) + 1

    @cached_property
    def joins(self) -> Joins:
        return Joins(text for token in self.vocabulary if (text := self.text_of(token)) and token not in self.special)

    def split(self, text: str) -> list[str]:
        """The pre-tokens of `text`, in the vocabulary's alphabet."""
        backend = self.backend
        if backend.normalizer is not None and self.is_byte_level:
            text = backend.normalizer.normalize_str(text)
        if self.is_byte_level:
            return [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return _PARTS.findall(text.replace(" ", SPACE))

    def tokenize(self, pre_token: str) -> list[str]:
        return [token.value for token in self.backend.model.tokenize(pre_token)]

    def spell(self, text: str) -> str:
        """`text` in the vocabulary's alphabet."""
        if self.is_byte_level:
            return "".join(_SIGNS[byte] for byte in text.encode())
        return text.replace(" ", SPACE)

    def text_of(self, token: str) -> str | None:
        """The text of a token; None of one that is no whole characters."""
        if not self.is_byte_level:
            return None if _BYTE.fullmatch(token) else token.replace(SPACE, " ")
        try:
            return bytes(_BYTES[sign] for sign in token).decode()
        except (KeyError, UnicodeDecodeError):
            return None

    def chunks(self, text: str) -> Iterator[str]:
        """The pre-tokens of `text`, cut further where no token, old or new, joins two characters (`Joins`)."""
        for part in self.split(text):
            plain = self.text_of(part)
            if plain is None:  # the pre-tokenizer cut a character in two
                yield part
                continue
            start = 0
            for end, (left, right) in enumerate(pairwise(plain), 1):
                if not self.joins.may_join(left, right):
                    yield self.spell(plain[start:end])
                    start = end
            yield self.spell(plain[start:])

    def runs(self, tokens: Sequence[str]) -> Iterator[list[str]]:
        """Runs of `tokens`, which are those of a chunk, within which two may be joined: of whole characters, and those
        of one character that has several."""
        whole: list[str] = []
        part: list[str] = []
        for token in tokens:
            if part or not self._is_whole(token):
                part.append(token)
                if self.is_byte_level and self.text_of("".join(part)) is None:
                    continue
                yield whole
                yield part if self.is_byte_level else []
                whole, part = [], []
            else:
                whole.append(token)
        yield whole
        yield part

    def _is_whole(self, token: str) -> bool:
        is_whole = self._whole.get(token)
        if is_whole is None:
            is_whole = self._whole[token] = self.text_of(token) is not None
        return is_whole

    def add(self, tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> None:
        """Give `tokens` the next ids, and append `merges`.

        Special tokens get into the model's vocabulary too, under their ids: `tokenizers` gives a token that is added
        later the id after the last of the model, which one of the new tokens would have already.
        """
        from tokenizers import Tokenizer

        first, model = self.next_id, self.settings["model"]
        for token, index in sorted(self.special.items(), key=lambda item: item[1]):
            model["vocab"].setdefault(token, index)
        model["vocab"] |= {token: first + index for index, token in enumerate(tokens)}
        pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        model["merges"] = [list(pair) for pair in (*pairs, *merges)]
        self.backend = Tokenizer.from_str(json.dumps(self.settings, ensure_ascii=False))


def _names(value: Any, kind: str) -> bool:
    """Whether a pre-tokenizer of that kind is in the settings of a tokenizer."""

    def holds(part: Any) -> bool:
        return isinstance(part, dict) and (
            part.get("type") == kind or any(holds(inner) for inner in part.get("pretokenizers", ()))
        )

    return holds(value.get("pre_tokenizer"))
