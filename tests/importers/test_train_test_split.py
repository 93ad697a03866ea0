import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.importers.train_test_split import HELD_OUT, NOT_DRAWN, TEST, TRAIN, draw

GROUPS = [group for group in range(50) for _ in range(1 + group % 7)]


@pytest.mark.parametrize(("total", "test_size", "tested"), [(None, 10, 10), (100, 10, 10), (100, 0.2, 20), (60, 0, 0)])
def test_sides_have_their_sizes_and_share_no_group(total, test_size, tested):
    sides = draw(GROUPS, total, test_size, seed=1)
    members = {side: {group for group, own in zip(GROUPS, sides, strict=True) if own == side} for side in range(4)}
    assert sides.count(TEST) == tested
    assert not (members[TEST] | members[HELD_OUT]) & (members[TRAIN] | members[NOT_DRAWN])
    assert members[HELD_OUT] <= members[TEST] or sides.count(TEST) == tested
    if total:
        assert sides.count(TRAIN) == total - tested
    else:
        assert sides.count(NOT_DRAWN) == 0 and sides.count(TRAIN) + sides.count(TEST) + sides.count(HELD_OUT) == len(
            GROUPS
        )


def test_the_seed_decides():
    assert draw(GROUPS, 40, 5, seed=1) == draw(GROUPS, 40, 5, seed=1)
    assert draw(GROUPS, 40, 5, seed=1) != draw(GROUPS, 40, 5, seed=2)


def test_everything_without_limits():
    assert draw([0, 0, 1], None, 0, seed=0) == bytes([TRAIN] * 3)
    assert draw([0, 0, 1], 10, 0, seed=0) == bytes([TRAIN] * 3)


def test_something_is_left_to_train_on():
    with pytest.raises(UserError, match="--test_size 10: of 3 examples none would be left to train on"):
        draw([0, 0, 1], None, 10, seed=0)
    with pytest.raises(UserError, match="--test_size 1: no video is left to train on"):
        draw([0, 0], None, 1, seed=0, what="video")
