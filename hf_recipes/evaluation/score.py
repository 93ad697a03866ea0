"""A reward model's scores for every row of a file, written as they come and gone on with after an interruption."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.settings import PositiveInt, check_limits, setting
from hf_recipes.data.schemas.registry import SCHEMAS, SIDES, Columns
from hf_recipes.evaluation.predict import WINDOW, append_ready, settings_of_model
from hf_recipes.evaluation.resumable_output import Results
from hf_recipes.models.inference.compute import Compute
from hf_recipes.models.inference.generate import not_numbers

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_recipes.core.ledger import Ledger
    from hf_recipes.data.files.records import Record
    from hf_recipes.models.arguments import ModelArguments

ROWS = 256  # encoded at a time
NAMES = ("score", *(f"score_{side}" for side in SIDES))


@dataclass
class ScoreArguments:
    """Which rows are scored, and where the scores go."""

    input_file: list[str] = field(metadata={"help": "Files, globs, folders or Hub ids (owner/name[:split])."})
    output_file: str = field(metadata={"help": "A jsonl file: every row with its score, in the order of the input."})
    overwrite_output: bool = setting("Start over where the output file is there already.", False)
    batch_size: PositiveInt = setting("Conversations scored together.", 16)
    max_length: PositiveInt | None = setting(
        "Longer conversations get no score; by default what the model's context holds."
    )
    chat_template: str | None = setting("A bundled template (chatml, llama2, vicuna, …) or a jinja file.")
    schema: str | None = setting(f"Shape of the rows ({', '.join(SCHEMAS)}); detected from the columns by default.")
    prompt_column: str | None = setting("Column of the question.")
    response_column: str | None = setting("Column of the answer.")
    history_column: str | None = setting("Column of earlier [question, answer] pairs.")
    system_prompt: str | None = setting("System turn for rows that have none.")
    trust_remote_code: bool = setting("Run code that comes with the model.", False)
    cache_dir: str | None = setting("Where downloads are cached.")

    def __post_init__(self):
        if self.schema is not None and self.schema not in SCHEMAS:
            raise ValueError(f"--schema {self.schema}: expected one of {', '.join(SCHEMAS)}")
        check_limits(self)

    @property
    def columns(self) -> Columns:
        return Columns(self.schema, self.prompt_column, self.response_column, self.history_column, self.system_prompt)


class AnswerReader:
    """The rows of files as conversations to score, in order, each time that it is iterated.

    A row with an answer is one conversation, to be called `score`; a pair is two, `score_chosen` and `score_rejected`.

    Raises:
        UserError: a source that cannot be read or whose shape is not known, or rows of text, which have no answer.
    """

    def __init__(self, args: ScoreArguments, tokenizer: "PreTrainedTokenizerBase", max_length: int | None):
        from hf_recipes.data.chat.encoder import ChatEncoder
        from hf_recipes.data.examples import find_plan
        from hf_recipes.data.files.sources import find_sources

        self.max_length, self._encoder = max_length, ChatEncoder(tokenizer)
        self.planned = []
        for source in find_sources(args.input_file, "test", args.cache_dir):
            schema, columns = find_plan(source, args.columns)
            if schema.form == "text":
                raise UserError(f"{source.path}: rows of text have no answer to score; name the columns or --schema")
            say(f"{source.path}: schema {schema.name}")
            self.planned.append((source, schema, columns))

    def __iter__(self) -> Iterator[tuple["Record", dict[str, "np.ndarray | None"], str]]:
        """Each row as it was read, the ids (None where it cannot be used) by the name of their score, and its fate."""
        from hf_recipes.data.files.records import read_records

        for source, schema, columns in self.planned:
            rows = read_records(source)
            while records := list(islice(rows, ROWS)):
                for record, (found, row_fate) in zip(records, self._read(records, schema, columns), strict=True):
                    yield record, found, row_fate

    def _read(self, records, schema, columns) -> list[tuple[dict, str]]:
        from hf_recipes.core.ledger import KEPT, fate, is_dropped
        from hf_recipes.data.schemas.conversation import RowProblem

        names = NAMES[1:] if schema.form == "preference" else NAMES[:1]
        talks: list[dict[str, list] | str] = []
        for record in records:
            try:
                if record.value is None:
                    raise RowProblem(record.problem)
                example = schema.convert(record.value, columns)
                sides = (
                    [example["prompt"] + example[side] for side in SIDES] if len(names) > 1 else [example["messages"]]
                )
                talks.append({**dict(zip(names, sides, strict=True)), "tools": example.get("tools")})
            except RowProblem as problem:
                talks.append(fate("dropped", problem.reason))
        flat = [
            (messages, talk.get("tools"))
            for talk in talks
            if not isinstance(talk, str)
            for name, messages in talk.items()
            if name != "tools"
        ]
        encoded = iter(self._encoder.encode(*map(list, zip(*flat, strict=True)))) if flat else iter(())
        rows: list[tuple[dict, str]] = []
        for talk in talks:
            if isinstance(talk, str):
                rows.append((dict.fromkeys(names), talk))
                continue
            sides = {name: next(encoded) for name in talk if name != "tools"}
            row_fate = next((side.fate for side in sides.values() if is_dropped(side.fate)), KEPT)
            if self.max_length and any(len(side.input_ids) > self.max_length for side in sides.values()):
                row_fate = fate("dropped", f"longer than {self.max_length} tokens")
            ids = {name: side.input_ids for name, side in sides.items()}
            rows.append((dict.fromkeys(names) if is_dropped(row_fate) else ids, row_fate))
        return rows


def read_score_ledger(reader: AnswerReader) -> "Ledger":
    """What becomes of every row, which is printed.

    Raises:
        UserError: no row can be scored, or one has a column of a score's name.
    """
    from hf_recipes.core.ledger import Ledger

    ledger = Ledger()
    for record, _, row_fate in reader:
        if taken := next((name for name in NAMES if name in (record.value or ())), None):
            raise UserError(f"{record.place}: there is a column {taken!r} already; rename it")
        ledger.add(record.place, row_fate)
    say(ledger.table())
    ledger.check(max_drop_ratio=1)
    if dropped := ledger.totals["dropped"]:
        say(f"the {dropped:,} dropped rows are kept in the output, with a score of null")
    return ledger


def open_scores(
    args: ScoreArguments,
    model_args: "ModelArguments",
    reader: AnswerReader,
    ledger: "Ledger",
    config: "PretrainedConfig",
    template: str | None,
) -> Results:
    """The output file, with what decides its rows; see `Results`."""
    settings, versions = settings_of_model(model_args, config)
    settings |= {
        "chat_template": template,
        "max_length": reader.max_length,
        "input_file": {source.path: source.digest for source, _, _ in reader.planned},
        "rows_are": [[schema.name, vars(columns)] for _, schema, columns in reader.planned],
        "method": "score",
    }
    notes = {"batch_size": args.batch_size, "versions": versions, "ledger": ledger.to_dict()}
    return Results(args.output_file, settings, notes, args.overwrite_output)


def score_rows(model: "PreTrainedModel", reader: AnswerReader, results: Results, batch_size: int, total: int) -> None:
    """Append to `results` each row of `reader` that is not there yet, with its scores.

    Batches are formed as in `predict`: after an interruption they are the same again.
    """
    from hf_recipes.models.inference import forward
    from hf_recipes.models.reward_head import rewards

    rows, start = iter(reader), 0
    with forward.evaluating(model):
        while window := list(islice(rows, WINDOW * batch_size)):
            records = [record for record, _, _ in window]
            found: dict[int, dict[str, Any]] = {
                index: ids for index, (_, ids, _) in enumerate(window) if any(own is None for own in ids.values())
            }
            units = [(index, name) for index, (_, ids, _) in enumerate(window) if index not in found for name in ids]
            append_ready(results, records, found, start)
            begun: dict[int, dict[str, float]] = {}
            for batch in forward.batches([-len(window[i][1][name]) for i, name in units], batch_size, Compute()):
                chosen = [units[place] for place in batch]
                if all(start + index < results.count for index, _ in chosen):
                    continue
                scores = rewards(model, [window[index][1][name] for index, name in chosen])
                for (index, name), score in zip(chosen, scores, strict=True):
                    if not math.isfinite(score):
                        raise not_numbers(records[index].place)
                    begun.setdefault(index, {})[name] = score
                    if len(begun[index]) == len(window[index][1]):
                        found[index] = {key: begun[index][key] for key in window[index][1]}
                append_ready(results, records, found, start)
            start += len(window)
            say(f"{results.count:,} of {total:,} rows")
