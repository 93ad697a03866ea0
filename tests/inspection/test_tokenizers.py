"""Two tokenizers' cuts of the same texts."""

import re

import pytest

from conftest import build_tokenizer, write_jsonl


@pytest.fixture
def folders(tokens_only, tmp_path):
    """A tokenizer, and one that has 年龄在 as a token too."""
    other = build_tokenizer()
    other.add_tokens(["年龄在"])
    other.save_pretrained(tmp_path / "other")
    write_jsonl(tmp_path / "text.jsonl", [{"text": "患者年龄在十八岁以上🙂"}, {"text": "abc"}])
    return tokens_only, str(tmp_path / "other"), str(tmp_path / "text.jsonl")


def test_cuts_side_by_side(folders, script, tmp_path):
    one, other, text = folders
    page = tmp_path / "page.html"
    code, out, err = script("inspect_data.py", "--tokenizer", one, other, "--text", text, "--html", page)
    assert code == 0, err
    assert "⟦年龄在⟧十八岁" in out and re.search(r"患者年龄在十八岁以上🙂", out)
    counts = [build_tokenizer()(text)["input_ids"] for text in ("患者年龄在十八岁以上🙂", "abc")]
    assert str(sum(map(len, counts))) in out
    assert "年龄在" in page.read_text(encoding="utf-8")


def test_what_is_missing_is_said(folders, script):
    code, _, err = script("inspect_data.py", "--tokenizer", folders[0], folders[1])
    assert code == 1 and "--tokenizer A B and --text FILE go together" in err
