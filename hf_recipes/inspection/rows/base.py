"""The data sets of a run, read and tokenized by the code that trains on them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import KEPT, Ledger, is_dropped, shown
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.conversations.conversation import Message, with_thoughts
from hf_recipes.data.examples import row_statuses
from hf_recipes.data.tokenized import tokenize_dataset
from hf_recipes.evaluation.methods.generation import choices_of
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import Example, Table, TokenSequence, count_table
from hf_recipes.inspection.checks import RowTexts
from hf_recipes.inspection.lengths import Budget, over_any
from hf_recipes.inspection.token_renderer import TokenRenderer
from hf_recipes.run.data import read_rows, tokenize_rows
from hf_recipes.stages.base import Context

BATCH = 1000  # rows


@dataclass(frozen=True)
class TrainedPrompt:
    """The ids before an answer that is trained on, and the turns and tools that they show."""

    location: str
    ids: Sequence[int]
    messages: list[Message]
    tools: list | None


class Rows(ABC):
    """One data set.

    Attributes:
        name: ``train`` or ``validation``.
        ledger: the status of every row.
        budgets: by the name of the length that they limit.
        has_answers: whether a prompt can recur with another answer.
        chat_encoder: what made `trained_prompts`, where there are any.
    """

    name: str
    ledger: Ledger
    budgets: dict[str, Budget]
    has_answers = True
    chat_encoder: ChatEncoder

    @classmethod
    @abstractmethod
    def read(cls, context: Context) -> list["Rows"]:
        """The training rows of a run, and after them its validation rows if there are any."""

    @abstractmethod
    def texts(self, rows: Sequence[int] | None = None) -> Iterator[RowTexts]:
        """All rows that can be read, in order, or those at these indices."""

    @abstractmethod
    def lengths(self) -> dict[str, np.ndarray]:
        """Tokens of each row by the name of what is counted, before any budget."""

    @abstractmethod
    def render(self, renderer: TokenRenderer, count: int, seed: int, locations: Sequence[str]) -> list[Example]:
        """The training rows at `locations`, or without them `count` of the rows that are trained on, sampled by `seed`.

        Raises:
            UserError: there is no such location.
        """

    def check(self, context: Context) -> str | None:
        """A note about the training rows; UserError where the run would stop because of them."""
        return None

    def trained_prompts(self) -> Iterator[TrainedPrompt]:
        """Those of rows of which nothing is cut or left out."""
        return iter(())

    def counts(self) -> dict[str, int | tuple[int, int]]:
        """What else is counted but tokens, as `count_table` takes it."""
        return {}

    def token_counts(self) -> dict[str, int | tuple[int, int]]:
        return {}

    def tables(self) -> list[Table]:
        counted = {"Counts": self.counts(), "Tokens": self.token_counts()}
        return [
            count_table(title, "what", {Phrase(name): count for name, count in counts.items()})
            for title, counts in counted.items()
        ]

    def locate(self, rows: Sequence[int]) -> list[tuple[str, str]]:
        """Location and text of rows, by their indices in ascending order."""
        return [
            (location, texts.full_text(row))
            for texts in self.texts(rows)
            for row, location in enumerate(texts.locations)
        ]


class TokenizedRows(Rows):
    """Examples of a stage whose encoder makes a row of each.

    Attributes:
        examples: all that was read.
        readable, tokenized: the rows, and the examples of each, dropped ones among them; `row_of` gives the row of each
            example, and `following` how many examples of the row come after it.
        used: indices of the rows that are trained on.
    """

    columns: ClassVar[tuple[str, ...]]  # of `readable`, as JSON
    sequences: ClassVar[dict[str, tuple[str, str]]]  # by name, the columns of ids and labels
    limits: ClassVar[dict[str, str]]  # by the name of a length, the flag of its budget
    effect: ClassVar[str]  # of a budget on a longer row

    @classmethod
    def read(cls, context):
        if getattr(context.args, "streaming", False):
            raise UserError("--streaming: an inspection reads all rows; leave it out, or draw of them: file.jsonl#1000")
        sets = read_rows(context.data_args, context.args, context.stage.data_form)
        return [cls.class_for(context, name)(name, examples, context) for name, examples in sets.items()]

    @classmethod
    def class_for(cls, context: Context, name: str) -> type["TokenizedRows"]:
        return cls

    def __init__(self, name: str, examples: Dataset, context: Context):
        self.name, self.examples, self.args, self.stage = name, examples, context.args, context.stage
        encoder_for = partial(context.stage.encoder, context.tokenizer)
        encoder = encoder_for(self.args, name)
        self.encoder = encoder
        self.readable, self.tokenized, self.ledger = tokenize_rows(examples, encoder, context.data_args)
        self.budgets, unlimited = {}, copy(self.args)
        for length, flag in self.limits.items():
            if limit := getattr(self.args, flag):
                self.budgets[length] = Budget(f"--{flag}", limit, self.effect)
            setattr(unlimited, flag, None)
        self._unlimited = encoder_for(unlimited, "train")
        table = self.tokenized.with_format("arrow")
        self.locations, self.statuses = (table[name][:].to_pylist() for name in ("location", "status"))
        following = np.zeros(len(self.tokenized), np.int64)
        if "following" in self.tokenized.column_names:
            following = np.asarray(table["following"][:])
        self.following, self.row_of = following, np.cumsum(np.r_[0, following == 0])[:-1]
        self.used = np.flatnonzero([not is_dropped(status) for status in self.statuses])
        self._lengths: dict[str, np.ndarray] | None = None
        self.tokens = self.labelled = np.zeros(0, np.int64)  # of each tokenized row; see `lengths`

    @property
    def chat_encoder(self):
        return self.encoder

    @abstractmethod
    def prompt_of(self, columns: dict[str, Any], source: dict[str, Any]) -> tuple[Sequence[int], list[Message]]:
        """The prompt's ids in the columns of a tokenized row, and its turns in those of the row that it was made of."""

    def trained_prompts(self):
        for row in self.used.tolist():
            status = self.statuses[row]
            if self.following[row] == 0 and status.startswith((KEPT, "split")) and "left out" not in status:
                source = self.readable[int(self.row_of[row])]
                prompt = self.prompt_of(self.tokenized[row], source)
                yield TrainedPrompt(self.locations[row], *prompt, source["tools"] or None)

    def texts(self, rows=None):
        chosen = self.readable if rows is None else self.readable.select(rows)
        columns = [*self.columns, "meta", "location"]
        for table in chosen.select_columns(columns).with_format("arrow").iter(BATCH):
            values = {name: [text and json.loads(text) for text in table[name].to_pylist()] for name in columns[:-1]}
            choices = [choices_of(meta) for meta in values.pop("meta")]
            yield self.texts_of(values, table["location"].to_pylist(), choices)

    @abstractmethod
    def texts_of(self, values: dict[str, list], locations: list[str], choices: list) -> RowTexts:
        """The texts of rows, from their parsed `columns`."""

    @abstractmethod
    def lengths_of(self, table: pa.Table) -> dict[str, np.ndarray]:
        """`lengths` of tokenized rows, with all their "tokens" and those of them that are "labelled"."""

    def _measured(self, tokenized: Dataset) -> dict[str, np.ndarray]:
        batches = [self.lengths_of(table) for table in tokenized.with_format("arrow").iter(10 * BATCH)]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def lengths(self):
        if self._lengths is None:
            lengths = self._measured(self.tokenized)
            self.tokens, self.labelled = lengths.pop("tokens"), lengths.pop("labelled")
            changed = np.unique(self.row_of[[status != KEPT for status in self.statuses]])
            if len(changed):  # truncated and dropped rows are encoded again without the budgets
                unlimited = self._measured(tokenize_dataset(self.readable.select(changed), self._unlimited))
                same = ~np.isin(self.row_of, changed)
                lengths = {name: np.r_[values[same], unlimited[name]] for name, values in lengths.items()}
            encoded = np.any(list(lengths.values()), axis=0)  # no template can render the others
            self._lengths = {name: values[encoded] for name, values in lengths.items()}
        return self._lengths

    def counts(self):
        counts: dict[str, int | tuple[int, int]] = {"rows that are trained on": len(self.used)}
        if self.budgets:
            over = over_any(self.lengths(), self.budgets)
            counts["rows over a budget"] = int(over.sum()), len(over)
        return counts

    def token_counts(self):
        self.lengths()
        tokens, labelled = int(self.tokens[self.used].sum()), int(self.labelled[self.used].sum())
        # A reward model's loss is on the score of the whole answer.
        name = "tokens of the answers" if self.stage.task_type == "SEQ_CLS" else "tokens that carry loss"
        return {"tokens of an epoch": tokens, name: (labelled, tokens)}

    def choose(self, count: int, seed: int, locations: Sequence[str]) -> list[int | str]:
        """Indices of rows; the location of a row that was dropped before it was tokenized."""
        if not locations:
            chosen = np.random.default_rng(seed).choice(self.used, min(count, len(self.used)), replace=False)
            return sorted(chosen.tolist())
        known = first_by_location(zip(self.locations, range(len(self.locations)), strict=True))
        dropped = set(self.examples["location"][:]) - known.keys()
        chosen: list[int | str] = []
        for location in locations:
            if location in dropped:
                chosen.append(location)
            else:
                first = at_location(known, location)
                chosen += range(first, first + self.following[first] + 1)
        return chosen

    def render(self, renderer, count, seed, locations):
        return [self.example(renderer, row) for row in self.choose(count, seed, locations)]

    def example(self, renderer: TokenRenderer, row: int | str) -> Example:
        if isinstance(row, str):
            return Example(row, shown(dict(row_statuses(self.examples))[row]), [], [])
        columns, status = self.tokenized[row], self.statuses[row]
        sequences = [
            TokenSequence(name, [renderer.render(columns[ids], columns[labels])])
            for name, (ids, labels) in self.sequences.items()
            if not is_dropped(status)
        ]
        turns = [[name, renderer.mask(text)] for name, text in self.turns_of(self.readable[int(self.row_of[row])])]
        return Example(self.locations[row], shown(status), self.facts_of(columns), sequences, turns)

    def turns_of(self, source: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """The turns of a row that was read: each with its role, or in the answers of a pair with their name."""
        for column in self.columns:
            for message in source[column] or ():
                yield message["role"] if column in ("messages", "prompt") else column, joined([message])

    def facts_of(self, row: dict[str, Any]) -> list[str]:
        return []


def first_by_location(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The first value of each location."""
    first: dict[str, Any] = {}
    for location, value in values:
        first.setdefault(location, value)
    return first


def at_location(values: Mapping[str, Any], location: str) -> Any:
    if location not in values:
        raise UserError(f"--show {location}: there is no such training row; the first is {next(iter(values))}")
    return values[location]


def joined(messages: Iterable[Message], with_reasoning: bool = True) -> str:
    """The contents of turns with their calls of tools, and before each its thoughts, unless these are left out."""
    parts: list[str] = []
    for message in map(with_thoughts, messages):
        parts += [message.get("reasoning_content") if with_reasoning else None, message.get("content")]
        parts += [json.dumps(message["tool_calls"], ensure_ascii=False) if message.get("tool_calls") else None]
    return "\n".join(filter(None, parts))


def answer_of(messages: Iterable[Message]) -> str:
    """The turns of an answer without thoughts."""
    return joined(messages, with_reasoning=False)


def thoughts_of(messages: Iterable[Message]) -> str:
    return "\n".join(filter(None, (with_thoughts(message).get("reasoning_content") for message in messages)))
