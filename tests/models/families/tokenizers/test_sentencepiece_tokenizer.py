"""Folders with tokenizer.model alone: ids are SentencePiece's, in training and in what is saved."""

import json
import random

import pytest
from old_checkpoints import appended, sentencepiece_model
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import AutoTokenizer, LlamaConfig, LlamaTokenizer, PreTrainedTokenizerFast

from hf_recipes.core.errors import UserError
from hf_recipes.models.families.tokenizers.from_sentencepiece import as_full_tokenizer
from hf_recipes.models.tokenizers.pretokenizers import mixed_texts
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer

INTERNLM = {"3": "<|im_end|>", "4": "<|im_start|>"}
UNIGRAM = {"model_type": "unigram", "vocab_size": 380, "byte_fallback": False}
KINDS = {
    "plain": lambda: sentencepiece_model(True, ()),
    "internlm": lambda: sentencepiece_model(True, ("<eoh>", "<eoa>")),
    "internlm2": lambda: sentencepiece_model(False, ("[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]")),
    "chinese-llama": appended,
    "chatglm3": lambda: sentencepiece_model(True, (), bos_id=-1, pad_id=3),
    "baichuan": lambda: sentencepiece_model(False, ("<reserved_106>", "<reserved_107>")),
    "unigram": lambda: sentencepiece_model(True, (), **UNIGRAM),
    "normalized": lambda: sentencepiece_model(True, (), **UNIGRAM, normalization_rule_name="nmt_nfkc"),
}
SLOW = ("chinese-llama", "normalized")  # where scores are alike, and where "\r\n" is two spaces and not one


