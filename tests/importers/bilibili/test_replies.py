import pytest

from hf_recipes.importers.bilibili.crawl_rows import Comment
from hf_recipes.importers.bilibili.replies import find_loops, find_parents


@pytest.mark.parametrize(
    ("parents", "loops"),
    [
        ([-1, 0, 1], set()),
        ([1, 2, 1], {1, 2}),
        ([0], {0}),
        ([1, 2, 3, 1, 3, 6, 5], {1, 2, 3, 5, 6}),
        ([-2, -3, 1], set()),
    ],
)
def test_loops(parents, loops):
    assert find_loops(parents) == loops


def test_parents():
    rows = [(7, 0, "1"), (8, 7, "1"), (9, 7, "2"), (10, 99, "1"), (11, 8, "1")]
    comments = [Comment(number, parent, video, "", None, "", "", (0, 0)) for number, parent, video in rows]
    assert find_parents(comments).tolist() == [-1, 0, -3, -2, 1]
