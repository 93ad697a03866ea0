"""Checks of rows by their texts alone: rows that look wrong, and the most frequent answers."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from unicodedata import is_normalized, normalize

import numpy as np
import xxhash

from hf_recipes.corpus.cleaning import INLINE_CODE
from hf_recipes.data.character_scripts import SCRIPTS, scripts_of
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import Table, clip, count_table, share
from hf_recipes.inspection.duplicates import RowHashes
from hf_recipes.inspection.mojibake import find_mojibake
from hf_recipes.metrics.text import is_choice

MAX_LOCATIONS = 10  # of each finding
MAX_ANSWERS = 15  # in the table of the most frequent ones
MAIN = 0.8  # share of the answers in one script from which on answers in the others look wrong
DOCUMENT = "document"
BEFORE, AFTER = 30, 90  # characters of a quotation, before and after what looks wrong

HTML = re.compile(
    r"</?(?:a|b|body|br|center|dd|div|dl|dt|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|label|li|link|meta|nav|ol|"
    r"option|p|pre|script|section|select|span|strong|style|sub|sup|table|tbody|td|th|thead|tr|u|ul|video)"
    r"(?:\s[^<>=]*=[^<>]{0,500})?\s*/?>|&(?:nbsp|lt|gt|amp|quot|ldquo|rdquo|mdash|hellip|middot|#\d{2,5}|#x[0-9a-fA-F]{2,5});",
    re.IGNORECASE,
)
MENTIONS_HTML = re.compile("html|xml|网页|标签", re.IGNORECASE)
# Questions whose answer may rightly be in another language.
MENTIONS_LANGUAGE = re.compile(
    "[英日韩法德俄外]语|[英日韩法德俄]文|翻译|译[成为]|代码|编程|程序|脚本|函数|命令|translat|english|chinese|code|python|java|sql|c\\+\\+",
    re.IGNORECASE,
)
SYMBOLS = re.compile(r"[\W_]+")


@dataclass
class RowTexts:
    """Consecutive rows: their locations, all text before the answer, the last question of it, and the answers.

    `answers` has a list for each side of a row (``answer``; ``chosen`` and ``rejected``; ``document``); `choices` are
    those that a row offers its answer, if any; `thoughts` are those before the answer.
    """

    locations: list[str]
    prompts: list[str]
    questions: list[str]
    answers: dict[str, list[str]]
    choices: list[list[str] | None]
    thoughts: Sequence[str] = ()

    def full_text(self, row: int) -> str:
        parts = [self.prompts[row], *self.thoughts[row : row + 1], *(side[row] for side in self.answers.values())]
        return "\n".join(filter(None, parts)).strip()


@dataclass
class Finding:
    """Rows that look wrong in one way: how many, and location and quotation of the first `MAX_LOCATIONS`."""

    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


class Checks:
    """Checks texts batch by batch.

    Args:
        special_tokens: those that a tokenizer makes of a text that contains their names.
        mask: of quotations.
    """

    def __init__(self, special_tokens: Iterable[str] = (), mask: Callable[[str], str] = str):
        self.mask, self.rows = mask, 0
        self.findings: dict[str, Finding] = {}
        self.answers: dict[str, Counter] = {}
        self._scripts: dict[str, np.ndarray] = {}  # rows in each script, by side
        self._in_script: dict[tuple[str, int], Finding] = {}  # by side and script
        self._hashes: tuple[list[int], ...] = [], [], []
        tokens = sorted(filter(str.strip, special_tokens), key=len, reverse=True)
        self._first_characters = {token[0] for token in tokens}
        self._special = re.compile("|".join(map(re.escape, tokens)))

    def add(self, texts: RowTexts) -> None:
        self.rows += len(texts.locations)
        for row in range(len(texts.locations)):
            full = texts.full_text(row)
            for hashes, text in zip(self._hashes, (full, normalized(full), texts.prompts[row]), strict=True):
                hashes.append(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")))
            self._check(texts, row, full)
        for side, answers in texts.answers.items():
            if side != DOCUMENT:
                self.answers.setdefault(side, Counter()).update(answers)
            scripts = scripts_of([INLINE_CODE.sub("", text) if "`" in text else text for text in answers])
            counts = self._scripts.setdefault(side, np.zeros(len(SCRIPTS), np.int64))
            counts += np.bincount(scripts, minlength=len(SCRIPTS))
            for row in np.flatnonzero(scripts).tolist():
                if not MENTIONS_LANGUAGE.search(texts.questions[row]):
                    finding = self._in_script.setdefault((side, int(scripts[row])), Finding())
                    self._count(finding, texts.locations[row], answers[row])

    def _check(self, texts: RowTexts, row: int, full: str) -> None:
        location, question, choices = texts.locations[row], texts.questions[row].strip(), texts.choices[row]
        for side, answers in texts.answers.items():
            answer = answers[row].strip()
            if question and answer == question:
                self._find(Phrase("the {side} is the question", side=Phrase(side)), location, answer)
            if choices and answer and not is_choice(answer, choices):
                quotation = f"{answer} (choices: {', '.join(map(str, choices))})"
                self._find(Phrase("the {side} is none of the choices", side=Phrase(side)), location, quotation)
        if mojibake := find_mojibake(full):
            self._find(Phrase(mojibake[0]), location, full, mojibake[1])
        if ("<" in full or "&" in full) and HTML.search(full) and not MENTIONS_HTML.search(question):
            prose = INLINE_CODE.sub("", full) if "`" in full else full
            if match := HTML.search(prose):
                self._find(Phrase("leftover HTML"), location, prose, match.start())
        if any(first in full for first in self._first_characters) and (match := self._special.search(full)):
            self._find(Phrase("a special token in the text"), location, full, match.start())

    def _find(self, what: str, location: str, text: str, at: int = 0) -> None:
        self._count(self.findings.setdefault(what, Finding()), location, text, at)

    def _count(self, finding: Finding, location: str, text: str, at: int = 0) -> None:
        finding.count += 1
        if len(finding.examples) < MAX_LOCATIONS:
            before = self.mask(text[:at])
            around = ("…" if len(before) > BEFORE else "") + before[-BEFORE:] + self.mask(text[at : at + 4 * AFTER])
            finding.examples.append((location, clip(around, BEFORE + AFTER)))

    @property
    def hashes(self) -> RowHashes:
        return RowHashes(*(np.array(hashes, np.uint64) for hashes in self._hashes))

    def script_table(self) -> Table:
        """How many answers are in which script; where most are in one, the others are `findings` from now on."""
        rows = []
        for side, counts in self._scripts.items():
            judged, main = int(counts[1:].sum()), int(counts[1:].argmax()) + 1
            if judged and counts[main] >= MAIN * judged:
                for (of, script), finding in self._in_script.items():
                    if of == side and script != main:
                        what = Phrase("the {side} is not in {script}", side=Phrase(side), script=Phrase(SCRIPTS[main]))
                        merged = self.findings.setdefault(what, Finding())
                        merged.count += finding.count
                        merged.examples = (merged.examples + finding.examples)[:MAX_LOCATIONS]
            rows += [
                [
                    Phrase(side),
                    Phrase(SCRIPTS[script]),
                    int(counts[script]),
                    share(int(counts[script]), int(counts.sum())),
                ]
                for script in np.argsort(-counts, kind="stable").tolist()
                if counts[script]
            ]
        return Table("Languages, by their script", ["of", "script", "rows", "share"], rows)

    def finding_tables(self) -> list[Table]:
        counts = {what: finding.count for what, finding in self.findings.items()}
        tables = [count_table("Rows that look wrong", "what", counts, self.rows, faults=True)]
        rows = [[what, *example] for what, finding in self.findings.items() for example in finding.examples]
        if rows:
            note = Phrase("The first {count} of each.", count=MAX_LOCATIONS)
            tables.append(Table("Where they are", ["what", "where", "text"], rows, note))
        return tables

    def answer_tables(self) -> list[Table]:
        tables = []
        for side, counter in self.answers.items():
            rows = [
                [clip(self.mask(text)) or Phrase("(empty)"), count, share(count, self.rows)]
                for text, count in counter.most_common(MAX_ANSWERS)
                if count > 1
            ]
            note = Phrase("{different:,} different ones among {rows:,}.", different=len(counter), rows=self.rows)
            tables.append(
                Table(Phrase("Most frequent: {side}", side=Phrase(side)), ["text", "rows", "share"], rows, note)
            )
        return tables


def normalized(text: str) -> str:
    """`text` without case, width, spaces and symbols; a text of nothing else is left as it is."""
    letters = SYMBOLS.sub("", text)
    letters = letters if is_normalized("NFKC", letters) else normalize("NFKC", letters)
    return letters.lower() or text
