"""Repairs and rules for the documents of a Chinese corpus, as functions of the text alone."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import numpy as np

# C0 and C1 except tab and line feed, direction marks, invisible operators, byte order marks.
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
NEWLINES = re.compile("\r\n?|\u2028|\u2029")
CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
KANA = re.compile("[\u3040-\u30ff]")
# Programs within prose: fenced blocks, inline code, HTML's code and pre.
INLINE_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|<(code|pre)\b[^>]*>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
WORD = re.compile(r"[a-z0-9\u00c0-\u024f]+|\w")
ENDS = re.compile("[。！？；…!?;]|\\.(?=\\s|$)")
BLANK = re.compile(r"\s+")
SYMBOLS = re.compile(r"[^\w\s]|_")
SAMPLE = 200_000  # characters of a document that the rules read, which bounds their memory

# Gopher (https://arxiv.org/abs/2112.11446, table A1): share of repeated lines, and of characters in them; share of
# characters in the most frequent n-gram (here of characters, without symbols, that occurs at least MIN_REPEATS times).
MAX_REPEATED_LINES, MAX_REPEATED_LINE_CHARACTERS = 0.3, 0.2
MAX_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
MIN_REPEATS = 5
MIN_CHINESE = 0.3  # of the characters that are not blank; as EvalWeb (https://arxiv.org/abs/2311.01149) by proportion
MAX_SYMBOLS = 0.4
LONG_WITHOUT_END = 200  # characters in which prose has a sentence end (C4's rule of terminal punctuation)


def strip_controls(text: str) -> str:
    """`text` without control characters, with ``\\n`` as line ends."""
    return CONTROLS.sub("", NEWLINES.sub("\n", text))


@lru_cache(maxsize=1)
def _kept_by_nfkc() -> re.Pattern:
    """Chinese punctuation, and characters that NFKC would change in meaning: 10² is not 102, and ① not 1."""
    kinds = ("<super>", "<sub>", "<fraction>", "<circle>")

    def has_meaning(character: str) -> bool:
        parts = unicodedata.decomposition(character)
        return parts.startswith(kinds) or (
            parts.startswith("<square>") and any(has_meaning(chr(int(code, 16))) for code in parts.split()[1:])
        )

    kept = "".join(character for character in map(chr, range(0x80, 0x10000)) if has_meaning(character))
    return re.compile(f"[{re.escape('，：；？！（）～…‥　' + kept)}]+")


def nfkc(text: str) -> str:
    """NFKC outside of programs, except for Chinese punctuation, exponents, fractions and circled numbers."""
    if unicodedata.is_normalized("NFKC", text):
        return text
    normalize = partial(unicodedata.normalize, "NFKC")
    return _outside(INLINE_CODE, text, lambda prose: _outside(_kept_by_nfkc(), prose, normalize))


def simplify(text: str) -> str:
    """Traditional → Simplified Chinese (opencc t2s) outside of programs; lines of Japanese stay as they are."""
    convert = _converter().convert
    if not KANA.search(text):
        return _outside(INLINE_CODE, text, convert)
    return "\n".join(line if KANA.search(line) else _outside(INLINE_CODE, line, convert) for line in text.split("\n"))


@lru_cache(maxsize=1)
def _converter():
    from opencc import OpenCC

    return OpenCC("t2s")


def _outside(pattern: re.Pattern, text: str, change: Callable[[str], str]) -> str:
    """`text`, with `change` applied between the matches of `pattern`."""
    parts, end = [], 0
    for match in pattern.finditer(text):
        parts += [change(text[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*parts, change(text[end:])])


def quality_problem(text: str, min_chinese: float = MIN_CHINESE) -> str | None:
    """Why `text` is no Chinese prose worth training on, or None."""
    text = text[:SAMPLE]
    dense = BLANK.sub("", text)
    length = max(1, len(dense))
    if _count(CHINESE, dense) < min_chinese * length:
        return f"fewer than {min_chinese:.0%} Chinese characters"
    if _count(SYMBOLS, dense) > MAX_SYMBOLS * length:
        return f"more than {MAX_SYMBOLS:.0%} punctuation and symbols"
    if length > LONG_WITHOUT_END and not ENDS.search(text):
        return f"no end of a sentence in more than {LONG_WITHOUT_END} characters"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    repeated, before = [], set()
    for line in lines:
        if line in before:
            repeated.append(line)
        before.add(line)
    if len(repeated) > MAX_REPEATED_LINES * len(lines):
        return f"more than {MAX_REPEATED_LINES:.0%} of the lines recur"
    if sum(map(len, repeated)) > MAX_REPEATED_LINE_CHARACTERS * len(text):
        return f"more than {MAX_REPEATED_LINE_CHARACTERS:.0%} of the characters are in lines that recur"
    letters = np.frombuffer(SYMBOLS.sub("", dense).encode("utf-32-le"), np.uint32).astype(np.uint64)
    grams, length = letters, max(1, len(letters))
    for size in range(2, max(MAX_TOP_NGRAM) + 1):
        grams = grams[:-1] * np.uint64(0x9E3779B97F4A7C15) + letters[size - 1 :]  # a rolling hash
        most = int(np.unique(grams, return_counts=True)[1].max(initial=0))
        if most >= MIN_REPEATS and most * size > MAX_TOP_NGRAM[size] * length:
            return f"the same {size} characters are more than {MAX_TOP_NGRAM[size]:.0%} of the text"
    return None


def _count(pattern: re.Pattern, text: str) -> int:
    """How many characters of `text` match."""
    return len(text) - len(pattern.sub("", text))


def words(text: str) -> Iterator[str]:
    """The units of n-grams: each Chinese character, and each Latin word or number, in lower case."""
    return (match.group() for match in WORD.finditer(text.lower()))
