"""SentencePiece models (tokenizer.model), and fast tokenizers that cut texts as they do."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import Model
    from tokenizers.normalizers import Normalizer

FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # SentencePiece.Type


def find_file(name: str, file: str, **source: Any) -> Path | None:
    """A file of a tokenizer's folder or Hub id.

    Args:
        source: keywords of transformers' `cached_file`: revision, cache_dir.
    """
    from transformers.utils import cached_file

    path = Path(name) / file
    if not path.parent.is_dir():
        lenient = ("gated_repo", "missing_entries", "connection_errors")
        cached = cached_file(name, file, **source, **{f"_raise_exceptions_for_{kind}": False for kind in lenient})
        path = Path(cached or "")
    return path if path.is_file() else None


def find_model(name: str, **source: Any) -> Path | None:
    """The SentencePiece file of a tokenizer's folder or Hub id; see `find_file`."""
    return next((path for file in FILES if (path := find_file(name, file, **source))), None)


def read_model(path: str | Path) -> "ModelProto | None":
    """The model in a file; None where the file is of another kind (tiktoken's has the same name in some folders)."""
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except ImportError:
        raise UserError(f"{path}: sentencepiece or protobuf is not installed: pip install -e .") from None
    model = ModelProto()
    try:
        model.ParseFromString(Path(path).read_bytes())
    except DecodeError:
        return None
    if not model.pieces:
        return None
    if model.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise UserError(f"{path}: a SentencePiece model of words or characters, which no tokenizer.json can hold")
    return model


def all_merges(pieces: Sequence[str], old: Iterable[str]) -> list[tuple[str, str]]:
    """The merges of the new `pieces` in the order of these: every two pieces, old or new, that make one."""
    known = {*old, *pieces}
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def as_tokenizer(model: "ModelProto") -> "Tokenizer":
    """The tokenizer.json of a model without a prefix and without normalization, which cuts texts as the model does."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(_backend_model(model))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [piece.piece for piece in model.pieces if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def as_full_tokenizer(
    model: "ModelProto", forms: "Mapping[str, AddedToken] | None" = None, *, prefix_once: bool = False
) -> "Tokenizer":
    """The tokenizer.json of a model with a prefix, normalization or user-defined pieces, which cuts texts as it does.

    Control pieces are special tokens: they are taken out of texts, and what is between them is a text of its own, as
    in transformers' tokenizers around SentencePiece. A text that is one user-defined piece gets no prefix.

    Args:
        forms: of control pieces that do not have the usual one.
        prefix_once: what follows a special token gets no prefix, as with ``"legacy": false``.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    forms = forms or {}
    spec = model.normalizer_spec
    user_defined = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]
    steps: list[Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix and prefix_once:
        steps.append(normalizers.Replace(Regex(r"\A(?=[ ▁])"), "▁"))  # where Metaspace puts none
    elif spec.add_dummy_prefix and user_defined:
        # Added tokens are looked up after normalization, their own text is normalized too, and must stay as it is.
        alone = "|".join(re.escape(piece) for piece in user_defined)
        steps.append(normalizers.Replace(Regex(rf"\A(?!(?:{alone})?\z)"), "▁"))
    elif spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    tokenizer = Tokenizer(_backend_model(model))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    if prefix_once:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        parts.append(decoders.Strip(" ", left=1))
    tokenizer.decoder = decoders.Sequence(parts)
    special = [piece.piece for piece in model.pieces if piece.type in (UNKNOWN, CONTROL)]
    tokenizer.add_tokens([forms.get(token) or AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=True) for piece in user_defined])
    return tokenizer


def _backend_model(model: "ModelProto") -> "Model":
    from tokenizers import models

    falls_back = model.trainer_spec.byte_fallback
    names = [piece.piece for piece in model.pieces]
    if model.trainer_spec.model_type == UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in model.pieces]
        return models.Unigram(scores, unk_id=model.trainer_spec.unk_id, byte_fallback=falls_back)
    normal = [piece for piece in model.pieces if piece.type == NORMAL]
    ranked = [piece.piece for piece in sorted(normal, key=lambda piece: -piece.score)]
    vocabulary = {name: index for index, name in enumerate(names)}
    unknown = names[model.trainer_spec.unk_id]
    merges = all_merges(ranked, ())
    return models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=falls_back)
