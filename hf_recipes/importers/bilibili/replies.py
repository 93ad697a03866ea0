"""Which comment answers which, and those that answer themselves."""

from array import array
from collections.abc import Sequence

from hf_recipes.importers.bilibili.crawl_rows import NO_PARENT, Comment

TOP_LEVEL, MISSING, OTHER_VIDEO = -1, -2, -3


def find_parents(comments: Sequence[Comment]) -> array:
    """The index of each comment's parent, or `TOP_LEVEL`, `MISSING`, or `OTHER_VIDEO` (under another video)."""
    indices = {comment.id: index for index, comment in enumerate(comments)}
    parents = array("i")
    for comment in comments:
        index = TOP_LEVEL if comment.parent == NO_PARENT else indices.get(comment.parent, MISSING)
        parents.append(OTHER_VIDEO if index >= 0 and comments[index].video != comment.video else index)
    return parents


def find_loops(parents: Sequence[int]) -> set[int]:
    """Indices of the comments that are their own ancestors."""
    loops: set[int] = set()
    visited_from = array("i", bytes(4 * len(parents)))  # 1 + the index that the first visit started from
    for start in range(len(parents)):
        index = start
        while index >= 0 and not visited_from[index]:
            visited_from[index] = start + 1
            index = parents[index]
        if index >= 0 and visited_from[index] == start + 1:
            while index not in loops:
                loops.add(index)
                index = parents[index]
    return loops
