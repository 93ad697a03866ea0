"""The data sets of a stage, read and tokenized by what trains on them, as an inspection looks at them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import KEPT, Ledger, is_dropped, shown
from hf_recipes.data.chat.encoder import tokenize_dataset
from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.data.examples import row_statuses
from hf_recipes.data.schemas.conversation import Message
from hf_recipes.evaluation.methods.generation import choices_of
from hf_recipes.inspection.checks import Texts
from hf_recipes.inspection.lengths import Budget, label_spans, over_any
from hf_recipes.inspection.report import Example, Strip, Table, share
from hf_recipes.inspection.token_view import Pen

BATCH = 1000


class Rows(ABC):
    """One data set.

    Attributes:
        name: ``train`` or ``validation``.
        ledger: what became of every row.
        budgets: by the name of the length that they are for.
    """

    name: str
    ledger: Ledger
    budgets: dict[str, Budget]
    has_answers = True  # of which there can be several to one prompt

    @abstractmethod
    def texts(self, rows: Sequence[int] | None = None) -> Iterator[Texts]:
        """All rows that can be read, in order, or those of these numbers."""

    @abstractmethod
    def lengths(self) -> dict[str, np.ndarray]:
        """Tokens of each row by the name of what is counted, before any budget."""

    @abstractmethod
    def draw(self, pen: Pen, count: int, seed: int, locations: Sequence[str]) -> list[Example]:
        """The rows of `places`, or without them `count` of those that are learned, drawn by `seed`.

        Raises:
            UserError: there is no such place.
        """

    def tables(self) -> list[Table]:
        """What else there is to count."""
        return []

    def find(self, rows: Sequence[int]) -> list[tuple[str, str]]:
        """Place and text of rows, by their numbers in ascending order."""
        found: list[tuple[str, str]] = []
        for texts in self.texts(rows):
            found += [(location, texts.whole(row)) for row, location in enumerate(texts.locations)]
        return found


class TokenizedRows(Rows):
    """Examples as `tokenize_rows` hands them on.

    Args:
        readable, tokenized: row for row, dropped ones among the latter.
        unlimited: encodes as training does, without budgets.
        examples: all that was read.
    """

    columns: ClassVar[tuple[str, ...]]  # of `readable`, as JSON
    strips: ClassVar[dict[str, tuple[str, str]]]  # by name, the columns of ids and labels
    labelled = "tokens that carry loss"

    def __init__(
        self,
        name: str,
        examples: Dataset,
        readable: Dataset,
        tokenized: Dataset,
        ledger: Ledger,
        budgets: dict[str, Budget],
        unlimited: Any,
    ):
        self.name, self.ledger, self.budgets = name, ledger, budgets
        self.examples, self.readable, self.tokenized, self._unlimited = examples, readable, tokenized, unlimited
        self.locations, self.statuses = row_statuses(tokenized)
        self.used = np.flatnonzero([not is_dropped(status) for status in self.statuses])
        self._counts = self._lengths = None

    def texts(self, rows=None):
        chosen = self.readable if rows is None else self.readable.select(rows)
        columns = [*self.columns, "meta", "location"]
        for table in chosen.select_columns(columns).with_format("arrow").iter(BATCH):
            values = {name: [_parsed(text) for text in table[name].to_pylist()] for name in columns[:-1]}
            choices = [choices_of(meta) for meta in values.pop("meta")]
            yield self.texts_of(values, table["location"].to_pylist(), choices)

    @abstractmethod
    def texts_of(self, values: dict[str, list], locations: list[str], choices: list) -> Texts:
        """The texts of rows, from their parsed `columns`."""

    @abstractmethod
    def lengths_of(self, table: pa.Table) -> dict[str, np.ndarray]:
        """`lengths` of tokenized rows, with `tokens` and `learned` beside them."""

    def _measured(self, tokenized: Dataset) -> dict[str, np.ndarray]:
        found = [self.lengths_of(table) for table in tokenized.with_format("arrow").iter(10 * BATCH)]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def _measure(self) -> None:
        own = self._measured(self.tokenized)
        self._counts = {name: own.pop(name) for name in ("tokens", "labelled")}
        changed = np.flatnonzero([status != KEPT for status in self.statuses])
        if len(changed):  # what was cut or left out is encoded again without the budgets
            whole = self._measured(tokenize_dataset(self.readable.select(changed), self._unlimited))
            for name, values in own.items():
                values[changed] = whole[name]
        there = np.any(list(own.values()), axis=0)  # not what no template can show
        self._lengths = {name: values[there] for name, values in own.items()}

    def lengths(self):
        if self._lengths is None:
            self._measure()
        return self._lengths

    def tables(self):
        lengths = self.lengths()
        tokens, labelled = (int(self._counts[name][self.used].sum()) for name in ("tokens", "labelled"))
        rows = [
            ["rows that are learned from", len(self.used), ""],
            ["tokens of an epoch", tokens, ""],
            [self.labelled, labelled, share(labelled, tokens)],
        ]
        if self.budgets:
            over = int(over_any(lengths, self.budgets).sum())
            rows.append(["rows over a budget", over, share(over, len(next(iter(lengths.values()))))])
        return [Table("Counts", ["what", "number", "share"], rows)]

    def choose(self, count: int, seed: int, locations: Sequence[str]) -> list[int | str]:
        """Numbers of rows; the place of one that was dropped before it was tokenized."""
        if not locations:
            chosen = np.random.default_rng(seed).choice(self.used, min(count, len(self.used)), replace=False)
            return sorted(chosen.tolist())
        known = dict(
            reversed([(location, row) for row, location in enumerate(self.locations)])
        )  # the first of a place counts
        dropped = set(self.examples["location"][:]) - known.keys()
        return [location if location in dropped else _found(known, location) for location in locations]

    def draw(self, pen, count, seed, locations):
        return [self.example(pen, row) for row in self.choose(count, seed, locations)]

    def example(self, pen: Pen, row: int | str) -> Example:
        if isinstance(row, str):
            return Example(row, shown(dict(zip(*row_statuses(self.examples), strict=True))[row]), [], [])
        found = self.tokenized[row]
        strips = []
        if not is_dropped(self.statuses[row]):
            for name, (ids, labels) in self.strips.items():
                strips.append(Strip(name, [pen.draw(found[ids], found[labels])]))
        return Example(self.locations[row], shown(self.statuses[row]), self.facts_of(found), strips)

    def facts_of(self, row: dict[str, Any]) -> list[str]:
        return []


class Conversations(TokenizedRows):
    """Rows of supervised fine-tuning."""

    columns = ("messages",)
    strips: ClassVar = {"": ("input_ids", "labels")}

    def texts_of(self, values, locations, choices):
        conversations = values["messages"]
        contexts = [joined(messages[:-1]) for messages in conversations]
        answers = [joined(messages[-1:]) for messages in conversations]
        return Texts(locations, contexts, list(map(last_question, conversations)), {"answer": answers}, choices)

    def lengths_of(self, table):
        tokens, _, last, labelled = label_spans(table["labels"])
        prompt = table["prompt_length"].to_numpy().astype(np.int64)
        # The last answer ends with its end of turn; what a template writes after it counts for no budget.
        return {"prompt": prompt, "answer": last - prompt, "whole": last, "tokens": tokens, "labelled": labelled}


class PromptRows(Rows):
    """Prompts of reinforcement learning.

    Args:
        references: tokens of each reference, (N,), where there is one.
    """

    def __init__(
        self, name: str, prompts: Sequence[Prompt], ledger: Ledger, budgets: dict[str, Budget], references: np.ndarray
    ):
        self.name, self.prompts, self.ledger, self.budgets = name, prompts, ledger, budgets
        self.references = references
        self.has_answers = any(prompt.reference for prompt in prompts)

    def texts(self, rows=None):
        numbers = range(len(self.prompts)) if rows is None else rows
        for start in range(0, len(numbers), BATCH):
            prompts = [self.prompts[row] for row in numbers[start : start + BATCH]]
            contexts = [joined(p.messages) if p.is_chat else p.question for p in prompts]
            questions = [p.question if p.is_chat else "" for p in prompts]
            answers = {"reference": [p.reference or "" for p in prompts]} if self.has_answers else {}
            yield Texts(
                [p.location for p in prompts], contexts, questions, answers, [choices_of(p.meta) for p in prompts]
            )

    def lengths(self):
        found = {"prompt": np.array([prompt.length for prompt in self.prompts])}
        return found | ({"reference": self.references} if len(self.references) else {})

    def tables(self):
        tokens = sum(len(prompt.ids) for prompt in self.prompts)
        answered = sum(prompt.reference is not None for prompt in self.prompts)
        rows = [["prompts", len(self.prompts)], ["tokens of them", tokens], ["with a reference", answered]]
        return [Table("Counts", ["what", "number"], rows)]

    def draw(self, pen, count, seed, locations):
        if locations:
            known = dict(reversed([(prompt.location, prompt) for prompt in self.prompts]))
            chosen = [_found(known, location) for location in locations]
        else:
            size = len(self.prompts)
            rows = np.random.default_rng(seed).choice(size, min(count, size), replace=False)
            chosen = [self.prompts[row] for row in sorted(rows.tolist())]
        return [
            Example(
                prompt.location,
                KEPT if prompt.length == len(prompt.ids) else f"cut from {prompt.length:,} tokens",
                [] if prompt.reference is None else [f"reference: {pen.mask(prompt.reference)}"],
                [Strip("", [pen.draw(prompt.ids, np.full(len(prompt.ids), -100))])],
            )
            for prompt in chosen
        ]


def _found(known: Mapping[str, Any], location: str) -> Any:
    if location not in known:
        raise UserError(f"--show {location}: there is no such training row; the first is {next(iter(known))}")
    return known[location]


def _parsed(text: str | None) -> Any:
    return json.loads(text) if text else None


def last_question(messages: Sequence[Message]) -> str:
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")


def joined(messages: Iterable[Message]) -> str:
    """The contents of turns, with thoughts and calls of tools."""
    parts: list[str] = []
    for message in messages:
        parts += filter(None, [message.get("reasoning_content"), message.get("content")])
        if message.get("tool_calls"):
            parts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    return "\n".join(parts)
