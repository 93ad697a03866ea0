"""How long rows are, in tokens, and what budgets do to them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_recipes.data.chat.encoder import IGNORED
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import Histogram, Table, share

PERCENTILES = (50, 90, 95, 99)
BINS = 40


@dataclass(frozen=True)
class Budget:
    """The tokens that a flag allows, and what becomes of a longer row (``cut``, ``left out``, …)."""

    flag: str
    tokens: int
    effect: str

    @property
    def name(self) -> str:
        return f"{self.flag} {self.tokens}"


def label_spans(labels: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each list of labels, four (N,) arrays: its length, the position of its first label, the position after its
    last one, and how many labels it has (without any, the positions are 0).

    Example:
        -100 -100 7 8 -100 is 5, 2, 4, 2.
    """
    array = labels.combine_chunks()
    sizes = pc.list_value_length(array).to_numpy().astype(np.int64)
    ends = np.cumsum(sizes)
    positions = np.flatnonzero(array.flatten().to_numpy() != IGNORED)
    first, last, labelled = (np.zeros(len(sizes), np.int64) for _ in range(3))
    rows, index, counts = np.unique(np.searchsorted(ends, positions, "right"), return_index=True, return_counts=True)
    starts = (ends - sizes)[rows]
    first[rows], last[rows] = positions[index] - starts, positions[index + counts - 1] - starts + 1
    labelled[rows] = counts
    return sizes, first, last, labelled


def length_tables(lengths: Mapping[str, np.ndarray], budgets: Mapping[str, Budget], title: str) -> list[Table]:
    """Percentiles of each kind of length, which are lengths that occur, and how many rows are over its budget."""
    rows, over_budget = [], []
    for name, values in lengths.items():
        percentiles = np.percentile(values, PERCENTILES, method="inverted_cdf").tolist()
        mean = round(float(values.mean()))
        rows.append([Phrase(name), len(values), mean, int(values.min()), *map(int, percentiles), int(values.max())])
        if budget := budgets.get(name):
            over = int((values > budget.tokens).sum())
            over_budget.append(
                [Phrase(name), budget.flag, budget.tokens, over, share(over, len(values)), Phrase(budget.effect)]
            )
    tables = [
        Table(title, ["of", "rows", "mean", "shortest", "median", *(f"P{p}" for p in PERCENTILES[1:]), "longest"], rows)
    ]
    if over_budget:
        tables.append(Table("Budgets", ["of", "flag", "tokens", "rows over it", "share", "these are"], over_budget))
    return tables


def over_any(lengths: Mapping[str, np.ndarray], budgets: Mapping[str, Budget]) -> np.ndarray:
    """(N,) which rows are over one of their budgets; all kinds of lengths are of the same rows."""
    return np.any([lengths[name] > budget.tokens for name, budget in budgets.items()], axis=0)


def histogram(name: str, values: np.ndarray, budget: Budget | None = None) -> Histogram:
    """`values` in bins that widen with the length, because a few rows are many times as long as the others."""
    low, high = int(values.min()), int(values.max())
    growth = (high / max(1, low)) ** (1 / BINS) - 1
    edges, width = [low], 1
    while edges[-1] <= high:
        width = max(width, round(growth * edges[-1]))
        edges.append(min(edges[-1] + width, high + 1))
    counts = np.histogram(values, edges)[0]
    lengths = np.stack(np.unique(values, return_counts=True), axis=1).tolist()
    return Histogram(Phrase(name), edges, counts.tolist(), {budget.name: budget.tokens} if budget else {}, lengths)
