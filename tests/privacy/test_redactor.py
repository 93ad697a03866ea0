import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.privacy.redactor import PLACEHOLDERS, Redactor, Span, mentioned

FOLDER = Path(__file__).parent
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


# The country before a number and the like may belong to a span or not.
MARGIN = 6


def test_what_is_planted_is_found_and_little_else(redactor):
    """Counted are spans; a found one is right if it covers planted ones of its kind and hardly more."""
    rows, innocent = read("positive.jsonl"), read("innocent.jsonl")
    planted, hit, found, right = Counter(), Counter(), Counter(), Counter()
    wrong = []
    for row in rows + innocent:
        wanted, spans = planted_spans(row) if "spans" in row else [], redactor.find(row["text"])
        for start, end, kind in wanted:
            planted[kind] += 1
            covered = any(span.kind == kind and span.start <= start and end <= span.end for span in spans)
            hit[kind] += covered
            wrong += [] if covered else [f"missed {kind}: {row['text']}"]
        for span in spans:
            found[span.kind] += 1
            within = [(s, e) for s, e, kind in wanted if span.kind == kind and span.start <= s and e <= span.end]
            is_right = bool(within) and span.end - span.start <= sum(e - s for s, e in within) + MARGIN
            right[span.kind] += is_right
            wrong += [] if is_right else [f"false {span.kind}: {row['text']}"]
    table = "\n".join(f"{kind:10} {planted[kind]:4} {hit[kind]:4} {found[kind]:4} {right[kind]:4}" for kind in planted)
    report = "\n".join(["kind    planted  hit found right", table, *wrong])
    assert len(rows) >= 300 and len(innocent) >= 300
    assert set(planted) == set(PLACEHOLDERS)
    assert hit.total() / planted.total() >= 0.98, report
    assert right.total() / found.total() >= 0.95, report
    for kind, count in planted.items():
        assert hit[kind] / count >= 0.95 and right[kind] / found[kind] >= 0.9, report


def test_what_is_innocent_stays(redactor):
    rows = read("innocent.jsonl")
    wrong = [f"{span.kind}: {row['text']}" for row in rows for span in redactor.find(row["text"])]
    assert len(wrong) <= 0.01 * len(rows), "\n".join(wrong)


def test_disguised_data_is_found_and_its_look_alikes_stay(redactor):
    """Digits in Chinese and mixed scripts, spaces, homophones of 微信 and QQ, rare surnames."""
    rows = read("disguised.jsonl")
    missed, changed = [], []
    for row in rows:
        covered = {position for span in redactor.find(row["text"]) for position in range(span.start, span.end)}
        if not row["spans"]:
            changed += [row["text"]] if covered else []
        for start, end, kind in planted_spans(row):
            if any(row["text"][position].isalnum() and position not in covered for position in range(start, end)):
                missed.append(f"{kind}: {row['text']}")
    planted, innocent = sum(bool(row["spans"]) for row in rows), sum(not row["spans"] for row in rows)
    assert planted > 400 and len(missed) <= 0.05 * planted, "\n".join(missed)
    assert innocent > 400 and len(changed) <= 0.01 * innocent, "\n".join(changed)


def test_time_grows_with_the_text():
    """And not with the square of its spans."""

    def seconds(count: int) -> float:
        text = "，".join(f"手机154{number:08}" for number in range(20_000_001, 20_000_001 + count))
        start = time.process_time()
        assert Redactor(["老桨"]).redact(text)[1] == Counter(mobile=count)
        return time.process_time() - start

    assert seconds(8_000) < 8 * max(seconds(2_000), seconds(2_000))


def test_redacting_twice_changes_nothing_more(redactor):
    for row in read("positive.jsonl") + read("innocent.jsonl"):
        once, counts = redactor.redact(row["text"])
        assert redactor.redact(once) == (once, Counter()), row["text"]
        assert counts == Counter(span.kind for span in redactor.find(row["text"]))


def test_spans_are_in_the_texts_own_characters():
    text = "我叫😀，电话１５４　１２３４　５６７８，或者1541234 5678。"
    assert Redactor().find(text) == [Span(6, 19, "mobile"), Span(22, 34, "mobile")]
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


def test_short_forms_of_a_name_are_the_same_person():
    redactor = Redactor({"ღ糖糖ღ": [], "Kevin_Zhao": ["赵凯文"], "真的吗？": []})
    assert redactor.redact("糖糖来了，KEVIN_ZHAO和kevin_zhao也来")[0] == "用户1来了，用户2和用户2也来"
    assert redactor.redact("凯文哥在吗，@凯文 凯文同学")[0] == "用户2哥在吗，@用户2 用户2同学"
    assert redactor.redact("真的吗")[0] == "真的吗"


def test_a_given_name_is_a_persons_where_it_is_called():
    redactor = Redactor({"老桨": ["江远帆"]})
    assert redactor.redact("远帆，你看\n远帆哥说\n@远帆 在吗")[0] == "用户1，你看\n用户1哥说\n@用户1 在吗"
    assert redactor.redact("海上远帆点点")[0] == "海上远帆点点"


