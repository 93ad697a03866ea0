"""Documents as blocks of one length, which is what pretraining learns from."""

from dataclasses import dataclass, field

import numpy as np

from hf_recipes.data.pretraining.packing import Block, Blocking, fill
from hf_recipes.data.pretraining.token_shards import TokenShards


@dataclass
class StoredBlocks:
    """The blocks of a source's token shards, each found without reading those before."""

    shards: TokenShards
    blocking: Blocking
    kept: list[np.ndarray] = field(init=False, repr=False)  # of each shard, where each document ends among kept tokens
    first: np.ndarray = field(init=False, repr=False)  # kept tokens before each shard
    documents: np.ndarray = field(init=False, repr=False)  # documents before each shard

    def __post_init__(self):
        self.kept = self.shards.ends
        if self.blocking.shortens:
            size = self.blocking.size
            self.kept = [np.cumsum(np.minimum(np.diff(ends, prepend=0), size)) for ends in self.shards.ends]
        totals = [int(ends[-1]) if len(ends) else 0 for ends in self.kept]
        self.first = np.cumsum([0, *totals])
        self.documents = np.cumsum([0, *map(len, self.kept)])

    @property
    def name(self) -> str:
        return self.shards.name

    @property
    def tokens(self) -> int:
        """Tokens of an epoch."""
        return int(self.first[-1])

    @property
    def left_out(self) -> int:
        """Tokens that an epoch leaves out: of documents that are shortened, and of a last block that is dropped."""
        return len(self.shards) - self.tokens + (self.tokens % self.blocking.size) * self.blocking.drop_last

    def __len__(self) -> int:
        return self.blocking.count(self.tokens)

    def read(self, block: int, epoch: int) -> Block:
        """Block number `block` of an epoch, as without shuffling."""
        low, high = block * self.blocking.size, min((block + 1) * self.blocking.size, self.tokens)
        parts = []
        shard = int(np.searchsorted(self.first, low, "right")) - 1
        one = int(np.searchsorted(self.kept[shard], low - self.first[shard], "right")) + 1
        location = f"{self.shards.folder}/{self.shards.manifest['shards'][shard]['file']}: from document {one} on"
        while low < high:
            begin, end = low - self.first[shard], min(high, self.first[shard + 1]) - self.first[shard]
            parts += self._parts(shard, int(begin), int(end), epoch)
            low, shard = int(self.first[shard + 1]), shard + 1
        return fill(parts, self.blocking, location)

    def _parts(self, shard: int, begin: int, end: int, epoch: int) -> list[tuple[np.ndarray, int]]:
        kept, ends, tokens = self.kept[shard], self.shards.ends[shard], self.shards.tokens[shard]
        parts = []
        document = int(np.searchsorted(kept, begin, "right"))
        while begin < end:
            start, own_start = (int(kept[document - 1]), int(ends[document - 1])) if document else (0, 0)
            stop = min(end, int(kept[document]))
            number = int(self.documents[shard]) + document
            skipped = self.blocking.skipped(int(ends[document]) - own_start, epoch, number)
            location = own_start + skipped + begin - start
            parts.append((tokens[location : location + stop - begin], begin - start))
            begin, document = stop, document + 1
        return parts


def permuted(index: int, size: int, *key: int) -> int:
    """The `index`-th of a permutation of ``range(size)`` that `key` draws, without making the others.

    A Feistel network over the next power of four, walked until it is within the range (Black and Rogaway, Ciphers with
    Arbitrary Finite Domains, 2002).
    """
    if size < 2:
        return index
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    rounds = np.random.SeedSequence([*key, size]).generate_state(6, np.uint64)
    while True:
        left, right = index >> half, index & mask
        for own in rounds:
            mixed = (right * 0x9E3779B97F4A7C15 + int(own)) & 0xFFFFFFFFFFFFFFFF
            mixed ^= mixed >> 29
            mixed = (mixed * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 32) & mask)
        index = left << half | right
        if index < size:
            return index
