"""The special tokens that end a turn."""

import re

from transformers import PreTrainedTokenizerBase

from hf_recipes.data.chat.templates.rendered_text import common_length, end_of_calls, find_text
from hf_recipes.data.chat.templates.rendering import Renderer
from hf_recipes.data.conversations.conversation import Message, RowProblem


class TurnEnd:
    """Finds the special tokens that end a turn, or that begin the next where nothing ends one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, render: Renderer):
        added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        special = {*tokenizer.all_special_tokens, *(token for token, is_special in added.items() if is_special)}
        special = sorted((token for token in special if token.strip()), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._not_openers = (None, tokenizer.bos_token, tokenizer.eos_token)
        self._render = render

    def at_end(self, suffix: str) -> str:
        """The special tokens at the end of `suffix`, which is what follows a turn's text."""
        stripped = suffix.rstrip()
        runs = [match.span() for match in self._special.finditer(stripped)]
        end, stop = len(stripped), len(stripped)
        while runs and not stripped[runs[-1][1] : end].strip():
            start, after = runs.pop()
            stop = stop if after == end else after  # white space between two: the turn ends at the first
            end = start
        return stripped[end:stop]

    def last_end(self, text: str, stop: int, prompt: str) -> int:
        """Where in `text`, before `stop`, the special tokens end a turn; the one that `prompt` has first begins one."""
        tokens = [match for match in self._special.finditer(text) if match.end() <= stop]
        first = [prompt.find(token[0]) % (len(prompt) + 1) for token in tokens]
        ends = tokens[: first.index(min(first))] or tokens if tokens else []
        return ends[-1].end() if ends else 0

    def opener(self, messages: list[Message], following: Message, tools: list | None = None, suffix: str = "") -> str:
        """The special token that begins the turn `following` after `messages`, empty where there is none.

        Args:
            following: with a content that stands nowhere else.
            suffix: what stands after the text and calls of the last of `messages`, where nothing follows.
        """
        try:
            alone, text = self._render(messages, tools), self._render([*messages, following], tools)
            stop = text.find(following["content"])
            start = len(alone) if text.startswith(alone) else _end_of_turn(messages[-1], alone, text[:stop], suffix)
        except RowProblem:
            return ""
        token = next((match[0] for match in self._special.finditer(text, start, max(start, stop))), None)
        return "" if token in self._not_openers else token


def _end_of_turn(message: Message, alone: str, text: str, suffix: str) -> int:
    """Where the turn `message` ends in `text`, which shows it otherwise than `alone`, its rendering as the last."""
    calls = message.get("tool_calls")
    span = None if calls else find_text(text, message["content"], last=True)
    end = span[1] if span else end_of_calls(text, calls or [], common_length(alone, text))
    return end + len(suffix.rstrip()) if text.startswith(suffix.rstrip(), end) else end
