"""Tokenizers that tokens are added to: BPE, with a SentencePiece model or without, and SentencePiece's Unigram."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_recipes.core.errors import say
from hf_recipes.models.families.tokenizers.from_sentencepiece import NORMAL, UNIGRAM, all_merges
from hf_recipes.vocabulary import sentencepiece_model as pieces
from hf_recipes.vocabulary.bpe import SPACE, Bpe
from hf_recipes.vocabulary.characters import Joins
from hf_recipes.vocabulary.continuation import (
    Extension,
    add_words,
    learn,
    missing_bytes,
    missing_characters,
    too_few_tokens,
)
from hf_recipes.vocabulary.sample import Sample
from hf_recipes.vocabulary.train import LEAST_COVERAGE, train_sentencepiece

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import Tokenizer


class Vocabulary(ABC):
    """A tokenizer that grows.

    Attributes:
        former, backend: what it was, and what it is so far.
        model: its SentencePiece model, where it has one.
        first_id: of the new tokens.
        tokens: the new ones, in the order of their ids.
        refused: words that are no token, and why.
    """

    first_id: int

    def __init__(self, name: str, backend: "Tokenizer", model: "ModelProto | None" = None):
        self.name, self.former, self.backend, self.model = name, backend, backend, model
        self.tokens: list[str] = []
        self.refused: dict[str, str] = {}

    @abstractmethod
    def add_words(self, words: Sequence[str]) -> None:
        """Make each word a token, or say in `refused` why not."""

    @abstractmethod
    def learn(self, sample: Sample, count: int, max_length: int, coverage: float) -> None:
        """Up to `count` tokens, those of missing characters included, which make up `coverage` of the texts."""

    @abstractmethod
    def finish(self) -> None:
        """Bring the SentencePiece model and the tokenizer.json to the same pieces."""

    def _say_fewer(self, made: int, count: int) -> None:
        if made < count:
            say(f"the texts have {made:,} new tokens that occur often enough, not {count:,}; give more text for more")


class BpeVocabulary(Vocabulary):
    def __init__(self, name: str, backend: "Tokenizer", model: "ModelProto | None" = None):
        super().__init__(name, backend, model)
        bpe = Bpe(backend, name)
        self.first_id = bpe.next_id
        self._admits = bool if model is None else pieces.PieceGuard(bpe.vocabulary)

    def add_words(self, words: Sequence[str]) -> None:
        bpe, extension = Bpe(self.backend, self.name), Extension()
        if not bpe.is_byte_level:  # a piece is made of the pieces of its characters
            characters = {bpe.spell(c): None for word in words for c in word if not c.isspace()}
            self._add(bpe, Extension({c: None for c in characters if c not in bpe.vocabulary and self._admits(c)}))
            bpe = Bpe(self.backend, self.name)
        add_words(bpe, words, extension, self._admits)
        self.refused |= extension.refused
        self._add(bpe, extension)

    def learn(self, sample: Sample, count: int, max_length: int, coverage: float) -> None:
        bpe = Bpe(self.backend, self.name)
        if bpe.is_byte_level:
            missing = missing_bytes(bpe)
            if missing:
                say(f"{self.name} lacks {len(missing)} bytes of UTF-8, so that texts with them do not come back; added")
        else:
            missing = [token for token in missing_characters(bpe, sample.texts(), coverage) if self._admits(token)]
        if len(missing) >= count:
            raise too_few_tokens(count, len(missing))
        if missing:
            self._add(bpe, Extension(dict.fromkeys(missing)))
            bpe = Bpe(self.backend, self.name)
        extension = learn(bpe, sample.texts(), count - len(missing), max_length, self._admits)
        self._take(bpe, extension)
        self._say_fewer(len(missing) + len(extension.tokens), count)

    def _add(self, bpe: Bpe, extension: Extension) -> None:
        bpe.add(list(extension.tokens), list(extension.merges))
        self._take(bpe, extension)

    def _take(self, bpe: Bpe, extension: Extension) -> None:
        self.tokens += extension.tokens
        self.backend = bpe.backend

    def finish(self) -> None:
        if self.model is None or not self.tokens:
            return
        bpe = Bpe(self.former, self.name)
        pieces.append_pieces(self.model, pieces.falling_scores(self.model, self.tokens), bpe.special, self.first_id)
        bpe.add(self.tokens, all_merges(self.tokens, bpe.vocabulary))
        self.backend = bpe.backend


class UnigramVocabulary(Vocabulary):
    def __init__(self, name: str, backend: "Tokenizer", model: "ModelProto | None" = None):
        super().__init__(name, backend, model)
        self._settings = json.loads(backend.to_str())
        self._old = dict(self._settings["model"]["vocab"])
        self._special = {token["content"]: token["id"] for token in self._settings["added_tokens"]}
        self.first_id = max(len(self._old), *(index + 1 for index in self._special.values()), 0)

    def add_words(self, words: Sequence[str]) -> None:
        for word in words:
            piece = word.replace(" ", SPACE)
            if piece in self._old:
                self.refused[word] = "it is one token already"
            elif piece not in self.tokens:
                self.tokens.append(piece)

    def learn(self, sample: Sample, count: int, max_length: int, coverage: float) -> None:
        joins = Joins(piece.replace(SPACE, " ") for piece in self._old if not piece.startswith("<"))
        known = {*self._old, *self.tokens}
        size, flag = count + len(self._old), f"--num_new_tokens {count:,}"
        coverage = max(coverage, LEAST_COVERAGE)
        trained = train_sentencepiece(sample.texts(), UNIGRAM, size, coverage, exact=False, flag=flag)
        new = [piece.piece for piece in trained.pieces if piece.type == NORMAL and piece.piece not in known]
        admitted = [piece for piece in new if len(piece) <= max_length and joins.admit(piece.replace(SPACE, " "))]
        self.tokens += admitted[:count]
        self._say_fewer(len(admitted[:count]), count)

    def finish(self) -> None:
        scores = pieces.unigram_scores(self.tokens, self._old)
        pieces.add_unigram_pieces(self._settings, scores, self._special, self.first_id)
        pieces.append_pieces(self.model, scores, self._special, self.first_id)
        self.backend = type(self.former).from_str(json.dumps(self._settings, ensure_ascii=False))
