from hf_recipes.samples import CONTINUATIONS, PROMPT, make_samples


def test_each_review_is_once_in_a_file_and_never_on_both_sides():
    good = [f"这家酒店的房间很好很干净，第{i}次来。" for i in range(40)] + ["很好", "两边都有的一句评论，不能用它。"]
    good += [f"这一句比较长，{'很长' * 20}，第{i}句。" for i in range(40)] + ["长" * 200]
    bad = [f"电池坏了，第{i}天就不能用，很失望。" for i in range(36)] * 2 + ["两边都有的一句评论，不能用它。"]
    unfit = {"很好", "两边都有的一句评论，不能用它。", "长" * 200}
    files = make_samples(good, bad)
    assert list(files)[-1] == "test"
    for name, rows in files.items():
        if name in ("reviews", "continuations"):
            continue
        for side, texts in (("chosen", good), ("rejected", bad)):
            own = [row[side] for row in rows]
            assert len(own) == len(set(own)) and set(own) <= set(texts) - unfit
            held_out = {row[side] for row in files["long_test"]}
            if "train" in name:
                assert rows and not held_out & set(own)
        assert all(row["prompt"] == PROMPT for row in rows)
    assert len(files["long_test"]) == 9 and len(files["long_train"]) == 27
    assert any(len(row["chosen"]) > 40 for row in files["long_train"])
    assert all(len(row["chosen"]) <= 40 for row in files["train"] + files["test"])
    assert {row["response"] for row in files["reviews"]} == {
        row[s] for row in files["train"] for s in ("chosen", "rejected")
    }
    assert files["continuations"] == [{"prompt": PROMPT}] * CONTINUATIONS
    assert files == make_samples(reversed(good), bad) != make_samples(good, bad, seed=1)
