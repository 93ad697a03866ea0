"""Tokenizers of folders with a SentencePiece model (tokenizer.model): those with its ids, fast where one has them."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from hf_recipes.core.errors import UserError, say
from hf_recipes.models.families.tokenizers import chatglm_tokenizer
from hf_recipes.models.families.tokenizers.fast_tokenizer import Vocabulary, add_special, compare, read_json
from hf_recipes.models.families.tokenizers.from_sentencepiece import (
    BPE,
    NORMAL,
    as_full_tokenizer,
    find_file,
    read_model,
)
from hf_recipes.models.templates.options import TEMPLATES

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

FILE = "tokenizer.model"
# Tokenizers whose code does not run on transformers 5.
BAICHUAN, CHATGLM = "BaichuanTokenizer", "ChatGLMTokenizer"
JOINED = 300  # texts of random pieces in a comparison
# What a tokenizer puts around a text, by whether it begins with BOS and ends with EOS: transformers' names.
_PATTERNS = {(False, False): "none", (True, False): "bos", (False, True): "eos", (True, True): "bos_eos"}


class SentencePieceTokenizer(SentencePieceBackend):
    """transformers' tokenizer around SentencePiece, by whose name it is saved, with pieces of bytes decoded."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        runs = groupby(tokens, key=self.added_tokens_encoder.__contains__)
        return "".join("".join(run) if added else self.sp_model.decode(list(run)) for added, run in runs)


SentencePieceTokenizer.__name__ = SentencePieceBackend.__name__


def load(name: str, *, trust_remote_code: bool = False, **source: Any) -> "PreTrainedTokenizerBase":
    """transformers' tokenizer of a folder or Hub id; where that has only tokenizer.model, one with SentencePiece's ids.

    transformers' own conversion of tokenizer.model orders merges by id and puts no prefix before leading spaces. A
    folder with tokenizer.json keeps it, as everyone else loads it; where it differs from tokenizer.model, that is said.

    Args:
        source: revision and cache_dir.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = find_file(name, FILE, **source)
    if path is None and (settings := _settings(name, source)).get("tokenizer_class") == CHATGLM:
        return chatglm_tokenizer.load(name, find_file(name, chatglm_tokenizer.FILE, **source), settings)
    processor = None if path is None else _processor(path)
    has_json = find_file(name, "tokenizer.json", **source) is not None
    if path and processor is None and not has_json and not _is_of_tiktoken(path):
        raise UserError(
            f"{path}: neither a SentencePiece model nor a vocabulary of tiktoken; download it again, or fetch it with "
            "git lfs pull"
        )
    settings = {} if processor is None or has_json else _settings(name, source)
    if processor is not None and not has_json and settings.get("tokenizer_class") == BAICHUAN:
        return _with_turns(_from_model(name, path, processor, settings, source), name, source)
    if processor is not None and not has_json and "auto_map" not in settings:
        return _from_model(name, path, processor, settings, source)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **source)
    if processor is None or not has_json:
        return tokenizer
    original = Vocabulary(processor.encode, texts=_texts(processor))
    differing, count = compare(tokenizer, original, JOINED, alone=False)
    if differing and type(tokenizer) is not PreTrainedTokenizerFast:
        as_written = PreTrainedTokenizerFast.from_pretrained(name, **source)
        fewer, _ = compare(as_written, original, JOINED, alone=False)
        if len(fewer) < len(differing):
            say(
                f"{name}: {type(tokenizer).__name__} of transformers gives {len(differing):,} of {count:,} texts other "
                "ids than its tokenizer.json, which is taken as it is written"
            )
            tokenizer, differing = as_written, fewer
    if differing:
        say(
            f"{name}: tokenizer.json gives {len(differing):,} of {count:,} texts other ids than tokenizer.model; "
            "tokenizer.json is taken, which other programs load too"
        )
    return tokenizer


def _with_turns(tokenizer: "PreTrainedTokenizerBase", name: str, source: dict[str, Any]) -> "PreTrainedTokenizerBase":
    """Baichuan's template, with the tokens that begin turns in this chat model's generation_config.json."""
    path = find_file(name, "generation_config.json", **source)
    settings = read_json(path) if path else {}
    if "user_token_id" in settings and tokenizer.chat_template is None:
        template = (TEMPLATES / "baichuan.jinja").read_text(encoding="utf-8")
        for token, role in (("<reserved_106>", "user"), ("<reserved_107>", "assistant")):
            template = template.replace(token, tokenizer.convert_ids_to_tokens(settings[f"{role}_token_id"]))
        tokenizer.chat_template = template
    return tokenizer


def _processor(path: Path) -> "SentencePieceProcessor | None":
    """The SentencePiece model in a file; None where it is tiktoken's, which has the same name in some folders."""
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(path))
    except RuntimeError:
        return None


