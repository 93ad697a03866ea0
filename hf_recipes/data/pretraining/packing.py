"""How token sequences are packed into blocks of one size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Mode = Literal["none", "truncate", "sample", "split"]


class Block(NamedTuple):
    """Up to `size` tokens: (tokens,) ids, where in it documents or pieces begin, and what is in it, for messages."""

    ids: np.ndarray
    starts: list[int]
    location: str


@dataclass(frozen=True)
class Blocking:
    """How documents fill blocks of `size` tokens.

    Documents follow each other, each with its end token, and what exceeds a block goes on in the next. `mode` says what
    is done with a document longer than a block: with ``none`` it runs on; ``truncate`` keeps its beginning, ``sample``
    a window drawn anew in each epoch; ``split`` parts it into pieces that do not see each other. The last block of an
    epoch is what is left, or with `drop_last` is left out.
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
        """Tokens left out at the beginning of a document, which is the `document`-th of its source."""
        if self.mode != "sample" or length <= self.size:
            return 0
        draw = np.random.default_rng([self.seed, 2, epoch, document])
        return int(draw.integers(length - self.size + 1))


def fill(parts: Sequence[tuple[np.ndarray, int]], blocking: Blocking, location: str) -> Block:
    """One block of consecutive parts of documents.

    Args:
        parts: token ids, and how many tokens of their document are before them.
    """
    starts, at = [], 0
    for ids, before in parts:
        if blocking.mode == "split":
            starts += range(at + -before % blocking.size, at + len(ids), blocking.size)
        elif not before:
            starts.append(at)
        at += len(ids)
    ids = np.concatenate([part for part, _ in parts]) if parts else np.empty(0, np.int64)
    return Block(ids, starts, location)


def example(block: Block, size: int, apart: bool, pad: int) -> dict[str, np.ndarray]:
    """A block as the model takes it: `input_ids`, `position_ids` and `labels`, each (size,) int64.

    Positions restart at each document where documents are kept `apart`, and the first token of each is not learned,
    for it would be from the document before. What fills up the block is a document of its own without labels.

    Example:
        Two documents, 5 6 7 and 8 9, in a block of 6: labels -100 6 7 -100 9 -100, positions 0 1 2 0 1 0.
    """
    length = len(block.ids)
    ids = np.full(size, pad, np.int64)
    ids[:length] = block.ids
    labels = np.where(np.arange(size) < length, ids, -100)
    positions = np.arange(size)
    if apart:
        starts = np.array(sorted({0, *block.starts, *([length] if length < size else [])}))
        positions -= np.repeat(starts, np.diff(np.append(starts, size)))
        labels[starts] = -100
    return {"input_ids": ids, "position_ids": positions, "labels": labels}
