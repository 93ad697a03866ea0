"""Rows of better and worse answers: pairs as `prompt`, `chosen`, `rejected`; single ones as `prompt`, `completion`,
`label`."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from hf_recipes.data.conversations.cells import by_key, is_empty, keys_of
from hf_recipes.data.conversations.conversation import FilteredRow, Message, RowProblem
from hf_recipes.data.conversations.dialogue_text import read_dialogue
from hf_recipes.data.conversations.thought_columns import thoughts_name
from hf_recipes.data.conversations.turns import LABELS, pop_unused, read_turns
from hf_recipes.data.schemas.chat import (
    holds_turns,
    make_conversation,
    pair_of,
    prompt_of,
    read_history,
    read_prompt_and_completion,
    read_question,
    with_thoughts_of,
)
from hf_recipes.data.schemas.column_names import (
    BETTER,
    CHOSEN,
    CONTEXT_COLUMNS,
    MESSAGE_COLUMNS,
    REJECTED,
    SIDE_COLUMNS,
    SIDE_WORDS,
)
from hf_recipes.data.schemas.columns import NO_COLUMN, Columns, Example, Row, answer_of


def sides_of(row: Row) -> tuple[str, str] | None:
    """The columns of the better and the worse answer."""
    if BETTER in row and "response_0" in row and "response_1" in row:
        return BETTER, BETTER
    keys = by_key(row)
    sides = next(((keys[a], keys[b]) for a, b in SIDE_COLUMNS if a in keys and b in keys), None)
    return sides or next(_sides_by_words(row), None)


def _sides_by_words(row: Row) -> Iterator[tuple[str, str]]:
    """Pairs of columns such as ``good_answer`` and ``bad_answer``; none of scores and the like."""
    keys = {keys_of(name)[0]: name for name in row if isinstance(row[name], (str, dict)) or holds_turns(row[name])}
    for key in keys:
        for better, worse in SIDE_WORDS:
            other = re.sub(rf"(?<![a-z]){better}(?![a-z])", worse, key)
            if other != key and other in keys and "score" not in key:
                yield keys[key], keys[other]


@cache
def _without_thoughts(columns: Columns) -> Columns:
    return replace(columns, reads="examples", thoughts=None)


def from_preference(row: Row, columns: Columns) -> Example:
    thoughts, columns = (columns.thoughts, columns.rejected_thoughts), _without_thoughts(columns)
    values = _sides(row, columns)
    column = next((name for name in MESSAGE_COLUMNS if name in row and name not in (columns.chosen, "data")), None)
    prompt = [] if column is None or is_empty(row[column]) else read_turns(row[column], column)
    if columns.prompt and isinstance(row.get(columns.prompt), list):
        prompt = read_turns(row[columns.prompt], columns.prompt)
    sides = [_side(value, name) for value, name in zip(values, (columns.chosen, columns.rejected), strict=True)]
    if columns.chosen in MESSAGE_COLUMNS and not isinstance(values[1], list):
        sides[1] = [*sides[0][:-1], *sides[1]]  # a worse answer to the conversation of the better one
    remarks: tuple[str, ...] = ()
    unused = pop_unused([*prompt, *sides[0], *sides[1]])
    shared = []
    while all(len(side) > 1 for side in sides) and sides[0][0] == sides[1][0]:
        shared.append(sides[0][0])
        sides = [side[1:] for side in sides]
    # Whole dialogues may repeat the prompt, and `messages` may be the prompt with its better answer (UltraFeedback).
    repeated = (index for index in range(len(prompt)) if shared and prompt[index : index + len(shared)] == shared)
    prompt = prompt[: next(repeated, len(prompt))] + shared
    if not prompt and columns.prompt:
        prompt, remarks = read_question(row, columns)
    elif not prompt and columns.history:
        prompt = read_history(row, columns)
    if not prompt:
        raise RowProblem("no 'prompt'")
    sides = [
        [*side[:-1], with_thoughts_of(side[-1], row, column)] if side else side
        for side, column in zip(sides, thoughts, strict=True)
    ]
    for side in sides:
        if any(message.get("weight") == 0 for message in side):
            raise RowProblem("a side has a turn without loss")
        example = make_conversation([dict(message) for message in prompt] + side, row, columns, remarks)
    if sides[0] == sides[1]:
        raise RowProblem("chosen and rejected are the same")
    messages = example.pop("messages")  # with the system turn
    if unused:
        example["unused"] = unused + example.get("unused", [])
    return {"prompt": messages[: len(messages) - len(sides[1])], "chosen": sides[0], "rejected": sides[1], **example}


def _sides(row: Row, columns: Columns) -> list[Any]:
    if columns.chosen == BETTER:
        better = str(row.get(BETTER))
        if better not in ("0", "1"):
            raise RowProblem(f"{BETTER!r} is neither 0 nor 1", better)
        names = (f"response_{better}", f"response_{1 - int(better)}")
    else:
        names = (columns.chosen or CHOSEN[0], columns.rejected or REJECTED)
    for name in names:
        if row.get(name) is None:
            raise RowProblem(f"no {name!r}")
    return [row[name] if isinstance(row[name], (list, dict)) else answer_of(row, name)[0] for name in names]


def _side(value: Any, column: str) -> list[Message]:
    """The turns of one side: a turn, a list of them, a whole dialogue with its speakers, or a bare answer."""
    if isinstance(value, list) and len(value) > 1 and all(isinstance(answer, str) for answer in value):
        raise RowProblem(f"{column!r} holds several answers; write a row for each")
    if isinstance(value, (list, dict)):
        return read_turns(value if isinstance(value, list) else [value], column)
    return read_dialogue(value, with_loose=False) or [{"role": "assistant", "content": value}]


def fill_sides(columns: Columns, row: Row) -> Columns:
    """`columns` with those of the prompt, of both sides and of their thoughts."""
    chosen, rejected = sides_of(row) or (CHOSEN[0], REJECTED)
    rest = {name: row[name] for name in row if name not in (chosen, rejected)}
    prompt = columns.prompt or pair_of(rest)[0] or prompt_of(rest)
    if prompt in CONTEXT_COLUMNS and isinstance(rest.get(prompt), list):  # the turns before the answers
        columns, prompt = replace(columns, history=columns.history or prompt), None
    columns = replace(columns, prompt=prompt, chosen=chosen, rejected=rejected)
    if columns.thoughts == NO_COLUMN:
        return columns
    chosen, rejected = (
        next(filter(None, (thoughts_name(row, of) for of in names)), None) for names in (CHOSEN, (REJECTED,))
    )
    return replace(columns, thoughts=chosen, rejected_thoughts=rejected)


def from_unpaired(row: Row, columns: Columns, convert: Callable[[Row, Columns], Example]) -> Example:
    """The conversation that `convert` makes of a row, split before what its label judges."""
    label = _label(row, columns)
    if turns := read_prompt_and_completion(row, columns):
        prompt, completion = turns
        example = make_conversation(prompt + completion, row, columns)
        if not completion:
            raise RowProblem("empty answer")
    else:
        example = convert(row, columns)
        completion = example["messages"][-1:]
    messages = example.pop("messages")
    size = len(messages) - len(completion)
    return {"prompt": messages[:size], "completion": messages[size:], "label": label, **example}


def _label(row: Row, columns: Columns) -> bool:
    name, value = columns.label, row.get(columns.label)
    if value is None or value == "":
        raise RowProblem(f"no {name!r}")
    if columns.threshold is None:
        label = LABELS.get(str(value).strip().lower())
        if label is None:
            reason = f"{name!r} is neither true nor false (from which number on: --label_threshold)"
            raise RowProblem(reason, repr(value))
        return label
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise RowProblem(f"{name!r} is not a number", repr(value))
    low = columns.threshold if columns.low is None else columns.low
    if low <= number < columns.threshold:
        raise FilteredRow(f"{name} from {low:g} to below {columns.threshold:g}, neither good nor bad")
    return number >= columns.threshold
