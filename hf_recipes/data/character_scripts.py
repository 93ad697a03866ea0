"""Which script a text is written in, counted over all characters of many texts at once."""

from collections.abc import Sequence

import numpy as np

SCRIPTS = ("too short to tell", "Chinese", "Japanese", "Korean", "Latin script", "Cyrillic", "Arabic", "Thai")
MIN_WORDS = 5  # or Chinese characters, from which on a text is judged
MIN_KANA = 0.1  # share in Japanese text; the rest of it are Chinese characters

_RANGES = {
    "Chinese": [(0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x30000)],
    "Japanese": [(0x3041, 0x3097), (0x30A1, 0x30FB)],
    "Korean": [(0x1100, 0x1200), (0xAC00, 0xD7A4)],
    "Latin script": [(0x41, 0x5B), (0x61, 0x7B), (0xC0, 0xD7), (0xD8, 0xF7), (0xF8, 0x250)],
    "Cyrillic": [(0x400, 0x530)],
    "Arabic": [(0x620, 0x64B), (0x66E, 0x6D4)],
    "Thai": [(0xE01, 0xE31)],
}
# Words in a character: in Chinese each is a word, in other scripts a part of one.
_WORDS = np.array([0, 1, 1, 0.5, 0.2, 0.2, 0.2, 0.2])
_TABLE = np.zeros(0x30000, np.uint8)
for _name, _ranges in _RANGES.items():
    for _start, _end in _ranges:
        _TABLE[_start:_end] = SCRIPTS.index(_name)


def scripts_of(texts: Sequence[str]) -> np.ndarray:
    """(N,) the index in `SCRIPTS` of the script of most words of each text."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    scripts = _TABLE[np.minimum(codes, len(_TABLE) - 1)]
    rows = np.repeat(np.arange(len(texts)), lengths)
    counts = np.bincount(rows * len(SCRIPTS) + scripts, minlength=len(texts) * len(SCRIPTS)).reshape(len(texts), -1)
    words = counts * _WORDS
    chinese, kana = words[:, 1], words[:, 2]
    japanese = kana > MIN_KANA * (chinese + kana)
    words[japanese, 2] += words[japanese, 1]
    words[japanese, 1] = 0
    words[~japanese, 2] = 0
    return np.where(words.sum(1) < MIN_WORDS, 0, words.argmax(1))
