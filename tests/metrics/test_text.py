import random
import subprocess
import sys

import jieba
import pytest
from rouge_chinese import Rouge

from hf_recipes.metrics import segmentation
from hf_recipes.metrics.text import (
    bleu4,
    chrf,
    distinct,
    exact_match,
    exact_matches,
    length_ratio,
    rouge,
    rouge_pairs,
    words,
)

COMMON = [
    *("的", "一", "是", "患者", "年龄", "天气", "今天", "我们", "公园", "北京大学", "不", "在", "了", "语言模型"),
    *("知情同意书", "。", "，", "？", "！", "”", "……", "......", "2023", "GPU", "3.5%", "\n"),
]


def made_up(draw: random.Random) -> str:
    """None to forty pieces: common words, any Chinese characters, Latin ones, runs of full stops, repeats."""
    pieces = [
        draw.choice(
            (
                draw.choice(COMMON),
                chr(draw.randint(0x4E00, 0x9FA5)),
                draw.choice("abc-+_ \t" + "。"),
                "." * draw.randint(1, 15),
                "好" * draw.randint(1, 4),
            )
            if draw.random() < 0.3
            else COMMON
        )
        for _ in range(draw.choice((0, 1, 1, 2, 5, 15, 40)))
    ]
    return draw.choice(("", " ")).join(pieces)


