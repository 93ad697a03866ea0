import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.importers.train_test_split import HELD_OUT, NOT_SAMPLED, TEST, TRAIN, split_examples

GROUPS = [group for group in range(50) for _ in range(1 + group % 7)]


@pytest.mark.parametrize(("total", "test_size", "tested"), [(None, 10, 10), (100, 10, 10), (100, 0.2, 20), (60, 0, 0)])
def test_splits_have_their_sizes_and_share_no_group(total, test_size, tested):
    splits = split_examples(GROUPS, total, test_size, seed=1)
    members = {
        split: {group for group, other in zip(GROUPS, splits, strict=True) if other == split} for split in range(4)
    }
    assert splits.count(TEST) == tested
    assert not (members[TEST] | members[HELD_OUT]) & (members[TRAIN] | members[NOT_SAMPLED])
    assert members[HELD_OUT] <= members[TEST] or splits.count(TEST) == tested
    if total:
        assert splits.count(TRAIN) == total - tested
    else:
        assert splits.count(NOT_SAMPLED) == 0 and splits.count(TRAIN) + splits.count(TEST) + splits.count(
            HELD_OUT
        ) == len(GROUPS)


def test_the_seed_decides():
    assert split_examples(GROUPS, 40, 5, seed=1) == split_examples(GROUPS, 40, 5, seed=1)
    assert split_examples(GROUPS, 40, 5, seed=1) != split_examples(GROUPS, 40, 5, seed=2)


def test_everything_without_limits():
    assert split_examples([0, 0, 1], None, 0, seed=0) == bytes([TRAIN] * 3)
    assert split_examples([0, 0, 1], 10, 0, seed=0) == bytes([TRAIN] * 3)


def test_something_is_left_to_train_on():
    with pytest.raises(UserError, match="--test_size 10: of 3 examples none would be left to train on"):
        split_examples([0, 0, 1], None, 10, seed=0)
    with pytest.raises(UserError, match="--test_size 1: no video is left to train on"):
        split_examples([0, 0], None, 1, seed=0, group_name="video")
