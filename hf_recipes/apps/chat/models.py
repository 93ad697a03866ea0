"""What the chat offers by name: the base, and each adapter with its tokenizer, prompts and answers."""

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import is_dropped
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.chat.templates.call_reader import CallReader
from hf_recipes.data.conversations.conversation import Message
from hf_recipes.data.conversations.thoughts import TAGS, ThoughtMarks
from hf_recipes.models.inference.thinking import opens_thoughts, split_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE = "base"


@dataclass(frozen=True)
class Prompt:
    """The token ids of a prompt, and what was truncated."""

    ids: np.ndarray
    full_length: int  # before truncation
    turns_dropped: bool  # the oldest turns
    question_cut: bool  # the beginning of the last question


@dataclass(frozen=True)
class Answer:
    """An answer, finished or not: `tokens` of its `ids` make `text`, without the token that ends the turn.

    Thoughts are in the text as ``<think>…</think>``, whatever the template's marks. `end` is why it ended: ``"end"``
    (the model ended it), ``"length"`` or ``"stop"``; None while it is generated.
    """

    prompt: Prompt
    text: str = ""
    tokens: int = 0
    ids: Sequence[int] = ()
    end: str | None = None
    cut_while_thinking: bool = False


class ChatModel:
    """The base model or one of its adapters, with its tokenizer and chat template."""

    def __init__(self, name: str, tokenizer: "PreTrainedTokenizerBase", adapter: str | None = None):
        self.name, self.tokenizer, self.adapter = name, tokenizer, adapter
        self._encoder, self._lock = ChatEncoder(tokenizer), threading.Lock()

    @property
    def stop_ids(self) -> list[int]:
        return self._encoder.stop_ids

    @property
    def marks(self) -> ThoughtMarks:
        return self._encoder.template.marks

    @cached_property
    def calls(self) -> CallReader | None:
        """Reads calls of tools; None where the template has no place for them."""
        return CallReader.of(self._encoder)

    def whole_prompt(self, messages: Sequence[Message], tools: list | None = None) -> np.ndarray:
        """The ids of `messages` rendered for generation, of any length.

        Raises:
            RowProblem: the template cannot show them.
        """
        with self._lock:  # the encoder keeps what it computed last
            return self._encoder.served_prompt(list(messages), tools)

    def split(self, prompt: np.ndarray, ids: Sequence[int]) -> tuple[str, str]:
        """The thoughts of generated `ids`, and the answer without special tokens."""
        opened = opens_thoughts(self.tokenizer, self.marks, prompt)
        return split_ids(self.tokenizer, self.marks, ids, opened)[:2]

    def prompt(self, messages: Sequence[Message], budget: int | None) -> Prompt:
        """`messages`, the last one a question, rendered for generation and truncated to `budget` tokens."""
        encoder = copy.copy(self._encoder)
        encoder.max_source_length = budget or encoder.max_source_length
        [row] = encoder.encode([list(messages)])
        if is_dropped(row.status):
            raise UserError(row.status.removeprefix("dropped: "))
        ids = row.input_ids[: row.prompt_length]
        return Prompt(ids, row.full_prompt_length, "oldest turns left out" in row.status, "prompt cut" in row.status)

    def decode(self, answer: Answer) -> str:
        """The prompt and the answer with special tokens, as the model read and wrote them."""
        ids = [*answer.prompt.ids.tolist(), *answer.ids]
        return self.tokenizer.decode(ids, skip_special_tokens=False).rstrip("\ufffd")


def with_thoughts(thoughts: str, answer: str) -> str:
    """Both as one text, in the form that the page folds and that training files have."""
    if not thoughts:
        return answer
    return f"{TAGS.start}\n{thoughts}" + (f"{TAGS.close}\n\n{answer}" if answer else "")


def model_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of `paths` that differ from each other and from `BASE`: ``a``, ``b/checkpoint-100``."""
    parts = [Path(path).absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(path for path, each in zip(paths, parts, strict=True) if parts.count(each) > 1)
        raise UserError(f"--peft_path {twice}: given twice")
    names = []
    for each in parts:
        size = 1
        while sum(other[-size:] == each[-size:] for other in parts) > 1 or "/".join(each[-size:]) == BASE:
            size += 1
        names.append("/".join(each[-size:]))
    return names
