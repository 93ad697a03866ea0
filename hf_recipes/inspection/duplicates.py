"""Rows that recur, in one data set or in two."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import Table, count_table, finding, share

MAX_GROUPS = 10  # of rows that recur


class RowHashes(NamedTuple):
    """Of each row, hashes of its whole text, of that text's letters and digits, and of its prompt: uint64 (N,) each."""

    exact: np.ndarray
    near: np.ndarray
    prompt: np.ndarray


Locate = Callable[[Sequence[int]], list[tuple[str, str]]]


def duplicate_tables(hashes: RowHashes, locations: Sequence[str], locate: Locate, has_answers: bool) -> list[Table]:
    """How many rows recur, and those that recur most; what ``data*2`` repeats counts once.

    Args:
        locate: location and text of rows, by their indices in ascending order.
        has_answers: a prompt can recur with another answer.
    """
    rows = pd.DataFrame({**hashes._asdict(), "location": locations}).drop_duplicates(["location", "exact"])
    exact = int(rows.exact.duplicated().sum())
    counts = {Phrase("exact copies of an earlier row"): exact}
    near = Phrase("the same but for case, width, spaces and punctuation")
    counts[near] = int(rows.near.duplicated().sum()) - exact
    if has_answers:
        answers = rows.groupby("prompt").exact.transform("nunique")
        counts[Phrase("the same prompt with another answer")] = int((answers > 1).sum())
    counted = count_table("Duplicates", "rows that are", counts, len(rows), faults=True)
    recurring = rows.near.value_counts().loc[lambda times: times > 1]
    groups = [rows.index[rows.near == value].tolist() for value in recurring.index[:MAX_GROUPS]]
    first = sorted({row for group in groups for row in group[:3]})
    located = dict(zip(first, locate(first), strict=True)) if first else {}
    table = Table("What recurs most", ["rows", "where", "text of the first"], [])
    for group in groups:
        locations = _first([located[row][0] for row in group[:3]], len(group))
        table.rows.append([len(group), locations, located[group[0]][1]])
    return [counted, table] if groups else [counted]


def overlap_table(train: RowHashes, held_out: RowHashes, locations: Sequence[str], has_answers: bool) -> Table:
    """How many rows to evaluate on, which are at `locations`, are among those to train on."""
    names = [Phrase("the row, exactly"), Phrase("the row, but for case, width, spaces and punctuation")]
    names += [Phrase("the prompt")] if has_answers else []
    rows = []
    for name, hashes, trained in zip(names, held_out, train, strict=False):
        recurring = np.flatnonzero(np.isin(hashes, trained))
        first = _first([locations[row] for row in recurring[:3]], len(recurring))
        rows.append([name, len(recurring), share(len(recurring), len(hashes)), first])
    table = Table("In the training rows too", ["what", "rows", "share", "first"], rows)
    table.findings = [
        Phrase("in the training rows too: {finding}", finding=finding(*row[:3])) for row in rows if row[1]
    ]
    return table


def _first(locations: Sequence[str], count: int) -> str:
    """The first of `count` locations."""
    return ", ".join(locations) + "…" * (count > len(locations))
