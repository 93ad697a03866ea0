import json
import re
from collections import Counter
from pathlib import Path

import pytest

from hf_recipes.data.privacy import PLACEHOLDERS, Redactor, Span
from hf_recipes.errors import UserError

FOLDER = Path(__file__).parent / "privacy"
ID_CARD = "110196199003071234"


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]


def planted_spans(row: dict) -> list[tuple[int, int, str]]:
    spans, position = [], 0
    for kind, value in row["spans"]:
        start = row["text"].index(value, position)
        position = start + len(value)
        spans.append((start, position, kind))
    return spans


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(json.loads((FOLDER / "people.json").read_text("utf-8")))


def test_what_is_planted_is_found_and_little_else(redactor):
    """Counted are spans; a found one is right if it covers a planted one of its kind."""
    rows = read("positive.jsonl")
    planted, hit, found, right = Counter(), Counter(), Counter(), Counter()
    wrong = []
    for row in rows:
        wanted, spans = planted_spans(row), redactor.find(row["text"])
        for start, end, kind in wanted:
            planted[kind] += 1
            covered = any(span.kind == kind and span.start <= start and end <= span.end for span in spans)
            hit[kind] += covered
            wrong += [] if covered else [f"missed {kind}: {row['text']}"]
        for span in spans:
            found[span.kind] += 1
            is_right = any(span.kind == kind and span.start <= s and e <= span.end for s, e, kind in wanted)
            right[span.kind] += is_right
            wrong += [] if is_right else [f"false {span.kind}: {row['text']}"]
    table = "\n".join(f"{kind:10} {planted[kind]:4} {hit[kind]:4} {found[kind]:4} {right[kind]:4}" for kind in planted)
    report = "\n".join(["kind    planted  hit found right", table, *wrong])
    assert len(rows) >= 300
    assert set(planted) == set(PLACEHOLDERS)
    assert hit.total() / planted.total() >= 0.98, report
    assert right.total() / found.total() >= 0.95, report


def test_what_is_innocent_stays(redactor):
    rows = read("innocent.jsonl")
    wrong = [f"{span.kind}: {row['text']}" for row in rows for span in redactor.find(row["text"])]
    assert len(rows) >= 300
    assert len(wrong) <= 0.01 * len(rows), "\n".join(wrong)


def test_redacting_twice_changes_nothing_more(redactor):
    for row in read("positive.jsonl") + read("innocent.jsonl"):
        once, counts = redactor.redact(row["text"])
        assert redactor.redact(once) == (once, Counter()), row["text"]
        assert counts == Counter(span.kind for span in redactor.find(row["text"]))


def test_spans_are_in_the_texts_own_characters():
    text = "我叫😀，电话１５４　１２３４　５６７８，或者1541234 5678。"
    assert Redactor().find(text) == [Span(22, 34, "mobile")]
    text = "😀电话：１５４１２３４５６７８，邮箱ａ.b＠example．com"
    assert [(span.kind, text[span.start : span.end]) for span in Redactor().find(text)] == [
        ("mobile", "１５４１２３４５６７８"),
        ("email", "ａ.b＠example．com"),
    ]


def test_placeholders_say_what_stood_there():
    text = "张三的号是154-1234-5678，邮箱zs@example.com，QQ：98765432，见https://example.com/?id=1&token=abc123"
    redacted, counts = Redactor().redact(text)
    assert redacted == "张三的号是<手机号>，邮箱<邮箱>，QQ：<QQ号>，见https://example.com/?id=1&token=<密钥>"
    assert counts == Counter(mobile=1, email=1, qq=1, secret=1)


def test_a_person_keeps_one_placeholder_under_all_names():
    redactor = Redactor({"老桨": ["江远帆", "9000012345"], "阿树": ["林树生"]})
    text = "阿树：江远帆在吗？@老桨 林树生找你，QQ9000012345"
    assert redactor.redact(text)[0] == "用户2：用户1在吗？@用户1 用户2找你，QQ用户1"
    assert redactor.redact("老桨")[0] == "用户1"


def test_the_longest_name_wins_and_words_stay_whole():
    redactor = Redactor(["Kevin", "Kevin Zhao", "阿树", "阿树的猫"])
    assert redactor.redact("Kevin Zhao, Kevin and Kevins: 阿树的猫和阿树")[0] == "用户2, 用户1 and Kevins: 用户4和用户3"


def test_names_that_are_words_are_replaced_only_where_someone_is_addressed():
    redactor = Redactor(["明天", "我", "用户2"])
    assert redactor.redact("明天我去，@明天 @我 来吗")[0] == "明天我去，@用户1 @用户2 来吗"
    assert (
        redactor.redact("明天：我不去\n我(20010017)\n明天，我们走")[0] == "用户1：我不去\n用户2(20010017)\n明天，我们走"
    )
    assert redactor.redact("用户2说")[0] == "用户2说"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (f"{ID_CARD[:-1]}5", []),
        (f"身份证{ID_CARD[:-1]}5", ["id_card"]),
        ("1541234567890123", []),
        ("订单号15412345678", []),
        ("价格15400000000元", []),
        ("6299991234567890128", []),
        ("拨打10086或400-820-8820", []),
        ("192.168.1.1和8.8.8.8", []),
        ("v203.0.113.7", []),
        ("住在北京市朝阳区", []),
        ("住在北京市朝阳区建国路88号", ["address"]),
    ],
)
def test_what_a_checksum_or_a_word_decides(text, kinds):
    assert [span.kind for span in Redactor().find(text)] == kinds


def test_kinds_are_chosen_by_name():
    text = "老桨，154-1234-5678，zs@example.com"
    assert Redactor(["老桨"], kinds=["email"]).redact(text)[0] == "老桨，154-1234-5678，<邮箱>"
    assert Redactor(["老桨"], kinds=["person"]).redact(text)[0] == "用户1，154-1234-5678，zs@example.com"
    with pytest.raises(UserError, match=re.escape("unknown kind of personal data 'phone': choose of secret, email")):
        Redactor(kinds=["phone"])


@pytest.mark.parametrize("piece", ["1", "号", "1-", "微信a", "&a", "a.", "a@", "地址市", "路1号", ":0", "京A1", "\n1 "])
def test_long_repetitions_are_read_in_time(piece):
    """A pattern that backtracks would take minutes over any of these."""
    text = piece * 20_000
    assert Redactor().redact(text)[0].count("<") <= len(text)
