"""Which judge is used, and the prompts that it is given."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.arguments.limits import PositiveInt, check_limits
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import to_json
from hf_recipes.data.character_scripts import SCRIPTS, scripts_of
from hf_recipes.data.conversations.conversation import Message

PLACEHOLDERS = {"pairwise": ("question", "answer_a", "answer_b"), "rating": ("question", "answer")}
ROLES = {
    "zh": {"system": "系统", "user": "用户", "assistant": "助手", "tool": "工具"},
    "en": {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"},
}


@dataclass
class JudgeArguments:
    """A language model as judge; nothing is judged, and nothing is sent anywhere, without --judge."""

    judge: str | None = setting(
        "A model that judges answers: a folder, a Hub id, or the address of an OpenAI-compatible server (http://…/v1)."
    )
    judge_model: str | None = setting("Name of the model at the address.")
    judge_key_env: str | None = setting("Name of the environment variable with the key of the address.")
    judge_prompt: str | None = setting(
        "File with a prompt of yours; {question}, {answer_a} and {answer_b} (to score rows: {question} and {answer}) "
        "stand for the texts, {reference} for the row's own answer."
    )
    judge_language: Literal["zh", "en"] | None = setting("Language of the prompt; by default that of the rows.")
    judge_max_new_tokens: PositiveInt = setting("Tokens of a verdict with its reasons at the most.", 512)

    def __post_init__(self):
        check_limits(self)
        for name in ("judge_model", "judge_key_env", "judge_prompt", "judge_language"):
            if getattr(self, name) and not self.judge:
                raise ValueError(f"--{name}: has an effect with --judge alone")
        if not self.judge and self.judge_max_new_tokens != type(self).judge_max_new_tokens:
            raise ValueError("--judge_max_new_tokens: has an effect with --judge alone")
        for name in ("judge_model", "judge_key_env"):
            if getattr(self, name) and not self.is_address:
                raise ValueError(f"--{name}: --judge {self.judge} is no address (http:// or https://)")
        if self.is_address:
            parts = urlsplit(self.judge)
            if "@" in parts.netloc or parts.query:
                raise ValueError(
                    "--judge: the address holds a user, a key or a query, which would be recorded; give the key in an "
                    "environment variable (--judge_key_env)"
                )
            if not self.judge_model:
                raise ValueError(f"--judge {self.judge}: name the model at this address with --judge_model")

    @property
    def is_address(self) -> bool:
        return bool(re.match("https?://", self.judge or ""))


class JudgePrompt:
    """The text of a judging prompt for one kind of judgement, ``pairwise`` or ``rating``.

    Args:
        texts: of the rows, which choose the language where `arguments` do not.
    """

    def __init__(self, arguments: JudgeArguments, kind: str, texts: Sequence[str]):
        self.language = arguments.judge_language or language_of(texts)
        if arguments.judge_prompt:
            self.text = _read(arguments.judge_prompt)
            for name in PLACEHOLDERS[kind]:
                if f"{{{name}}}" not in self.text:
                    raise UserError(f"--judge_prompt {arguments.judge_prompt}: {{{name}}} is missing in it")
        else:
            path = files("hf_recipes.evaluation.judging") / "prompts" / f"{kind}.{self.language}.txt"
            self.text = path.read_text(encoding="utf-8")
        known = (*PLACEHOLDERS[kind], "reference")
        for name in re.findall(r"\{(\w+)\}", self.text if arguments.judge_prompt else ""):
            if name not in known and (meant := nearest(name, known, cutoff=0.8)):  # other braces may be an example's
                raise UserError(f"--judge_prompt {arguments.judge_prompt}: {{{name}}} stands for no text{meant}")
        self.fields = [name for name in known if f"{{{name}}}" in self.text]

    def fill(self, **values: str) -> str:
        """The prompt with `values` in place of their names; braces within a value stay as they are."""
        return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), self.text)

    @property
    def settings(self) -> dict[str, Any]:
        return {"judge_prompt": self.text, "judge_language": self.language}

    def conversation(self, messages: Sequence[Message]) -> str:
        """A lone question as it is; several turns with their roles before them."""
        if len(messages) == 1:
            return shown_turn(messages[0])
        roles, colon = ROLES[self.language], "：" if self.language == "zh" else ": "
        return "\n\n".join(f"{roles.get(turn['role'], turn['role'])}{colon}{shown_turn(turn)}" for turn in messages)


def shown_turn(turn: Mapping[str, Any]) -> str:
    """The text of a turn and its calls, without thoughts."""
    calls = turn.get("tool_calls")
    return "\n".join(filter(None, [turn.get("content") or "", to_json(calls) if calls else ""]))


def language_of(texts: Sequence[str]) -> str:
    scripts = scripts_of(list(texts)).tolist()
    return "zh" if scripts.count(SCRIPTS.index("Chinese")) >= scripts.count(SCRIPTS.index("Latin script")) else "en"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"--judge_prompt {path}: cannot be read ({reason})") from None
