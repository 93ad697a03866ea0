"""Rows that look wrong, and rows that recur."""

import numpy as np
import pytest

from hf_recipes.data.character_scripts import SCRIPTS, scripts_of
from hf_recipes.inspection.checks import HTML, Checks, RowTexts, normalized
from hf_recipes.inspection.duplicates import duplicate_tables, overlap_table
from hf_recipes.inspection.mojibake import find_mojibake
from hf_recipes.privacy.redactor import Redactor

LONG = "春天来了，公园里的花都开了，我们一起去看看吧。"


def checked(*rows, mask=str, special=()) -> Checks:
    """Rows of question, answer and maybe choices, as r.jsonl:1, …"""
    rows = [(*row, None)[:3] for row in rows]
    questions, answers, choices = map(list, zip(*rows, strict=True))
    locations = [f"r.jsonl:{number}" for number in range(1, len(rows) + 1)]
    checks = Checks(special, mask)
    checks.add(RowTexts(locations, questions, questions, {"answer": answers}, choices))
    return checks


def found_in(checks: Checks) -> dict[str, list[str]]:
    checks.script_table()
    return {what: [location for location, _ in finding.examples] for what, finding in checks.findings.items()}


def test_rows_that_look_wrong_are_named_with_their_location():
    rows = [(f"第{number}个问题？", f"{LONG}{number}") for number in range(20)]
    rows[2] = ("请重复。", " 请重复。")
    rows[4] = ("甲还是乙？", "丙", ["甲", "乙"])
    rows[5] = ("甲还是乙？", "乙 ", ["甲", "乙"])
    rows[6] = ("问", f"{LONG}<br/>{LONG}&nbsp;")
    rows[7] = ("问", f"锟斤拷{LONG}")
    rows[8] = ("问", f"{LONG}<|im_end|>")
    rows[9] = ("问", "This answer is in English, for whatever reason that may be.")
    assert found_in(checked(*rows, special=["<|im_end|>", "<s>"])) == {
        "the answer is the question": ["r.jsonl:3"],
        "the answer is none of the choices": ["r.jsonl:5"],
        "leftover HTML": ["r.jsonl:7"],
        "mojibake": ["r.jsonl:8"],
        "a special token in the text": ["r.jsonl:9"],
        "the answer is not in Chinese": ["r.jsonl:10"],
    }


def test_what_is_asked_for_is_not_wrong():
    rows = [("问", LONG)] * 8
    rows += [("把这句话翻译成英语", "This answer is in English, because that is what was asked for.")]
    rows += [
        ("怎么用 HTML 换行？", f"{LONG}<br>"),
        ("问", f"{LONG}\n```\n<div>a</div>\n```"),
        ("问", f"{LONG}1 < 2 & 3 > 2"),
    ]
    assert found_in(checked(*rows)) == {}


