"""Byte-pair encoding that goes on from an existing tokenizer's merges."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.models import WordPiece

from conftest import ROOT
from hf_recipes.core.errors import UserError
from hf_recipes.models.tokenizers.pretokenizers import mixed_texts, pre_tokenizer
from hf_recipes.vocabulary.bpe import Bpe, byte_signs
from hf_recipes.vocabulary.continuation import Extension, add_words, learn, merge_all, missing_bytes
from hf_recipes.vocabulary.train import train_byte_level

ENGLISH = ["the cat and the hat", "then there are the others", "a train and a plane, and 2024"] * 20


def chinese() -> list[str]:
    rows = (json.loads(line) for line in (ROOT / "datasets/pretrain/news.jsonl").open(encoding="utf-8"))
    return [value for row in rows for value in row.values() if isinstance(value, str)]


@pytest.fixture(scope="module")
def english() -> Tokenizer:
    return train_byte_level(ENGLISH, 280, ["<|endoftext|>", "<|im_end|>"])


@pytest.fixture(scope="module")
def extended(english) -> tuple[Tokenizer, list[str]]:
    bpe = Bpe(english, "tiny")
    extension = learn(bpe, chinese(), 300, 16)
    return bpe.backend, list(extension.tokens)


def test_the_commonest_pairs_become_tokens_in_order(english):
    bpe = Bpe(english, "tiny")
    first = bpe.next_id
    tokens = learn(bpe, ["北京大学"] * 3 + ["北京"] * 4 + ["天大"], 20, 16).tokens
    # Two characters occur seven times, so their bytes come first, then the pair; 北京大学 occurs three times.
    texts = [text for token in tokens if (text := bpe.text_of(token))]
    assert sorted(texts[:2]) == ["京", "北"] and texts[-1] == "北京大学" and "北京" in texts and "天大" not in texts
    assert bpe.backend.encode("北京大学").ids == [first + len(tokens) - 1]


def test_no_old_id_and_no_old_cut_changes(english, extended):
    backend, tokens = extended
    before, after = english.get_vocab(), backend.get_vocab()
    assert all(after[token] == index for token, index in before.items())
    assert sorted(set(after.values()) - set(before.values())) == list(range(280, 580))
    first = english.get_vocab_size()
    for text in [*ENGLISH, *mixed_texts(), "12345 + 67 = 12412", "naïve café — “quotes” 🙂"]:
        ids = backend.encode(text).ids
        assert backend.decode(ids) == text
        if max(ids) < first:
            assert ids == english.encode(text).ids
    assert all(backend.encode(text).ids == english.encode(text).ids for text in ENGLISH)
    assert len(tokens) == 300


def test_chinese_takes_fewer_tokens(english, extended):
    texts = chinese()
    before, after = (sum(len(t.encode(text).ids) for text in texts) for t in (english, extended[0]))
    assert after < 0.55 * before


def test_tokens_are_whole_characters_or_parts_of_one(english, extended):
    bpe = Bpe(english, "tiny")
    for token in extended[1]:
        text = bpe.text_of(token)
        assert text is not None or len(token) < 4  # bytes
        if text is not None:
            assert not any(a.isdigit() or a.isspace() for a in text) or len(text) == 1


def test_the_same_texts_make_the_same_tokens(english):
    one, other = (learn(Bpe(english, "tiny"), chinese(), 100, 16) for _ in range(2))
    assert list(one.tokens) == list(other.tokens) and list(one.merges) == list(other.merges)


def test_a_longest_token(english):
    bpe = Bpe(english, "tiny")
    tokens = learn(bpe, ["中华人民共和国"] * 50, 100, 3).tokens
    assert max(len(bpe.text_of(token) or "") for token in tokens) == 3


def test_a_token_that_is_added_later_has_an_id_of_its_own(extended):
    backend = Tokenizer.from_str(extended[0].to_str())
    backend.add_special_tokens(["<|new|>"])
    ids = backend.get_vocab(with_added_tokens=True)
    assert ids["<|new|>"] == 580 and len(set(ids.values())) == len(ids)


def test_special_tokens_behind_the_vocabulary_keep_their_ids():
    old = train_byte_level(ENGLISH, 270, [])
    old.add_special_tokens(["<|a|>", "<|b|>"])
    bpe = Bpe(old, "tiny")
    bpe.add(["xy"], [("x", "y")])
    assert [bpe.backend.token_to_id(token) for token in ("<|a|>", "<|b|>", "xy")] == [270, 271, 272]
    assert bpe.backend.encode("xy<|b|>").ids == [272, 271]


def test_words_become_one_token_each(english):
    bpe, extension = Bpe(english, "tiny"), Extension()
    add_words(bpe, ["糖尿病", "糖尿", "高血压", "the", "一 二", "2024"], extension)
    bpe.add(list(extension.tokens), list(extension.merges))
    for word in ("糖尿病", "糖尿", "高血压"):
        assert len(bpe.backend.encode(word).ids) == 1
    # Inside a text too.
    assert "糖尿病" in [bpe.backend.decode([index]) for index in bpe.backend.encode("他有糖尿病史").ids]
    assert extension.refused == {
        "糖尿": "it is one token already",
        "the": "it is one token already",
        "一 二": "the tokenizer cuts it before it looks for tokens: 一 |  二",
        "2024": "the tokenizer cuts it before it looks for tokens: 2 | 0 | 2 | 4",
    }


def test_a_word_whose_beginning_is_an_old_token_that_no_merge_reaches():
    signs = byte_signs()
    vocabulary = {sign: index for index, sign in enumerate(signs.values())} | {"ab": 256}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer("gpt-2"), decoders.ByteLevel()
    bpe, extension = Bpe(backend, "tiny"), Extension()
    add_words(bpe, ["abc", "ab"], extension)
    assert list(extension.merges) == [("b", "c"), ("a", "bc")]
    assert "no merge makes it" in extension.refused["ab"]
    bpe.add(list(extension.tokens), list(extension.merges))
    assert bpe.backend.encode("abc").tokens == ["abc"] and bpe.backend.encode("ab").tokens == ["a", "b"]


def test_digits_are_joined_where_old_tokens_join_them():
    texts = ["on 20250101 and 20250102 at 20250103"] * 30
    joined = train_byte_level(["1999 and 1998"] * 20, 280, [], split_digits=False)
    single = train_byte_level(["1999 and 1998"] * 20, 270, [])
    assert any(token.isdigit() and len(token) > 1 for token in learn(Bpe(joined, "tiny"), texts, 20, 16).tokens)
    single.pre_tokenizer = pre_tokenizer("gpt-2")  # which leaves runs of digits whole, as some vocabularies have it
    assert not any(any(map(str.isdigit, token)) for token in learn(Bpe(single, "tiny"), texts, 20, 16).tokens)


def test_missing_bytes_are_those_of_utf8():
    signs = byte_signs()
    lacking = {sign: index for index, (byte, sign) in enumerate(signs.items()) if byte not in (0xE4, 0xFF)}
    backend = Tokenizer(models.BPE(lacking, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe = Bpe(backend, "tiny")
    assert missing_bytes(bpe) == [signs[0xE4]]
    assert backend.decode(backend.encode("中a").ids) != "中a"
    bpe.add(missing_bytes(bpe), [])
    assert bpe.backend.decode(bpe.backend.encode("中a").ids) == "中a"


def test_merges_are_applied_by_rank():
    ranks = {("b", "c"): 0, ("a", "b"): 1, ("a", "bc"): 2}
    assert merge_all(["a", "b", "c", "a", "b"], ranks) == ["abc", "ab"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"), "WordPiece"),
        (models.BPE({"a": 0}, []), "neither byte-level"),
    ],
)
def test_tokenizers_that_cannot_be_continued(model, why):
    with pytest.raises(UserError, match=why):
        Bpe(Tokenizer(model), "tiny")


def test_texts_without_anything_to_join(english):
    with pytest.raises(UserError, match="nothing that more tokens would shorten"):
        learn(Bpe(english, "tiny"), ["a", "1 2 3"], 5, 16)
