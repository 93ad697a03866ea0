"""The blocks of token shards, each found without reading those before."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from hf_recipes.data.pretraining.packing import Block, Blocking, BlockSource, pack
from hf_recipes.data.pretraining.token_shards import TokenShards


@dataclass
class StoredBlocks(BlockSource):
    """The `BlockSource` of a source's token shards."""

    is_stream: ClassVar = False

    shards: TokenShards
    blocking: Blocking
    kept: list[np.ndarray] = field(init=False, repr=False)  # of each shard, where each document ends among kept tokens
    first: np.ndarray = field(init=False, repr=False)  # kept tokens before each shard
    documents: np.ndarray = field(init=False, repr=False)  # documents before each shard

    def __post_init__(self):
        self.name, self.kept = self.shards.name, self.shards.ends
        if self.blocking.shortens:
            size = self.blocking.size
            self.kept = [np.cumsum(np.minimum(np.diff(ends, prepend=0), size)) for ends in self.shards.ends]
        self.first = np.cumsum([0, *(int(ends[-1]) if len(ends) else 0 for ends in self.kept)])
        self.documents = np.cumsum([0, *map(len, self.kept)])

    @property
    def tokens(self) -> int:
        """Tokens of an epoch."""
        return int(self.first[-1])

    def __len__(self) -> int:
        return self.blocking.count(self.tokens)

    def block(self, ordinal: int, shuffle: Sequence[int] | None) -> Block:
        epoch, index = divmod(ordinal, len(self))
        return self.read(index if shuffle is None else permute(index, len(self), *shuffle, epoch), epoch)

    def read(self, block: int, epoch: int) -> Block:
        """Block number `block` of an epoch in the order of the documents."""
        low, high = block * self.blocking.size, min((block + 1) * self.blocking.size, self.tokens)
        spans = []
        shard = int(np.searchsorted(self.first, low, "right")) - 1
        document = int(np.searchsorted(self.kept[shard], low - self.first[shard], "right")) + 1
        location = f"{self.shards.folder}/{self.shards.manifest['shards'][shard]['file']}: from document {document} on"
        while low < high:
            begin, end = low - self.first[shard], min(high, self.first[shard + 1]) - self.first[shard]
            spans += self._spans(shard, int(begin), int(end), epoch)
            low, shard = int(self.first[shard + 1]), shard + 1
        return pack(spans, self.blocking, location)

    def _spans(self, shard: int, begin: int, end: int, epoch: int) -> list[tuple[np.ndarray, int]]:
        """The kept tokens [begin, end) of a shard by document, each with the kept tokens of its document before it."""
        kept, ends, tokens = self.kept[shard], self.shards.ends[shard], self.shards.tokens[shard]
        spans = []
        document = int(np.searchsorted(kept, begin, "right"))
        while begin < end:
            kept_start, stored_start = (int(kept[document - 1]), int(ends[document - 1])) if document else (0, 0)
            stop = min(end, int(kept[document]))
            length = int(ends[document]) - stored_start
            skipped = self.blocking.skipped(length, epoch, int(self.documents[shard]) + document)
            stored = stored_start + skipped + begin - kept_start
            spans.append((tokens[stored : stored + stop - begin], begin - kept_start))
            begin, document = stop, document + 1
        return spans

    def epochs(self, blocks: int) -> float:
        return blocks / len(self)

    def skipped_tokens(self, epochs: float) -> int:
        rest = self.tokens % self.blocking.size if self.blocking.drop_last else 0
        return round((len(self.shards) - self.tokens + rest) * epochs)

    def content(self) -> list:
        return [self.shards.manifest[name] for name in ("tokenizer", "documents", "tokens", "bytes")]

    def arrays(self) -> list[np.ndarray]:
        return [*self.shards.tokens, *self.shards.ends]


def permute(index: int, size: int, *key: int) -> int:
    """Where a random permutation of ``range(size)`` puts `index`, computed without the others; `key` seeds it.

    A Feistel network over the next power of four, walked until it is within the range (Black and Rogaway, Ciphers with
    Arbitrary Finite Domains, 2002).
    """
    if size < 2:
        return index
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    round_keys = np.random.SeedSequence([*key, size]).generate_state(6, np.uint64)
    while True:
        left, right = index >> half, index & mask
        for round_key in round_keys:
            mixed = (right * 0x9E3779B97F4A7C15 + int(round_key)) & 0xFFFFFFFFFFFFFFFF
            mixed ^= mixed >> 29
            mixed = (mixed * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 32) & mask)
        index = left << half | right
        if index < size:
            return index
