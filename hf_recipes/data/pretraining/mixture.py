"""Sources that were cut into blocks as the one sequence of blocks that a run learns from."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hf_recipes.core.errors import UserError, say
from hf_recipes.data.pretraining.mixture_policy import ENDLESS, Policy, Schedule, whole_numbers
from hf_recipes.data.pretraining.packing import Blocking, example
from hf_recipes.data.pretraining.stored_blocks import StoredBlocks, permuted
from hf_recipes.data.pretraining.streamed_blocks import StreamedBlocks

SAMPLED = 1 << 16  # values of an array that are taken at 64 places, or all of a shorter one


def chosen(policy: Policy | None, names: Sequence[str], where: str) -> list[str]:
    """The sources that a run learns from: those to which the policy gives something.

    Raises:
        UserError: the policy names a source that is not there.
    """
    if policy is None:
        return list(names)
    missing = [name for name in policy.sources if name not in names]
    if missing:
        raise UserError(
            f"{where}: {', '.join(missing)} is not among the sources of --train_file, which are {', '.join(names)}"
        )
    left_out = [name for name in names if not policy.sources.get(name)]
    if left_out:
        say(f"{where} gives nothing to {', '.join(left_out)}: left out")
    return [name for name in names if name not in left_out]


Blocks = StoredBlocks | StreamedBlocks


class Mixture:
    """The blocks of a run in their order: block `i` is the same at any number of processes and workers.

    Args:
        quotas: (S,) blocks of each source in an epoch of the mixture.
        blocks: in an epoch of the run; None where there is a stream, whose length nobody knows.
        shuffle: whether the blocks of a stored source are drawn in an order of their own in each epoch.
        apart: whether positions restart at each document.
    """

    def __init__(
        self,
        sources: Sequence[Blocks],
        quotas: np.ndarray,
        blocking: Blocking,
        blocks: int | None,
        *,
        shuffle: bool = True,
        apart: bool = True,
        pad: int = 0,
    ):
        self.sources, self.blocking, self.blocks = list(sources), blocking, blocks
        self.schedule = Schedule(quotas, blocking.seed)
        self.shuffle, self.apart, self.pad = shuffle, apart, pad

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    @property
    def shares(self) -> np.ndarray:
        """(S,) the part of all blocks that each source is meant to be."""
        return self.schedule.quotas / self.schedule.epoch_blocks

    def identity(self) -> list[list]:
        """What the blocks depend on: name, share and content of each source, as plain values."""
        found = []
        for source, quota in zip(self.sources, self.schedule.quotas, strict=True):
            if isinstance(source, StreamedBlocks):
                content = [[os.path.basename(r.source.path), r.source.digest] for r in source.readers]
            else:
                content = [source.shards.manifest[name] for name in ("tokenizer", "documents", "tokens", "bytes")]
            found.append([source.name, int(quota), content])
        return found

    def sampled(self) -> list[str]:
        """A digest of each source's tokens and of where its documents end, by samples; of a stream see `identity`."""
        import xxhash

        found = []
        for source in self.sources:
            digest = xxhash.xxh3_128()
            for array in () if isinstance(source, StreamedBlocks) else (*source.shards.tokens, *source.shards.ends):
                for start in range(0, len(array), max(SAMPLED, len(array) // 64)):
                    digest.update(array[start : start + SAMPLED].tobytes())
            found.append(digest.hexdigest())
        return found

    @property
    def streams(self) -> bool:
        return any(isinstance(source, StreamedBlocks) for source in self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Block `index` of the run, as `example` has it, with its `source`, `tokens`, `documents` and `place`.

        Of a streamed source each block must be taken, in order, by all processes. A negative index is a block without
        labels, which evens out the last batches.
        """
        return self.padding_row() if index < 0 else self._example(*self.schedule[index])

    def padding_row(self) -> dict[str, Any]:
        size = self.blocking.size
        row = {"input_ids": np.full(size, self.pad), "position_ids": np.arange(size), "labels": np.full(size, -100)}
        return {**row, "source": 0, "tokens": 0, "documents": 0, "location": "no row"}

    def _example(self, number: int, ordinal: int) -> dict[str, Any]:
        source = self.sources[number]
        if isinstance(source, StreamedBlocks):
            block = source.next()
        else:
            epoch, location = divmod(ordinal, len(source))
            if self.shuffle:
                location = permuted(location, len(source), self.blocking.seed, 1, number, epoch)
            block = source.read(location, epoch)
        row = example(block, self.blocking.size, self.apart, self.pad)
        counts = {
            "source": number,
            "tokens": len(block.ids),
            "documents": len(block.starts),
            "location": block.location,
        }
        return {**row, **counts}

    def own(self, start: int, stop: int, batch: int, rank: int, world: int, step: int) -> Iterator[list[int]]:
        """The indices of this process's batches, for blocks `start` to `stop` in steps of `step` blocks.

        The last step is filled up with -1.
        """
        for first in range(start, start + -(-(stop - start) // step) * step, world * batch):
            own = range(first + rank * batch, first + (rank + 1) * batch)
            yield [index if index < stop else -1 for index in own]

    def stream(self, start: int, stop: int, batch: int, rank: int, world: int, step: int) -> Iterator[list[dict]]:
        """The batches of `own`, where streamed sources are gone through by all processes alike."""
        for number, own in enumerate(self.own(start, stop, batch, rank, world, step)):
            first = start + number * world * batch
            rows = {}
            for index in range(first, min(first + world * batch, stop)):
                source, ordinal = self.schedule[index]
                if index in own or isinstance(self.sources[source], StreamedBlocks):
                    rows[index] = self._example(source, ordinal)
            yield [rows[index] if index >= 0 else self.padding_row() for index in own]

    def state(self) -> dict[str, Any]:
        """Where each stream stands."""
        return {source.name: source.state() for source in self.sources if isinstance(source, StreamedBlocks)}

    def begin(self, state: Mapping[str, Any]) -> None:
        for source in self.sources:
            if isinstance(source, StreamedBlocks):
                source.begin(state[source.name])

    def epochs(self, blocks: int) -> np.ndarray:
        """(S,) how often each source was gone through in the first `blocks` of the run."""
        drawn = self.schedule.drawn(blocks)
        found = [
            source.epochs if isinstance(source, StreamedBlocks) else count / len(source)
            for source, count in zip(self.sources, drawn, strict=True)
        ]
        return np.array(found)


def quotas_of(policy: Policy | None, sources: Sequence[Blocks], rates: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """(S,) blocks of each source in an epoch of the mixture.

    Args:
        rates: tokens for each document (``documents``) and each byte (``bytes``) of a source, by its name.

    Raises:
        UserError: epochs of a stream, whose length is not known.
    """
    if policy is None and not any(isinstance(source, StreamedBlocks) for source in sources):
        return np.array([len(source) for source in sources])
    if policy is None:
        return whole_numbers(np.array([rates[source.name]["size"] for source in sources], float), ENDLESS)
    amounts = np.array([policy.sources[source.name] for source in sources])
    if policy.by == "epochs":
        streamed = [source.name for source in sources if isinstance(source, StreamedBlocks)]
        if streamed:
            raise UserError(
                f"--mixture by epochs: the length of {streamed[0]} is not known before it was read; leave --streaming "
                "out, tokenize it with scripts/prepare_corpus.py, or give shares"
            )
        return np.array([max(1, round(a * len(s))) for a, s in zip(amounts, sources, strict=True)])
    if policy.by != "tokens":
        amounts = amounts * np.array([rates[source.name][policy.by] for source in sources])
    return whole_numbers(amounts, ENDLESS)
