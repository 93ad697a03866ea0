import pytest

from hf_recipes.corpus.cleaning import nfkc, quality_problem, simplify, strip_controls, words

PROSE = (
    "西湖位于浙江省杭州市区西部，是一个三面环山的湖泊。湖上有苏堤、白堤和杨公堤三道堤，湖中有孤山等岛。"
    "宋代以来，西湖十景逐渐流传，其中有断桥残雪、三潭印月。茶树原产于中国西南地区，唐代陆羽写了第一部茶书。"
)


def test_controls():
    assert (
        strip_controls("\ufeff一\u200b行\r\n二\x00\t行\r三\u2028四\x7f👨\u200d👩") == "一行\n二\t行\n三\n四👨\u200d👩"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ＡＢＣ１２３ ﬁ ｱ ㎏", "ABC123 fi ア kg"),
        ("中文，标点：“全角”！（不变）…", "中文，标点：“全角”！（不变）…"),
        ("10²㎡ ½ ① H₂O", "10²㎡ ½ ① H₂O"),
        ("Ａ `Ａ` Ｂ\n```\nＣ\n```\nＤ", "A `Ａ` B\n```\nＣ\n```\nD"),
        ("Ａ<pre class=x>Ｂ</pre>Ｃ", "A<pre class=x>Ｂ</pre>C"),
        ("e\u0301", "\u00e9"),
    ],
)
def test_nfkc(text, expected):
    assert nfkc(text) == expected


def test_traditional_characters():
    pytest.importorskip("opencc")
    assert simplify("漢語與繁體 `漢`") == "汉语与繁体 `漢`"
    assert simplify("頭髮和發展") == "头发和发展"
    assert simplify("漢語\n日本語の漢字、頭\n繁體") == "汉语\n日本語の漢字、頭\n繁体"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PROSE, None),
        ("短文。", None),
        ("An English text about the lake. 西湖。", "fewer than 30% Chinese"),
        ("！！！？？？好好好", "more than 40% punctuation"),
        ("没有标点" * 3 + "".join(chr(0x4E00 + i * 7) for i in range(300)), "no end of a sentence"),
        (PROSE + "\n版权所有\n版权所有\n版权所有", "of the lines recur"),
        (PROSE + "\n" + "\n".join(PROSE[i * 10 : i * 10 + 10] for i in range(8)) + "\n" + PROSE, "are in lines that"),
        ("哈哈哈哈哈哈哈哈，真好笑。", "the same 2 characters"),
    ],
)
def test_quality(text, problem):
    found = quality_problem(text)
    assert (found is None) if problem is None else problem in found


def test_a_share_of_ones_own():
    assert quality_problem("An English text about 西湖。", min_chinese=0.0) is None
    assert quality_problem(PROSE + " English words among it", min_chinese=0.95) == "fewer than 95% Chinese characters"


def test_words_are_chinese_characters_and_latin_words():
    assert list(words("西湖，West Lake 2024年！naïve")) == ["西", "湖", "west", "lake", "2024", "年", "naïve"]
