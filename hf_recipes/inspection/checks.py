"""What can be said of rows from their texts alone: rows that look wrong, rows that recur, what is answered most."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from unicodedata import is_normalized, normalize

import numpy as np
import xxhash

from hf_recipes.corpus.cleaning import INLINE_CODE
from hf_recipes.evaluation.methods.generation import among
from hf_recipes.inspection.character_scripts import SCRIPTS, scripts_of
from hf_recipes.inspection.report import Table, clip, counted, share

MAX_LOCATIONS = 10  # rows of each kind that are shown
MOST = 15  # answers that are shown
MAIN = 0.8  # of the answers in one script, from which on the others look wrong
DOCUMENT = "document"
BEFORE, AFTER = 30, 90  # characters shown around what looks wrong

# U+FFFD; a text in GBK that was read as another; UTF-8 read as GBK, in which 。，“ become 銆, 锛, 鈥; UTF-8 read as
# Latin-1 or cp1252, in which a Chinese character becomes a letter from ã to ï and two signs of the bytes 80 to BF.
SIGN = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹Œ‘’“”•–—˜™š›œžŸŽ]"
MOJIBAKE = re.compile(
    f"\ufffd|锟斤拷|烫烫烫|屯屯屯|[锛銆鈥]|(?:[\u00e3-\u00ef]{SIGN}{{2}}){{2}}|Ã[\u0080-\u00bf]|Â[\u00a0-\u00bf]"
)
HTML = re.compile(
    r"</?(?:a|b|body|br|center|dd|div|dl|dt|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|label|li|link|meta|nav|ol|"
    r"option|p|pre|script|section|select|span|strong|style|sub|sup|table|tbody|td|th|thead|tr|u|ul|video)"
    r"(?:\s[^<>=]*=[^<>]{0,500})?\s*/?>|&(?:nbsp|lt|gt|amp|quot|ldquo|rdquo|mdash|hellip|middot|#\d{2,5}|#x[0-9a-fA-F]{2,5});",
    re.IGNORECASE,
)
SPEAKS_OF_HTML = re.compile("html|xml|网页|标签", re.IGNORECASE)
# Questions to which an answer in another language may be right.
SPEAKS_OF_LANGUAGE = re.compile(
    "[英日韩法德俄外]语|[英日韩法德俄]文|翻译|译[成为]|代码|编程|程序|脚本|函数|命令|translat|english|chinese|code|python|java|sql|c\\+\\+",
    re.IGNORECASE,
)
SYMBOLS = re.compile(r"[\W_]+")


@dataclass
class Texts:
    """Consecutive rows: where they are, all that is before the answer, the last question of that, and the answers.

    `answers` has a list for each side of a row (``answer``; ``chosen`` and ``rejected``; ``document``), `choices` what
    an answer may be chosen from.
    """

    locations: list[str]
    contexts: list[str]
    questions: list[str]
    answers: dict[str, list[str]]
    choices: list[list[str] | None]

    def whole(self, row: int) -> str:
        return "\n".join([self.contexts[row], *(side[row] for side in self.answers.values())]).strip()


@dataclass
class Suspicion:
    """Rows that look wrong in one way: how many, and the first `PLACES` of them with what was found there."""

    count: int = 0
    rows: list[tuple[str, str]] = field(default_factory=list)


class Checks:
    """Looks at texts as they come.

    Args:
        special_tokens: which become tokens of their own where they stand in a text.
        mask: of what is shown.
    """

    def __init__(self, special_tokens: Iterable[str] = (), mask: Callable[[str], str] = str):
        self.mask, self.rows = mask, 0
        self.suspicions: dict[str, Suspicion] = {}
        self.answers: dict[str, Counter] = {}
        self._languages: dict[str, np.ndarray] = {}  # by side
        self._foreign: dict[tuple[str, int], Suspicion] = {}  # by side and script
        self._keys: tuple[list[int], ...] = [], [], []
        tokens = sorted(filter(str.strip, special_tokens), key=len, reverse=True)
        self._begins = {token[0] for token in tokens}
        self._special = re.compile("|".join(map(re.escape, tokens)))

    def add(self, texts: Texts) -> None:
        self.rows += len(texts.locations)
        for row in range(len(texts.locations)):
            whole = texts.whole(row)
            for keys, text in zip(self._keys, (whole, letters(whole), texts.contexts[row]), strict=True):
                keys.append(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")))
            self._look(texts, row, whole)
        for side, answers in texts.answers.items():
            if side != DOCUMENT:
                self.answers.setdefault(side, Counter()).update(answers)
            scripts = scripts_of([INLINE_CODE.sub("", text) if "`" in text else text for text in answers])
            counts = self._languages.setdefault(side, np.zeros(len(SCRIPTS), np.int64))
            counts += np.bincount(scripts, minlength=len(SCRIPTS))
            for row in np.flatnonzero(scripts).tolist():
                if not SPEAKS_OF_LANGUAGE.search(texts.questions[row]):
                    found = self._foreign.setdefault((side, int(scripts[row])), Suspicion())
                    self._count(found, texts.locations[row], answers[row])

    def _look(self, texts: Texts, row: int, whole: str) -> None:
        location, question = texts.locations[row], texts.questions[row].strip()
        for side, answers in texts.answers.items():
            answer = answers[row].strip()
            if question and answer == question:
                self._suspect(f"the {side} is the question", location, answer)
            if texts.choices[row] and answer and not among(answer, texts.choices[row]):
                said = f"{answer} (choices: {', '.join(map(str, texts.choices[row]))})"
                self._suspect(f"the {side} is none of the choices", location, said)
        if found := MOJIBAKE.search(whole):
            self._suspect("mojibake", location, whole, found.start())
        if ("<" in whole or "&" in whole) and (found := HTML.search(whole)):
            prose = INLINE_CODE.sub("", whole) if "`" in whole else whole
            if not SPEAKS_OF_HTML.search(question) and (found := HTML.search(prose)):
                self._suspect("leftover HTML", location, prose, found.start())
        if any(begin in whole for begin in self._begins) and (found := self._special.search(whole)):
            self._suspect("a special token in the text", location, whole, found.start())

    def _suspect(self, what: str, location: str, text: str, at: int = 0) -> None:
        self._count(self.suspicions.setdefault(what, Suspicion()), location, text, at)

    def _count(self, suspicion: Suspicion, location: str, text: str, at: int = 0) -> None:
        suspicion.count += 1
        if len(suspicion.rows) < MAX_LOCATIONS:
            before = self.mask(text[:at])
            around = ("…" if len(before) > BEFORE else "") + before[-BEFORE:] + self.mask(text[at : at + 4 * AFTER])
            suspicion.rows.append((location, clip(around, BEFORE + AFTER)))

    @property
    def keys(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each row, hashes of all of it, of its letters and digits, and of what is before the answer: (N,) each."""
        exact, near, context = (np.array(keys, np.uint64) for keys in self._keys)
        return exact, near, context

    def language_table(self) -> Table:
        """How many answers are in which script; where most are in one, the others are `suspicions` from now on."""
        rows = []
        for side, counts in self._languages.items():
            judged, main = int(counts[1:].sum()), int(counts[1:].argmax()) + 1
            if judged and counts[main] >= MAIN * judged:
                for (owner, script), found in self._foreign.items():
                    if owner == side and script != main:
                        known = self.suspicions.setdefault(f"the {side} is not in {SCRIPTS[main]}", Suspicion())
                        known.count += found.count
                        known.rows = (known.rows + found.rows)[:MAX_LOCATIONS]
            rows += [
                [side, SCRIPTS[script], int(counts[script]), share(int(counts[script]), int(counts.sum()))]
                for script in np.argsort(-counts, kind="stable").tolist()
                if counts[script]
            ]
        return Table("Languages, by their script", ["of", "script", "rows", "share"], rows)

    def suspicion_tables(self) -> list[Table]:
        counts = {what: found.count for what, found in self.suspicions.items()}
        tables = [counted("Rows that look wrong", "what", counts, self.rows)]
        rows = [[what, *row] for what, found in self.suspicions.items() for row in found.rows]
        if rows:
            note = f"The first {MAX_LOCATIONS} of each."
            tables.append(Table("Where they are", ["what", "where", "text"], rows, note))
        return tables

    def answer_tables(self) -> list[Table]:
        tables = []
        for side, counter in self.answers.items():
            rows = [
                [clip(self.mask(text)) or "(empty)", count, share(count, self.rows)]
                for text, count in counter.most_common(MOST)
                if count > 1
            ]
            note = f"{len(counter):,} different ones among {self.rows:,}."
            tables.append(Table(f"Most frequent: {side}", ["text", "rows", "share"], rows, note))
        return tables


