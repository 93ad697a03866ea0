import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.schemas.registry import Columns, detect_schema


def convert(row, **columns):
    schema = detect_schema(row, Columns(**columns, reads="documents"), "rows.json")
    assert schema.form == "text"
    return schema.name, schema.to_example(row)


BAIKE = {
    "title": "红烧肉",
    "summary": "一道菜。",
    "sections": [{"title": "做法", "content": "先焯水。"}, {"title": "历史", "content": ""}],
    "tags": ["菜"],
}
CALL = {"name": "weather", "arguments": {"city": "北京"}}


@pytest.mark.parametrize(
    ("row", "columns", "name", "document"),
    [
        ({"text": "一篇文章", "meta": {}}, {}, "text", {"text": "一篇文章"}),
        ({"completion": "昭通机场", "source": "wikipedia.zh2307"}, {}, "text", {"text": "昭通机场"}),
        ({"content": "一篇文章", "lang": "zh"}, {}, "text", {"text": "一篇文章"}),
        (
            {"title": "静夜思", "author": "李白", "paragraphs": ["甲，", "乙。"]},
            {},
            "text",
            {"text": "静夜思\n甲，\n乙。"},
        ),
        ({"title": "关雎", "content": ["甲，", "乙。"]}, {}, "article", {"text": "关雎\n甲，\n乙。"}),
        ({"正文": "一篇文章", "id": 7}, {"prompt": "正文"}, "text", {"text": "一篇文章", "id": "7"}),
        (BAIKE, {}, "baike", {"text": "红烧肉\n一道菜。\n做法\n先焯水。\n历史"}),
        (
            {"文件名": "a.txt", "段落数": 2, "段落": [{"行号": 1, "内容": "　　甲"}, {"行号": 2, "内容": "乙"}]},
            {},
            "mnbvc",
            {"text": "　　甲\n乙", "id": "a.txt"},
        ),
        (
            {"id": 3, "uniqueKey": "k", "title": "标题", "content": "正文"},
            {},
            "article",
            {"text": "标题\n正文", "id": "3"},
        ),
        ({"title": "标题", "content": "标题：正文"}, {}, "article", {"text": "标题：正文"}),
        ({"title": "标题", "content": "正文", "code": "600000"}, {}, "article", {"text": "标题\n正文"}),
        ({"question": "一加一？", "answer": "二。"}, {}, "prompt_response", {"text": "问：一加一？\n答：二。"}),
        ({"id": "q", "问": "甲", "答": "乙"}, {}, "prompt_response", {"text": "问：甲\n答：乙", "id": "q"}),
        ({"instruction": "译", "input": "猫", "output": "cat"}, {}, "alpaca", {"text": "问：译\n猫\n答：cat"}),
        (
            {
                "messages": [
                    {"role": r, "content": c} for r, c in (("system", "短"), ("user", "问"), ("assistant", "答"))
                ]
            },
            {},
            "messages",
            {"text": "短\n问：问\n答：答"},
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "天气？"},
                    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "北京"}}'},
                    {"from": "observation", "value": "三度"},
                    {"from": "gpt", "value": "三度。"},
                ]
            },
            {},
            "sharegpt",
            {
                "text": '问：天气？\n答：{"name": "weather", "arguments": {"city": "北京"}}\n工具：三度\n答：三度。',
            },
        ),
        ({"content": "x = 1", "lang": "Python"}, {}, "code", {"text": "x = 1", "kind": "code"}),
        ({"text": "x = 1", "language": "C++"}, {}, "code", {"text": "x = 1", "kind": "code"}),
        ({"code": "int x;\n", "docstring": ""}, {}, "code", {"text": "int x;\n", "kind": "code"}),
        ({"content": "int x;", "max_stars_repo_path": "a.c"}, {}, "code", {"text": "int x;", "kind": "code"}),
        ({"text": "一篇", "q": "问"}, {"schema": "text"}, "text", {"text": "一篇"}),
        ({"text": "x"}, {"schema": "code"}, "code", {"text": "x", "kind": "code"}),
    ],
)
def test_shapes_become_documents(row, columns, name, document):
    assert convert(row, **columns) == (name, document)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"title": "红烧肉", "summary": "", "sections": []}, "empty text"),
        ({"title": "红烧肉", "summary": "菜", "sections": ["做法"]}, "'sections' is not a list of sections"),
        ({"段落": [{"内容": ""}]}, "empty text"),
        ({"段落": ["甲"]}, "not a list of paragraphs"),
        ({"title": "标题", "content": None}, "no 'content'"),
        ({"completion": ""}, "empty text"),
        ({"question": "问", "answer": ""}, "empty answer"),
    ],
)
def test_a_bad_row_says_why(row, reason):
    with pytest.raises(RowProblem, match=reason):
        convert(row)


def test_what_is_no_document():
    with pytest.raises(UserError, match="its schema is preference"):
        convert({"prompt": "问", "chosen": "好", "rejected": "坏"})
    with pytest.raises(UserError, match="no known schema in the columns foo"):
        convert({"foo": 1})
    with pytest.raises(UserError, match=r"--prompt_column 'c' is not a column; there are a, b"):
        convert({"a": 1, "b": 2}, prompt="c")
