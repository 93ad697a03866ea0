"""What a report says, in English, with its Chinese in ``page.zh.json``."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from hf_recipes.core.language import Language


class Phrase(str):
    """English text that a page can translate, as opposed to a text of the data, which it never does.

    Its template is a key of ``page.zh.json``; among its values may be other phrases.
    """

    def __new__(cls, template: str, /, **values: Any):
        if isinstance(template, cls):
            return template
        phrase = super().__new__(cls, template.format(**values) if values else template)
        phrase.template, phrase.values = template, values
        return phrase


def translated(text: str, language: Language) -> str:
    """`text` as it is where it is no phrase."""
    if language == "en" or not isinstance(text, Phrase):
        return text
    template = _chinese().get(text.template, text.template)
    values = {name: translated(value, language) for name, value in text.values.items()}
    return template.format(**values) if values else template


@cache
def _chinese() -> dict[str, str]:
    return json.loads((Path(__file__).parent / "page.zh.json").read_text(encoding="utf-8"))
