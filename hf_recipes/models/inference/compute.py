"""What an evaluation computes with, and the size of its passes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass
class Compute:
    """How a method may use the machine.

    Args:
        batch_size: sequences in a forward pass.
        before_batch: called before each batch; may raise to end the evaluation.
        synced: weights are parted over processes (ZeRO's stage 3, FSDP), so that all must run as many forward passes.
    """

    batch_size: int = 8
    before_batch: Callable[[], None] = lambda: None
    synced: bool = False


@dataclass(frozen=True)
class ForwardPass:
    """The largest forward pass of an evaluation: `rows` × `length` tokens, and how many each row is continued by.

    `new_tokens` is None where the tokens are scored alone, without a cache.
    """

    rows: int
    length: int
    new_tokens: int | None = None