def write(folder, written: bytes, added=None, **settings):
    """A model's folder with tokenizer.model, and a tokenizer_config.json where there are `settings`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(written)
    LlamaConfig(vocab_size=1_000).save_pretrained(folder)
    if added:
        settings["added_tokens_decoder"] = {
            index: {"content": token, "special": not token.startswith("<think")} for index, token in added.items()
        }
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


def texts_of(written: bytes) -> list[str]:
    pieces = [piece.piece.replace("▁", " ") for piece in ModelProto.FromString(written).pieces if piece.type == 1]
    chance = random.Random(1)
    joined = ["".join(chance.choices(pieces, k=8)) for _ in range(300)]
    return [
        *mixed_texts(),
        *joined,
        "中国人民共和国",
        "天天天气我们去公园",
        "  two spaces",
        "",
        " ",
        "\t\n x",
        "㊙𠮷 ▁a",
    ]


def ids_of(tokenizer, texts):
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_sentencepiece(tmp_path, capsys, kind):
    written = KINDS[kind]()
    folder = write(tmp_path / "model", written, INTERNLM if kind == "internlm2" else None)
    tokenizer, _ = load_tokenizer(folder, needs_template=False)
    texts = texts_of(written)
    original = SentencePieceProcessor(model_proto=written)
    expected = original.encode(texts)
    assert ids_of(tokenizer, texts) == expected
    assert all(tokenizer.decode(ids) == original.decode(ids) for ids in expected if original.unk_id() not in ids)
    assert tokenizer.is_fast == (kind not in SLOW)
    out = capsys.readouterr().out
    assert ("a fast tokenizer would give" if kind in SLOW else "a fast tokenizer from tokenizer.model; 0 of ") in out
    assert out.count("tokenizer.model") == 1
    saved = str(tmp_path / "saved")
    tokenizer.save_pretrained(saved)
    for again in (AutoTokenizer.from_pretrained(saved), load_tokenizer(saved, needs_template=False)[0]):
        assert ids_of(again, texts) == expected
        assert again(["问", "</s> a"]) == tokenizer(["问", "</s> a"])
        assert again.special_tokens_map == tokenizer.special_tokens_map


def test_transformers_itself_gives_other_ids(tmp_path):
    """The fault that is mended: merges by id, and no prefix before leading spaces."""
    written = KINDS["plain"]()
    original = SentencePieceProcessor(model_proto=written)
    texts = mixed_texts()
    theirs = ids_of(AutoTokenizer.from_pretrained(write(tmp_path, written)), texts)
    assert sum(ids != expected for ids, expected in zip(theirs, original.encode(texts), strict=True)) > 10


@pytest.mark.parametrize(("pieces", "is_fast"), [(["鑫淼", "鑫鑫"], False), (["鑫鑫", "鑫淼"], True)])
def test_two_pieces_of_one_score_are_enough(tmp_path, pieces, is_fast):
    """SentencePiece reads 鑫鑫淼 as 鑫鑫 and 淼, whatever their order."""
    written = appended(pieces)
    tokenizer, _ = load_tokenizer(write(tmp_path, written), needs_template=False)
    assert tokenizer.is_fast == is_fast
    assert ids_of(tokenizer, ["鑫鑫淼"]) == SentencePieceProcessor(model_proto=written).encode(["鑫鑫淼"])


@pytest.mark.parametrize("kind", ["plain", "chinese-llama"])
@pytest.mark.parametrize(
    ("settings", "begin", "end"),
    [({}, [1], []), ({"add_bos_token": False}, [], []), ({"add_eos_token": True}, [1], [2])],
)
def test_what_is_put_around_a_text(tmp_path, kind, settings, begin, end):
    written = KINDS[kind]()
    folder = write(tmp_path / "model", written, **settings)
    tokenizer, _ = load_tokenizer(folder, needs_template=False)
    tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = load_tokenizer(str(tmp_path / "saved"), needs_template=False)
    expected = [*begin, *SentencePieceProcessor(model_proto=written).encode("你好"), *end]
    assert tokenizer("你好")["input_ids"] == again("你好")["input_ids"] == expected
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")


@pytest.mark.parametrize("kind", ["plain", "chinese-llama"])
def test_added_tokens_and_template_are_kept(tmp_path, kind):
    written = KINDS[kind]()
    size = len(ModelProto.FromString(written).pieces)
    added = {str(size): "<|end|>", str(size + 1): "<think>"}
    template = "{% for message in messages %}{{ message.content }}<|end|>{% endfor %}"
    folder = write(tmp_path, written, added, eos_token="<|end|>", chat_template=template, model_max_length=77)
    tokenizer, new = load_tokenizer(folder)
    encode = SentencePieceProcessor(model_proto=written).encode
    assert not new and (tokenizer.eos_token_id, tokenizer.model_max_length) == (size, 77)
    ids = tokenizer("<think>你好\n<|end|>", add_special_tokens=False)["input_ids"]
    assert ids == [size + 1, *encode("你好\n"), size]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text.startswith("<think>") and text.endswith("你好\n")
    assert tokenizer.chat_template.endswith(template)


@pytest.mark.parametrize("legacy", [None, True, False])
def test_what_follows_a_special_token(tmp_path, legacy):
    written = KINDS["plain"]()
    folder = write(tmp_path, written, **({} if legacy is None else {"legacy": legacy}))
    tokenizer, _ = load_tokenizer(folder, needs_template=False)
    bare = SentencePieceProcessor(model_proto=written)
    prefixed = bare.encode("你好")
    assert ids_of(tokenizer, [" a", "</s>你好"])[0] == bare.encode(" a")
    inner = tokenizer.convert_ids_to_tokens(ids_of(tokenizer, ["</s>你好"])[0][1:])
    assert "".join(inner) == ("你好" if legacy is False else "▁你好") and prefixed


@pytest.mark.parametrize("written", [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_a_broken_file_is_named(tmp_path, written):
    """Of a vocabulary of tiktoken the message says what to install."""
    with pytest.raises(UserError, match=r"tokenizer.model: neither a SentencePiece model nor .*; download it again"):
        load_tokenizer(write(tmp_path, written), needs_template=False)


def test_tokenizer_json_is_taken_where_both_are_there(tmp_path, capsys):
    written, other = KINDS["plain"](), KINDS["baichuan"]()
    folder = write(tmp_path, written)
    backend = as_full_tokenizer(ModelProto.FromString(written))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    load_tokenizer(folder, needs_template=False)
    assert "tokenizer.model" not in capsys.readouterr().out
    (tmp_path / "tokenizer.model").write_bytes(other)
    tokenizer, _ = load_tokenizer(folder, needs_template=False)
    texts = mixed_texts()
    assert ids_of(tokenizer, texts) == SentencePieceProcessor(model_proto=written).encode(texts)
    [line] = capsys.readouterr().out.splitlines()
    assert "texts other ids than tokenizer.model; tokenizer.json is taken" in line
    assert int(line.split(" gives ")[1].split()[0]) > 400


def test_tokenizer_json_is_read_as_it_is_written(tmp_path, capsys):
    """transformers' LlamaTokenizer takes vocabulary and merges from it, and a prefix of its own."""
    written = KINDS["plain"]()
    folder = write(tmp_path, written)
    backend = as_full_tokenizer(ModelProto.FromString(written))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "LlamaTokenizer"}))
    texts, expected = mixed_texts(), SentencePieceProcessor(model_proto=written).encode(mixed_texts())
    assert type(AutoTokenizer.from_pretrained(folder)) is LlamaTokenizer
    assert ids_of(AutoTokenizer.from_pretrained(folder), texts) != expected
    tokenizer, _ = load_tokenizer(folder, needs_template=False)
    assert ids_of(tokenizer, texts) == expected
    assert "other ids than its tokenizer.json, which is taken as it is written" in capsys.readouterr().out
    tokenizer.save_pretrained(tmp_path / "saved")
    assert ids_of(AutoTokenizer.from_pretrained(tmp_path / "saved"), texts) == expected
