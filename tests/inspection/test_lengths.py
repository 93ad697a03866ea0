"""Lengths and what budgets do to them."""

import numpy as np
import pyarrow as pa

from hf_recipes.evaluation.reports.terminal import histogram_line
from hf_recipes.inspection.lengths import Budget, histogram, label_spans, length_tables, over_any


def test_spans_of_labels():
    lists = pa.chunked_array([[[-100, -100, 7, 8, -100], []], [[-100], [5, -100, 6]]])
    sizes, first, last, labelled = label_spans(lists)
    assert sizes.tolist() == [5, 0, 1, 3]
    assert first.tolist() == [2, 0, 0, 0] and last.tolist() == [4, 0, 0, 3]
    assert labelled.tolist() == [2, 0, 0, 2]


def test_the_table_has_lengths_that_occur_and_what_is_over_the_budget():
    lengths = {"prompt": np.arange(1, 201), "whole": np.arange(11, 211)}
    budgets = {"whole": Budget("--max_length", 200, "cut")}
    shown, cut = length_tables(lengths, budgets, "Lengths")
    assert shown.rows == [
        ["prompt", 200, 100, 1, 100, 180, 190, 198, 200],
        ["whole", 200, 110, 11, 110, 190, 200, 208, 210],
    ]
    assert cut.rows == [["whole", "--max_length", 200, 10, "5.0 %", "cut"]]
    assert [table.title for table in length_tables(lengths, {}, "Lengths")] == ["Lengths"]


def test_a_row_over_two_budgets_is_one_row():
    lengths = {"prompt": np.array([5, 20, 5, 20]), "answer": np.array([5, 20, 20, 5])}
    budgets = {name: Budget("--x", 10, "cut") for name in lengths}
    assert over_any(lengths, budgets).tolist() == [False, True, True, True]


def test_every_row_is_in_one_bin():
    draw = np.random.default_rng(0)
    for values in (np.array([3]), np.array([0, 0, 9]), draw.integers(1, 50_000, 999), draw.integers(90, 99, 99)):
        found = histogram("x", values)
        assert found.edges == sorted(set(found.edges)) and sum(found.counts) == len(values)
        assert found.edges[0] == values.min() and found.edges[-1] == values.max() + 1


def test_the_line_of_the_terminal_shows_the_budget_among_the_bars():
    values = np.repeat([1, 2, 3, 4], [4, 0, 8, 4])
    found = histogram("answer", values, Budget("--max_target_length", 2, "cut"))
    assert (found.edges, found.counts) == ([1, 2, 3, 4, 5], [4, 0, 8, 4])
    assert histogram_line(found).plain == "answer: 1 ▄ │█▄ 4 tokens  │ --max_target_length 2"
