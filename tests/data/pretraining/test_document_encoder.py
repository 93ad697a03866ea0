"""A document of any length has the tokens that it has as a whole."""

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from conftest import TEXT, build_tokenizer
from hf_recipes.data.pretraining import document_encoder
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder

# As Qwen's and Llama 3's.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def by_words() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([f"{one}\n\n  {two}\n{one}" for one in TEXT for two in TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def with_marks() -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("山", -3.0), ("\n", -3.0)], unk_id=0)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("build", [build_tokenizer, by_words, with_marks])
def test_parts_of_a_long_document(build, monkeypatch):
    texts = ["\n".join(TEXT * 3), "。\n\n  山a\r\n水 \n" * 40 + "末行", "\n" * 90, "山" * 200, "", "短"]
    encoder = DocumentEncoder(build())
    whole = [ids.tolist() for ids in encoder.encode(texts)]
    seen = []
    monkeypatch.setattr(document_encoder, "LONG", 20)
    rows = encoder._rows
    monkeypatch.setattr(encoder, "_rows", lambda batch: (seen.extend(batch), rows(batch))[1])
    assert [ids.tolist() for ids in encoder.encode(texts)] == whole
    assert (max(map(len, seen[:3])) < 120) is (build is not with_marks)
