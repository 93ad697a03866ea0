import pytest

from hf_recipes.corpus.wikitext import has_wiki_markup, without_wiki_markup


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[石桥县|石桥]]的[[渔村]]和[[:Category:湖|湖]]", "石桥的渔村和湖"),
        ("'''柳湾'''，''斜体''。", "柳湾，斜体。"),
        ("文{{人口|{{formatnum:3200}}|年=1990}}字[[甲]]", "文字甲"),
        ("{{lang|en|Salt Lake}}是[[湖]]", "Salt Lake是湖"),
        ("甲<ref name=a>《志》[[x]]</ref>乙<ref name=a />丙<!-- 注 [[y]] -->", "甲乙丙"),
        ("== 历史 ==\n建于明朝\n=== 早期 ===\n文", "历史\n建于明朝\n早期\n文"),
        ("文\n{| class=a\n|-\n| 甲 || {|\n| 乙\n|}\n|}\n尾[[a]]", "文\n\n尾a"),
        ("[[File:a.jpg|thumb|图：[[村口]]]]正文[[分类:湖]][[en:Lake]]", "正文"),
        ("* [[东街]]\n** 西街\n# 北街", "东街\n西街\n北街"),
        ("-{zh-hans:计算机; zh-hant:電腦}-与-{里}-[[a]]", "计算机与里a"),
        ("[https://a.example 网站]与[https://b.example][[a]]<br/>下&nbsp;行", "网站与a\n下 行"),
        ("石桥\n\n'''石桥'''是桥。", "石桥是桥。"),
        ("#REDIRECT [[石桥]]", ""),
    ],
)
def test_prose_stays_and_markup_goes(text, expected):
    assert has_wiki_markup(text) and without_wiki_markup(text) == expected
    assert not has_wiki_markup(expected) and without_wiki_markup(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "if [[ -f a ]]; then",
        "矩阵[[1, 2], [3, 4]]",
        "a[[0]]",
        "# 标题\n* 一\n* 二",
        "{{ name }}",
        "a == b",
        "=== ===",
        "it's ''",
    ],
)
def test_what_is_no_wiki_markup_is_unchanged(text):
    assert not has_wiki_markup(text) and without_wiki_markup(text) == text


@pytest.mark.parametrize("piece", ["[[甲", "{{甲", "{|", "<ref>", "<!--", "= ", "'", "-{", "[http://a ", "* ", "<div"])
def test_long_repetitions_are_read_in_time(piece):
    without_wiki_markup("[[甲]]" + piece * 20_000)
