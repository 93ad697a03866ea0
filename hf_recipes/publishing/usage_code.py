"""How a model is loaded and used: the Python in its card, before and after the model has a repository."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.templates.template import ChatTemplate
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.models.inference.generation_settings import answer_ends
from hf_recipes.models.loading import LOADING_ERRORS

Does = Literal["answers", "continues", "scores"]
QUESTION, ANSWER = "你好", "你好，请问有什么可以帮你？"
FOLDER = "FOLDER"  # stands for the repository in a card that is not published yet


def quoted(text: str) -> str:
    """`text` as a Python and JSON string in double quotes."""
    return json.dumps(text, ensure_ascii=False)


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("hf_recipes.publishing"),
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,  # Markdown and Python, not HTML
)
TEMPLATES.filters |= {"quoted": quoted, "thousands": "{:,}".format, "decimals": "{:.4f}".format}


def _ends(folder: Path, is_given: bool) -> list[str]:
    """The ends of answers, where the template was given to the run or ends a turn with another token than eos."""
    from transformers import AutoTokenizer

    try:
        ends = answer_ends(AutoTokenizer.from_pretrained(folder))
    except LOADING_ERRORS:  # one of code that is not run here
        return []
    return ends if is_given or len(ends) > 1 else []


def _scored(folder: Path, system_prompt: str | None) -> str | None:
    """What a reward model was trained to read after a prompt, where the template renders the example otherwise.

    Such are templates that open or close thoughts for generation alone.
    """
    from transformers import AutoTokenizer

    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages += [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        template = ChatTemplate(tokenizer)
        example = template.example(messages)
    except (*LOADING_ERRORS, UserError, RowProblem):
        return None
    text = example.answer + example.rest
    rendered = tokenizer.apply_chat_template(template.form.prepared(messages), tokenize=False)
    return None if rendered == example.prompt + text else text


@dataclass(frozen=True)
class Usage:
    """What the Python that loads and uses a model depends on.

    Args:
        does: answer a question, continue a text, or score an answer.
        base: of an adapter; its name on a hub where it has one.
        adds_tokens: the adapter has tokens that its base may not have.
        ends: tokens that end an answer, where the base may not know them.
        system_prompt: that it was trained with.
        scored: the example of an answer as a reward model reads it, where the template renders it otherwise.
    """

    does: Does = "answers"
    base: str | None = None
    adds_tokens: bool = False
    ends: Sequence[str] = ()
    system_prompt: str | None = None
    scored: str | None = None

    @classmethod
    def of(cls, folder: Path, does: Does, base: str | None, settings: Mapping[str, Any]) -> "Usage":
        """Usage of the model in `folder`, made from `base` by a run with these settings (none for a merged model)."""
        adapter, system_prompt = folder / "adapter_config.json", settings.get("system_prompt")
        scored = _scored(folder, system_prompt) if does == "scores" else None
        if not adapter.is_file():
            return cls(does, system_prompt=system_prompt, scored=scored)
        config = json.loads(adapter.read_text(encoding="utf-8-sig"))
        saved = config.get("modules_to_save") or ()
        return cls(
            does,
            base,
            adds_tokens=bool(config.get("trainable_token_indices")) or any("embed" in name for name in saved),
            ends=_ends(folder, is_given=settings.get("chat_template") is not None),
            system_prompt=system_prompt,
            scored=scored,
        )

    def code(self, repo: str = FOLDER, target: str = "hf") -> str:
        """The Python, for a repository on Hugging Face or, with the `target` "modelscope", on ModelScope."""
        values = {**asdict(self), "question": QUESTION, "answer": ANSWER}
        return TEMPLATES.get_template("usage.py.jinja").render(values, repo=repo, target=target).rstrip()
