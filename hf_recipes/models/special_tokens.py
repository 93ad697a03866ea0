"""Special tokens that a tokenizer gets from a file: what marks turns, and the chat template that writes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import read_mapping
from hf_recipes.core.settings import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
