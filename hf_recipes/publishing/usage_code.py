"""How a model is loaded and used: the Python in its card, before and after the model has a repository."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from hf_recipes.models.inference.generation_settings import answer_ends
from hf_recipes.models.loading import LOADING_ERRORS

Does = Literal["answers", "continues", "scores"]
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


@dataclass(frozen=True)
class Usage:
    """What the Python that loads and uses a model depends on.

    Args:
        does: answer a question, continue a text, or score an answer.
        base: of an adapter; its name on a hub where it has one.
        adds_tokens: the adapter has tokens that its base may not have.
        ends: tokens that end an answer, where the base may not know them.
        system_prompt: that it was trained with.
    """

    does: Does = "answers"
    base: str | None = None
    adds_tokens: bool = False
    ends: Sequence[str] = ()
    system_prompt: str | None = None

    @classmethod
    def of(cls, folder: Path, does: Does, base: str | None, settings: Mapping[str, Any]) -> "Usage":
        """Usage of the model in `folder`, made from `base` by a run with these settings (none for a merged model)."""
        adapter = folder / "adapter_config.json"
        if not adapter.is_file():
            return cls(does, system_prompt=settings.get("system_prompt"))
        config = json.loads(adapter.read_text(encoding="utf-8"))
        saved = config.get("modules_to_save") or ()
        return cls(
            does,
            base,
            adds_tokens=bool(config.get("trainable_token_indices")) or any("embed" in name for name in saved),
            ends=_ends(folder, is_given=settings.get("chat_template") is not None),
            system_prompt=settings.get("system_prompt"),
        )

    def code(self, repo: str = FOLDER, target: str = "hf") -> str:
        """The Python, for a repository on Hugging Face or, with the `target` "modelscope", on ModelScope."""
        return TEMPLATES.get_template("usage.py.jinja").render(asdict(self), repo=repo, target=target).rstrip()
