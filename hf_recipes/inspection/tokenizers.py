"""How tokenizers cut the same texts, side by side."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_recipes.core.arguments.limits import PositiveInt, check_limits
from hf_recipes.core.arguments.settings import JSON_HELP, setting
from hf_recipes.core.errors import UserError
from hf_recipes.core.language import Language, locale_language
from hf_recipes.core.ledger import KEPT
from hf_recipes.data.pretraining.corpora import find_corpora, open_reader
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import Example, Examples, Number, Report, Section, Table, TokenSequence
from hf_recipes.inspection.token_renderer import TokenRenderer
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_CHARACTERS = 600  # of a text


@dataclass
class TokenizersArguments:
    """Which tokenizers, and the texts that they cut."""

    tokenizer: list[str] | None = setting("Folders or Hub ids of tokenizers; the first is what others differ from.")
    text: list[str] | None = setting("Files, globs or folders of texts, of any form that pretraining reads.")
    max_bytes: PositiveInt = setting("Count the tokens of so many bytes.", 2**20)
    examples: PositiveInt = setting("Texts to show token by token.", 5)
    json: bool = setting(JSON_HELP, False)
    html: str | None = setting("Also write the report as a page, to this file.")
    language: Language | None = setting("Language of the page; by default the locale's.")
    trust_remote_code: bool = setting("Run code that comes with a tokenizer.", False)
    cache_dir: str | None = setting("Where downloads are cached.")

    def __post_init__(self):
        check_limits(self)
        self.language = self.language or locale_language()
        if not self.tokenizer or not self.text:
            raise ValueError("--tokenizer A B and --text FILE go together")
        if self.html and not os.path.isdir(os.path.dirname(self.html) or "."):
            raise ValueError(f"--html {self.html}: there is no folder {os.path.dirname(self.html)}")


def compare_tokenizers(arguments: TokenizersArguments) -> Report:
    options = {"trust_remote_code": arguments.trust_remote_code, "cache_dir": arguments.cache_dir}
    tokenizers = [load_tokenizer(name, needs_template=False, **options)[0] for name in arguments.tokenizer]
    texts = list(_texts(arguments.text, arguments.max_bytes, arguments.cache_dir))
    if not texts:
        raise UserError(f"--text {' '.join(arguments.text)}: no text in it")
    characters = sum(len(text) for _, text in texts)
    known = [set(tokenizer.get_vocab().values()) for tokenizer in tokenizers]
    rows, sequences = [], [[] for _ in range(min(arguments.examples, len(texts)))]
    for name, tokenizer, ids in zip(arguments.tokenizer, tokenizers, known, strict=True):
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in texts]
        new = ids - known[0]
        count = sum(map(len, encoded))
        used = sum(token in new for tokens in encoded for token in tokens)
        share = Number(f"{used / count:.1%}") if new else None
        rows.append([name, len(tokenizer), characters, count, Number(f"{characters / count:.3f}"), share])
        renderer = TokenRenderer(tokenizer)
        for shown, (location, text) in zip(sequences, texts, strict=False):
            part, labels = _marked(tokenizer, text[:SHOWN_CHARACTERS], new)
            shown.append(
                TokenSequence(
                    Phrase("{name}, {count:,} tokens", name=name, count=len(part)),
                    [renderer.render(part, labels, location)],
                )
            )
    header = ["tokenizer", "vocabulary", "characters", "tokens", "characters a token", "tokens that the first lacks"]
    examples = [
        Example(location, KEPT, [Phrase("{count:,} characters", count=len(text))], shown)
        for (location, text), shown in zip(texts, sequences, strict=False)
    ]
    note = Phrase(
        "In colour: tokens that {first} lacks. The first {count} characters of a text.",
        first=arguments.tokenizer[0],
        count=SHOWN_CHARACTERS,
    )
    report = Report(Phrase("Tokenizers side by side"), [("texts", f"{len(texts):,}")])
    report.sections = [
        Section(Phrase("Texts"), [Table("Characters a token", header, rows)]),
        Section(Phrase("Cuts"), [Examples("Texts, token by token", note, examples)]),
    ]
    return report


def _marked(tokenizer: "PreTrainedTokenizerBase", text: str, new: set[int]) -> tuple[list[int], list[int]]:
    """The tokens of `text`, and as labels those that are `new` or share a character with a new one."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    ids = encoded["input_ids"]
    labels = [token if token in new else -100 for token in ids]
    offsets = encoded.get("offset_mapping", ())
    for near in (range(1, len(offsets)), range(len(offsets) - 2, -1, -1)):
        step = -near.step
        for index in near:
            shares = max(offsets[index][0], offsets[index + step][0]) < min(offsets[index][1], offsets[index + step][1])
            if shares and labels[index + step] != -100:
                labels[index] = ids[index]
    return ids, labels


def _texts(specs: Sequence[str], limit: int, cache_dir: str | None) -> Iterator[tuple[str, str]]:
    """Location and text of the first documents, up to `limit` bytes."""
    for corpus in find_corpora(specs, cache_dir):
        for source in corpus.files:
            for document in open_reader(source).read():
                if document.text:
                    limit -= len(document.text.encode())
                    yield document.location, document.text
                if limit <= 0:
                    return
