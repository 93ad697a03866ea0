"""Tokenizers for chat templates of any model."""

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# What stands for one token in the models that have it; of these, thoughts and calls are no special tokens.
MARKS = re.compile(r"<\|?[^<>\s{}'\"%]+?\|?>|<｜[^<>]+?｜>|\[/?[A-Z_]+\]")
PLAIN = re.compile(r"</?(atem:\w+|think|tool_call|tool_response|tools|function|parameter|arg_key|arg_value)[^>]*>")


def tokenizer_of(path: Path, texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Of bytes, of what is frequent in `texts`, and of what the template in the file writes as one token."""
    template = path.read_text(encoding="utf-8")
    backend = Tokenizer(models.BPE({sign: n for n, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if texts:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        backend.train_from_iterator(texts, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=template
    )
    marks = sorted(set(MARKS.findall(template)))
    special = [mark for mark in marks if not PLAIN.fullmatch(mark)]
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in special], special_tokens=True)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in marks if PLAIN.fullmatch(mark)])
    return tokenizer
