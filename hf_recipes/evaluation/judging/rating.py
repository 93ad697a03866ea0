"""A judge's scores of the answers in a file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import KEPT, row_status, shown
from hf_recipes.data.chat.templates.template import has_answer
from hf_recipes.data.conversations.conversation import Message, RowProblem
from hf_recipes.data.examples import described, schema_of
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.source import Record
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.schemas.columns import status_of
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.evaluation.judging.arguments import JudgeArguments, JudgePrompt, shown_turn
from hf_recipes.evaluation.judging.judges import Judge, open_judge
from hf_recipes.evaluation.over_file import FileArguments, run_over_file
from hf_recipes.evaluation.reports.tables import read_predictions

LOWEST, HIGHEST = 1, 10
COLUMN, PROBLEM = "judge_score", "judge_score_problem"
SAMPLE = 100  # rows whose language chooses that of the prompt
_RATING = re.compile(r"[\[［【]{2}\s*([0-9]+(?:\.[0-9]+)?)\s*(?:/\s*10|分)?\s*[\]］】]{2}")


@dataclass
class RatingArguments(FileArguments):
    """Which rows a judge scores, and where they are written with the scores."""

    input_file: list[str] = field(
        kw_only=True,
        metadata={"help": "Files, globs, folders or Hub ids (owner/name[:split]).", "aliases": ["--train_file"]},
    )
    score: bool = setting("Score rows by --judge instead of a report on them.", False)


# Conversations that end with an answer, by the column of its score; None where the row cannot be used.
Chats = dict[str, list[Message] | None]


class ChatReader:
    """The rows of files as conversations to score, in order, each time that it is iterated.

    A row with an answer is one conversation, a pair is two.
    """

    def __init__(self, args: RatingArguments):
        self.files = []
        for source in find_sources(args.input_file, "train", args.cache_dir, encoding=args.encoding):
            schema = schema_of(source, replace(args.columns, reads="examples"))
            if schema.form == "text":
                raise UserError(f"{source.path}: rows of text have no answer to score; name the columns or --schema")
            say(f"{source.path}: {described(source, schema)}")
            self.files.append((source, schema))

    def __iter__(self) -> Iterator[tuple[Record, Chats, str]]:
        for source, schema in self.files:
            names = [f"{COLUMN}_{side}" for side in SIDES] if schema.form == "preference" else [COLUMN]
            for record in read_records(source):
                try:
                    example = schema.read(record)
                    yield record, _chats(example, names), status_of(example)
                except RowProblem as problem:
                    yield record, dict.fromkeys(names), row_status("dropped", problem.reason)


def _chats(example: Mapping[str, Any], names: Sequence[str]) -> Chats:
    if len(names) > 1:
        chats = {name: example["prompt"] + example[side] for name, side in zip(names, SIDES, strict=True)}
    else:
        chats = {COLUMN: example.get("messages") or example["prompt"] + example["completion"]}
    for messages in chats.values():
        if not has_answer(messages) or not shown_turn(messages[-1]).strip():
            raise RowProblem("no answer to score")
    return chats


def rating_of(reply: str) -> float | None:
    """The last rating [[1]] to [[10]] of a reply; None without any."""
    ratings = [float(number) for number in _RATING.findall(reply)]
    return ratings[-1] if ratings and LOWEST <= ratings[-1] <= HIGHEST else None


class Rate:
    """The step of `run_over_file` that scores answers with a judge, which it is given in place of a model."""

    columns = (COLUMN, *(f"{COLUMN}_{side}" for side in SIDES), PROBLEM)
    rename, of_dropped = "rename it", f"{COLUMN} null and the reason as {PROBLEM}"

    def __init__(self, prompt: JudgePrompt, batch_size: int):
        self.prompt, self.batch_size = prompt, batch_size

    def result_of_dropped(self, record: Record, chats: Chats, status: str) -> dict[str, Any]:
        return {**chats, PROBLEM: shown(status).removeprefix("dropped: ")}

    def __call__(self, judge: Judge, rows: Mapping[int, Chats], written: int) -> Iterator[dict[int, dict[str, Any]]]:
        left = iter([index for index in rows if index >= written])
        while batch := list(islice(left, self.batch_size)):
            names = [(index, name) for index in batch for name in rows[index]]
            replies = judge.replies([self._fill(rows[index][name]) for index, name in names])
            results: dict[int, dict[str, Any]] = {index: {} for index in batch}
            for (index, name), reply in zip(names, replies, strict=True):
                results[index][name] = rating_of(reply)
                if results[index][name] is None:
                    results[index][PROBLEM] = f"no score in the reply: {reply[-200:]!r}"
            yield results

    def _fill(self, messages: list[Message]) -> str:
        answer = shown_turn(messages[-1])
        return self.prompt.fill(question=self.prompt.conversation(messages[:-1]), answer=answer, reference=answer)


def rate_rows(args: RatingArguments, judging: JudgeArguments, **source: Any) -> None:
    """Write every row of the input with its score; rows without one are counted and keep the reason."""
    if not judging.judge:
        raise UserError("--score: name the model that scores the rows with --judge")
    reader, judge = ChatReader(args), open_judge(judging, args.batch_size, **source)
    chats = [chats for _, chats, status in reader if status == KEPT]
    sample = [shown_turn(turn) for of_row in chats[:SAMPLE] for turn in next(iter(of_row.values()))]
    prompt = JudgePrompt(judging, "rating", sample)

    def announce_and_load() -> Judge:
        what = f"{', '.join(prompt.fields)} of {len(chats):,} rows"
        if judge.destination:
            say(f"--judge: sent to {judge.destination}: {what} without those already scored, and nothing else")
        else:
            say(f"--judge: scored on this machine: {what}")
        judge.load()
        return judge

    settings = {"method": COLUMN, **judge.settings, **prompt.settings}
    run_over_file(args, reader, Rate(prompt, args.batch_size), settings, announce_and_load)
    say(_summary(args.output_file))


def _summary(path: str) -> str:
    rows = read_predictions(path)
    known = [row for row in rows if PROBLEM not in row]
    lacking = f"; {len(rows) - len(known):,} have none, with the reason as {PROBLEM}" if len(known) < len(rows) else ""
    pairs = any(f"{COLUMN}_{SIDES[0]}" in row for row in known)
    test = f".{COLUMN}_chosen > .{COLUMN}_rejected" if pairs else f".{COLUMN} >= 7"
    return (
        f"{len(known):,} of {len(rows):,} rows have a score from {LOWEST} to {HIGHEST}{lacking}. All of them are in "
        f"{path}; to train on a part of them, filter it: jq -c 'select({test})' {path} > kept.jsonl"
    )
