"""SentencePiece models (tokenizer.model), and pieces appended to one.

A BPE model has no list of merges: any two neighbours are merged whose union is a piece, those of the highest score
first. New pieces get falling scores below the lowest old one, so that old pieces are merged first. A new piece may
still complete an old one that the old merges never reached; such a piece is not admitted (`PieceGuard`).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import Tokenizer

FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
UNKNOWN_PENALTY = 10.0  # of a character without a piece, below the lowest score (SentencePiece's kUnkPenalty)
MARGIN = 0.1  # of log probability
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # SentencePiece.Type


def find_model(name: str, cache_dir: str | None = None) -> Path | None:
    """The SentencePiece file of a tokenizer's folder or Hub id."""
    from transformers.utils import cached_file

    for file in FILES:
        path = Path(name) / file
        if not path.parent.is_dir():
            found = cached_file(name, file, cache_dir=cache_dir, _raise_exceptions_for_missing_entries=False)
            path = Path(found or "")
        if path.is_file():
            return path
    return None


def read_model(path: str | Path) -> "ModelProto | None":
    """The model in a file; None where the file is of another kind (tiktoken's has the same name in some folders)."""
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except ImportError:
        raise UserError(f"{path}: sentencepiece or protobuf is not installed: pip install -e '.[vocabulary]'") from None
    model = ModelProto()
    try:
        model.ParseFromString(Path(path).read_bytes())
    except DecodeError:
        return None
    if not model.pieces:
        return None
    if model.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise UserError(f"{path}: a SentencePiece model of words or characters is not extended; bpe and unigram are")
    return model


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


def all_merges(pieces: Sequence[str], old: Iterable[str]) -> list[tuple[str, str]]:
    """The merges of the new `pieces` in the order of these: every two pieces, old or new, that make one."""
    known = {*old, *pieces}
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


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


def as_tokenizer(model: "ModelProto") -> "Tokenizer":
    """The tokenizer.json of a model without a prefix and without normalization, which cuts texts as the model does."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    falls_back = model.trainer_spec.byte_fallback
    names = [piece.piece for piece in model.pieces]
    if model.trainer_spec.model_type == UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in model.pieces]
        kind = models.Unigram(scores, unk_id=model.trainer_spec.unk_id, byte_fallback=falls_back)
    else:
        normal = [piece for piece in model.pieces if piece.type == NORMAL]
        ranked = [piece.piece for piece in sorted(normal, key=lambda piece: -piece.score)]
        vocabulary = {name: index for index, name in enumerate(names)}
        merges = all_merges(ranked, ())
        unknown = names[model.trainer_spec.unk_id]
        kind = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=falls_back)
    tokenizer = Tokenizer(kind)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [piece.piece for piece in model.pieces if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer
