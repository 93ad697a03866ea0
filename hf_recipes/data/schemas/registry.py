"""Every shape of rows that is known, and which of them a file has.

Rows become TRL's example forms: `messages`, `prompt`/`chosen`/`rejected`, `prompt`/`completion`/`label`, or `text`.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.data.conversations.cells import is_empty, keys_of
from hf_recipes.data.conversations.turns import is_turn
from hf_recipes.data.schemas import chat, documents
from hf_recipes.data.schemas.column_names import (
    ANSWER_OF,
    ANSWERS,
    BETTER,
    LABEL_COLUMNS,
    MESSAGE_COLUMNS,
    QUESTIONS,
    REJECTED,
    SIDE_COLUMNS,
    SYSTEM_COLUMNS,
)
from hf_recipes.data.schemas.columns import NO_COLUMN, Columns, Reads, Row, Schema, read_choices
from hf_recipes.data.schemas.preference import (
    fill_sides,
    from_preference,
    from_unpaired,
    sides_of,
)


class UnknownSchema(UserError):
    """No schema has the columns of a file."""


SIDES = ("chosen", "rejected")  # of an example of the form preference
MOST_COLUMNS = 40  # that a message lists
# Kept next to the example for evaluation; the model never sees them.
META_COLUMNS = ("answer_choices", "task_type", "type", "task_dataset", "sample_id")

prompt_response = partial(Schema, "prompt_response", "messages", convert=chat.from_prompt_response, fill=chat.fill_pair)
alpaca = partial(Schema, "alpaca", "messages", convert=chat.from_prompt_response, fill=chat.fill_alpaca)
promptcblue = partial(
    Schema,
    "promptcblue",
    "messages",
    convert=chat.from_prompt_response,
    fill=lambda columns, row: replace(columns, prompt=columns.prompt or "input", response=columns.response or "target"),
)
preference = partial(Schema, "preference", "preference", convert=from_preference, fill=fill_sides)
text = partial(Schema, "text", "text", convert=documents.from_text, fill=documents.fill_text)
code = partial(Schema, "code", "text", convert=documents.from_code, fill=documents.fill_code, reads=("documents",))
article = partial(Schema, "article", "text", convert=documents.from_article, reads=("documents",))
baike = partial(Schema, "baike", "text", convert=documents.from_baike, reads=("documents",))
parallel = partial(Schema, "parallel", "text", convert=documents.from_parallel, reads=("documents",))
mnbvc = partial(Schema, "mnbvc", "text", convert=documents.from_mnbvc, reads=("documents",))


def _has_metadata(row: Row) -> bool:
    return any(name in row for name in META_COLUMNS)


# The first that matches is the schema of a row. One that is recognised in several ways stands here several times.
REGISTRY = (
    prompt_response(lambda columns, row: columns.response is not None),
    prompt_response(lambda columns, row: columns.prompt in row, reads=("prompts",)),
    code(lambda columns, row: documents.is_program(row)),
    text(lambda columns, row: columns.prompt is not None or "text" in row, reads=("documents",)),
    mnbvc(lambda columns, row: isinstance(row.get("段落"), list)),
    baike(lambda columns, row: "title" in row and "sections" in row),
    preference(lambda columns, row: sides_of(row) is not None),
    Schema(
        "unpaired",
        "unpaired",
        lambda columns, row: (
            isinstance(row.get("label"), bool) and ("messages" in row or {"prompt", "completion"} <= set(row))
        ),
        from_unpaired,
    ),
    Schema("messages", "messages", lambda columns, row: chat.turns_key(row) == "role", chat.from_messages),
    Schema("sharegpt", "messages", lambda columns, row: chat.turns_key(row) == "from", chat.from_messages),
    Schema("turns", "messages", lambda columns, row: chat.turns_key(row) == "", chat.from_messages),
    Schema(
        "xlam",
        "messages",
        lambda columns, row: {"query", "answers", "tools"} <= set(row),
        chat.from_calls,
        fill=lambda columns, row: replace(columns, prompt="query", response="answers"),
    ),
    promptcblue(lambda columns, row: "input" in row and "target" in row and _has_metadata(row)),
    alpaca(lambda columns, row: "instruction" in row and "output" in row),
    prompt_response(lambda columns, row: chat.pair_of(row) != (None, None)),
    preference(lambda columns, row: REJECTED in row or SIDE_COLUMNS[0][0] in row),  # each row says what is missing
    text(lambda columns, row: "text" in row or columns.prompt is not None, reads=("examples", "prompts")),
    text(lambda columns, row: "content" in row, reads=("prompts",)),
    parallel(lambda columns, row: len(documents.languages_of(row)) > 1),
    code(lambda columns, row: documents.is_text(row.get("code")) and not documents.has_text(row)),
    article(lambda columns, row: "title" in row and "content" in row),
    text(lambda columns, row: documents.has_text(row), reads=("documents",)),
    Schema(
        "turns",
        "messages",
        lambda columns, row: chat.other_turns(row) not in (None, chat.prompt_of(row)),
        chat.from_messages,
    ),
)


def _names(reads: Reads, forms: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(schema.name for schema in REGISTRY if reads in schema.reads and schema.form in forms))


SCHEMAS = _names("examples", ("messages", "preference", "unpaired", "text"))
DOCUMENT_SCHEMAS = _names("documents", ("messages", "text"))


def detect_schema(row: Row, columns: Columns, path: str) -> Schema:
    """The schema of the file that begins with `row`, with the columns that it reads."""
    row = {name: value for name, value in row.items() if name not in columns.ignored}
    more = f" and {len(row) - MOST_COLUMNS:,} more" if len(row) > MOST_COLUMNS else ""
    present = ", ".join(map(str, list(row)[:MOST_COLUMNS])) + more
    schema = _find(row, columns)
    if schema and schema.form == "text" and columns.reads == "examples" and is_turn(row):
        schema = None
    if columns.reads != "documents" and (columns.label or (schema and schema.name == "unpaired")):
        return _detect_unpaired(row, columns, path)
    for flag, name in _named(columns):
        if name not in row:
            raise UserError(f"{path}: {flag} {name!r} is not a column; there are {present}")
    if schema is None:
        if is_turn(row):
            raise UnknownSchema(f'{path}: each row is one turn; write a row for each conversation: {{"messages": […]}}')
        if row.keys() >= {"comment_id", "video_id"}:
            raise UnknownSchema(
                f"{path}: comments of a crawl; make conversations of its folder with prepare-bilibili, in the studio "
                "by Raw data and Import"
            )
        names = DOCUMENT_SCHEMAS if columns.reads == "documents" else SCHEMAS
        raise UnknownSchema(
            f"{path}: no known schema in the columns {present}; name them with --prompt_column and "
            f"--response_column, or choose --schema {' | '.join(names)}{first_row(row, columns.reads)}"
        )
    filled = schema.fill(columns, row)
    if schema.form in ("messages", "preference"):
        filled = chat.fill_surroundings(filled, row) if schema.form == "messages" else _fill_pair(filled, row)
    if schema.name in ("prompt_response", "alpaca") and columns.reads == "examples" and columns.response is None:
        chat.check_answers(filled, row, path)
    schema = named_schema(schema.name, filled, path)
    if schema.name in ("prompt_response", "promptcblue", "alpaca"):
        flags = {"--prompt_column": schema.columns.prompt, "--response_column": schema.columns.response}
        for flag, column in list(flags.items())[: 1 if columns.reads == "prompts" else 2]:
            if column not in row:
                raise UserError(f"{path}: which column is it? {flag} must name one of {present}")
    return schema


def kind_of(row: Row, columns: Columns) -> tuple | None:
    """What tells rows of one schema from those of another; None where no schema is known."""
    schema = _find(row, columns)
    if schema is None:
        return None
    filled = schema.fill(columns, row)
    answer = filled.response if columns.reads == "examples" else None
    name = "prompt_response" if schema.name == "promptcblue" else schema.name
    return (name, filled.chosen) if schema.form == "preference" else (name, filled.prompt, answer)


def _named(columns: Columns) -> list[tuple[str, str]]:
    """The flags that name a column, with these."""
    flags = (
        ("--prompt_column", columns.prompt),
        ("--response_column", columns.response),
        ("--history_column", columns.history),
        ("--thoughts_column", columns.thoughts),
    )
    return [(flag, name) for flag, name in flags if name not in (None, NO_COLUMN)]


def _fill_pair(columns: Columns, row: Row) -> Columns:
    """`columns` with those beside the two sides of a pair; their thoughts are known before."""
    filled = chat.fill_surroundings(replace(columns, thoughts=NO_COLUMN), row)
    return replace(filled, thoughts=columns.thoughts)


def first_row(row: Row, reads: Reads = "examples") -> str:
    """The flags that would read the first row, and the columns that they would leave out."""
    names = _filled(row)
    if turns := [name for name in names if chat.holds_turns(row[name])]:
        return f"; there are turns in {', '.join(turns)}: rename {'it' if len(turns) == 1 else 'one'} messages"
    texts = [name for name in names if isinstance(row[name], str) and {*keys_of(name)}.isdisjoint(SYSTEM_COLUMNS)]
    if reads == "documents" and texts:
        longest = max(texts, key=lambda name: len(row[name]))
        left = ", ".join(name for name in names if name != longest)
        return f"; such as --prompt_column {longest}" + (f", without {left}" if left else "")
    worded = [name for name in texts if re.search(r"[^\W\d_]", row[name])]
    texts = worded if len(worded) > 1 else texts  # a number that a csv has as text is no question
    if len(names) < 2 and texts:
        return ""
    if not texts:
        return f"; no text is in {', '.join(names)}: write the turns of a row as a list in one column, messages" * any(
            names
        )
    questions = [name for name in texts if _words(name) & set(QUESTIONS)]
    answers = [name for name in names if _words(name) & set(ANSWERS)]
    prompt = next(iter([*questions, *(name for name in texts if name not in answers), *texts]))
    response = next((name for name in [*answers, *texts[::-1]] if name != prompt), None)
    if response is None:
        lists = ", ".join(name for name in names if isinstance(row[name], list))
        return f"; where the turns are in {lists}, rename it messages" * bool(lists)
    filled = vars(chat.fill_surroundings(Columns(prompt=prompt, response=response), row)).values()
    hint = f"; its texts are in {', '.join(texts)}, such as --prompt_column {prompt} --response_column {response}"
    if left := [name for name in names if name not in filled]:
        hint += (
            f", without {', '.join(left)}: rename what belongs to the row context, system or thoughts, and of two "
            "answers the better one chosen, the other rejected"
        )
    return hint


def better_alone(columns: Columns, row: Row) -> str:
    """The flags with which the better answers of pairs alone are trained on."""
    if columns.chosen == BETTER:
        return "train on pairs with dpo.py or reward.py"
    if columns.chosen in MESSAGE_COLUMNS:
        flags = ""
    elif columns.prompt is None and chat.holds_turns(row.get(columns.chosen)):
        flags = "--schema turns "
    else:
        turns = next((name for name in MESSAGE_COLUMNS if name in row), None)
        question = columns.prompt or columns.history or turns
        if question is None:
            return (
                f"to train on the better answers alone: rename {columns.chosen} messages and leave the worse ones out"
            )
        flags = f"--prompt_column {question} --response_column {columns.chosen} "
    return f"to train on the better answers alone: {flags}--ignore_columns {columns.rejected}"


def as_pair(row: Row, columns: Columns) -> str:
    """Which columns to rename so that `row` is a pair."""
    prompt = columns.prompt or chat.prompt_of(row) or next((name for name in MESSAGE_COLUMNS if name in row), None)
    known = vars(chat.fill_surroundings(Columns(prompt=prompt), row)).values()
    sides = [name for name in _filled(row) if name not in known and not str(row[name]).isnumeric()]
    if prompt and len(sides) < 2:
        return "a row needs two answers, the better one chosen and the other rejected"
    which = f"of {sides[0]} and {sides[1]}" if prompt and len(sides) == 2 else "of the two answers' columns"
    question = "" if prompt else ", and name that of the question with --prompt_column"
    return f"rename {which} the better one chosen and the other rejected{question}"


def _filled(row: Row) -> list[Any]:
    """The columns that hold something to read, and no number."""
    names = [name for name in row if isinstance(row[name], (str, list, dict)) and not is_empty(row[name])]
    return [name for name in names if name not in (*META_COLUMNS, "source") and "id" not in _words(name)]


def _words(name: Any) -> set[str]:
    """The words of a column's name, in the singular."""
    return {word.removesuffix("s") for word in re.split(r"[\W_]+", keys_of(name)[0])}