def letters(text: str) -> str:
    """`text` without case, width, spaces and symbols; where it has nothing else, as it is."""
    found = SYMBOLS.sub("", text)
    found = found if is_normalized("NFKC", found) else normalize("NFKC", found)
    return found.lower() or text


Fetch = Callable[[Sequence[int]], list[tuple[str, str]]]


def duplicate_tables(keys: tuple[np.ndarray, np.ndarray, np.ndarray], fetch: Fetch, has_answers: bool) -> list[Table]:
    """How many rows recur, and those that recur most.

    Args:
        keys: of `Checks`.
        fetch: place and text of rows, by their numbers in ascending order.
        has_answers: what is before the answer is asked again where the answer is another.
    """
    exact, near, context = keys
    size = len(exact)
    counts = {"exact copies of an earlier row": size - len(np.unique(exact))}
    alike = size - len(np.unique(near))
    counts["the same but for case, width, spaces and punctuation"] = alike - counts["exact copies of an earlier row"]
    if has_answers:
        asked, times = np.unique(np.unique(np.stack([context, exact]), axis=1)[0], return_counts=True)
        counts["the same prompt with another answer"] = int(np.isin(context, asked[times > 1]).sum())
    tables = [counted("Duplicates", "rows that are", counts, size)]
    values, times = np.unique(near, return_counts=True)
    groups = [
        np.flatnonzero(near == values[g]) for g in np.argsort(-times, kind="stable")[:MAX_LOCATIONS] if times[g] > 1
    ]
    wanted = sorted({int(row) for group in groups for row in group[:3]})
    found = dict(zip(wanted, fetch(wanted), strict=True)) if wanted else {}
    rows = [
        [
            len(group),
            ", ".join(found[int(row)][0] for row in group[:3]) + "…" * (len(group) > 3),
            found[int(group[0])][1],
        ]
        for group in groups
    ]
    if rows:
        tables.append(Table("What recurs most", ["rows", "where", "text of the first"], rows))
    return tables


def overlap_table(
    train: tuple[np.ndarray, ...], held_out: tuple[np.ndarray, ...], locations: Sequence[str], has_answers: bool
) -> Table:
    """How many rows to evaluate on are among those to train on, and the first of them."""
    names = ["the row, exactly", "the row, but for case, width, spaces and punctuation"]
    names += ["the prompt"] if has_answers else []
    rows = []
    for name, own, other in zip(names, held_out, train, strict=False):
        found = np.flatnonzero(np.isin(own, other))
        first = ", ".join(locations[row] for row in found[:3]) + "…" * (len(found) > 3)
        rows.append([name, len(found), share(len(found), len(own)), first])
    return Table("In the training rows too", ["what", "rows", "share", "first"], rows)