def test_whom_a_parcel_names_goes_without_a_number():
    redactor = Redactor(["老桨", "满晓棠"])
    text = "收件人：何美珍，联系人 邓国平女士，户名：满晓棠，收件人：本人，联系人 王老师，姓名：高中"
    assert redactor.redact(text)[0] == (
        "收件人：用户，联系人 用户女士，户名：用户2，收件人：本人，联系人 王老师，姓名：高中"
    )


def test_mentions_end_at_a_space_and_mean_somebody():
    assert mentioned("@甲乙 你好@丙丁\u2005@全体成员 发到a@example.com @戊己") == ["甲乙", "丙丁", "戊己"]


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
        ("快递单号SF1402938475610，圆通YT8839201746523", []),
        ("伤害打了15412345678", []),
        ("文件有15412345678 B", []),
        ("look at example.com", []),
        ("邮箱是bob at example.com", ["email"]),
        ("bob(at)example(dot)com", ["email"]),
        ("String#length.foo", []),
        ("密码锁要换电池", []),
        ("密码：8848a@b", ["secret"]),
        ("max_new_tokens=4096", []),
        ("卫星Sentinel-2", []),
        ("卫星laozhang-pj01", ["wechat"]),
        ("2013QQ音乐", []),
        ("去江西路12号", ["address"]),
        ("住在北京市朝阳区", []),
        ("住在北京市朝阳区建国路88号", ["address"]),
        ("幺五四，零零二三，九八八一", ["mobile"]),
        ("1 5 4 0 2 3 8 7 7 1 9", []),
        ("手机1 5 4 0 2 3 8 7 7 1 9", ["mobile"]),
        ("830000199208170021", ["id_card"]),
        ("911156199002140036", ["id_card"]),
        ("沪 A·D12345", ["plate"]),
        ("腾讯云CVM123", []),
        ("我是黄牛，不是人", []),
        ("我叫邵子昂，新来的", ["person"]),
        ("我是人事部的符晓芸，资料收到了", ["person"]),
        ("我是公司的老员工", []),
        ("患者亓官梅，女，56岁", ["person"]),
        ("鲁迅，男，作家", []),
        ("高薪，男 25岁以上", []),
        ("请找郗文博大夫复查", ["person"]),
        ("请家庭医生上门", []),
        ("张伟，15412345678", ["person", "mobile"]),
        ("接龙 1.张三家 15412345678", ["mobile"]),
        ("转给冯国强，工行", ["person"]),
        ("My name is Jonathan Whitaker", ["person"]),
        ("My name is on the list", []),
        ("1 8 8 5 8 1 2 3 6 9 0 加我", ["mobile"]),
        ("+44 7700 900123", ["mobile"]),
        ("call (415) 555-0137", ["mobile"]),
        ("+1 234 567", []),
        ("2的34次方是17179869184", []),
        ("seed=15412345678, tel=15412345678", ["mobile"]),
        ("传真:86-21-64338912", ["landline"]),
        ("我的生日是1994年8月17日", ["birth_date"]),
        ("周杰伦生日是1979年1月18日", []),
        ("定位 30.274085,120.155071 来接我", ["address"]),
        ("坐标(3.1415, 2.7182)", []),
        ("车架号LSVAM4187C2184847", ["document"]),
        ("VIN码17位怎么解读", []),
        ("户号 3301058827461", ["document"]),
        ("门诊号：0012839471", ["document"]),
        ("AIzaSyD4fG7hJ8kL9mN0bV1cX2zQ3wE4rT5yU6i", ["secret"]),
        ("SESSDATA=8a7b6c5d%2C1719999999%2Cabcd1; path=/", ["secret"]),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIB\n-----END RSA PRIVATE KEY-----", ["secret"]),
    ],
)
def test_what_a_checksum_or_a_word_decides(text, kinds):
    assert [span.kind for span in Redactor().find(text)] == kinds


def test_kinds_are_chosen_by_name():
    text = "老桨，154-1234-5678，zs@example.com"
    assert Redactor(["老桨"], kinds=["email"]).redact(text)[0] == "老桨，154-1234-5678，<邮箱>"
    assert Redactor(["老桨"], kinds=["person"]).redact(text)[0] == "用户1，154-1234-5678，zs@example.com"
    with pytest.raises(UserError, match=re.escape("unknown kind of personal data 'phone': choose from secret, email")):
        Redactor(kinds=["phone"])


@pytest.mark.parametrize(
    "piece",
    [
        *("1", "号", "1-", "微信a", "&a", "a.", "a@", "地址市", "路1号", ":0", "京A1", "\n1 "),
        *("微信搜", "a(at)", "a点", "密码a", "token=a", "镇甲", "3栋1", "QQ1 ", "收件人王", "路1号甲", "sk-", "@a "),
        *("一", "一，", "手机1 ", "薇 a", "收件人王 ", "京 A ", "我叫王"),
    ],
)
def test_long_repetitions_are_read_in_time(piece):
    """A pattern that backtracks would take minutes over any of these."""
    text = piece * 20_000
    assert Redactor().redact(text)[0].count("<") <= len(text)
