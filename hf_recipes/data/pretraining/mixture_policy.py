"""How much of each source a model is trained on: a policy file, and the order in which the sources take turns."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import read_mapping, write_json

UNITS = ("tokens", "documents", "bytes", "epochs")
ENDLESS = 1 << 40  # blocks in an "epoch" of a mixture of streams, whose lengths are not known
CYCLE = 1024  # blocks


@dataclass(frozen=True)
class Policy:
    """The share of each source `by` tokens, documents or bytes, or its number of epochs.

    As JSON: ``{"news": 0.5, "wiki": 0.5}`` (shares by tokens), or ``{"by": "epochs", "sources": {"news": 1.5}}``.
    """

    sources: Mapping[str, float]
    by: str = "tokens"

    def to_dict(self) -> dict[str, Any]:
        return {"by": self.by, "sources": dict(self.sources)}

    def save(self, path: str | os.PathLike) -> None:
        write_json(path, self.to_dict())


def parse_policy(value: Any, where: str) -> Policy:
    """The policy in a JSON value; shares that do not sum to one are normalised, with a message."""
    if not isinstance(value, dict):
        raise UserError(f'{where}: expected an object of sources, as {{"news": 0.5, "wiki": 0.5}}')
    by, sources = "tokens", value
    if isinstance(value.get("sources"), dict):
        by, sources = value.get("by", by), value["sources"]
        unknown = sorted(set(value) - {"by", "sources"})
        if unknown:
            raise UserError(f"{where}: unknown key {unknown[0]!r}; there are by and sources")
    if by not in UNITS:
        raise UserError(f"{where}: by {by!r}; expected one of {', '.join(UNITS)}")
    for name, amount in sources.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not math.isfinite(amount) or amount < 0:
            raise UserError(f"{where}: {name}: {amount!r}; expected a number of at least 0")
    total = sum(sources.values())
    if not total:
        raise UserError(f"{where}: every source has a share of 0, so there is nothing to train on")
    if by != "epochs":
        if abs(total - 1) > 1e-6:
            shares = ", ".join(f"{name} {amount / total:.4g}" for name, amount in sources.items())
            say(f"{where}: the shares sum to {total:.6g}, not to 1; taken as {shares}")
        sources = {name: amount / total for name, amount in sources.items()}
    return Policy({name: float(amount) for name, amount in sources.items()}, by)


def read_policy(path: str) -> Policy:
    return parse_policy(read_mapping(path, "--mixture"), f"--mixture {path}")


def round_shares(shares: np.ndarray, total: int) -> np.ndarray:
    """(S,) integers that sum to `total` and are `shares` of it but for rounding (largest remainders)."""
    exact = shares / shares.sum() * total
    counts = np.floor(exact).astype(np.int64)
    rest = int(total - counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    return counts


class Schedule:
    """Which source each block of a run comes from, and which of its blocks that is; a function of the seed alone.

    An epoch of `sum(quotas)` blocks is split into cycles. Each cycle has every source in proportion to its quota (± 1
    block), in an order seeded by epoch and cycle, so that block i is found without counting from 0.

    Args:
        quotas: (S,) blocks of each source in an epoch.
    """

    def __init__(self, quotas: np.ndarray, seed: int):
        self.quotas, self.seed = np.asarray(quotas, dtype=np.int64), seed
        self.epoch_blocks = int(self.quotas.sum())
        self._largest = int(self.quotas.argmax())  # gets the blocks lost by rounding; a cycle of S² has enough of it
        self._cycle = max(CYCLE, len(self.quotas) ** 2)
        self._cached_cycle = lru_cache(maxsize=8)(self._cycle_of)

    def _counts(self, blocks: int) -> np.ndarray:
        """(S,) blocks of each source among the first `blocks` of an epoch, at the end of a cycle."""
        counts = np.array([int(quota) * blocks // self.epoch_blocks for quota in self.quotas], dtype=np.int64)
        counts[self._largest] += blocks - counts.sum()
        return counts

    def _cycle_of(self, epoch: int, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """The source and the ordinal of each block of a cycle."""
        first = cycle * self._cycle
        before, after = self._counts(first), self._counts(min(first + self._cycle, self.epoch_blocks))
        order = np.repeat(np.arange(len(self.quotas)), after - before)
        sources = np.random.default_rng([self.seed, 0, epoch, cycle]).permutation(order)
        ordinals = np.empty_like(sources)
        for source in range(len(self.quotas)):
            blocks = sources == source
            ordinals[blocks] = np.arange(blocks.sum()) + before[source] + epoch * self.quotas[source]
        return sources, ordinals

    def __getitem__(self, block: int) -> tuple[int, int]:
        """The source of a block of the run, and how many blocks of this source came before it."""
        epoch, rest = divmod(block, self.epoch_blocks)
        cycle, index = divmod(rest, self._cycle)
        sources, ordinals = self._cached_cycle(epoch, cycle)
        return int(sources[index]), int(ordinals[index])

    def counts(self, blocks: int) -> np.ndarray:
        """(S,) blocks of each source among the first `blocks` of the run."""
        epoch, rest = divmod(blocks, self.epoch_blocks)
        cycle, index = divmod(rest, self._cycle)
        counts = epoch * self.quotas + self._counts(cycle * self._cycle)
        if index:
            sources, _ = self._cached_cycle(epoch, cycle)
            counts = counts + np.bincount(sources[:index], minlength=len(self.quotas))
        return counts
