"""Sizes of sources out of pasted text: what is read, and what is named with its line."""

import json

import pytest

from hf_recipes.apps.mixture.pasted_sizes import parse_sizes
from hf_recipes.apps.mixture.sizes import REASONS, parse_size

K, M, G = 1 << 10, 1 << 20, 1 << 30


def read(text, unit=None):
    """The sizes of a text of which everything is counted."""
    sizes = parse_sizes(text, unit)
    assert {reason for _, _, reason in sizes.warnings} <= {"counted elsewhere", "KiB"}
    return sizes.amounts


def warnings(sizes):
    assert {reason for _, _, reason in sizes.warnings} <= set(REASONS)
    return [(line, reason) for line, _, reason in sizes.warnings]


@pytest.mark.parametrize(
    ("text", "unit", "size"),
    [
        ("253K", "bytes", 253 * K),
        ("1.2G", "bytes", 1.2 * G),
        ("1.2g", "bytes", 1.2 * G),
        ("4 KiB", "bytes", 4 * K),
        ("5 GB", "bytes", 5e9),
        ("512B", "bytes", 512),
        ("1,234", "bytes", 1234),
        ("1,234,567.5K", "bytes", 1234567.5 * K),
        ("1e9", "tokens", 1e9),
        ("3.4万", "documents", 34_000),
        ("1.2亿", "tokens", 1.2e8),
        ("3千万 词元", "tokens", 3e7),
        ("1.5万亿", "tokens", 1.5e12),
        ("300M tokens", "tokens", 3e8),
        ("1.2B", "tokens", 1.2e9),
        ("12条", "documents", 12),
        ("１２", "bytes", 12),
        ("300M tokens", "bytes", None),
        ("5 GB", "tokens", None),
        ("1.2B", "bytes", None),
        ("1,2G", "bytes", None),
        ("12,34", "bytes", None),
        ("-5", "bytes", None),
        ("1e999", "bytes", None),
        ("__import__('os')", "bytes", None),
        ("", "bytes", None),
    ],
)
def test_a_size(text, unit, size):
    assert parse_size(text, unit) == (None if size is None else pytest.approx(size))


LS = """total 48
drwxr-xr-x 2 root root  4096 Nov 21 16:18 .
drwxr-xr-x 9 root root  4096 Nov 21 16:18 ..
-rw-r--r-- 1 root root 14657 Nov 21 16:18 MNBVC_news.jsonl
-rw-r--r-- 1 root root 13474 Jan  5  2025 wiki.v2.jsonl.gz
-rw-rw-r--. 1 me users 14400 Nov  1 06:18 'my notes.txt'
"""


@pytest.mark.parametrize(
    "text",
    [
        LS,
        LS.replace("total", "总用量").replace("Nov ", "11月 ").replace("Jan ", "1月 "),
        LS.replace("Nov 21 16:18", "2026-11-21 16:18").replace("Jan  5  2025", "2025-01-05 00:00"),
        LS.replace("Nov 21 16:18", "21 Nov 16:18").replace("Jan  5  2025", "5 Jan  2025"),
        LS.replace("Nov 21 16:18", "2026-11-21 16:18:00.123456789 +0800"),
        LS.replace("root root", "root domain users 7"),
        LS.replace("root ", ""),
        LS.replace("\n", "\r\n"),
    ],
    ids=["en", "zh", "long-iso", "day first", "full-iso", "spaces", "no owner", "crlf"],
)
def test_ls(text):
    sizes = parse_sizes(text)
    assert sizes.amounts == {"MNBVC_news": 14657, "wiki.v2": 13474, "my notes": 14400}
    assert sizes.unit == "bytes"
    assert warnings(sizes) == [(1, "counted elsewhere"), (2, "no file"), (3, "no file")]


def test_ls_in_units_of_its_own():
    text = (
        "总计 1.5G\n-rw-r--r-- 1 root root 253K 11月 21 16:18 news.jsonl\n"
        "-rw-r--r-- 1 root root 1.2G 11月 21  2025 wiki.zst"
    )
    assert read(text) == {"news": 253 * K, "wiki.zst": 1.2 * G}


