"""How sure a score is: 95 % intervals."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
SAMPLES = 10_000
BLOCK = 2**22  # sampled indices in memory at a time: 32 MiB


class Paired(NamedTuple):
    mean: float
    low: float
    high: float
    p_value: float


def wilson_interval(hits: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of the share `hits` / `count`; all of (0, 1) where nothing was counted."""
    if not 0 <= hits <= count:
        raise ValueError(f"{hits} hits of {count}")
    if not count:
        return 0.0, 1.0
    share, extra = hits / count, Z * Z / count
    middle, half = share + extra / 2, Z * sqrt(share * (1 - share) / count + extra / (4 * count))
    low, high = (middle - half) / (1 + extra), (middle + half) / (1 + extra)
    return (low if hits else 0.0), (high if hits < count else 1.0)


def paired_bootstrap(differences: Sequence[float], seed: int = 0) -> Paired:
    """Whether one system beats another on the same rows, from the row-wise `differences` of their scores.

    Returns:
        The mean difference, its percentile interval, and the two-sided p-value of no difference: twice the share of
        resampled means on the other side of 0 (or on it), with one added to both counts so that it is never 0.
    """
    values, generator = np.asarray(differences, dtype=np.float64), np.random.default_rng(seed)
    if not values.size:
        raise ValueError("no values to sample from")
    rows = max(1, BLOCK // values.size)
    sizes = (min(rows, SAMPLES - start) for start in range(0, SAMPLES, rows))
    means = np.concatenate([values[generator.integers(values.size, size=(n, values.size))].mean(axis=1) for n in sizes])
    low, high = np.percentile(means, (2.5, 97.5))
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return Paired(float(values.mean()), float(low), float(high), min(1.0, 2 * float(beyond + 1) / (SAMPLES + 1)))
