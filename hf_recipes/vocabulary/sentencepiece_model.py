"""SentencePiece models (tokenizer.model), and pieces appended to one.

A BPE model has no list of merges: any two neighbours are merged whose union is a piece, those of the highest score
first. New pieces get falling scores below the lowest old one, so that old pieces are merged first. A new piece may
still complete an old one that the old merges never reached; such a piece is not admitted (`PieceGuard`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_recipes.models.families.tokenizers.from_sentencepiece import CONTROL, NORMAL

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import Tokenizer

UNKNOWN_PENALTY = 10.0  # of a character without a piece, below the lowest score (SentencePiece's kUnkPenalty)
MARGIN = 0.1  # of log probability


class PieceGuard:
    """Admits a piece of a BPE model where no old piece becomes reachable that was not: where no old one is made of it
    and another piece."""

    def __init__(self, pieces: Iterable[str]):
        self._pieces = set(pieces)
        self._rests: dict[str, list[str]] = {}
        for piece in self._pieces:
            for cut in range(1, len(piece)):
                self._rests.setdefault(piece[:cut], []).append(piece[cut:])
                self._rests.setdefault(piece[cut:], []).append(piece[:cut])

    def __call__(self, piece: str) -> bool:
        if any(rest in self._pieces for rest in self._rests.get(piece, ())):
            return False
        self._pieces.add(piece)
        return True


def append_pieces(model: "ModelProto", scores: Mapping[str, float], special: Mapping[str, int], next_id: int) -> None:
    """Append pieces, the first at `next_id`; `special` tokens, which may have ids behind the old pieces, come before.

    An id below `next_id` that nothing has becomes an unused control piece.
    """
    names = {index: token for token, index in special.items()}
    for index in range(len(model.pieces), next_id):
        _append(model, names.get(index, f"<unused_{index}>"), 0.0, CONTROL)
    for piece, score in scores.items():
        _append(model, piece, score, NORMAL)
    model.trainer_spec.vocab_size = len(model.pieces)


def _append(model: "ModelProto", text: str, score: float, kind: int) -> None:
    piece = model.pieces.add()
    piece.piece, piece.score, piece.type = text, score, kind


def falling_scores(model: "ModelProto", pieces: Sequence[str]) -> dict[str, float]:
    """Strictly falling scores below the lowest of the model's."""
    lowest = min(piece.score for piece in model.pieces)
    return {piece: lowest - 1 - index for index, piece in enumerate(pieces)}


def unigram_scores(pieces: Sequence[str], old: Mapping[str, float]) -> dict[str, float]:
    """Log probabilities with which new `pieces`, the most wanted first, replace their best cuts into `old` ones.

    Each is above the score of that cut by a margin that grows with its length, so that a longer new piece wins
    over shorter ones, and falls with its rank, so that two cuts hardly ever have the same score, of which libraries
    choose differently.
    """
    unknown = min(old.values()) - UNKNOWN_PENALTY
    return {
        piece: best_score(piece, old, unknown) + MARGIN * (len(piece) ** 2 + 1 - rank / len(pieces))
        for rank, piece in enumerate(pieces)
    }


def best_score(text: str, scores: Mapping[str, float], unknown: float) -> float:
    """The score of the best segmentation of `text`, in which a character without a piece scores `unknown`."""
    best = [0.0]
    for end in range(1, len(text) + 1):
        parts = (best[start] + scores[text[start:end]] for start in range(end) if text[start:end] in scores)
        best.append(max(parts, default=best[end - 1] + unknown))
    return best[-1]


def add_unigram_pieces(
    settings: dict[str, Any], scores: Mapping[str, float], special: Mapping[str, int], next_id: int
) -> None:
    """As `append_pieces`, for the Unigram model of a tokenizer.json, whose ids are positions."""
    vocabulary = settings["model"]["vocab"]
    names = {index: token for token, index in special.items()}
    floor = min(score for _, score in vocabulary)
    for index in range(len(vocabulary), next_id):
        vocabulary.append([names.get(index, f"<unused_{index}>"), floor * 10])
    vocabulary.extend([piece, score] for piece, score in scores.items())


def cut_otherwise(model: "ModelProto", tokenizer: "Tokenizer", texts: Iterable[str]) -> set[str]:
    """The `texts` that SentencePiece cuts otherwise by `model` than `tokenizer` does."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model.SerializeToString())
    return {text for text in texts if processor.encode(text) != tokenizer.encode(text, add_special_tokens=False).ids}
