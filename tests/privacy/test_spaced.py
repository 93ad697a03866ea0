"""Blanks and marks within what is otherwise known, and what looks like it."""

import pytest

from hf_recipes.privacy.redactor import Redactor


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("挪一下，渝B 7C 3K9 的车主", "渝B 7C 3K9"),
        ("皖 C 6 6 M 1 8 挡路了", "皖 C 6 6 M 1 8"),
        ("我在新华路 12 弄 8 号 301 室", "新华路 12 弄 8 号 301 室"),
        ("翠湖花园3#1204，放门口", "翠湖花园3#1204"),
        ("写信到 lan.yun8 @ 163 . com", "lan.yun8 @ 163 . com"),
        ("minghe77[@]mail[.]cuc[.]edu", "minghe77[@]mail[.]cuc[.]edu"),
        ("qq 2051-8836-42", "2051-8836-42"),
        ("打我 136_5520_8841", "136_5520_8841"),
        ("香港这边 +852 9123 4567", "+852 9123 4567"),
        ("加葳❤️信 qing-lu07", "qing-lu07"),
        ("围信号lulu330x", "lulu330x"),
        ("V心 mo_2066xx", "mo_2066xx"),
        ("收货人改成仝雨桐", "仝雨桐"),
        ("收件的是我妹，她叫亓若兰", "亓若兰"),
    ],
)
def test_blanks_and_marks_hide_nothing(text, secret):
    assert secret not in Redactor().redact(text)[0]


@pytest.mark.parametrize(
    "text",
    [
        "适用范围：A1234-B 到 A1299-C",
        "新A 股代码 300750 今天涨了",
        "颜色选 7#1802 那个",
        "ok @user.name 你看下",
        "冀A 20 分钟能到吗",
        "QQ 2023-11-08 更新了",
        "文件名 IMG_138_2210_4455",
        "她叫我别等了",
        "苏B 1 2 3 不许动",
    ],
)
def test_what_looks_like_it_stays(text):
    assert Redactor().redact(text)[0] == text
