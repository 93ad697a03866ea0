"""Pieces appended to SentencePiece models: tokenizer.model and tokenizer.json agree, old pieces keep ids and cuts."""

import json
import re

import pytest
import torch
from old_checkpoints import sentencepiece_model
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import ROOT
from hf_recipes.core.errors import UserError
from hf_recipes.models.families.tokenizers.from_sentencepiece import BPE, UNIGRAM, all_merges, as_tokenizer, read_model
from hf_recipes.models.tokenizers.pretokenizers import mixed_texts
from hf_recipes.vocabulary.arguments import ExtendTokenizerArguments
from hf_recipes.vocabulary.extend import extend_tokenizer
from hf_recipes.vocabulary.sentencepiece_model import PieceGuard, best_score, unigram_scores
from hf_recipes.vocabulary.train import train_sentencepiece

ENGLISH = ["the cat and the hat", "then there are the others", "a train, a plane; and 2024!"] * 30
TEXTS = [*ENGLISH[:3], *mixed_texts(), "  spaces at the beginning", "北京大学（Peking University）成立于1898年。🙂"]


def chinese() -> list[str]:
    rows = (json.loads(line) for line in (ROOT / "datasets/pretrain/news.jsonl").open(encoding="utf-8"))
    return [value for row in rows for value in row.values() if isinstance(value, str)]


def save_old(kind: int, folder) -> str:
    """A tokenizer of English, whose tokenizer.json has a special token behind its pieces."""
    model = train_sentencepiece([*ENGLISH, *mixed_texts()[:50]], kind, 420, 0.98)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=as_tokenizer(model), eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return str(folder)


@pytest.fixture(scope="module", params=[BPE, UNIGRAM], ids=["bpe", "unigram"])
def extended(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "zh.txt").write_text("\n".join(chinese()), encoding="utf-8")
    (folder / "words.txt").write_text("糖尿病 9\n高血压\n", encoding="utf-8")
    old = save_old(request.param, folder / "old")
    settings = {"num_new_tokens": 900, "words": str(folder / "words.txt"), "character_coverage": 0.9}
    extend_tokenizer(
        ExtendTokenizerArguments(
            tokenizer_name=old, train_file=[str(folder / "zh.txt")], output_dir=str(folder / "new"), **settings
        )
    )
    return folder / "old", folder / "new"


def test_model_and_json_agree(extended):
    for folder in extended:
        model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for text in [*TEXTS, *chinese()]:
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == model.encode(text)
            assert model.decode(model.encode(text)) == text


def test_old_pieces_keep_ids_and_cuts(extended):
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in extended)
    models = [SentencePieceProcessor(model_file=str(folder / "tokenizer.model")) for folder in extended]
    assert all(new.get_vocab()[token] == index for token, index in old.get_vocab().items())
    assert new.pad_token_id == old.pad_token_id == models[0].get_piece_size()
    assert models[1].id_to_piece(old.pad_token_id) == "<|pad|>" and models[1].is_control(old.pad_token_id)
    first = len(old)
    for text in [*TEXTS, *chinese()]:
        ids = models[1].encode(text)
        if max(ids) < first:
            assert ids == models[0].encode(text)
    assert all(models[1].encode(text) == models[0].encode(text) for text in ENGLISH)


def test_new_pieces_are_used(extended):
    old, new = (SentencePieceProcessor(model_file=str(folder / "tokenizer.model")) for folder in extended)
    text = "".join(chinese())
    assert len(new.encode(text)) < 0.45 * len(old.encode(text))
    assert new.encode("糖尿病", out_type=str) == ["糖尿病"] and "高血压" in new.encode("他有高血压病", out_type=str)


def test_a_model_of_it_is_exported_or_refused(extended, script, request):
    """llama.cpp joins pieces as BPE does, whatever the model: a Unigram's texts would be cut otherwise."""
    old, new = extended
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(AutoTokenizer.from_pretrained(old)), eos_token_id=2, **sizes))
    for weight in model.parameters():
        weight.data *= 3
    model.save_pretrained(old)
    flags = ["--model_name_or_path", old, "--tokenizer_name", new, "--output_dir", new.parent / "model"]
    assert script("extend_model.py", *flags)[0] == 0
    flags = ["--model_name_or_path", new.parent / "model", "--output_dir", new.parent / "gguf"]
    code, out, err = script("export.py", *flags)
    if request.node.callspec.id == "unigram":
        assert code == 1 and re.search(r"llama.cpp tokenizes \d+ of 500 texts differently", err)
    else:
        assert code == 0, err
        assert "texts tokenized alike         500 of 500" in out and "greedy tokens alike           40 of 40" in out


