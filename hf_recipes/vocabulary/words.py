"""Lists of words: one a line, alone or followed by its count, and that by a tag, as jieba's dictionaries are."""

import re

from hf_recipes.core.errors import UserError, say
from hf_recipes.data.files.file_io import open_text

_COUNTED = re.compile(r"(.+?)\s+(\d+)(?:\s+[a-zA-Z]+)?")


def read_words(path: str) -> list[str]:
    """The words without repeats, those with the highest counts first, else in their order."""
    counts: dict[str, int] = {}
    repeated = 0
    try:
        file, _ = open_text(path)
        with file:
            lines = file.read().splitlines()
    except OSError as error:
        raise UserError(f"--words {path}: {error.strerror}") from None
    for line in lines:
        word, count = line.strip(), 0
        if not word or word.startswith("#"):
            continue
        if match := _COUNTED.fullmatch(word):
            word, count = match[1].strip(), int(match[2])
        repeated += word in counts
        counts[word] = max(counts.get(word, 0), count)
    if not counts:
        raise UserError(f"--words {path}: no word in it")
    if repeated:
        say(f"--words {path}: {repeated:,} lines repeat a word")
    return sorted(counts, key=lambda word: -counts[word])