def _find(row: Row, columns: Columns) -> Schema | None:
    schemas = [schema for schema in REGISTRY if columns.reads in schema.reads]
    if columns.schema:
        return next((schema for schema in schemas if schema.name == columns.schema), None)
    matching = next((schema for schema in schemas if schema.matches(columns, row)), None)
    if matching is None and columns.reads == "prompts" and (prompt := chat.prompt_of(row)):
        row = {**row, ANSWER_OF.get(prompt, "response"): None}  # the answer that a prompt may lack
        matching = next((schema for schema in schemas if schema.matches(columns, row)), None)
    return matching


def named_schema(name: str, columns: Columns, path: str = "") -> Schema:
    """The schema of a name, for the columns that were detected before."""
    schema = _find({}, replace(columns, schema=name))
    if columns.reads == "documents":
        if schema.name not in DOCUMENT_SCHEMAS:
            raise UserError(f"{path}: its schema is {name}, which no document can be made of")
        schema = documents.as_document(schema)
    return replace(schema, columns=columns)


def _detect_unpaired(row: Row, columns: Columns, path: str) -> Schema:
    """The schema of the conversation, whose name becomes that of the columns, and the column of the label."""
    label = columns.label or "label"
    if label == "label" and label not in row:
        label = next((name for name in LABEL_COLUMNS if isinstance(row.get(name), bool)), label)
    name = None if columns.schema == "unpaired" else columns.schema
    rest = {name: value for name, value in row.items() if name not in ("label", label)}
    conversation = detect_schema(rest, replace(columns, schema=name, label=None, reads="examples"), path)
    if conversation.form != "messages":
        return conversation
    if label not in row:
        raise UserError(f"{path}: which column says what is good? --label_column must name one of {', '.join(row)}")
    columns = replace(conversation.columns, schema=conversation.name, label=label)
    return replace(named_schema("unpaired", columns), convert=partial(from_unpaired, convert=conversation.convert))


def metadata(row: Row) -> dict[str, Any]:
    """The columns of `row` that evaluation needs (`META_COLUMNS` and `source`), under one name each."""
    meta = {name: row[name] for name in (*META_COLUMNS, "source") if row.get(name) not in (None, "", [])}
    if "type" in meta:
        meta.setdefault("task_type", meta.pop("type"))
    if "answer_choices" in meta:
        meta["answer_choices"] = read_choices(meta["answer_choices"])
    return meta
