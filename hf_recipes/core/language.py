"""Chinese or English, for what people read."""

import locale
import os
from typing import Literal

Language = Literal["zh", "en"]


def locale_language() -> Language:
    variables = ("LC_ALL", "LC_MESSAGES", "LANG")
    name = next(filter(None, map(os.environ.get, variables)), None) or locale.getlocale()[0] or ""
    return "zh" if name.startswith(("zh", "Chinese")) else "en"  # Windows calls it Chinese (Simplified)_China
