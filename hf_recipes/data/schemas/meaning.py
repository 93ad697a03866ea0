"""Which columns usually carry meaning, and what to do about one that no example shows."""

import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from hf_recipes.data.conversations.cells import is_empty, keys_of
from hf_recipes.data.conversations.thought_columns import THOUGHTS_KEYS
from hf_recipes.data.conversations.turns import LABELS
from hf_recipes.data.schemas.chat import is_variant
from hf_recipes.data.schemas.column_names import (
    ABOUT,
    CHOICES,
    HARMFUL,
    MARKS,
    MEANINGFUL,
    MEANINGFUL_FOR,
    NOT_WANTED,
    UNWANTED,
    WANTED,
    WEIGHTS,
    WORDS,
)
from hf_recipes.data.schemas.columns import Columns, Example, MeaningLost, Schema

TURNS = {"messages", "sharegpt", "turns"}  # schemas whose conversation is in one column


def is_meaningful(name: Any, columns: Columns) -> bool:
    """Whether a column usually carries meaning for what the rows are read as."""
    keys = keys_of(name)
    if set(THOUGHTS_KEYS).intersection(keys) and (columns.thoughts or columns.reads == "prompts"):
        return False
    if not MEANINGFUL.isdisjoint(keys):
        return not MEANINGFUL_FOR[columns.reads].isdisjoint(keys)
    if columns.reads == "examples" and _verdict(name) is not None:
        return True
    says = remedy_by_word(name) if columns.reads != "documents" else None
    return says is not None and not ("thoughts" in says and (columns.thoughts or columns.reads == "prompts"))


@lru_cache(4096)
def _verdict(name: Any) -> bool | None:
    """Whether true under a name says that an answer is wanted, or that it is not; None for a name that says neither."""
    key = keys_of(name)[0]
    if key in MEANINGFUL or re.search("chosen|reject", key):
        return None
    return True if WANTED.search(key) else False if NOT_WANTED.search(key) else None


def is_watched(name: Any, columns: Columns, read: set[str]) -> bool:
    """Whether a column usually carries meaning, and none of those `read` is the same in a language that is named."""
    return is_meaningful(name, columns) and not any(is_variant(other, name) for other in read)


@lru_cache(4096)
def remedy_by_word(name: Any) -> str | None:
    """What to do about a column whose name has a word of `WORDS`; None for another one."""
    if ABOUT.search(key := keys_of(name)[0]):
        return None
    words = {word.removesuffix("s") for word in re.split(r"[\W_\d]+", key)}
    for remedy, known in WORDS.items():
        if any(word.removesuffix("s") in words or (not word.isascii() and word in str(name)) for word in known.split()):
            return remedy.format(name=shlex.quote(str(name)))
    return None


def is_lost(name: Any, value: Any, example: Example) -> bool:
    """Whether a value that no example is made of says what this example does not show."""
    if is_empty(value):
        return False
    keys, label = {*keys_of(name)}, LABELS.get(str(value).strip().lower())
    if keys & {*HARMFUL, *MARKS}:
        return label is not False
    if keys & {*WEIGHTS}:
        return label is not True
    if (wanted := _verdict(name)) is not None:
        return label is not None and label is not wanted
    return not is_shown(value, example) and (not isinstance(value, (bool, int, float)) or bool(keys & MEANINGFUL))


def is_shown(value: Any, example: Example) -> bool:
    """Whether the texts of an example hold all texts of a value, so that nothing is lost without it."""
    texts = "\n".join(strings_in({name: part for name, part in example.items() if name != "remarks"}))
    return all(text.strip() in texts for text in strings_in(value)) and not isinstance(value, (bool, int, float))


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings_in(part)


def meaning_lost(schema: Schema, *names: Any) -> MeaningLost:
    """What to raise for the columns, or the keys of turns, `names`."""
    of_turns, key = "[]." in str(names[0]), str(names[0]).rpartition("[].")[2]
    remedies = [CHOICES if str(name).lower() in ("b", "opb") else remedy_by_word(name) for name in names]
    if of_turns or (
        schema.name in TURNS and not any(word in str(remedies) for word in ("thoughts", "tools", "system"))
    ):
        remedies = ["move it into the text of a turn or into a turn of its own"]
    if not {*UNWANTED}.isdisjoint(keys_of(key)) or _verdict(key) is not None:
        remedies = ["take out the rows that it says are not wanted"]
    elif of_turns and key in MARKS:
        remedies = ["write it as loss, false on turns that shall have none"]
    remedy = " or ".join(dict.fromkeys(filter(None, remedies))) or (
        "name what it is with a flag, rename it context or system, choose another --schema"
    )
    listed, ignored = ", ".join(map(repr, names)), " ".join(shlex.quote(str(name)) for name in names)
    what, carry, them = ("key" if of_turns else "column"), "carries", "it"
    if len(names) > 1:
        what, carry, them = f"{what}s", "carry", "them"
    return MeaningLost(
        f"the schema {schema.name} does not use the {what} {listed}, which usually {carry} meaning; {remedy}, or leave "
        f"{them} out with --ignore_columns {ignored}"
    )
