"""New tokens for a BPE tokenizer: training goes on from its merges (Sennrich et al., arXiv 1508.07909).

Each old token is one symbol of a new training, so that a new token is always made from two tokens that are there, by a
merge that comes after all old ones. The old merges therefore cut a text as before, and new ones join what they leave.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from tqdm.auto import tqdm

from hf_recipes.core.errors import UserError
from hf_recipes.vocabulary.bpe import UTF8_BYTES, Bpe, byte_signs

_FIRST = 0xE000  # of the code points that stand for tokens while training: from here on none is white space
_SPARE = 1.3  # merges to learn for each one wanted: some are not admitted
ROUNDS = 4  # more do not shorten texts further
MIN_FREQUENCY = 2  # of a pair in the texts

Admits = Callable[[str], bool]


@dataclass
class Extension:
    """New `tokens`, in the order of their ids, the `merges` that make them by rank, and what was `refused` and why."""

    tokens: dict[str, None] = field(default_factory=dict)
    merges: dict[tuple[str, str], int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def merge(self, left: str, right: str) -> None:
        self.tokens.setdefault(left + right)
        self.merges.setdefault((left, right), len(self.merges))


def learn(bpe: Bpe, texts: Iterable[str], count: int, max_length: int, admits: Admits = bool) -> Extension:
    """Give `bpe` at most `count` new tokens of at most `max_length` characters, those that `admits` takes.

    Tokens are whole characters, or parts of one; white space, digits, and letters of two scripts are joined only where
    an old token joins such (`Joins`). A character of several tokens, as a byte-level vocabulary has them, can be joined
    to its neighbours once it is one token: in the next of several rounds.
    """
    chunks: Counter[str] = Counter()
    for text in tqdm(texts, "reading", unit=" texts", disable=None, leave=False):
        chunks.update(bpe.chunks(text))
    extension = Extension()
    rounds = ROUNDS if bpe.is_byte_level else 1
    for number in range(1, rounds + 1):
        addition = _learn(bpe, chunks, count * number // rounds - len(extension.tokens), max_length, admits)
        bpe.add(list(addition.tokens), list(addition.merges))
        for pair in addition.merges:
            extension.merge(*pair)
    if not extension.tokens:
        raise UserError(f"{bpe.name}: the texts have nothing that more tokens would shorten")
    return extension


def _learn(bpe: Bpe, chunks: Mapping[str, int], count: int, max_length: int, admits: Admits) -> Extension:
    symbols: dict[str, str] = {}
    segments: Counter[str] = Counter()
    for chunk, occurrences in chunks.items():
        for run in bpe.runs(bpe.tokenize(chunk)):
            if len(run) > 1:
                segments["".join(symbols.setdefault(t, chr(_FIRST + len(symbols))) for t in run)] += occurrences
    extension = Extension()
    text_of = {symbol: token for token, symbol in symbols.items()}
    unusable: set[str] = set()
    for left, right in _train(segments, len(symbols), int(count * _SPARE) + 256):
        whole = left + right
        if left in unusable or right in unusable:
            unusable.add(whole)
            continue
        pair = text_of[left], text_of[right]
        token = text_of[whole] = "".join(pair)
        if token in extension.tokens:
            extension.merge(*pair)
        elif token in bpe.vocabulary or _is_too_long(bpe, token, max_length) or not admits(token):
            unusable.add(whole)
        elif len(extension.tokens) < count:
            extension.merge(*pair)
        else:
            break
    return extension


def _train(segments: Mapping[str, int], alphabet: int, merges: int) -> list[tuple[str, str]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=alphabet + merges, min_frequency=MIN_FREQUENCY, show_progress=False)
    tokenizer.train_from_iterator((" ".join([segment] * count) for segment, count in segments.items()), trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _is_too_long(bpe: Bpe, token: str, max_length: int) -> bool:
    text = bpe.text_of(token)
    return text is not None and len(text) > max_length


def too_few_tokens(count: int, missing: int) -> UserError:
    return UserError(
        f"--num_new_tokens {count:,}: the texts have {missing:,} characters that are no token yet, which come before "
        "longer tokens; give more, or a lower --character_coverage"
    )


def missing_bytes(bpe: Bpe) -> list[str]:
    """The signs of bytes of UTF-8 that a byte-level vocabulary lacks: a text with such a byte does not come back."""
    if not bpe.is_byte_level:
        return []
    signs = byte_signs()
    return [signs[byte] for byte in UTF8_BYTES if signs[byte] not in bpe.vocabulary]


def missing_characters(bpe: Bpe, texts: Iterable[str], coverage: float) -> list[str]:
    """The characters that a vocabulary with byte fallback writes as bytes, commonest first, of those that make up
    `coverage` of the texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    for sign in [character for character in counts if character.isspace()]:
        del counts[sign]
    total, seen, missing = sum(counts.values()), 0, []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if seen >= coverage * total or count < MIN_FREQUENCY:
            break
        seen += count
        if bpe.spell(character) not in bpe.vocabulary:
            missing.append(character)
    return missing


def add_words(bpe: Bpe, words: Iterable[str], extension: Extension, admits: Admits = bool) -> None:
    """Add to `extension` the merges, and with them the shorter tokens, that make each word one token."""
    for word in words:
        parts = bpe.split(word)
        spelled = bpe.spell(word)
        if len(parts) != 1:
            shown = " | ".join(bpe.text_of(part) or part for part in parts)
            extension.refused[word] = f"the tokenizer cuts it before it looks for tokens: {shown}"
            continue
        tokens = merge_all(bpe.tokenize(parts[0]), extension.merges)
        if len(tokens) == 1:
            extension.refused[word] = "it is one token already"
        elif spelled in bpe.vocabulary:
            extension.refused[word] = "it is in the vocabulary, but no merge makes it, and one would change other texts"
        elif any("<0x" in token for token in tokens) and not bpe.is_byte_level:
            extension.refused[word] = "a character of it is written as bytes"
        else:
            for chain in (_from_left(tokens), _from_right(tokens)):
                if all(a + b not in bpe.vocabulary and admits(a + b) for a, b in chain):
                    for pair in chain:
                        extension.merge(*pair)
                    break
            else:
                extension.refused[word] = "a part of it is an old token that no merge makes here"


def merge_all(tokens: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """`tokens` after all merges, of which the one of the lowest rank comes first, as BPE does."""
    tokens = list(tokens)
    while len(tokens) > 1:
        rank, index = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(tokens)))
        if rank == len(ranks):
            break
        tokens[index : index + 2] = [tokens[index] + tokens[index + 1]]
    return tokens


def _from_left(tokens: list[str]) -> list[tuple[str, str]]:
    return [("".join(tokens[:i]), tokens[i]) for i in range(1, len(tokens))]


def _from_right(tokens: list[str]) -> list[tuple[str, str]]:
    return [(tokens[i], "".join(tokens[i + 1 :])) for i in range(len(tokens) - 2, -1, -1)]
