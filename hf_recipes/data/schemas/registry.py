"""Rows of any known shape as TRL's example forms: `messages`, `prompt`/`chosen`/`rejected`,
`prompt`/`completion`/`label`, or `text`.

A schema is one small function from a row to an example. It raises `RowProblem` for a row that it cannot take, and
repairs nothing.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.data.schemas.conversation import (
    Message,
    NotAsked,
    RowProblem,
    check_conversation,
    read_tools,
    read_turns,
)

Row = Mapping[str, Any]

# Kept beside the example for evaluation; the model never sees them.
META_COLUMNS = ("answer_choices", "task_type", "type", "task_dataset", "sample_id")
# Columns of single-turn data in the order in which they are looked for.
PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("query", "response"),
    ("question", "answer"),
    ("user", "assistant"),
    ("context", "target"),
    ("instruction", "output"),
    ("input", "target"),
    ("input", "output"),
    ("问", "答"),
)
MESSAGE_COLUMNS = ("messages", "dialog", "conversation")
REJECTED = "rejected"
CHOSEN = ("chosen", "selected")
SIDES = ("chosen", "rejected")  # of an example
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True)
class Columns:
    """What the user said of the columns; None where the schema decides."""

    schema: str | None = None
    prompt: str | None = None
    response: str | None = None
    history: str | None = None
    system_prompt: str | None = None
    label: str | None = None  # whether an answer is a good one, or, with a threshold, how good it is
    threshold: float | None = None
    low: float | None = None


@dataclass(frozen=True)
class Schema:
    """A named mapper; `form` is the kind of example that it makes: messages, preference, unpaired or text."""

    name: str
    form: str
    convert: Callable[[Row, Columns], dict[str, Any]]


def text_of(row: Row, column: str, what: str) -> str:
    value = row.get(column)
    if value is None:
        raise RowProblem(f"no {column!r}")
    if not isinstance(value, str):
        raise RowProblem(f"{column!r} is a {type(value).__name__}, not text")
    if not value.strip():
        raise RowProblem(f"empty {what}")
    return value


def _optional(row: Row, column: str | None) -> Any:
    value = row.get(column) if column else None
    return None if value is None or value == [] or (isinstance(value, str) and not value.strip()) else value


def _single_turn(row: Row, columns: Columns, prompt: str, response: str) -> dict[str, Any]:
    messages = _history(_optional(row, columns.history))
    messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return _conversation(messages, row, columns)


def _history(pairs: Any) -> list[Message]:
    if pairs is None:
        return []
    if isinstance(pairs, str):
        try:
            pairs = json.loads(pairs)
        except ValueError:
            raise RowProblem("history is not a list of [question, answer] pairs") from None
    if not isinstance(pairs, list) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise RowProblem("history is not a list of [question, answer] pairs")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _conversation(messages: list[Message], row: Row, columns: Columns, tools: Any = None) -> dict[str, Any]:
    if messages and messages[0]["role"] != "system":
        system = _optional(row, "system") or columns.system_prompt
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
    check_conversation(messages)
    example: dict[str, Any] = {"messages": messages}
    if tools is not None and (described := read_tools(tools)):
        example["tools"] = described
    return example


def _from_prompt_response(row: Row, columns: Columns) -> dict[str, Any]:
    prompt, response = columns.prompt, columns.response
    return _single_turn(row, columns, text_of(row, prompt, "prompt"), text_of(row, response, "answer"))


def _from_alpaca(row: Row, columns: Columns) -> dict[str, Any]:
    prompt = text_of(row, "instruction", "prompt")
    extra = _optional(row, "input")
    if extra is not None:
        prompt = f"{prompt}\n{text_of(row, 'input', 'input')}"
    columns = columns if columns.history else replace(columns, history="history")
    return _single_turn(row, columns, prompt, text_of(row, "output", "answer"))


def _from_sharegpt(row: Row, columns: Columns) -> dict[str, Any]:
    messages = read_turns(row.get("conversations"), "conversations", "from", "value")
    return _conversation(messages, row, columns, _optional(row, "tools"))


def _from_messages(row: Row, columns: Columns) -> dict[str, Any]:
    names = (*MESSAGE_COLUMNS, "conversations")
    column = next((name for name in names if row.get(name) is not None), "messages")
    return _conversation(read_turns(row.get(column), column, "role", "content"), row, columns, _optional(row, "tools"))


def _from_preference(row: Row, columns: Columns) -> dict[str, Any]:
    chosen_column = next((name for name in CHOSEN if name in row), CHOSEN[0])
    named = [(name, row.get(name)) for name in (chosen_column, REJECTED)]
    for name, side in named:
        if side is None:
            raise RowProblem(f"no {name!r}")
    column = next((name for name in ("conversations", "messages") if isinstance(row.get(name), list)), None)
    if column is not None and isinstance(row[chosen_column], dict):  # the prompt, with one turn a side
        keys = ("role", "content") if "role" in row[chosen_column] else ("from", "value")
        prompt = read_turns(row[column], column, *keys)
        sides = [read_turns([side], name, *keys) for name, side in named]
    elif isinstance(row[chosen_column], list):
        prompt = row.get("prompt")
        prompt = read_turns(prompt, "prompt", "role", "content") if isinstance(prompt, list) else []
        sides = [read_turns(side, name, "role", "content") for name, side in named]
        while all(len(side) > 1 for side in sides) and sides[0][0] == sides[1][0]:
            prompt.append(sides[0][0])
            sides = [side[1:] for side in sides]
    else:
        prompt = [{"role": "user", "content": text_of(row, columns.prompt or "prompt", "prompt")}]
        sides = [[{"role": "assistant", "content": text_of(row, name, "answer")}] for name in (chosen_column, REJECTED)]
    for side in sides:
        example = _conversation(prompt + side, row, columns, _optional(row, "tools"))
    messages = example.pop("messages")
    if sides[0] == sides[1]:
        raise RowProblem("chosen and rejected are the same")
    return {"prompt": messages[: len(messages) - len(sides[-1])], "chosen": sides[0], "rejected": sides[1], **example}


def _from_unpaired(row: Row, columns: Columns) -> dict[str, Any]:
    """`columns.schema` is that of the conversation."""
    label = _label(row, columns)
    prompt, completion = row.get(columns.prompt), row.get(columns.response)
    if isinstance(prompt, list) and isinstance(completion, list):
        after = read_turns(completion, columns.response, "role", "content")
        before = read_turns(prompt, columns.prompt, "role", "content")
        example = _conversation(before + after, row, columns, _optional(row, "tools"))
        if not after:
            raise RowProblem("empty answer")
    else:
        example = SCHEMAS[columns.schema].convert(row, columns)
        after = example["messages"][-1:]
    messages = example.pop("messages")
    return {"prompt": messages[: -len(after)], "completion": after, "label": label, **example}


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
        raise NotAsked(f"{name} from {low:g} to below {columns.threshold:g}, neither good nor bad")
    return number >= columns.threshold


def _from_text(row: Row, columns: Columns) -> dict[str, Any]:
    return {"text": text_of(row, columns.prompt or "text", "text")}


SCHEMAS = {
    schema.name: schema
    for schema in (
        Schema("prompt_response", "messages", _from_prompt_response),
        Schema("promptcblue", "messages", _from_prompt_response),
        Schema("alpaca", "messages", _from_alpaca),
        Schema("sharegpt", "messages", _from_sharegpt),
        Schema("messages", "messages", _from_messages),
        Schema("preference", "preference", _from_preference),
        Schema("unpaired", "unpaired", _from_unpaired),
        Schema("text", "text", _from_text),
    )
}


def find_schema(row: Row, columns: Columns, path: str) -> tuple[Schema, Columns]:
    """The schema of the file that begins with `row`, and `columns` with what was found filled in.

    Raises:
        UserError: a named column that is not there (those that are get listed), or a shape that is not known.
    """
    present = list(row)
    if columns.label or "unpaired" in (columns.schema, columns.schema or detect(row, columns, present)):
        return _find_unpaired(row, columns, path)
    for flag, name in (
        ("--prompt_column", columns.prompt),
        ("--response_column", columns.response),
        ("--history_column", columns.history),
    ):
        if name is not None and name not in present:
            raise UserError(f"{path}: {flag} {name!r} is not a column; there are {', '.join(present)}")
    name = columns.schema or detect(row, columns, present)
    if name is None:
        raise UserError(
            f"{path}: no known schema in the columns {', '.join(present)}; name them with --prompt_column and "
            f"--response_column, or choose --schema {' | '.join(SCHEMAS)}"
        )
    if name not in ("prompt_response", "promptcblue"):
        return SCHEMAS[name], columns
    pair = ("input", "target") if name == "promptcblue" else None
    pair = pair or next((p for p in PAIRS if p[0] in present and p[1] in present), (None, None))
    columns = replace(columns, prompt=columns.prompt or pair[0], response=columns.response or pair[1])
    for flag, column in (("--prompt_column", columns.prompt), ("--response_column", columns.response)):
        if column not in present:
            raise UserError(f"{path}: which column is it? {flag} must name one of {', '.join(present)}")
    return SCHEMAS[name], columns


def _find_unpaired(row: Row, columns: Columns, path: str) -> tuple[Schema, Columns]:
    """The schema of the conversation, whose name becomes that of the columns, and the column of the label."""
    label = columns.label or "label"
    inner = None if columns.schema == "unpaired" else columns.schema
    rest = {name: value for name, value in row.items() if name not in ("label", label)}
    schema, found = find_schema(rest, replace(columns, schema=inner, label=None), path)
    if schema.form != "messages":
        return schema, found
    if label not in row:
        raise UserError(f"{path}: which column says what is good? --label_column must name one of {', '.join(row)}")
    return SCHEMAS["unpaired"], replace(found, schema=schema.name, label=label)


def detect(row: Row, columns: Columns, present: Collection[str]) -> str | None:
    if columns.response:
        return "prompt_response"
    if REJECTED in present and any(name in present for name in CHOSEN):
        return "preference"
    if isinstance(row.get("label"), bool) and ("messages" in present or {"prompt", "completion"} <= set(present)):
        return "unpaired"
    for column in (*MESSAGE_COLUMNS, "conversations"):
        if isinstance(row.get(column), list):
            turn = row[column][0] if row[column] else {}
            return "messages" if isinstance(turn, dict) and "role" in turn else "sharegpt"
    if "input" in present and "target" in present and any(name in present for name in META_COLUMNS):
        return "promptcblue"
    if "instruction" in present and "output" in present:
        return "alpaca"
    if any(a in present and b in present for a, b in PAIRS):
        return "prompt_response"
    if REJECTED in present or CHOSEN[0] in present:  # a side is missing, which each row then says
        return "preference"
    return "text" if "text" in present or columns.prompt else None


def metadata(row: Row) -> dict[str, Any]:
    """The columns of `row` that evaluation needs (`META_COLUMNS` and `source`), under one name each."""
    meta = {name: row[name] for name in (*META_COLUMNS, "source") if row.get(name) not in (None, "", [])}
    if "type" in meta:
        meta.setdefault("task_type", meta.pop("type"))
    return meta
