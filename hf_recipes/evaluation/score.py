"""A reward model's scores of the answers in a file."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_recipes.core.arguments.limits import PositiveInt
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import is_dropped, row_status
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.examples import described, schema_of
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.source import Record
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.schemas.columns import status_of
from hf_recipes.data.schemas.registry import SIDES, Schema
from hf_recipes.evaluation.over_file import FileArguments
from hf_recipes.models.inference import forward
from hf_recipes.models.inference.batch_options import BatchOptions
from hf_recipes.models.inference.generate import not_numbers
from hf_recipes.models.reward_head import rewards

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = 256  # encoded together
NAMES = ("score", *(f"score_{side}" for side in SIDES))


@dataclass
class ScoreArguments(FileArguments):
    """Which rows are scored, and where the scores are written."""

    batch_size: PositiveInt = setting("Conversations scored together.", 16)
    max_length: PositiveInt | None = setting(
        "Longer conversations get no score; by default what the model's context holds."
    )


class ScoredRow(NamedTuple):
    """The conversations of a row: token ids (None where the row cannot be used) by the name of their score."""

    location: str
    ids: dict[str, np.ndarray | None]


class AnswerReader:
    """The rows of files as conversations to score, in order, each time that it is iterated.

    A row with an answer is one conversation, named `score`; a pair is two, `score_chosen` and `score_rejected`.
    """

    def __init__(self, args: ScoreArguments, tokenizer: "PreTrainedTokenizerBase", max_length: int | None):
        self.max_length, self._encoder = max_length, ChatEncoder(tokenizer, train_on="last", keep_rest=True)
        self.files = []
        for source in find_sources(args.input_file, "test", args.cache_dir, encoding=args.encoding):
            schema = schema_of(source, args.columns)
            if schema.form == "text":
                raise UserError(f"{source.path}: rows of text have no answer to score; name the columns or --schema")
            say(f"{source.path}: {described(source, schema)}")
            self.files.append((source, schema))

    def __iter__(self) -> Iterator[tuple[Record, ScoredRow, str]]:
        for source, schema in self.files:
            rows = read_records(source)
            while records := list(islice(rows, ROWS)):
                yield from self._encode(records, schema)

    def _encode(self, records: list[Record], schema: Schema) -> Iterator[tuple[Record, ScoredRow, str]]:
        names = NAMES[1:] if schema.form == "preference" else NAMES[:1]
        conversations, tools, statuses = [], [], []
        for record in records:
            try:
                row = schema.read(record)
            except RowProblem as problem:
                statuses.append(row_status("dropped", problem.reason))
                continue
            statuses.append(status_of(row))
            conversations += [row["prompt"] + row[side] for side in SIDES] if len(names) > 1 else [row["messages"]]
            tools += [row.get("tools")] * len(names)
        encoded = iter(self._encoder.encode(conversations, tools) if conversations else ())
        for record, status in zip(records, statuses, strict=True):
            sides = {} if is_dropped(status) else {name: next(encoded) for name in names}
            status = next((side.status for side in sides.values() if is_dropped(side.status)), status)
            if self.max_length and any(len(side.input_ids) > self.max_length for side in sides.values()):
                status = row_status("dropped", f"longer than {self.max_length} tokens")
            is_usable = not is_dropped(status)
            ids = {name: sides[name].input_ids if is_usable else None for name in names}
            yield record, ScoredRow(record.location, ids), status


class Score:
    """The step of `run_over_file` that scores answers: `score`, or of a pair `score_chosen` and `score_rejected`."""

    columns, rename, of_dropped = NAMES, "rename it", "a score of null"

    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def result_of_dropped(self, record: Record, row: ScoredRow, status: str) -> dict[str, Any]:
        return dict.fromkeys(row.ids)

    def __call__(
        self, model: "PreTrainedModel", rows: Mapping[int, ScoredRow], written: int
    ) -> Iterator[dict[int, dict[str, Any]]]:
        sides = [(index, name) for index, row in rows.items() for name in row.ids]
        scored: dict[int, dict[str, float]] = {}
        with forward.evaluating(model):
            lengths = [-len(rows[index].ids[name]) for index, name in sides]
            for batch in forward.batches(lengths, self.batch_size, BatchOptions()):
                chosen = [sides[side] for side in batch]
                if all(index < written for index, _ in chosen):
                    continue
                scores = rewards(model, [rows[index].ids[name] for index, name in chosen])
                for (index, name), score in zip(chosen, scores, strict=True):
                    if not math.isfinite(score):
                        raise not_numbers(rows[index].location)
                    scored.setdefault(index, {})[name] = score
                finished = [index for index, _ in chosen if len(scored[index]) == len(rows[index].ids)]
                yield {index: {name: scored[index][name] for name in rows[index].ids} for index in finished}
