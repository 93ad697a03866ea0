"""The fast tokenizer of an older checkpoint, and the proof that its ids are those of the original vocabulary."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import read_mapping
from hf_recipes.models.families.layouts import Family
from hf_recipes.models.families.tokenizers import from_tiktoken
from hf_recipes.models.families.tokenizers.from_sentencepiece import (
    CONTROL,
    UNKNOWN,
    as_full_tokenizer,
    find_model,
    read_model,
)
from hf_recipes.models.templates.options import TEMPLATES
from hf_recipes.models.tokenizers.pretokenizers import mixed_texts

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Qwen-1's chat models begin with this where the conversation has no system turn.
_QWEN_SYSTEM = """{%- if messages[0].role != 'system' and not tools %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
"""
_WORDS = ["people", "the eop of sop", "[gMASK]sop", "<0x0A>", "▁▁ ▁", " ", "  ", "\n", " \n  x"]
JOINED = 2_000  # texts of random pieces in the proof
SHOWN = 3  # differing texts in a message


@dataclass(frozen=True)
class Vocabulary:
    """What the files of an older tokenizer say.

    Attributes:
        encode: texts to ids, by the original library or its algorithm; `decode` is its inverse, which is not compared
            where it is None.
        texts: of the tokens.
        replaced: pieces whose ids other tokens have got.
        model: a SentencePiece model with the special tokens, which llama.cpp's converter reads.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str] | None = None
    texts: Sequence[str] = ()
    replaced: Sequence[str] = ()
    backend: "Tokenizer | None" = None
    model: bytes | None = None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an absent file has none."""
    try:
        return read_mapping(str(path), "") if path.is_file() else {}
    except UserError as error:
        raise UserError(f"{str(error).strip()}; download it again") from None


def is_chat_model(family: Family, source: Path, config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was trained on conversations: it has a template, settings of chats, or such a name."""
    if family.always_chat or "chat_template" in read_json(source / "tokenizer_config.json"):
        return True
    generation = read_json(source / "generation_config.json")
    if "user_token_id" in generation or generation.get("chat_format") == "chatml":
        return True
    names = f"{config.get('_name_or_path')} {source.resolve().name}".lower()
    return any(word in names for word in ("chat", "sft", "dpo"))


def build_tokenizer(family: Family, source: Path, is_chat: bool) -> "tuple[PreTrainedTokenizerFast, Vocabulary]":
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    settings = read_json(source / "special_tokens_map.json") | read_json(source / "tokenizer_config.json")
    template = _template(family, settings) if is_chat else None
    vocabulary = _read(family, source, settings, is_chat)
    ids = vocabulary.backend.get_vocab()
    roles = {role: _content(settings.get(f"{role}_token")) for role in ("bos", "eos", "unk", "pad")}
    roles = {role: token for role, token in roles.items() if token in ids}
    if family.model_type == "qwen2":
        roles |= {"eos": "<|endoftext|>", "pad": "<|endoftext|>" if is_chat else "<|extra_0|>"}
    elif family.pattern is not None:
        roles |= {"eos": "<|endoftext|>", "pad": "<eop>"}  # which nothing writes
    else:
        default = {role: name for role, name in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>")) if name in ids}
        roles = default | roles
    if is_chat and (ends := [token for token in family.chat_ends if token in ids]):
        roles["eos"] = ends[0]
    if roles.get("pad") in (None, roles.get("eos")) and "unk" in roles:  # the end of a text carries loss, padding none
        roles["pad"] = roles["unk"]
    added = vocabulary.backend.get_added_tokens_decoder()
    for role, token in roles.items():
        if (piece := added.get(ids[token])) is not None and piece.normalized:  # user-defined
            roles[role] = AddedToken(token, special=True, normalized=True)
    prefix = family.prefix
    if settings.get("add_bos_token", family.adds_bos) and "bos" in roles:
        prefix = (str(roles["bos"]),)
        if template is not None and "bos_token" not in template:
            template = "{{- bos_token }}" + template
    if prefix:
        vocabulary.backend.post_processor = processors.TemplateProcessing(
            single=[*prefix, "$A"],
            pair=[*prefix, "$A", "$B:1"],
            special_tokens=[(token, ids[token]) for token in prefix],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary.backend,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in roles.items()},
    )
    if 0 < (longest := settings.get("model_max_length", 0)) < 1e9:
        tokenizer.model_max_length = longest
    return tokenizer, vocabulary


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _template(family: Family, settings: Mapping[str, Any]) -> str | None:
    """The checkpoint's own template where it writes the end of an answer by names that are kept; else the family's."""
    kept = settings.get("chat_template")
    if isinstance(kept, str) and not family.prefix and any(end in kept for end in ("eos_token", *family.chat_ends)):
        return kept
    if family.template is None or "\n" in family.template:
        return family.template
    text = (TEMPLATES / f"{family.template}.jinja").read_text(encoding="utf-8-sig")
    return _QWEN_SYSTEM + text if family.model_type == "qwen2" else text


def _read(family: Family, source: Path, settings: Mapping[str, Any], is_chat: bool) -> Vocabulary:
    if family.pattern is not None:
        return _read_tiktoken(family, source, settings)
    path = find_model(str(source))
    if path is None:
        raise UserError(f"{source}: no tokenizer.model, which {family.name} has its tokens in; copy it there")
    model = read_model(path)
    if model is None:
        raise UserError(f"{path}: not a SentencePiece model, which {family.name} has; download it again")
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(f"{path}: a SentencePiece model with spaces at the end of words, which has no equal here")
    names = [piece.piece for piece in model.pieces]
    texts = [name.replace("▁", " ") for name in names]
    original = _processor(path)
    added = dict(enumerate(family.special, len(names))) or _added_tokens(settings, source)
    add_special(model, path, added, family.chat_tokens if is_chat else ())
    replaced = [names[index] for index, token in added.items() if index < len(names) and names[index] != token]
    return Vocabulary(
        original.encode, original.decode, texts, replaced, as_full_tokenizer(model), model.SerializeToString()
    )


def _processor(path: Path):
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(path))


