"""scripts/extend_tokenizer.py and extend_model.py: what they print, refuse and leave."""

import json

import pytest

from conftest import ROOT, write_jsonl
from hf_recipes.core.files import lock_of, locked

NEWS = str(ROOT / "datasets/pretrain/news.jsonl")


@pytest.fixture
def extend(script, model_dir, tmp_path):
    def run(*flags):
        return script("extend_tokenizer.py", "--tokenizer_name", model_dir, "--output_dir", tmp_path / "new", *flags)

    return run


def test_the_report_comes_before_the_tokenizer(extend, tmp_path):
    flags = ["--train_file", f"news={NEWS}", f"qa={ROOT / 'datasets/pretrain/qa.jsonl'}", "--held_out_share", 0.2]
    code, out, err = extend(*flags, "--num_new_tokens", 200)
    assert code == 0, err
    for text in ("Characters a token, by source", "by script", "Most frequent", "Longest", "news", "qa", "Chinese"):
        assert text in out
    assert out.index("Longest") < out.index("200 new tokens from id")
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "extension.json", "vocabulary.html"} <= names
    assert "<img" in (tmp_path / "new/vocabulary.html").read_text(encoding="utf-8")


def test_words_alone(extend, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("# medical\n糖尿病 12 n\n高血压\t3\n一 二\n糖尿病\n", encoding="utf-8")
    code, out, err = extend("--words", words)
    assert code == 0, err
    assert "1 lines repeat a word" in out and "2 of 3 words are made a token of their own" in out
    assert "not 一 二: the tokenizer cuts it before it looks for tokens" in out


def test_special_tokens_alone(extend, tmp_path):
    code, _, err = extend("--special_tokens", ROOT / "configs/special_tokens/roles.json")
    assert code == 0, err
    record = json.loads((tmp_path / "new/extension.json").read_text(encoding="utf-8"))
    assert list(record["special_tokens"]) == ["<|system|>", "<|user|>", "<|assistant|>", "<|endofchat|>"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to add: give --train_file and --num_new_tokens, --words or --special_tokens"),
        (["--num_new_tokens", 5], "--num_new_tokens needs --train_file"),
        (["--words", "nowhere.txt"], "--words nowhere.txt: No such file or directory"),
        (["--train_file", NEWS, "--num_new_tokens", -1], "--num_new_tokens -1"),
        (["--train_file", NEWS, "--num_new_tokens", 5, "--max_bytes", 10], "--max_bytes 10"),
    ],
)
def test_what_is_refused_leaves_nothing(flags, message, extend, tmp_path):
    code, _, err = extend(*flags)
    assert code == 1 and message in err and "Traceback" not in err
    assert not (tmp_path / "new").exists()


def test_an_empty_corpus(extend, tmp_path):
    write_jsonl(tmp_path / "empty.jsonl", [{"text": " "}])
    code, _, err = extend("--train_file", tmp_path / "empty.jsonl", "--num_new_tokens", 5)
    assert code == 1 and "cannot be used" in err and not (tmp_path / "new").exists()


def test_two_at_once(extend, tmp_path):
    with locked(lock_of(tmp_path / "new"), "busy"):
        code, _, err = extend("--words", ROOT / "README.md")
    assert code == 1 and "another process is writing to this folder" in err
    (tmp_path / "new").mkdir()
    (tmp_path / "new/mine.txt").touch()
    code, _, err = extend("--words", ROOT / "README.md")
    assert code == 1 and "there is something already" in err
