"""What a vocabulary does to held-out texts: characters a token, by source and by script, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.data.character_scripts import SCRIPTS, scripts_of
from hf_recipes.evaluation.reports.plots import draw_bars
from hf_recipes.evaluation.reports.report import Number, Picture, Report, Section, Table, visible
from hf_recipes.vocabulary.bpe import hex_of
from hf_recipes.vocabulary.sample import Sample

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHOWN = 20  # longest, and most frequent tokens


@dataclass
class Compression:
    """Characters and tokens of some texts; `before` is None where there is no tokenizer to compare with."""

    characters: int = 0
    before: int | None = None
    after: int = 0
    new: int = 0  # of the tokens after

    def add(self, text: str, before: int | None, after: int, new: int) -> None:
        self.characters += len(text)
        self.before = before if self.before is None else self.before + (before or 0)
        self.after += after
        self.new += new

    def rates(self) -> dict[str, float | None]:
        """Characters a token, and the share of new tokens."""
        before = self.characters / self.before if self.before else None
        after = self.characters / max(self.after, 1)
        return {
            "characters": self.characters,
            "before": before,
            "after": after,
            "ratio": after / before if before else None,
            "new_tokens": self.new / max(self.after, 1),
        }


@dataclass
class VocabularyReport:
    """Measured on the held-out texts of a sample.

    Attributes:
        sources, scripts: the compression of the texts of each source, and of each script.
        counts: how often each new token, by id, occurs in the held-out texts.
        first_new: the lowest new id; None where there is no former tokenizer.
        changed: texts without a new token that are cut otherwise than before.
    """

    sources: dict[str, Compression] = field(default_factory=dict)
    scripts: dict[str, Compression] = field(default_factory=dict)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    first_new: int | None = None
    changed: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "sources": {name: compression.rates() for name, compression in self.sources.items()},
            "scripts": {name: compression.rates() for name, compression in self.scripts.items()},
            "new_tokens": len(self.counts) if self.first_new is not None else None,
            "new_tokens_used": int((self.counts > 0).sum()) if self.first_new is not None else None,
        }


def measure(
    new: "Tokenizer", sample: Sample, old: "Tokenizer | None" = None, first_new: int | None = None
) -> VocabularyReport:
    """Tokens from `first_new` on are new ones.

    Raises:
        UserError: a text does not come back from its tokens, though it does from the old ones.
    """
    size = new.get_vocab_size()
    report = VocabularyReport(counts=np.zeros(size - (first_new or 0), np.int64), first_new=first_new)
    for source, texts in sample.held_out.items():
        scripts = scripts_of(texts)
        after = _ids(new, texts)
        before = _ids(old, texts) if old is not None else [None] * len(texts)
        for text, script, ids, former in zip(texts, scripts, after, before, strict=True):
            fresh = ids[ids >= first_new] - first_new if first_new is not None else ids
            report.counts += np.bincount(fresh, minlength=len(report.counts))
            count, new_tokens = (None, 0) if former is None else (len(former), len(fresh))
            for group, name in ((report.sources, source), (report.scripts, SCRIPTS[script])):
                group.setdefault(name, Compression()).add(text, count, len(ids), new_tokens)
            if former is not None and not len(fresh) and not np.array_equal(ids, former):
                report.changed.append(text)
            if former is not None and old.decode(former.tolist()) == text != new.decode(ids.tolist()):
                raise UserError(f"the new tokenizer does not bring back a text that the old one does: {text[:60]!r}")
    return report


def _ids(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[np.ndarray]:
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, np.int64) for encoding in encoded]


def as_report(measured: VocabularyReport, title: str, facts: Sequence[tuple[str, str]], names: Sequence[str]) -> Report:
    """For the terminal and the page; `names` are the texts of the tokens in `measured.counts`."""
    first = "the new tokenizer" if measured.first_new is None else "the extended tokenizer"
    tables = [
        _rates_table(f"Characters a token, by {what}", what, groups, has_before=measured.first_new is not None)
        for what, groups in (("source", measured.sources), ("script", measured.scripts))
    ]
    order = np.argsort(-measured.counts, kind="stable")
    frequent = [[visible(names[i]), int(measured.counts[i])] for i in order[:SHOWN] if measured.counts[i]]
    longest = sorted(range(len(names)), key=lambda i: (-len(names[i]), -measured.counts[i]))[:SHOWN]
    lists = [
        Table("Most frequent", ["token", "count"], frequent),
        Table("Longest", ["token", "count"], [[visible(names[i]), int(measured.counts[i])] for i in longest]),
    ]
    groups = {f"{name}": compression.rates() for name, compression in measured.sources.items()}
    report = Report(title, list(facts))
    report.sections = [Section("New tokens", lists)]
    if groups:
        picture = Picture(f"Characters a token of {first}", bars(groups))
        report.sections.insert(0, Section("Held-out texts", [*tables, picture]))
    if measured.changed:
        report.warnings.append(
            f"{len(measured.changed):,} texts without a new token are cut otherwise than before, such as "
            f"{measured.changed[0][:40]!r}"
        )
    return report


def bars(groups: Mapping[str, Mapping[str, float | None]]) -> bytes:
    series = {
        label: [rates[key] for rates in groups.values()]
        for key, label in (("before", "before"), ("after", "after"))
        if all(rates[key] is not None for rates in groups.values())
    }
    return draw_bars(list(groups), series)


def _rates_table(title: str, what: str, groups: Mapping[str, Compression], has_before: bool) -> Table:
    header = [what, "characters", "before", "after", "ratio", "new tokens"]
    rows = []
    for name, compression in groups.items():
        rates = compression.rates()
        cells = [name, int(rates["characters"])]
        cells += [Number("" if rates[key] is None else f"{rates[key]:.3f}") for key in ("before", "after", "ratio")]
        rows.append([*cells, Number(f"{rates['new_tokens']:.1%}")])
    if not has_before:
        keep = [0, 1, 3]
        header, rows = [header[i] for i in keep], [[row[i] for i in keep] for row in rows]
    return Table(title, header, rows)


def token_texts(tokenizer: "Tokenizer", ids: Sequence[int]) -> list[str]:
    """The text of each token; of one that is a part of a character, its bytes."""
    texts = [tokenizer.decode([index], skip_special_tokens=False) for index in ids]
    return [
        text if text.strip("\ufffd") else hex_of(tokenizer.id_to_token(index))
        for index, text in zip(ids, texts, strict=True)
    ]