def _added_tokens(settings: Mapping[str, Any], source: Path | None = None) -> dict[int, str]:
    """The special tokens that the tokenizer's files add to its tokens or put in their place, by id."""
    tokens = {index: token for token, index in read_json(source / "added_tokens.json").items()} if source else {}
    for index, token in settings.get("added_tokens_decoder", {}).items():
        tokens[int(index)] = _content(token)
    return dict(sorted(tokens.items()))


def add_special(model: "ModelProto", path: Path, tokens: Mapping[int, str], chat_tokens: Sequence[str] = ()) -> None:
    """Make `tokens`, by id, and the pieces `chat_tokens` control pieces of the model."""
    for index, token in tokens.items():
        if index > len(model.pieces):
            raise UserError(
                f"{path}: the added token {token!r} has id {index}, and id {len(model.pieces)} has no token; "
                "complete tokenizer_config.json (added_tokens_decoder) or added_tokens.json"
            )
        piece = model.pieces[index] if index < len(model.pieces) else model.pieces.add()
        if piece.type != UNKNOWN:
            piece.piece, piece.type = token, CONTROL
    for piece in model.pieces:
        if piece.piece in chat_tokens:
            piece.type = CONTROL
    model.trainer_spec.vocab_size = len(model.pieces)


def _read_tiktoken(family: Family, source: Path, settings: Mapping[str, Any]) -> Vocabulary:
    path = next((path for name in ("*.tiktoken", "tokenizer.model") for path in sorted(source.glob(name))), None)
    if path is None:
        file = "qwen.tiktoken" if family.model_type == "qwen2" else "tokenizer.model"
        raise UserError(f"{source}: no {file}, which {family.name} has its tokens in; copy it there")
    ranks = from_tiktoken.Ranks(path, family.pattern, composes=family.model_type == "qwen2")
    ids = {token: index for index, token in enumerate(family.special, len(ranks.tokens))}
    for index, token in _added_tokens(settings).items():
        if ids.get(token) != index:
            raise UserError(
                f"{source}: tokenizer_config.json gives {token} the id {index}, and in {family.name} it is "
                f"{ids.get(token)}; copy the files that belong to its {path.name}"
            )
    texts = [text for token in ranks.tokens if "\ufffd" not in (text := token.decode(errors="replace"))]
    backend = from_tiktoken.as_tokenizer(ranks, family.special)
    return Vocabulary(lambda batch: [ranks.encode(text) for text in batch], ranks.decode, texts, backend=backend)


def prove(tokenizer: "PreTrainedTokenizerBase", vocabulary: Vocabulary, name: str) -> None:
    """Compare ids, and the texts that come back from them, with the original vocabulary's.

    Raises:
        UserError: any text differs.
    """
    differing, count = compare(tokenizer, vocabulary, JOINED)
    if differing:
        shown = ", ".join(repr(text[:40]) for text in differing[:SHOWN])
        raise UserError(
            f"{name}: of {count:,} texts {len(differing):,} get other ids from a fast tokenizer than from the "
            f"original one ({shown}), so that nothing is converted"
        )
    say(f"tokenizer: 0 of {count:,} texts differ from the original one's ids")


def compare(
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary: Vocabulary,
    joined: int,
    *,
    alone: bool = True,
    more: Iterable[str] = (),
) -> tuple[list[str], int]:
    """The texts whose ids, or the text that comes back from them, differ from the original vocabulary's; and of how
    many.

    The texts are mixed ones of Chinese, English, other scripts, digits, code, white space and emoji, `joined` random
    sequences of tokens, `more`, and with `alone` each token by itself. Those with a special token in them are left
    out, which the original vocabulary does not know.
    """
    chance = random.Random(0)
    sequences = ["".join(chance.choices(vocabulary.texts, k=chance.randint(2, 12))) for _ in range(joined)]
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    special += vocabulary.replaced
    whole = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    mixed = _without([*mixed_texts(), *_WORDS, *sequences, *more], special, whole)
    texts = [*mixed, *_without(vocabulary.texts if alone else (), special, whole)]
    ours, theirs = tokenizer(texts, add_special_tokens=False)["input_ids"], vocabulary.encode(texts)
    differing = [text for text, mine, original in zip(texts, ours, theirs, strict=True) if mine != original]
    if vocabulary.decode is not None:
        known = [(text, ids) for text, ids in zip(mixed, theirs, strict=False) if tokenizer.unk_token_id not in ids]
        differing += [text for text, ids in known if tokenizer.decode(ids) != vocabulary.decode(ids)]
    return list(dict.fromkeys(differing)), len(texts)


def _without(texts: Iterable[str], special: Sequence[str], whole: set[str]) -> list[str]:
    return [text for text in texts if text not in whole and not any(token in text for token in special)]
