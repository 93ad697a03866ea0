"""Special tokens that a tokenizer gets: from a file with what marks turns, and to end and to pad texts."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import read_mapping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD = "<|pad|>"  # where no token can serve
_PADS = re.compile(r"[<\[][|｜]?(?:pad|padding|finetune_right_pad_id)[|｜]?[>\]]", re.IGNORECASE)
_UNUSED = re.compile(r"[<\[][^<>\[\]]*(?:reserved|unused|extra_|place.?holder)[^<>\[\]]*[>\]]", re.IGNORECASE)
_RARE = "\U0010fffd"  # which no vocabulary has
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class SpecialTokens:
    """The `tokens` of a file with a description of each, from which its embedding begins; ``""`` for none.

    `roles` are those among them, or of the tokenizer, that it uses as ``eos_token``, ``pad_token`` and the like;
    `chat_template` is the bundled template that writes them.
    """

    tokens: Mapping[str, str]
    roles: Mapping[str, str]
    chat_template: str | None = None

    def add_to(self, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
        """Returns the tokens that `tokenizer` did not have; these get the next ids, in order."""
        vocabulary = tokenizer.get_vocab()
        added = [token for token in self.tokens if token not in vocabulary]
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(self.tokens)}, replace_extra_special_tokens=False
        )
        for role, token in self.roles.items():
            if token not in vocabulary and token not in self.tokens:
                raise UserError(f"{role} {token!r} is neither among its tokens nor in the tokenizer")
            setattr(tokenizer, role, token)
        return added


def read_special_tokens(path: str, flag: str = "--add_special_tokens") -> SpecialTokens:
    """The tokens of a JSON file such as those in configs/special_tokens."""
    values = read_mapping(path, flag)
    known = ("tokens", *_ROLES, "chat_template")
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{flag} {path}: unknown key {key!r}{nearest(key, known)}; there are {', '.join(known)}")
        if key != "tokens" and not isinstance(value, str):
            raise UserError(f"{flag} {path}: {key} is {value!r}; expected a text")
    tokens = values.get("tokens")
    if isinstance(tokens, list):
        tokens = dict.fromkeys(tokens, "")
    if (
        not isinstance(tokens, dict)
        or not tokens
        or not all(isinstance(text, str) for pair in tokens.items() for text in pair)
        or not all(token.strip() for token in tokens)
    ):
        raise UserError(f'{flag} {path}: tokens: expected {{"<|name|>": "its description", …}}, or a list of tokens')
    roles = {role: values[role] for role in _ROLES if role in values}
    return SpecialTokens(tokens, roles, values.get("chat_template"))


def set_end_token(tokenizer: "PreTrainedTokenizerBase", token: str, name: str) -> None:
    if token not in tokenizer.get_vocab():
        raise UserError(f"--eos_token {token}: no token of {name}; --add_special_tokens adds it")
    tokenizer.eos_token = token


def set_pad_token(
    tokenizer: "PreTrainedTokenizerBase", name: str, rows: int | None = None, ends: Collection[str] = ()
) -> None:
    """Give a tokenizer a pad token where it has none, or one that training has loss on: its end token, or one that its
    chat template writes.

    It is a token called so, an unused one, an unknown token that no text gets, or a new one; the first of these that
    has a row of the embeddings, so that they keep their size.

    Args:
        rows: of the embeddings of a model that is trained; None where none is, and any pad token will do.
        ends: tokens that end texts, beside the tokenizer's own.
    """
    written = tokenizer.chat_template or ""
    ends = {*ends, tokenizer.eos_token}

    def has_loss(token: str) -> bool:
        return token in ends or token in written

    before = tokenizer.pad_token
    if before is not None and (rows is None or not has_loss(before)):
        return
    vocabulary = {str(token): index for token, index in tokenizer.get_vocab().items()}
    free = [token for token, index in vocabulary.items() if index < (rows or len(tokenizer)) and not has_loss(token)]
    named = [token for token in free if _PADS.fullmatch(token)]
    unused = sorted((token for token in free if _UNUSED.fullmatch(token)), key=vocabulary.__getitem__)
    unknown = tokenizer.unk_token
    if unknown not in free or tokenizer.unk_token_id in tokenizer(_RARE)["input_ids"]:
        unknown = None
    chosen = next(iter([*named, *unused[-1:]]), unknown)  # the first unused ones are what others give a use
    if chosen is None and max(vocabulary.values()) + 1 < (rows or 0):
        chosen = PAD
    if chosen is not None:
        tokenizer.add_special_tokens({"pad_token": chosen})
    elif before is None and tokenizer.eos_token is None:
        raise UserError(f"{name}: the tokenizer has neither a pad nor an end token; name its end with --eos_token")
    elif before is None:
        tokenizer.pad_token = tokenizer.eos_token
    if rows is not None:
        reason = "no pad token" if before is None else f"the pad token {before}, which has loss where it ends a text"
        then = f"{chosen} pads now" if chosen else f"no token is free, so that {tokenizer.pad_token} pads, without loss"
        say(f"{name}: the tokenizer has {reason}; {then}")
