"""Which examples are written, and to which side."""

import random
from collections.abc import Sequence

from hf_recipes.core.errors import UserError

NOT_DRAWN, TRAIN, TEST, HELD_OUT = range(4)


def draw(groups: Sequence[int], total: int | None, test_size: float, seed: int, what: str = "group") -> bytearray:
    """The side of every example: `TRAIN`, `TEST`, or on neither: `NOT_DRAWN`, or `HELD_OUT` with its group.

    Args:
        groups: of each example, the group that it belongs to; no group is on both sides.
        total: at most so many examples, on both sides together.
        test_size: so many of them to test on, or below 1 this share.
        what: the group's name, for messages.

    Raises:
        UserError: nothing would be left to train on.
    """
    count = min(total or len(groups), len(groups))
    held = round(test_size * count) if test_size < 1 else int(test_size)
    if held >= count:
        raise UserError(f"--test_size {test_size:g}: of {count:,} examples none would be left to train on")
    draws = random.Random(seed)
    tested: set[int] = set()
    if held:
        sizes: dict[int, int] = {}
        for group in groups:
            sizes[group] = sizes.get(group, 0) + 1
        missing = held
        for group in draws.sample(sorted(sizes), len(sizes)):
            if missing <= 0:
                break
            tested.add(group)
            missing -= sizes[group]
        if len(tested) == len(sizes):
            raise UserError(
                f"--test_size {test_size:g}: no {what} is left to train on, since none may be on both sides; "
                f"{len(sizes):,} {what}s have {len(groups):,} examples"
            )
    sides = bytearray(HELD_OUT if group in tested else NOT_DRAWN for group in groups)
    for side, pool, wanted in ((TEST, HELD_OUT, held), (TRAIN, NOT_DRAWN, count - held)):
        members = [index for index, own in enumerate(sides) if own == pool]
        for index in draws.sample(members, min(wanted, len(members))):
            sides[index] = side
    return sides
