"""An existing tokenizer with more tokens: words, tokens learned from texts, special tokens. No old id changes."""

import json
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import new_folder, write_json
from hf_recipes.core.folders import reserved
from hf_recipes.evaluation.reports.page import write_page
from hf_recipes.evaluation.reports.report import Report
from hf_recipes.evaluation.reports.terminal import print_report
from hf_recipes.models.families.tokenizers.from_sentencepiece import FILES, UNIGRAM, find_model, read_model
from hf_recipes.models.tokenizers.special_tokens import read_special_tokens
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.vocabulary.arguments import ExtendTokenizerArguments
from hf_recipes.vocabulary.growing import BpeVocabulary, UnigramVocabulary, Vocabulary
from hf_recipes.vocabulary.report import as_report, measure, token_texts
from hf_recipes.vocabulary.sample import Sample, read_sample
from hf_recipes.vocabulary.sentencepiece_model import cut_otherwise
from hf_recipes.vocabulary.words import read_words

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

EXTENSION, PAGE = "extension.json", "vocabulary.html"  # in the tokenizer's folder
COMPARED = 10_000  # lines on which tokenizer.model and tokenizer.json are compared
SHOWN = 5  # refused words of each reason


def extend_tokenizer(arguments: ExtendTokenizerArguments) -> Path:
    with reserved(arguments.output_dir) as target:
        _extend(arguments, target)
    return target


def _extend(arguments: ExtendTokenizerArguments, target: Path) -> None:
    name = arguments.tokenizer_name
    tokenizer, _ = load_tokenizer(
        name, needs_template=False, trust_remote_code=arguments.trust_remote_code, cache_dir=arguments.cache_dir
    )
    if not tokenizer.is_fast:
        raise UserError(f"{name}: its tokenizer is Python code, which is not extended; those with a tokenizer.json are")
    path = find_model(name, cache_dir=arguments.cache_dir)
    model = read_model(path) if path else None
    is_unigram = model is not None and model.trainer_spec.model_type == UNIGRAM
    kind = UnigramVocabulary if is_unigram else BpeVocabulary
    vocabulary = kind(name, tokenizer.backend_tokenizer, model)
    special = read_special_tokens(arguments.special_tokens, "--special_tokens") if arguments.special_tokens else None
    words = read_words(arguments.words) if arguments.words else []
    sample = read_sample(arguments) if arguments.train_file else Sample()
    if words:
        vocabulary.add_words(words)
        _say_words(words, vocabulary)
    if arguments.num_new_tokens:
        vocabulary.learn(sample, arguments.num_new_tokens, arguments.max_token_length, arguments.character_coverage)
    lines = _lines(sample) if model is not None else []
    otherwise = cut_otherwise(model, vocabulary.former, lines) if lines else set()
    vocabulary.finish()
    if not vocabulary.tokens and not special:
        raise UserError("no token is new; nothing was written")
    report = _report(vocabulary, sample, name)
    if lines:
        _compare_files(report, lines, otherwise, cut_otherwise(model, vocabulary.backend, lines))
    print_report(report, Console())
    with new_folder(target) as partial:
        save(tokenizer, vocabulary.backend, partial, vocabulary.model)
        added = _add_special(partial, arguments.special_tokens) if special else []
        record = {
            "base": name,
            "first_new_id": vocabulary.first_id,
            "new_tokens": len(vocabulary.tokens),
            "special_tokens": {token: special.tokens[token] for token in added} if special else {},
        }
        write_json(partial / EXTENSION, record)
        write_page(report, partial / PAGE)
    say(f"{len(vocabulary.tokens):,} new tokens from id {vocabulary.first_id:,} on; tokenizer in {target}")


def save(
    tokenizer: "PreTrainedTokenizerBase", backend: "Tokenizer", folder: Path, model: "ModelProto | None" = None
) -> None:
    """Save `tokenizer` with another `backend`, and the SentencePiece model of the same pieces."""
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    for former in ("vocab.json", "merges.txt", *FILES):
        (folder / former).unlink(missing_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    again = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    if json.loads(again.to_str())["model"] != json.loads(backend.to_str())["model"]:
        raise UserError(f"{tokenizer.name_or_path}: transformers reads its extended tokenizer.json otherwise")


def _add_special(folder: Path, path: str) -> list[str]:
    tokenizer, added = load_tokenizer(str(folder), special_tokens=path)
    tokenizer.save_pretrained(folder)
    return added


def _say_words(words: Sequence[str], vocabulary: Vocabulary) -> None:
    say(f"{len(words) - len(vocabulary.refused):,} of {len(words):,} words are made a token of their own")
    reasons: dict[str, list[str]] = {}
    for word, reason in vocabulary.refused.items():
        reasons.setdefault(reason.partition(":")[0], []).append(word)
    for reason, refused in reasons.items():
        more = f" and {len(refused) - SHOWN:,} more" if len(refused) > SHOWN else ""
        say(f"  not {'、'.join(refused[:SHOWN])}{more}: {reason}")


def _lines(sample: Sample) -> list[str]:
    texts = chain.from_iterable((*sample.held_out.values(), *sample.train.values()))
    return list(islice((line for text in texts for line in text.splitlines() if line.strip()), COMPARED))


def _compare_files(report: Report, lines: Sequence[str], before: set[str], after: set[str]) -> None:
    """Say on how many lines tokenizer.model and tokenizer.json agree; new differences are warned of."""
    alike = f"{len(lines) - len(after):,} of {len(lines):,} lines alike"
    report.facts.append(("files", f"tokenizer.model and tokenizer.json cut {alike}"))
    if new := after - before:
        report.warnings.append(
            f"tokenizer.model and tokenizer.json cut {len(new):,} lines differently that they cut alike before, as "
            f"{min(new)[:60]!r}"
        )


def _report(vocabulary: Vocabulary, sample: Sample, name: str) -> Report:
    measured = measure(vocabulary.backend, sample, vocabulary.former, vocabulary.first_id)
    ids = range(vocabulary.first_id, vocabulary.first_id + len(vocabulary.tokens))
    facts = [
        ("tokenizer", name),
        ("tokens", f"{vocabulary.first_id:,} before, {vocabulary.first_id + len(vocabulary.tokens):,} now"),
    ]
    if sample.held_out:
        used = int((measured.counts > 0).sum())
        facts.append(("used", f"{used:,} of the new tokens occur in the held-out texts"))
    return as_report(measured, "Extended vocabulary", facts, token_texts(vocabulary.backend, ids))
