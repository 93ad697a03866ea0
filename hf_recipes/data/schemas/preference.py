"""Rows of better and worse answers: pairs as `prompt`, `chosen`, `rejected`; single ones as `prompt`, `completion`,
`label`."""

import math
from collections.abc import Callable
from dataclasses import replace

from hf_recipes.data.schemas.chat import make_conversation, read_prompt_and_completion, with_thoughts_of
from hf_recipes.data.schemas.columns import NO_COLUMN, Columns, Example, Row, optional, text_of
from hf_recipes.data.schemas.conversation import FilteredRow, RowProblem, read_turns, thoughts_name

CHOSEN, REJECTED = ("chosen", "selected"), "rejected"
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def from_preference(row: Row, columns: Columns) -> Example:
    thoughts, columns = (columns.thoughts, columns.rejected_thoughts), replace(columns, reads="examples", thoughts=None)
    chosen = next((name for name in CHOSEN if name in row), CHOSEN[0])
    for name in (chosen, REJECTED):
        if row.get(name) is None:
            raise RowProblem(f"no {name!r}")
    column = next((name for name in ("conversations", "messages") if isinstance(row.get(name), list)), None)
    if column is not None and isinstance(row[chosen], dict):  # the prompt, with one turn a side
        keys = ("role", "content") if "role" in row[chosen] else ("from", "value")
        prompt = read_turns(row[column], column, *keys)
        sides = [read_turns([row[name]], name, *keys) for name in (chosen, REJECTED)]
    elif isinstance(row[chosen], list):
        prompt = row.get("prompt")
        prompt = read_turns(prompt, "prompt", "role", "content") if isinstance(prompt, list) else []
        sides = [read_turns(row[name], name, "role", "content") for name in (chosen, REJECTED)]
        while all(len(side) > 1 for side in sides) and sides[0][0] == sides[1][0]:
            prompt.append(sides[0][0])
            sides = [side[1:] for side in sides]
    else:
        prompt = [{"role": "user", "content": text_of(row, columns.prompt or "prompt", "prompt")}]
        sides = [[{"role": "assistant", "content": text_of(row, name, "answer")}] for name in (chosen, REJECTED)]
    sides = [
        [*side[:-1], with_thoughts_of(side[-1], row, column)] if side else side
        for side, column in zip(sides, thoughts, strict=True)
    ]
    for side in sides:
        example = make_conversation(prompt + side, row, columns, optional(row, "tools"))
    if sides[0] == sides[1]:
        raise RowProblem("chosen and rejected are the same")
    messages = example.pop("messages")  # with the system turn
    return {"prompt": messages[: len(messages) - len(sides[1])], "chosen": sides[0], "rejected": sides[1], **example}


def fill_sides(columns: Columns, row: Row) -> Columns:
    """`columns` with those of the thoughts of both sides."""
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
        example = make_conversation(prompt + completion, row, columns, optional(row, "tools"))
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