def test_without_a_main_language_none_is_wrong():
    english = ("问", "This answer is in English, for whatever reason that may be.")
    checks = checked(*[("问", LONG), english] * 5, ("问", "是"))
    assert found_in(checks) == {}
    table = checks.script_table()
    assert table.rows == [
        ["answer", "Chinese", 5, "45.5 %"],
        ["answer", "Latin script", 5, "45.5 %"],
        ["answer", "too short to tell", 1, "9.1 %"],
    ]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("使用 PyTorch 的 DistributedDataParallel 训练模型，注意学习率的设置。", "Chinese"),
        ("今日は天気がいいから散歩しましょう。", "Japanese"),
        ("오늘은 날씨가 좋습니다", "Korean"),
        ("Сегодня хорошая погода, пойдём гулять", "Cyrillic"),
        ("วันนี้อากาศดีมากไปเที่ยวกัน" * 2, "Thai"),
        ("الطقس جميل اليوم دعنا نذهب للمشي", "Arabic"),
        ("12345，67890！？", "too short to tell"),
        ("", "too short to tell"),
        ("𠀀𠀁𠀂𠀃𠀄𠀅", "Chinese"),
    ],
)
def test_scripts(text, script):
    assert [SCRIPTS[found] for found in scripts_of(["", text, LONG])] == ["too short to tell", script, "Chinese"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_utf8_that_was_read_as_another_encoding(encoding):
    assert find_mojibake("浙江的江南小镇，很美。".encode().decode(encoding, "replace"))


def test_mojibake_of_gbk_and_what_is_none():
    assert find_mojibake("你好，世界。".encode().decode("gbk", "replace"))
    assert find_mojibake("caf\u00c3\u00a9")
    for text in (LONG, "“café”…", "Größe, Ärger, naïve, São Paulo", "10 °C ± 2 §5", "é »", "𠮷野家😀"):
        assert not find_mojibake(text), text


def test_tags_are_not_comparisons_or_special_tokens():
    for text in ("<p>", "</div>", '<a href="x">', "<br />", "&nbsp;", "&#39;", "&#x4e2d;"):
        assert HTML.search(text), text
    for text in ("a < b > c", "<|im_end|>", "<think>", "<s>", "x<y", "AT&T;", "<用户>", "i<p && p>j"):
        assert not HTML.search(text), text


def test_snippets_are_masked_and_short():
    row = ("问", f"{LONG * 3}电话13912345678 <b>{LONG * 9}")
    checks = checked(row, mask=lambda text: Redactor().redact(text)[0])
    [(_, text)] = checks.findings["leftover HTML"].examples
    assert "13912345678" not in text and "<手机号> <b>" in text and len(text) < 130
    assert [cell for table in checks.answer_tables() for row in table.rows for cell in row] == []  # it occurs once


def test_duplicates_are_counted_by_kind():
    rows = [
        ("问一", "答"),
        ("问二", "Answer 2！"),
        ("问一", "答"),
        ("问二", "answer２"),
        ("问二", "别的"),
        ("问一", "答"),
    ]
    checks = checked(*rows)
    locations = [f"r.jsonl:{number}" for number in range(1, 7)]

    def locate(numbers):
        return [(locations[number], rows[number][1]) for number in numbers]

    counts, groups = duplicate_tables(checks.hashes, locations, locate, has_answers=True)
    assert counts.rows == [
        ["exact copies of an earlier row", 2, "33.3 %"],
        ["the same but for case, width, spaces and punctuation", 1, "16.7 %"],
        ["the same prompt with another answer", 3, "50.0 %"],
    ]
    assert groups.rows == [
        [3, "r.jsonl:1, r.jsonl:3, r.jsonl:6", "答"],
        [2, "r.jsonl:2, r.jsonl:4", "Answer 2！"],
    ]


def test_rows_that_an_amount_repeats_are_no_duplicates():
    locations = ["a:1", "a:2", "a:1", "b:1", "a:2"]
    checks = checked(("问", "甲"), ("问", "乙"), ("问", "甲"), ("问", "乙"), ("问", "乙"))
    counts, groups = duplicate_tables(
        checks.hashes, locations, lambda numbers: [(locations[number], "") for number in numbers], has_answers=True
    )
    assert counts.rows[0] == ["exact copies of an earlier row", 1, "33.3 %"]
    assert groups.rows == [[2, "a:2, b:1", ""]]


def test_rows_to_evaluate_on_that_are_trained_on():
    train, held = (
        checked(("问一", "答一"), ("问二", "答二")),
        checked(("问一", "答一"), ("问 二", "答二。"), ("问一", "新")),
    )
    table = overlap_table(train.hashes, held.hashes, ["d:1", "d:2", "d:3"], has_answers=True)
    assert table.rows == [
        ["the row, exactly", 1, "33.3 %", "d:1"],
        ["the row, but for case, width, spaces and punctuation", 2, "66.7 %", "d:1, d:2"],
        ["the prompt", 2, "66.7 %", "d:1, d:3"],
    ]


def test_normalized():
    assert normalized("Ａ b，１．\n！") == "ab1" and normalized("？！") == "？！"


def test_most_frequent_answers():
    [table] = checked(*[("问", "是")] * 3, *[("问", "否")] * 2, ("问", "也许")).answer_tables()
    assert table.rows == [["是", 3, "50.0 %"], ["否", 2, "33.3 %"]]
    assert table.note == "3 different ones among 6."


def test_hashes_are_of_all_batches():
    checks = Checks()
    for answer in ("甲", "乙"):
        checks.add(RowTexts(["a:1"], ["问"], ["问"], {"answer": [answer]}, [None]))
    exact, _, prompt = checks.hashes
    assert len(np.unique(exact)) == 2 and len(np.unique(prompt)) == 1 and checks.rows == 2
