"""The date that a chat template prints as today's, by the function `strftime_now` that transformers gives to it.

A run's is that of its first start: rows that are tokenized on two days are alike, and so are their caches. A template
as it is saved has no date in it, and prints that of the day on which it is rendered.
"""

from datetime import date
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CODES = "aAbBcCdDeFfgGhHIjklmMpPrRSTuUVwWxXyYzZ"


def today() -> str:
    return date.today().isoformat()


def set_date(tokenizer: "PreTrainedTokenizerBase", day: str | None) -> None:
    """The date, as 2026-11-29, that `ChatTemplate` prints for this tokenizer; None is that of each rendering."""
    try:
        tokenizer.template_date = day and date.fromisoformat(day).isoformat()
    except ValueError:
        raise UserError(f"--chat_template_date {day}: expected a date such as 2026-11-29") from None


def printed_date(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The date that was set, if the tokenizer's template prints one."""
    is_printed = "strftime_now" in str(tokenizer.chat_template or "")
    return getattr(tokenizer, "template_date", None) if is_printed else None


def with_date(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The tokenizer's template with a `strftime_now` of its own, for midnight of the date that was set.

    transformers passes no functions to a template, so a macro replaces each code of a format. None where there is
    nothing to set.
    """
    day = printed_date(tokenizer)
    if day is None:
        return None
    day = date.fromisoformat(day)
    values = {f"%{flag}{code}": day.strftime(f"%{flag}{code}") for flag in ("", "-") for code in CODES} | {"%%": "%"}
    replaced = "".join(f" | replace('{code}', '{value}')" for code, value in values.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{tokenizer.chat_template}"
