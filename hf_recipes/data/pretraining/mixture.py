"""Sources of blocks as the one sequence of blocks that a run is trained on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hf_recipes.core.errors import UserError, say
from hf_recipes.data.pretraining.mixture_policy import ENDLESS, Policy, Schedule, round_shares
from hf_recipes.data.pretraining.packing import Blocking, BlockSource, example

DIGESTED = 1 << 16  # values of an array at 64 positions, or all of a shorter one


def select_sources(policy: Policy | None, names: Sequence[str], where: str) -> list[str]:
    """The names of the sources to which `policy` gives a share."""
    if policy is None:
        return list(names)
    missing = [name for name in policy.sources if name not in names]
    if missing:
        raise UserError(
            f"{where}: {', '.join(missing)} is not among the sources of --train_file, which are {', '.join(names)}"
        )
    unused = [name for name in names if not policy.sources.get(name)]
    if unused:
        say(f"{where} gives nothing to {', '.join(unused)}: left out")
    return [name for name in names if name not in unused]


class Mixture:
    """The blocks of a run in their order: block `i` is the same at any number of processes and workers.

    Args:
        quotas: (S,) blocks of each source in an epoch of the mixture.
        blocks: in an epoch of the run; None where there is a stream, whose length is not known.
        shuffle: whether a stored source has another order of its blocks in each epoch.
        mask_documents: whether positions restart at each document.
    """

    def __init__(
        self,
        sources: Sequence[BlockSource],
        quotas: np.ndarray,
        blocking: Blocking,
        blocks: int | None,
        *,
        shuffle: bool = True,
        mask_documents: bool = True,
        pad: int = 0,
    ):
        self.sources, self.blocking, self.blocks = list(sources), blocking, blocks
        self.schedule = Schedule(quotas, blocking.seed)
        self.shuffle, self.mask_documents, self.pad = shuffle, mask_documents, pad

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    @property
    def shares(self) -> np.ndarray:
        """(S,) the intended share of each source in all blocks."""
        return self.schedule.quotas / self.schedule.epoch_blocks

    def identity(self) -> list[list]:
        """What the blocks depend on: name, share and content of each source, as plain values."""
        return [[s.name, int(quota), s.content()] for s, quota in zip(self.sources, self.schedule.quotas, strict=True)]

    def settings(self) -> dict[str, Any]:
        """What must be the same for the blocks to be the same."""
        return {
            "block_size": self.blocking.size,
            "sequence_sample_mode": self.blocking.mode,
            "drop_last": self.blocking.drop_last,
            "seed": self.blocking.seed,
            "shuffle": self.shuffle,
            "document_attention": self.mask_documents,
            "sources": self.identity(),
        }

    def digests(self) -> list[str]:
        """Of each stored source, a digest of samples of its tokens and document ends."""
        import xxhash

        digests = []
        for source in self.sources:
            digest = xxhash.xxh3_128()
            for array in source.arrays():
                for start in range(0, len(array), max(DIGESTED, len(array) // 64)):
                    digest.update(array[start : start + DIGESTED].tobytes())
            digests.append(digest.hexdigest())
        return digests

    @property
    def streams(self) -> list[BlockSource]:
        return [source for source in self.sources if source.is_stream]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Block `index` of the run, as `example` has it, with its `source`, `tokens`, `documents` and `location`.

        A negative index is a block without labels, which fills up the last batches.
        """
        return self.padding_row() if index < 0 else self._example(*self.schedule[index])

    def padding_row(self) -> dict[str, Any]:
        size = self.blocking.size
        row = {"input_ids": np.full(size, self.pad), "position_ids": np.arange(size), "labels": np.full(size, -100)}
        return {**row, "source": 0, "tokens": 0, "documents": 0, "location": "no row"}

    def _example(self, number: int, ordinal: int) -> dict[str, Any]:
        block = self.sources[number].block(ordinal, (self.blocking.seed, 1, number) if self.shuffle else None)
        row = example(block, self.blocking.size, self.mask_documents, self.pad)
        counts = {"source": number, "tokens": len(block.ids), "documents": len(block.starts)}
        return {**row, **counts, "location": block.location}

    def batches_of(self, start: int, stop: int, batch: int, rank: int, world: int, step: int) -> Iterator[list[int]]:
        """The indices of the batches of process `rank`, for blocks `start` to `stop` in steps of `step` blocks.

        The last step is filled up with -1.
        """
        for first in range(start, start + -(-(stop - start) // step) * step, world * batch):
            indices = range(first + rank * batch, first + (rank + 1) * batch)
            yield [index if index < stop else -1 for index in indices]

    def stream(self, start: int, stop: int, batch: int, rank: int, world: int, step: int) -> Iterator[list[dict]]:
        """The batches of `batches_of`, with every block of a streamed source taken by every process."""
        for number, indices in enumerate(self.batches_of(start, stop, batch, rank, world, step)):
            first = start + number * world * batch
            rows = {}
            for index in range(first, min(first + world * batch, stop)):
                source, ordinal = self.schedule[index]
                if index in indices or self.sources[source].is_stream:
                    rows[index] = self._example(source, ordinal)
            yield [rows[index] if index >= 0 else self.padding_row() for index in indices]

    def state(self) -> dict[str, Any]:
        """The position of each stream."""
        return {source.name: source.state() for source in self.streams}

    def start_at(self, state: Mapping[str, Any]) -> None:
        for source in self.streams:
            source.start_at(state[source.name])

    def epochs(self, blocks: int) -> np.ndarray:
        """(S,) passes over each source in the first `blocks` of the run."""
        counts = self.schedule.counts(blocks)
        return np.array([source.epochs(int(count)) for source, count in zip(self.sources, counts, strict=True)])


def quotas_of(
    policy: Policy | None, sources: Sequence[BlockSource], rates: Mapping[str, Mapping[str, float]]
) -> np.ndarray:
    """(S,) blocks of each source in an epoch of the mixture.

    Args:
        rates: tokens for each document (``documents``) and each byte (``bytes``) of a source, by its name.
    """
    streamed = [source.name for source in sources if source.is_stream]
    if policy is None and not streamed:
        return np.array([len(source) for source in sources])
    if policy is None:
        return round_shares(np.array([rates[source.name]["size"] for source in sources], float), ENDLESS)
    amounts = np.array([policy.sources[source.name] for source in sources])
    if policy.by == "epochs":
        if streamed:
            raise UserError(
                f"--mixture by epochs: the length of {streamed[0]} is not known before it was read; leave --streaming "
                "out, tokenize it with scripts/prepare_corpus.py, or give shares"
            )
        return np.array([max(1, round(a * len(s))) for a, s in zip(amounts, sources, strict=True)])
    if policy.by != "tokens":
        amounts = amounts * np.array([rates[source.name][policy.by] for source in sources])
    return round_shares(amounts, ENDLESS)
