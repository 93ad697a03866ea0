"""Texts of a page in English or Chinese."""

from collections.abc import Mapping
from typing import ClassVar

LANGUAGES = {"zh": "中文", "en": "English"}


class Texts:
    """`texts("key", name=…)` in one language.

    Attributes:
        table: by key the text in English and in Chinese; `format` fills the braces.
    """

    table: ClassVar[Mapping[str, tuple[str, str]]]

    def __init__(self, language: str | None):
        self.language = language if language in LANGUAGES else "zh"

    def __call__(self, key: str, **values) -> str:
        text = self.table[key][0 if self.language == "en" else 1]
        return text.format(**values) if values else text
