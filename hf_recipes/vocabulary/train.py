"""A new tokenizer: byte-level BPE by `tokenizers`, or SentencePiece's BPE or Unigram."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import new_folder
from hf_recipes.core.folders import reserved
from hf_recipes.evaluation.reports.page import write_page
from hf_recipes.evaluation.reports.terminal import print_report
from hf_recipes.models.families.tokenizers.from_sentencepiece import BPE, UNIGRAM, as_tokenizer
from hf_recipes.models.tokenizers.pretokenizers import pre_tokenizer
from hf_recipes.models.tokenizers.special_tokens import PAD, SpecialTokens, read_special_tokens
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.vocabulary.arguments import TrainTokenizerArguments
from hf_recipes.vocabulary.report import as_report, measure, token_texts
from hf_recipes.vocabulary.sample import read_sample

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import Tokenizer

END = "<|endoftext|>"
PAGE = "vocabulary.html"
# llama.cpp's pre-tokenizers of these names, so that a model with the tokenizer can be exported to GGUF.
SPLITS_DIGITS, JOINS_DIGITS = "qwen2", "gpt-2"
LEAST_COVERAGE = 0.98  # that SentencePiece takes
MAX_SENTENCE = 16_384  # bytes: SentencePiece leaves longer ones out, so that longer lines are cut


def train_tokenizer(arguments: TrainTokenizerArguments) -> Path:
    with reserved(arguments.output_dir) as target:
        _train(arguments, target)
    return target


def _train(arguments: TrainTokenizerArguments, target: Path) -> None:
    special = read_special_tokens(arguments.special_tokens, "--special_tokens") if arguments.special_tokens else None
    sample = read_sample(arguments)
    with new_folder(target) as partial:
        if arguments.model_type == "byte_level_bpe":
            _save_byte_level(sample.texts(), arguments, special, partial)
        else:
            _save_sentencepiece(sample.texts(), arguments, special, partial)
        tokenizer, _ = load_tokenizer(str(partial), needs_template=False, special_tokens=arguments.special_tokens)
        tokenizer.save_pretrained(partial)
        backend = tokenizer.backend_tokenizer
        measured = measure(backend, sample)
        facts = [("kind", arguments.model_type), ("tokens", f"{len(tokenizer):,}")]
        report = as_report(measured, "New vocabulary", facts, token_texts(backend, range(backend.get_vocab_size())))
        print_report(report, Console())
        write_page(report, partial / PAGE)
        say(f"tokenizer of {len(tokenizer):,} tokens in {target}")


def _save_byte_level(
    texts: Iterable[str], arguments: TrainTokenizerArguments, special: SpecialTokens | None, folder: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    names = [END, PAD, *(special.tokens if special else ())]
    if arguments.vocab_size < 256 + len(names):
        raise UserError(f"--vocab_size {arguments.vocab_size}: 256 bytes and {len(names)} special tokens need more")
    backend = train_byte_level(texts, arguments.vocab_size, names, split_digits=arguments.split_digits)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=PAD).save_pretrained(folder)


def train_byte_level(
    texts: Iterable[str], vocab_size: int, special_tokens: list[str], *, split_digits: bool = True
) -> "Tokenizer":
    """Byte-level BPE; special tokens have the first ids, then come the bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(SPLITS_DIGITS if split_digits else JOINS_DIGITS)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (size := tokenizer.get_vocab_size()) < vocab_size:
        say(f"the texts have no more than {size:,} tokens, not {vocab_size:,}; give more text for more")
    return tokenizer


def _save_sentencepiece(
    texts: Iterable[str], arguments: TrainTokenizerArguments, special: SpecialTokens | None, folder: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    model = train_sentencepiece(
        texts,
        BPE if arguments.model_type == "bpe" else UNIGRAM,
        arguments.vocab_size,
        arguments.character_coverage,
        split_digits=arguments.split_digits,
        byte_fallback=arguments.byte_fallback,
        special_tokens=list(special.tokens) if special else (),
        seed=arguments.seed,
    )
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=as_tokenizer(model), **named).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def train_sentencepiece(
    texts: Iterable[str],
    kind: int,
    vocab_size: int,
    coverage: float,
    *,
    split_digits: bool = True,
    byte_fallback: bool = True,
    special_tokens: Iterable[str] = (),
    seed: int = 0,
    exact: bool = True,
    flag: str = "--vocab_size",
) -> "ModelProto":
    """SentencePiece's BPE or Unigram, whose texts come back as they were, white space included.

    Args:
        exact: refuse a `vocab_size` that the texts do not fill.
        flag: named in errors.
    """
    try:
        import sentencepiece
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except ImportError:
        raise UserError("sentencepiece or protobuf is not installed: pip install -e .") from None
    sentencepiece.set_random_generator_seed(seed)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=written,
            vocab_size=vocab_size,
            model_type={BPE: "bpe", UNIGRAM: "unigram"}[kind],
            character_coverage=coverage,
            split_digits=split_digits,
            byte_fallback=byte_fallback,
            user_defined_symbols=list(special_tokens),
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            # Unigram cuts a run of spaces in several ways of the same score, of which other libraries take another.
            allow_whitespace_only_pieces=kind == BPE,
            hard_vocab_limit=exact,
            max_sentence_length=MAX_SENTENCE,
            minloglevel=1,
            num_threads=1,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).rpartition("]")[2].split())
        raise UserError(f"{flag}: SentencePiece: {reason}") from None
    model = ModelProto()
    model.ParseFromString(written.getvalue())
    return model


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines of at most `MAX_SENTENCE` bytes."""
    longest = MAX_SENTENCE // 4
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), longest):
                yield line[start : start + longest]
