"""Conversations written as one text, with a mark before each turn."""

import re
from dataclasses import dataclass

from hf_recipes.data.conversations.conversation import Message, with_thoughts
from hf_recipes.data.conversations.turns import ROLES

OPEN = ("", "<think>")  # what a prompt may have of the answer
_NAMES = "Human|Assistant|User|System|用户|助手|系统"


@dataclass(frozen=True)
class _Style:
    """How turns are written: `mark` begins one and names its speaker, `end` ends it. A loose mark may be plain text."""

    mark: re.Pattern
    end: str = ""
    is_loose: bool = False

    def split(self, text: str) -> list[Message] | None:
        before, *parts = re.split(self.mark, text.rstrip())
        roles = [ROLES.get(speaker.lower()) for speaker in parts[::2]]
        if before or not roles or None in roles:
            return None
        texts = parts[1::2]
        if self.end:
            texts = [re.sub(rf"(?:(?:{self.end})\s*)+\Z", "", text) for text in texts]
            if any(re.search(self.end, text) for text in texts):  # there is more after a turn's end
                return None
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


STYLES = (
    _Style(re.compile(r"\s*<\|im_start\|>(\w+)(?:\n|\Z)"), r"<\|im_end\|>|<\|endoftext\|>"),  # ChatML
    _Style(
        re.compile(r"\s*(?:<\|begin_of_text\|>)?<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*"), r"<\|eot_id\|>"
    ),  # Llama 3
    _Style(
        re.compile(r"\s*<\|(system|user|assistant|observation)\|>[ \t]*\n?"), r"</s>|<\|end\|>|<\|endoftext\|>"
    ),  # Zephyr, Phi, GLM
    _Style(re.compile(r"\s*\[(Human|MOSS)\]:[ \t]*"), "<eo[a-z]>"),  # moss-002-sft-data
    _Style(re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE): ?"), r"\s*<\|endoftext\|>"),  # Glaive
    _Style(re.compile(rf"\s*<s>\s*({_NAMES})[:：][ \t]*"), r"\s*</s>"),  # Llama2-Chinese
    _Style(re.compile(rf"\s*### ?({_NAMES})[:：][ \t]*")),  # openassistant-guanaco
    _Style(re.compile(r"\s*<(human|bot)>[:：]?[ \t]*")),  # Ziya
    _Style(re.compile(r"\s*\n\n(Human|Assistant): ?")),  # hh-rlhf
    _Style(re.compile(rf"(?:\A\s*|\s*\n)({_NAMES})[:：][ \t]*"), is_loose=True),  # BELLE
)
_BEGIN = re.compile(rf"\s*(?:<\||<human>|<bot>|\[(?:Human|MOSS)\]|(?:<s>\s*|### ?)?(?:{_NAMES}|USER)[:：])")


def read_dialogue(text: str, with_loose: bool = True) -> list[Message] | None:
    """The turns of a text that is a conversation; None for another text."""
    style, turns = _split(text)
    if style is None or len(turns) < 2 or (style.is_loose and not (with_loose and _alternates(turns, "assistant"))):
        return None
    return list(map(with_thoughts, turns))


def read_dialogue_prompt(text: str) -> list[Message] | None:
    """The turns of a text that is a conversation up to the next answer; None for another text."""
    style, turns = _split(text)
    is_open = style is not None and turns[-1]["role"] == "assistant" and turns[-1]["content"].strip() in OPEN
    turns = turns[:-1] if is_open else turns
    if style is None or not (style.end or is_open) or not _alternates(turns, "user"):
        return None
    return list(map(with_thoughts, turns))


def _alternates(turns: list[Message], last: str) -> bool:
    """Whether user and assistant speak by turns, the user first and `last` last, and none says nothing."""
    roles = [turn["role"] for number, turn in enumerate(turns) if number or turn["role"] != "system"]
    expected = ["user", "assistant"] * len(roles)
    return roles[-1:] == [last] and roles == expected[: len(roles)] and all(turn["content"].strip() for turn in turns)


def _split(text: str) -> tuple[_Style | None, list[Message]]:
    if _BEGIN.match(text):
        for style in STYLES:
            if turns := style.split(text):
                return style, turns
    return None, []
