"""How token sequences are packed into blocks of one size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

Mode = Literal["none", "truncate", "sample", "split"]


class Block(NamedTuple):
    """Up to `size` tokens: (tokens,) ids, the positions where documents begin, and where the block is from."""

    ids: np.ndarray
    starts: list[int]
    location: str


@dataclass(frozen=True)
class Blocking:
    """How documents fill blocks of `size` tokens.

    Documents follow each other, each with its end token; one that does not fit continues in the next block. `mode` is
    for documents longer than a block: ``none`` continues them; ``truncate`` keeps the beginning, ``sample`` a random
    window, another in each epoch; ``split`` makes several documents of one, which do not attend to each other. The last
    block of an epoch is shorter, or with `drop_last` is dropped.
    """

    size: int
    mode: Mode = "none"
    drop_last: bool = False
    seed: int = 0

    def count(self, tokens: int) -> int:
        return tokens // self.size if self.drop_last else -(-tokens // self.size)

    @property
    def shortens(self) -> bool:
        return self.mode in ("truncate", "sample")

    def skipped(self, length: int, epoch: int, document: int) -> int:
        """Tokens skipped at the beginning of a document, which is the `document`-th of its source."""
        if self.mode != "sample" or length <= self.size:
            return 0
        return int(np.random.default_rng([self.seed, 2, epoch, document]).integers(length - self.size + 1))


class BlockSource(Protocol):
    """The blocks of one source, whether its tokens are stored or made while training.

    The blocks of a stream come one after the other: all processes must take all of them.
    """

    name: str
    is_stream: bool

    def block(self, ordinal: int, shuffle: Sequence[int] | None) -> Block:
        """The `ordinal`-th block of the run from this source; `shuffle` is the key of the order within an epoch."""

    def epochs(self, blocks: int) -> float:
        """Passes over the source in its first `blocks` blocks."""

    def skipped_tokens(self, epochs: float) -> int:
        """Tokens of shortened documents and dropped last blocks in so many epochs."""

    def content(self) -> list:
        """What identifies the source's documents, as plain values."""

    def arrays(self) -> list[np.ndarray]:
        """The stored tokens and document ends."""
        return []

    def state(self) -> dict[str, Any]:
        """Where the next block of a stream comes from, as plain values."""

    def start_at(self, state: dict[str, Any] | None) -> None: ...

    def close(self) -> None: ...


def pack(spans: Sequence[tuple[np.ndarray, int]], blocking: Blocking, location: str) -> Block:
    """One block of consecutive spans of documents: token ids, and how many tokens of their document precede them."""
    starts, position = [], 0
    for ids, before in spans:
        if blocking.mode == "split":
            starts += range(position + -before % blocking.size, position + len(ids), blocking.size)
        elif not before:
            starts.append(position)
        position += len(ids)
    ids = np.concatenate([span for span, _ in spans]) if spans else np.empty(0, np.int64)
    return Block(ids, starts, location)


def example(block: Block, size: int, mask_documents: bool, pad: int) -> dict[str, np.ndarray]:
    """A block as the model takes it: `input_ids`, `position_ids` and `labels`, each (size,) int64.

    With `mask_documents`, positions restart at each document, and its first token, which would be predicted from the
    document before, has no label. The padding is a document of its own without labels.

    Example:
        Two documents, 5 6 7 and 8 9, in a block of 6: labels -100 6 7 -100 9 -100, positions 0 1 2 0 1 0.
    """
    length = len(block.ids)
    ids = np.full(size, pad, np.int64)
    ids[:length] = block.ids
    labels = np.where(np.arange(size) < length, ids, -100)
    positions = np.arange(size)
    if mask_documents:
        starts = np.array(sorted({0, *block.starts, *([length] if length < size else [])}))
        positions -= np.repeat(starts, np.diff(np.append(starts, size)))
        labels[starts] = -100
    return {"input_ids": ids, "position_ids": positions, "labels": labels}
