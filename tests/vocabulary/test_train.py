"""Tokenizers trained on texts."""

import json

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from conftest import ROOT
from hf_recipes.core.errors import UserError
from hf_recipes.models.tokenizers.pretokenizers import mixed_texts, named_like
from hf_recipes.vocabulary.arguments import TrainTokenizerArguments
from hf_recipes.vocabulary.train import train_tokenizer

CORPUS = [str(ROOT / "datasets/pretrain" / f"{name}.jsonl") for name in ("news", "qa", "wiki")]
TEXTS = [*mixed_texts(), "  在 2024 年，\n\t共有１２３人。", "naïve 🙂 \x00 end"]


def train(folder, **settings):
    settings = {"vocab_size": 2500, "train_file": CORPUS, "held_out_share": 0.1, **settings}
    return train_tokenizer(TrainTokenizerArguments(output_dir=str(folder), **settings))


@pytest.mark.parametrize("kind", ["byte_level_bpe", "bpe", "unigram"])
def test_texts_come_back_and_the_chosen_tokens_are_there(kind, tmp_path, capsys):
    special = str(ROOT / "configs/special_tokens/roles.json")
    folder = train(tmp_path / "new", model_type=kind, special_tokens=special)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 2500
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert len(tokenizer("2024", add_special_tokens=False)["input_ids"]) == 4
    assert tokenizer.eos_token == "<|endofchat|>" != tokenizer.pad_token
    assert tokenizer.pad_token == ("<|pad|>" if kind == "byte_level_bpe" else "<unk>")
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "你好"}], tokenize=False)
    assert rendered == "<|user|>\n你好<|endofchat|>\n"
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|user|>") and tokenizer.eos_token_id in ids
    out = capsys.readouterr().out
    assert "Characters a token, by source" in out and "Longest" in out
    assert (folder / "vocabulary.html").is_file()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_sentencepiece_model_cuts_as_the_json_does(kind, tmp_path):
    folder = train(tmp_path / "new", model_type=kind)
    model, tokenizer = (
        SentencePieceProcessor(model_file=str(folder / "tokenizer.model")),
        AutoTokenizer.from_pretrained(folder),
    )
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == model.encode(text)


def test_the_same_seed_makes_the_same_tokenizer(tmp_path):
    one, other = (train(tmp_path / name, max_bytes=20_000) / "tokenizer.json" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    third = train(tmp_path / "third", max_bytes=20_000, seed=1) / "tokenizer.json"
    assert third.read_bytes() != one.read_bytes()


@pytest.mark.parametrize(("split", "name"), [(True, "qwen2"), (False, "gpt-2")])
def test_pre_tokenizers_are_ones_that_llama_cpp_has(split, name, tmp_path):
    folder = train(tmp_path / "new", split_digits=split)
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    assert named_like(backend) == name


def test_other_characters_are_unknown_without_byte_fallback(tmp_path):
    folder = train(tmp_path / "new", model_type="bpe", byte_fallback=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("🙂", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


def test_what_cannot_be_trained(tmp_path):
    for settings, message in (
        ({"vocab_size": 200}, "--vocab_size 200: 256 bytes and 2 special tokens"),
        ({"vocab_size": 300, "model_type": "bpe"}, "--vocab_size: SentencePiece: Vocabulary size is smaller"),
        ({"vocab_size": 90_000, "model_type": "unigram"}, "--vocab_size: SentencePiece: Vocabulary size too high"),
    ):
        with pytest.raises(UserError, match=message):
            train(tmp_path / "new", **settings)
        assert not (tmp_path / "new").exists()
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({"text": ""}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="1 of 1 rows cannot be used"):
        train(tmp_path / "new", train_file=[str(empty)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="there is something already"):
        train(tmp_path / "full")


def test_words_of_the_texts_are_tokens_without_held_out_ones(tmp_path):
    (tmp_path / "texts.txt").write_text("酒店很好，房间很干净。\n" * 50, encoding="utf-8")
    settings = {"train_file": [str(tmp_path / "texts.txt")], "held_out_share": 0.0, "vocab_size": 300}
    tokenizer = AutoTokenizer.from_pretrained(train(tmp_path / "new", **settings))
    assert len(tokenizer("酒店很好")["input_ids"]) == 1
    assert tokenizer.decode(tokenizer("龘😀")["input_ids"]) == "龘😀"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
