"""Sampling of examples, and a train/test split by group."""

import random
from collections import Counter
from collections.abc import Sequence

from hf_recipes.core.errors import UserError

NOT_SAMPLED, TRAIN, TEST, HELD_OUT = range(4)


def split_examples(
    groups: Sequence[int], total: int | None, test_size: float, seed: int, group_name: str = "group"
) -> bytearray:
    """The split of each example: `TRAIN`, `TEST`, or none: `NOT_SAMPLED`, `HELD_OUT` (its group is in the test split).

    Args:
        groups: group of each example; no group is in both splits.
        total: largest number of examples in both splits together.
        test_size: number of test examples or, below 1, their share.
    """
    count = min(total or len(groups), len(groups))
    test_count = round(test_size * count) if test_size < 1 else int(test_size)
    if test_count >= count:
        raise UserError(f"--test_size {test_size:g}: of {count:,} examples none would be left to train on")
    rng = random.Random(seed)
    test_groups: set[int] = set()
    if test_count:
        sizes = Counter(groups)
        missing = test_count
        for group in rng.sample(sorted(sizes), len(sizes)):
            if missing <= 0:
                break
            test_groups.add(group)
            missing -= sizes[group]
        if len(test_groups) == len(sizes):
            raise UserError(
                f"--test_size {test_size:g}: no {group_name} is left to train on, since none may be on both sides; "
                f"{len(sizes):,} {group_name}s have {len(groups):,} examples"
            )
    splits = bytearray(HELD_OUT if group in test_groups else NOT_SAMPLED for group in groups)
    for split, pool, wanted in ((TEST, HELD_OUT, test_count), (TRAIN, NOT_SAMPLED, count - test_count)):
        members = [index for index, other in enumerate(splits) if other == pool]
        for index in rng.sample(members, min(wanted, len(members))):
            splits[index] = split
    return splits


def unused_reason(split: int, group_name: str) -> str | None:
    """Why an example of this split is not written; None if it is."""
    reasons = {NOT_SAMPLED: "not sampled for --total", HELD_OUT: f"its {group_name} is in test.jsonl, which is full"}
    return reasons.get(split)
