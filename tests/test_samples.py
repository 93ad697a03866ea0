from hf_recipes.samples import make_pairs


def test_each_short_review_is_in_one_pair():
    good = [f"这家酒店的房间很好，第{i}次来。" for i in range(20)] + ["很好", "两边都有的一句评论。", "长" * 60]
    bad = [f"电池坏了，第{i}天就不能用。" for i in range(9)] * 2 + ["两边都有的一句评论。"]
    pairs = make_pairs(good, bad)
    assert len(pairs) == len({pair["rejected"] for pair in pairs}) == len({pair["chosen"] for pair in pairs}) == 9
    assert {pair["rejected"] for pair in pairs} == set(bad[:9]) and {pair["chosen"] for pair in pairs} < set(good[:20])
    assert pairs == make_pairs(reversed(good), bad) and pairs != make_pairs(good, bad, seed=1)