def _is_of_tiktoken(path: Path) -> bool:
    with open(path, "rb") as file:
        fields = file.readline(1 << 16).split()  # a token in base64 and its rank
    return len(fields) == 2 and fields[1].isdigit()


def _settings(name: str, source: dict[str, Any]) -> dict[str, Any]:
    files = (find_file(name, file, **source) for file in ("special_tokens_map.json", "tokenizer_config.json"))
    return {key: value for file in files if file for key, value in read_json(file).items()}


def _texts(processor: "SentencePieceProcessor") -> list[str]:
    pieces = processor.id_to_piece(list(range(processor.get_piece_size())))
    return [piece.replace("▁", " ") for piece in pieces]


def _from_model(
    name: str, path: Path, processor: "SentencePieceProcessor", settings: dict[str, Any], source: dict[str, Any]
) -> "PreTrainedTokenizerBase":
    ids = {role: getattr(processor, f"{role}_id")() for role in ("bos", "eos", "unk")}
    roles = {f"{role}_token": processor.id_to_piece(index) for role, index in ids.items() if index >= 0}
    roles = {role: token for role, token in roles.items() if role not in settings}
    slow = SentencePieceTokenizer.from_pretrained(name, legacy=True, **roles, **source)
    begins = settings.get("add_bos_token", True) and slow.bos_token is not None
    pattern = settings.get("special_tokens_pattern")
    pattern = pattern or _PATTERNS[bool(begins), settings.get("add_eos_token", False)]
    slow.special_tokens_pattern = slow.init_kwargs["special_tokens_pattern"] = pattern  # else it is not saved
    try:
        model = read_model(path)
        added = {index: str(token) for index, token in sorted(slow.added_tokens_decoder.items())}
        pieces = [piece.piece for piece in model.pieces]
        tied = _tied(model)
        replaced = [pieces[index] for index, token in added.items() if pieces[index : index + 1] not in ([], [token])]
        add_special(model, path, added)
    except UserError as error:  # which no tokenizer.json can hold
        say(f"{name}: tokenizer.model is used through sentencepiece, which is slow ({error})")
        return slow
    original = Vocabulary(processor.encode, processor.decode, _texts(processor), replaced)
    for prefix_once in (True, False) if settings.get("legacy") is False else (False,):
        fast = _fast(slow, model, prefix_once)
        differing, count = compare(fast, original, JOINED, alone=False, more=_overlaps(tied))
        if not differing:
            say(f"{name}: a fast tokenizer from tokenizer.model; 0 of {count:,} texts differ from SentencePiece's ids")
            return fast
    reason = f", as {len(tied):,} of its pieces have scores that others have too" if tied else ""
    say(
        f"{name}: tokenizer.model is used through sentencepiece, which is slow; a fast tokenizer would give "
        f"{len(differing):,} of {count:,} texts other ids{reason}"
    )
    return slow


def _tied(model: "ModelProto") -> list[str]:
    """Pieces of a BPE model that share a score, of which SentencePiece merges the leftmost first, and a list of merges
    the first in it."""
    if model.trainer_spec.model_type != BPE:
        return []
    merged = [piece for piece in model.pieces if piece.type == NORMAL and len(piece.piece) > 1]
    counts = Counter(piece.score for piece in merged)
    return [piece.piece.replace("▁", " ") for piece in merged if counts[piece.score] > 1]


def _overlaps(tied: Sequence[str]) -> list[str]:
    """Texts in which a piece ends with the sign that one before it in the list begins with."""
    starts: dict[str, list[str]] = {}
    texts = []
    for piece in tied:
        texts += [piece + other[1:] for other in starts.get(piece[-1], [])[-3:]]
        starts.setdefault(piece[0], []).append(piece)
    return texts[-JOINED:]


def _fast(slow: SentencePieceTokenizer, model: "ModelProto", prefix_once: bool) -> "PreTrainedTokenizerFast":
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    flags = ("lstrip", "rstrip", "single_word", "special")
    forms = {
        str(token): AddedToken(str(token), normalized=False, **{flag: getattr(token, flag) for flag in flags})
        for token in slow.added_tokens_decoder.values()
    }
    roles = {role: forms.get(token, token) for role, token in slow.special_tokens_map.items() if isinstance(token, str)}
    pattern = slow.special_tokens_pattern
    return PreTrainedTokenizerFast(
        tokenizer_object=as_full_tokenizer(model, forms, prefix_once=prefix_once),
        chat_template=slow.chat_template,
        clean_up_tokenization_spaces=False,
        model_input_names=slow.model_input_names,
        model_max_length=slow.model_max_length,
        padding_side=slow.padding_side,
        truncation_side=slow.truncation_side,
        extra_special_tokens=slow.extra_special_tokens,
        add_bos_token=pattern in ("bos", "bos_eos"),
        add_eos_token=pattern in ("eos", "bos_eos"),
        name_or_path=slow.name_or_path,
        **roles,
    )
