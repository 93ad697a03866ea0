import pytest

from hf_recipes.data.ledger import KEPT, Ledger, fate
from hf_recipes.errors import UserError


def ledger(dropped, kept):
    book = Ledger()
    for line in range(dropped):
        book.add(f"a.json:{line + 1}", fate("dropped", "empty answer"))
    for line in range(kept):
        book.add(f"b.json:{line + 1}", fate("truncated", "prompt cut") if line < 2 else KEPT)
    return book


def test_kept_and_dropped_equal_read():
    book = ledger(3, 7)
    for counts in [book.totals, *book.sources.values()]:
        assert counts["kept"] + counts["dropped"] == counts["read"]
    assert book.totals["truncated"] == 2
    assert book.to_dict()["reasons"][0] == {
        "source": "a.json",
        "fate": "dropped: empty answer",
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


def test_parts_of_a_ledger_and_rows_that_are_dropped_later():
    one, other, whole = Ledger(), Ledger(), Ledger()
    for line in range(12):
        fates = [fate("repaired", "NFKC"), fate("repaired", "control characters")][: line % 3]
        for book in (one if line < 6 else other, whole):
            book.add(f"a.json:{line + 1}", *fates)
    one.merge(Ledger.from_dict(other.to_dict()))
    assert one.to_dict() == whole.to_dict()
    assert one.sources["a.json"] == {"read": 12, "kept": 12, "repaired": 8}
    one.drop("a.json:3", [fate("repaired", "NFKC"), fate("repaired", "control characters")], "duplicate")
    assert one.sources["a.json"] == {"read": 12, "kept": 11, "repaired": 7, "dropped": 1}
    assert {row_fate: entry.count for (_, row_fate), entry in one.reasons.items()} == {
        "repaired: NFKC": 7,
        "repaired: control characters": 3,
        "dropped: duplicate": 1,
    }
