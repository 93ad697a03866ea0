"""The batches of an evaluation: their size, and the largest forward pass that it makes."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class BatchOptions:
    """How a method runs its batches.

    Args:
        batch_size: sequences in a forward pass.
        before_batch: called before each batch; may raise to end the evaluation.
        synced: weights are sharded over processes (ZeRO's stage 3, FSDP), which must run equally many forward passes.
    """

    batch_size: int = 8
    before_batch: Callable[[], None] = lambda: None
    synced: bool = False


@dataclass(frozen=True)
class ForwardPass:
    """The largest forward pass of an evaluation: `rows` × `length` tokens, after which each row gets `new_tokens` more.

    `new_tokens` is None where the tokens are only scored, without a cache.
    """

    rows: int
    length: int
    new_tokens: int | None = None