def test_the_report_says_that_both_files_agree(tmp_path, capsys):
    (tmp_path / "zh.txt").write_text("\n".join(chinese()), encoding="utf-8")
    arguments = {"train_file": [str(tmp_path / "zh.txt")], "num_new_tokens": 900, "output_dir": str(tmp_path / "new")}
    extend_tokenizer(ExtendTokenizerArguments(tokenizer_name=save_old(BPE, tmp_path / "old"), **arguments))
    lines = sum(1 for text in chinese() for line in text.splitlines() if line.strip())
    assert f"tokenizer.model and tokenizer.json cut {lines} of {lines} lines alike" in capsys.readouterr().out


def test_a_folder_with_tokenizer_model_alone_is_extended(tmp_path):
    (tmp_path / "zh.txt").write_text("\n".join(chinese()), encoding="utf-8")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "tokenizer.model").write_bytes(sentencepiece_model(True, ()))
    arguments = {"train_file": [str(tmp_path / "zh.txt")], "num_new_tokens": 900, "output_dir": str(tmp_path / "new")}
    extend_tokenizer(ExtendTokenizerArguments(tokenizer_name=str(tmp_path / "old"), **arguments))
    model = SentencePieceProcessor(model_file=str(tmp_path / "new" / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    texts = [*TEXTS, *chinese()]
    assert tokenizer(texts, add_special_tokens=False)["input_ids"] == model.encode(texts) and len(model) > 900


def test_scores_of_bpe_fall_strictly_below_the_old_ones(extended):
    old, new = (read_model(folder / "tokenizer.model") for folder in extended)
    if new.trainer_spec.model_type == BPE:
        added = [piece.score for piece in new.pieces[len(old.pieces) + 1 :]]
        assert min(piece.score for piece in old.pieces) > added[0] and added == sorted(set(added), reverse=True)


def test_a_piece_that_would_complete_an_old_one_is_not_admitted():
    admits = PieceGuard(["a", "b", "c", "d", "abc", "x"])
    assert not admits("bc")  # a + bc = abc, which the old pieces do not reach
    assert not admits("ab")
    assert admits("cd") and admits("xa")


def test_pairs_of_new_pieces_that_would_complete_an_old_one():
    admits = PieceGuard(["甲", "乙", "丙", "丁", "甲乙丙丁"])
    assert admits("甲乙") and not admits("丙丁")


def test_merges_are_all_cuts_into_pieces():
    assert all_merges(["bc", "abc"], ["a", "b", "c", "ab"]) == [("b", "c"), ("a", "bc"), ("ab", "c")]


def test_a_new_piece_scores_above_the_best_old_cut():
    old = {"a": -1.0, "b": -2.0, "ab": -2.5, "c": -4.0}
    assert best_score("abc", old, -14) == -6.5
    assert best_score("az", old, -14) == -15
    assert unigram_scores(["abc", "bc"], old) == pytest.approx({"abc": -6.5 + 1.0, "bc": -6.0 + 0.45})
    assert unigram_scores(["z"], old) == pytest.approx({"z": -14 + 0.2})  # ten below the lowest


def test_a_model_of_words_is_refused(tmp_path):
    model = train_sentencepiece(ENGLISH, BPE, 300, 1.0)
    model.trainer_spec.model_type = 3
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="words or characters"):
        read_model(tmp_path / "tokenizer.model")


def test_a_file_of_tiktoken_is_no_sentencepiece_model(tmp_path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n", encoding="utf-8")
    assert read_model(tmp_path / "tokenizer.model") is None


def test_too_few_tokens_for_the_characters(tmp_path):
    (tmp_path / "zh.txt").write_text("\n".join(chinese()), encoding="utf-8")
    old = save_old(BPE, tmp_path / "old")
    arguments = ExtendTokenizerArguments(
        tokenizer_name=old, train_file=[str(tmp_path / "zh.txt")], num_new_tokens=20, output_dir=str(tmp_path / "new")
    )
    with pytest.raises(
        UserError, match=r"--num_new_tokens 20: the texts have [\d,]+ characters .* --character_coverage"
    ):
        extend_tokenizer(arguments)
    assert not (tmp_path / "new").exists()
