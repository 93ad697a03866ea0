"""A reward model's scores of the answers in a file."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import KEPT, is_dropped, row_status
from hf_recipes.core.settings import PositiveInt, setting
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.examples import find_plan
from hf_recipes.data.files.records import Record, read_records
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.schemas.conversation import RowProblem
from hf_recipes.data.schemas.registry import SIDES, Columns, Schema
from hf_recipes.evaluation.over_file import FileArguments
from hf_recipes.models.inference import forward
from hf_recipes.models.inference.batch_options import Compute
from hf_recipes.models.inference.generate import not_numbers
from hf_recipes.models.reward_head import rewards

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = 256  # encoded at a time
NAMES = ("score", *(f"score_{side}" for side in SIDES))


@dataclass
class ScoreArguments(FileArguments):
    """Which rows are scored, and where the scores go."""

    batch_size: PositiveInt = setting("Conversations scored together.", 16)
    max_length: PositiveInt | None = setting(
        "Longer conversations get no score; by default what the model's context holds."
    )


class Answers(NamedTuple):
    """What of a row is scored: the ids of conversations (None where it cannot be used) by the name of their score."""

    location: str
    ids: dict[str, np.ndarray | None]


class AnswerReader:
    """The rows of files as conversations to score, in order, each time that it is iterated.

    A row with an answer is one conversation, to be called `score`; a pair is two, `score_chosen` and `score_rejected`.

    Raises:
        UserError: a source that cannot be read or whose shape is not known, or rows of text, which have no answer.
    """

    def __init__(self, args: ScoreArguments, tokenizer: "PreTrainedTokenizerBase", max_length: int | None):
        self.max_length, self._encoder = max_length, ChatEncoder(tokenizer)
        self.planned = []
        for source in find_sources(args.input_file, "test", args.cache_dir):
            schema, columns = find_plan(source, args.columns)
            if schema.form == "text":
                raise UserError(f"{source.path}: rows of text have no answer to score; name the columns or --schema")
            say(f"{source.path}: schema {schema.name}")
            self.planned.append((source, schema, columns))

    def __iter__(self) -> Iterator[tuple[Record, Answers, str]]:
        for source, schema, columns in self.planned:
            rows = read_records(source)
            while records := list(islice(rows, ROWS)):
                yield from self._encode(records, schema, columns)

    def _encode(self, records: list[Record], schema: Schema, columns: Columns) -> Iterator[tuple[Record, Answers, str]]:
        names = NAMES[1:] if schema.form == "preference" else NAMES[:1]
        conversations, tools, problems = [], [], []
        for record in records:
            try:
                if record.value is None:
                    raise RowProblem(record.problem)
                row = schema.convert(record.value, columns)
            except RowProblem as problem:
                problems.append(row_status("dropped", problem.reason))
                continue
            problems.append(None)
            conversations += [row["prompt"] + row[side] for side in SIDES] if len(names) > 1 else [row["messages"]]
            tools += [row.get("tools")] * len(names)
        encoded = iter(self._encoder.encode(conversations, tools) if conversations else ())
        for record, problem in zip(records, problems, strict=True):
            sides = {} if problem else {name: next(encoded) for name in names}
            status = problem or next((side.status for side in sides.values() if is_dropped(side.status)), KEPT)
            if self.max_length and any(len(side.input_ids) > self.max_length for side in sides.values()):
                status = row_status("dropped", f"longer than {self.max_length} tokens")
            is_usable = not is_dropped(status)
            ids = {name: sides[name].input_ids if is_usable else None for name in names}
            yield record, Answers(record.location, ids), status


class Score:
    """The step of `run_over_file` that scores answers: `score`, or of a pair `score_chosen` and `score_rejected`."""

    columns, rename, of_dropped = NAMES, "rename it", "a score of null"

    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def result_of_dropped(self, record: Record, answers: Answers, status: str) -> dict[str, Any]:
        return dict.fromkeys(answers.ids)

    def __call__(
        self, model: "PreTrainedModel", rows: Mapping[int, Answers], written: int
    ) -> Iterator[dict[int, dict[str, Any]]]:
        sides = [(number, name) for number, row in rows.items() for name in row.ids]
        partial: dict[int, dict[str, float]] = {}
        with forward.evaluating(model):
            for batch in forward.batches([-len(rows[n].ids[name]) for n, name in sides], self.batch_size, Compute()):
                chosen = [sides[index] for index in batch]
                if all(number < written for number, _ in chosen):
                    continue
                scores = rewards(model, [rows[number].ids[name] for number, name in chosen])
                for (number, name), score in zip(chosen, scores, strict=True):
                    if not math.isfinite(score):
                        raise not_numbers(rows[number].location)
                    partial.setdefault(number, {})[name] = score
                numbers = dict.fromkeys(number for number, _ in chosen)
                done = [number for number in numbers if len(partial[number]) == len(rows[number].ids)]
                yield {number: {name: partial[number][name] for name in rows[number].ids} for number in done}