def made_up_pairs(count: int) -> list[tuple[str, str]]:
    """Every third prediction shares words with its reference in another order, every tenth is the reference."""
    draw, pairs = random.Random(0), []
    for index in range(count):
        reference = made_up(draw)
        prediction = made_up(draw)
        if index % 3 == 0:
            shared = jieba.lcut(reference)
            prediction = "".join(draw.sample(shared, len(shared) // 2)) + prediction
        pairs.append((reference if index % 10 == 0 else prediction, reference))
    return pairs


def spaced(text: str) -> str:
    return " ".join(word for word in jieba.lcut(text) if word.strip())


def test_words_are_those_of_jieba():
    texts = [text for pair in made_up_pairs(1000) for text in pair]
    assert segmentation.cut(texts) == [spaced(text) for text in texts]
    assert words("我爱 北京\n") == ["我", "爱", "北京"]


def test_two_processes_find_the_same_words(monkeypatch):
    texts = [f"第{number}位患者今天在北京大学。" for number in range(50)]
    alone, started, popen = segmentation.cut(texts), [], subprocess.Popen
    monkeypatch.setattr(segmentation, "MANY", 1)
    monkeypatch.setattr(segmentation, "_cache", {})
    monkeypatch.setattr(segmentation.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **kwargs: started.append(popen(*args, **kwargs)) or started[-1]
    )
    assert segmentation.cut(texts) == alone
    assert [process.returncode for process in started] == [0]
    # Known by now; and a helper that fails costs time only.
    assert segmentation.cut(texts) == alone and len(started) == 1
    monkeypatch.setattr(segmentation, "_cache", {})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert segmentation.cut(texts) == alone
    assert started[1].returncode != 0


def test_few_texts_are_kept(monkeypatch):
    monkeypatch.setattr(segmentation, "CACHE_SIZE", 3)
    monkeypatch.setattr(segmentation, "_cache", {})
    assert segmentation.cut(["一二", "三四", "一二"]) == [spaced("一二"), spaced("三四"), spaced("一二")]
    assert segmentation.cut(["一二", "五六", "七八"]) == [spaced("一二"), spaced("五六"), spaced("七八")]
    assert list(segmentation._cache) == ["五六", "七八", "一二"]


def test_rouge_equals_rouge_chinese_on_a_thousand_pairs():
    pairs, theirs = made_up_pairs(1000), Rouge()
    expected = []
    for prediction, reference in pairs:
        texts = spaced(prediction), spaced(reference)
        found = theirs.get_scores(*texts)[0] if all(texts) else {f"rouge-{n}": {"f": 0.0} for n in "12l"}
        expected.append(
            {"rouge1": found["rouge-1"]["f"], "rouge2": found["rouge-2"]["f"], "rougeL": found["rouge-l"]["f"]}
        )
    ours = rouge_pairs(*zip(*pairs, strict=True))
    assert len(ours) == 1000
    for pair, row, other in zip(pairs, ours, expected, strict=True):
        assert row == pytest.approx(other, rel=0, abs=1e-9), pair
    # The pairs are of all kinds.
    assert sum(not all(map(str.strip, pair)) for pair in pairs) > 50
    assert sum(0 < row["rougeL"] < 0.99 for row in ours) > 300
    assert sum(len(spaced(pair[0]).split()) == 1 for pair in pairs) > 50
    assert any("......." in pair[0] for pair in pairs)
    means = {name: sum(row[name] for row in expected) / 1000 for name in expected[0]}
    assert rouge(*zip(*pairs, strict=True)) == pytest.approx(means, rel=0, abs=1e-9)


def test_repeats_count_once_in_rouge_n_and_each_time_in_rouge_l():
    """好 好 好 against 好 很 好: sets {好} and {好, 很}, pairs {好好} and {好很, 很好}; a common subsequence of 2."""
    (row,) = rouge_pairs(["好 好 好"], ["好 很 好"])
    assert row == pytest.approx({"rouge1": 2 / 3, "rouge2": 0.0, "rougeL": 2 / 3}, abs=1e-7)
    assert rouge_pairs(["好", "", "好"], ["好", "好", ""]) == [
        pytest.approx({"rouge1": 1.0, "rouge2": 0.0, "rougeL": 1.0}, abs=1e-7),
        {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0},
        {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0},
    ]


def test_chrf_by_hand():
    """一二三 against 一二四: 2 of 3 characters, 1 of 2 pairs, no triple; equal lengths, so F2 is the precision."""
    assert chrf(["一二三"], ["一二四"]) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert chrf(["一二三", ""], ["一二四", "五"]) < chrf(["一二三", "五"], ["一二四", "五"])
    assert chrf([""], ["甲"]) == chrf(["甲"], [""]) == 0.0 and chrf(["我 爱"], ["我爱"]) == 1.0
    assert chrf(["甲乙"], ["甲乙"]) == 1.0 and chrf([], []) == 0.0


def test_exact_match_is_of_normalized_answers():
    assert exact_matches([" Ａ。", "年龄，性别", "", "。"], ["A", "年龄", "", "。"]) == [True, False, False, False]
    assert exact_match(["是", "", "否", "是"], ["是", "是", "是", "是。"]) == 0.5
    assert exact_match([], []) == 0.0


def test_distinct_by_hand():
    """我 爱 北京, nothing, 我 爱 你: 4 different of 6 words; 我爱, 爱北京, 爱你 of 4 pairs."""
    assert distinct(["我 爱 北京", "", "我 爱 你"]) == {"distinct1": 4 / 6, "distinct2": 3 / 4}
    assert distinct(["", "好"]) == {"distinct1": 1.0, "distinct2": 0.0}
    assert distinct([]) == {"distinct1": 0.0, "distinct2": 0.0}


def test_length_ratio_is_of_sums():
    assert length_ratio(["一二三四", ""], ["一", " 二三四\n"]) == 1.0
    assert length_ratio(["一二三"], ["一二"]) == 1.5
    assert length_ratio(["一"], [""]) == 0.0


@pytest.mark.parametrize("metric", [rouge, bleu4, chrf, exact_match, length_ratio])
def test_texts_without_a_partner_are_refused(metric):
    with pytest.raises(ValueError):
        metric(["一", "二"], ["一"])


def test_short_texts_and_bleu():
    assert bleu4(["一二三"], ["一二三"]) == 0.0
    assert bleu4(["一二三四", ""], ["一二三四", "五六七八"]) == pytest.approx(2.718281828459045**-1)
