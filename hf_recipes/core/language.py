"""Chinese or English, for what people read."""

import locale
import os
from typing import Literal

Language = Literal["zh", "en"]


VARIABLE = "HF_RECIPES_LANGUAGE"


def locale_language() -> Language:
    """That of the environment variable HF_RECIPES_LANGUAGE, else of the locale."""
    variables = (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG")
    name = next(filter(None, map(os.environ.get, variables)), None) or locale.getlocale()[0] or ""
    return "zh" if name.startswith(("zh", "Chinese")) else "en"  # Windows calls it Chinese (Simplified)_China
