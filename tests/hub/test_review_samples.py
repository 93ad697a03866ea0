from hf_recipes.hub.review_samples import CONTINUATIONS, PROMPT, make_samples


def test_each_review_is_once_in_a_file_and_never_on_both_sides():
    good = [f"这家酒店的房间很好很干净，第{i}次来。" for i in range(40)] + ["很好", "两边都有的一句评论，不能用它。"]
    good += [f"这一句比较长，{'很长' * 20}，第{i}句。" for i in range(40)] + ["长" * 201]
    bad = [f"电池坏了，第{i}天就不能用，很失望。" for i in range(36)] * 2 + ["两边都有的一句评论，不能用它。"]
    bad += [f"这一句也不短，{'太差' * 20}，第{i}句。" for i in range(36)]
    unfit = {"很好", "两边都有的一句评论，不能用它。", "长" * 201}
    files = make_samples(good, bad)
    assert list(files)[-1] == "test"
    for prefix in ("", "long_"):
        train, test = files[f"{prefix}train"], files[f"{prefix}test"]
        for side, texts in (("chosen", good), ("rejected", bad)):
            labelled, held_out = ([row[side] for row in rows] for rows in (train, test))
            assert len(labelled + held_out) == len(set(labelled + held_out))
            assert set(labelled + held_out) <= set(texts) - unfit
            assert all((len(text) > 40) == bool(prefix) for text in labelled + held_out)
        assert all(row["prompt"] == PROMPT for row in train + test)
    assert (len(files["long_train"]), len(files["long_test"])) == (27, 9)
    sides = {name: {row[s] for row in files[name] for s in ("chosen", "rejected")} for name in ("train", "long_train")}
    assert {row["response"] for row in files["reviews"]} == sides["train"]
    assert {row["text"] for row in files["long_texts"]} == sides["long_train"]
    assert files["continuations"] == [{"prompt": PROMPT}] * CONTINUATIONS
    assert files == make_samples(reversed(good), bad) != make_samples(good, bad, seed=1)