def test_ls_does_not_say_what_is_in_a_folder_or_behind_a_link():
    text = (
        "drwxr-xr-x 2 root root 4096 Nov 21 16:18 books\n"
        "lrwxrwxrwx 1 root root   12 Nov 21 16:18 law -> /mnt/law\n"
        "prw-r--r-- 1 root root    0 Nov 21 16:18 pipe\n"
        "-rw-r--r-- 1 root root    0 Nov 21 16:18 none.txt\n"
        "-rw-r--r-- 1 root root    5 Nov 21 16:18 news.txt\n"
    )
    sizes = parse_sizes(text)
    assert sizes.amounts == {"news": 5}
    assert warnings(sizes) == [(1, "no file"), (2, "no file"), (3, "no file"), (4, "empty")]
    assert sizes.warnings[1][1].endswith("law -> /mnt/law")


def test_ls_of_several_folders_has_a_source_for_each():
    row = "-rw-r--r-- 1 root root {} Nov 21 16:18 {}.jsonl\n"
    text = (
        f".:\ntotal 8\ndrwxr-xr-x 2 root root 4096 Nov 21 16:18 news\n{row.format(7, 'wiki')}\n"
        f"./news:\ntotal 8\n{row.format(20, 'a')}{row.format(30, 'b')}"
    )
    sizes = parse_sizes(text)
    assert sizes.amounts == {"wiki": 7, "news": 50}
    assert warnings(sizes) == [(2, "counted elsewhere"), (3, "no file"), (7, "counted elsewhere"), (9, "added")]
    assert warnings(parse_sizes("news:\nwiki 5\nlaw:")) == [(1, "unreadable"), (3, "unreadable")]


def test_du():
    text = "253K\tdata/news\n1.2G\tdata/wiki.jsonl\n512\tdata/my notes\n1.3G\tdata\n1.3G\ttotal\n"
    sizes = parse_sizes(text)
    assert sizes.amounts == {"news": 253 * K, "wiki": 1.2 * G, "my notes": 512}
    assert warnings(sizes) == [(4, "counted elsewhere"), (5, "counted elsewhere")]


def test_du_without_units_has_blocks_of_1024():
    sizes = parse_sizes("120\t./news/2024\n200\t./news\n80\t./wiki\n284\t.\n")
    assert sizes.amounts == {"news": 200 * K, "wiki": 80 * K}
    assert warnings(sizes) == [(1, "KiB"), (1, "counted elsewhere"), (4, "counted elsewhere")]
    assert read("5\tdata\n") == {"data": 5 * K}


def test_lines_of_wc_are_documents():
    sizes = parse_sizes("   120 news.jsonl\n    80 wiki.jsonl\n   200 total\n", "documents")
    assert sizes.amounts == {"news": 120, "wiki": 80}
    assert sizes.unit == "documents"


@pytest.mark.parametrize(
    "text",
    [
        '{"news": 253000, "my wiki": "1.2G"}',
        '[{"name": "news", "size": 253000}, {"source": "my wiki", "bytes": "1.2G"}]',
        '{"name": "news", "size": 253000}\n{"name": "my wiki", "size": "1.2G"}',
        '{"name": "news", "size": 253000},\n{"name": "my wiki", "size": "1.2G"},',
        '[["news", 253000], ["my wiki", "1.2G"]]',
        '\ufeff{\n"news": {"bytes": 253000, "documents": 9},\n"my wiki": {"size": "1.2G"}\n}',
        '"news": 253000,\n"my wiki": "1.2G"',
        "news,253000\nmy wiki,1.2G",
        "name,size\nnews,253000\nmy wiki,1.2G",
        '名称，大小\nnews，"253,000"\nmy wiki，1.2G',
        'path\tdocuments\tbytes\nnews\t7\t253000\n"my wiki"\t9\t1.2G',
        'documents;bytes;name\n7;253,000;news\n"9";1.2 G;my wiki',
        "news 253,000\nmy wiki 1.2G",
        "news: 253000\nmy wiki = 1.2 G",
        "# sizes of today\n\nnews 253000  # from March\n\n  my wiki\t1.2G  \n",
        "253000 news\n1.2G my wiki",
        '"news","253,000"\n"my wiki","1.2G"',
    ],
)
def test_pairs(text):
    assert read(text) == {"news": 253000, "my wiki": pytest.approx(1.2 * G)}


