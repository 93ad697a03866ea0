import pytest
from rich.cells import cell_len

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import KEPT, Ledger, details_hidden, row_status, shown, with_detail, write_ledgers


def ledger(dropped, kept):
    book = Ledger()
    for line in range(dropped):
        book.add(f"a.json:{line + 1}", row_status("dropped", "empty answer"))
    for line in range(kept):
        book.add(f"b.json:{line + 1}", row_status("truncated", "prompt cut") if line < 2 else KEPT)
    return book


def test_kept_and_dropped_equal_read():
    book = ledger(3, 7)
    for counts in [book.totals, *book.sources.values()]:
        assert counts["kept"] + counts["dropped"] == counts["read"]
    assert book.totals["truncated"] == 2
    assert book.to_dict()["reasons"][0] == {
        "source": "a.json",
        "status": "dropped: empty answer",
        "count": 3,
        "first": ["a.json:1", "a.json:2", "a.json:3"],
    }
    assert "3 dropped: empty answer (first at line 1)" in book.table()


def test_too_many_drops_stop_with_the_first_ten():
    with pytest.raises(UserError) as caught:
        ledger(15, 85).check(0.1)
    text = str(caught.value)
    assert "15 of 100 rows" in text and "--max_drop_ratio 0.1" in text
    assert text.count("a.json:") == 10 and "a.json:10: empty answer" in text
    ledger(15, 85).check(0.15)
    ledger(0, 5).check(0.0)
    with pytest.raises(UserError, match="2 of 2 rows"):
        ledger(2, 0).check(1.0)


def test_what_a_row_holds_is_shown_where_it_is_and_written_nowhere(tmp_path):
    book = Ledger()
    for line in range(2000):
        reason = with_detail("'label' is neither true nor false", repr(f"客户{line} 13812340000" + "。" * 99))
        book.add(f"a.json:{line + 1}", row_status("dropped", reason))
    whole = Ledger().merge(book)
    assert list(whole.reasons) == [("a.json", "dropped: 'label' is neither true nor false")]
    lines = whole.table().splitlines()
    assert lines[2:] == [
        "  2,000 dropped: 'label' is neither true nor false (first at line 1)",
        *(f"    a.json:{n + 1}: '客户{n} 13812340000{'。' * 43}…" for n in range(3)),
    ]
    with pytest.raises(UserError, match=r"a.json:10: 'label' is neither true nor false \('客户9 13812340000"):
        whole.check(0.5)
    with details_hidden():
        assert whole.table().splitlines() == lines[:3]
        assert shown(row_status("dropped", reason)) == "dropped: 'label' is neither true nor false"
        with pytest.raises(UserError) as caught:
            whole.check(0.5)
        assert "客户" not in str(caught.value)
    write_ledgers(tmp_path / "ledger.json", train=whole)
    text = (tmp_path / "ledger.json").read_text(encoding="utf-8")
    assert "客户" not in text and "13812340000" not in text and '"count": 2000' in text
    again = Ledger.from_dict(whole.to_dict())
    assert again.to_dict() == whole.to_dict()


def test_a_detail_cannot_steer_a_terminal():
    assert shown(with_detail("broken", "a\x1b[31m\x1f\n b\u202e")) == "broken (a [31m b)"


def test_parts_of_a_ledger():
    one, other, whole = Ledger(), Ledger(), Ledger()
    for line in range(12):
        statuses = [row_status("repaired", "NFKC"), row_status("repaired", "control characters")][: line % 3]
        for book in (one if line < 6 else other, whole):
            book.add(f"a.json:{line + 1}", *statuses)
    one.merge(Ledger.from_dict(other.to_dict()))
    assert one.to_dict() == whole.to_dict()
    assert one.sources["a.json"] == {"read": 12, "kept": 12, "repaired": 8}


def test_the_table_is_aligned_also_for_chinese_names_and_names_the_first_location():
    book = Ledger()
    book.add("新闻.json:3", row_status("dropped", "empty"))
    book.add("a.json:1")
    renamed = Ledger(book.sources, {("a.json", "dropped: empty"): book.reasons["新闻.json", "dropped: empty"]})
    title, chinese, latin, reason = renamed.table().splitlines()
    assert cell_len(title) == cell_len(chinese) == cell_len(latin)
    assert reason == "  1 dropped: empty (first at 新闻.json:3)"