@pytest.mark.parametrize(
    ("text", "unit", "amounts"),
    [
        ("name,documents,tokens\nnews,7,1.2B\nwiki,9,3亿", "tokens", {"news": 1.2e9, "wiki": 3e8}),
        ("news 300M tokens\nwiki 1.2B tokens", "tokens", {"news": 3e8, "wiki": 1.2e9}),
        ('{"news": {"documents": 12}, "wiki": {"documents": 5}}', "documents", {"news": 12, "wiki": 5}),
        ("新闻 3.4万条\n百科 1.2亿条", "documents", {"新闻": 34_000, "百科": 1.2e8}),
        ("新闻：3GB\n百科：500MB", "bytes", {"新闻": 3e9, "百科": 5e8}),
    ],
)
def test_the_text_says_the_unit(text, unit, amounts):
    sizes = parse_sizes(text)
    assert (sizes.unit, sizes.warnings) == (unit, [])
    assert sizes.amounts == pytest.approx(amounts)


def test_sizes_of_another_unit_are_named():
    sizes = parse_sizes("news 300M tokens\nwiki 5GB\nqa 2M")
    assert sizes.amounts == {"news": 3e8, "qa": 2e6}
    assert warnings(sizes) == [(2, "another unit")]
    assert warnings(parse_sizes("news 5GB", "tokens")) == [(1, "another unit")]
    assert warnings(parse_sizes("news 1.2B\nwiki 5B")) == [(1, "another unit")]


def test_every_line_that_cannot_be_read_is_named():
    text = (
        "news 253K\n\nsome prose\nwiki,1,2\n2020 news 5\n"
        f"{'x' * 2000} 5\n{{broken\nlaw -5\nempty 0\n-rw-r--r-- 1 root\nnews 1K\nqa,120,350\n"
    )
    sizes = parse_sizes(text)
    assert sizes.amounts == {"news": 254 * K}
    expected = [(3, "unreadable"), (4, "unreadable"), (5, "unreadable"), (6, "unreadable"), (7, "unreadable")]
    expected += [(8, "unreadable"), (9, "empty"), (10, "unreadable"), (11, "added"), (12, "unreadable")]
    assert warnings(sizes) == expected
    assert sizes.warnings[0][1] == "some prose"


def test_a_name_may_begin_or_end_with_a_number():
    assert read("2020 news 5G\nC4 3G\n5G wiki 2021\nwiki 2022\t7") == {
        "2020 news": 5 * G,
        "C4": 3 * G,
        "wiki 2021": 5 * G,
        "wiki 2022": 7,
    }


def test_broken_json_is_named_with_its_line():
    sizes = parse_sizes('{\n"news": 5,\n"wiki": }')
    assert (sizes.amounts, warnings(sizes)) == ({}, [(3, "unreadable")])
    assert warnings(parse_sizes('{"news": 5}\n{"wiki": }')) == [(2, "unreadable")]
    assert warnings(parse_sizes("[" * 100_000)) == [(1, "unreadable")]


def test_json_values_that_are_no_sizes_are_named():
    values = ["true", "null", "NaN", "-1", "1e999", '"x"', "[1]", "5"]
    pairs = [f'"{name}": {value}' for name, value in zip("abcdefgh", values, strict=True)]
    text = "{\n" + ",\n".join([*pairs, '"h": 6', '"i": {"x": 1}}'])
    sizes = parse_sizes(text)
    assert sizes.amounts == {"h": 11}
    assert [line for line, reason in warnings(sizes) if reason == "unreadable"] == [2, 3, 4, 5, 6, 7, 8, 11]
    assert [reason for _, reason in warnings(sizes) if reason != "unreadable"] == ["added"]
    assert warnings(parse_sizes('[5, {"size": 3}, ["a", "b", 1]]')) == [(n, "unreadable") for n in (1, 2, 3)]
    assert warnings(parse_sizes('{"\\ud800": 5}')) == [(1, "unreadable")]


def test_nothing_pasted_is_executed(tmp_path):
    target = tmp_path / "made"
    code = f"open({str(target)!r}, 'w')"
    for text in (code, f"news {code}", json.dumps({code: 5}), json.dumps({"news": code}), f"{{'news': {code}}}"):
        parse_sizes(text)
    assert not target.exists()


def test_nothing_pasted():
    assert parse_sizes("\n# nothing\n").amounts == {}
