"""Rows of any known shape as prompts: what a model is asked, and, where a row has it, what it should answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.errors import say
from hf_recipes.core.ledger import KEPT, Ledger, is_dropped, row_status
from hf_recipes.data.chat.encoder import ChatEncoder, last_question
from hf_recipes.data.examples import find_plan
from hf_recipes.data.files.records import Record, read_records
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.schemas.conversation import ROLES, Message, RowProblem
from hf_recipes.data.schemas.registry import (
    MESSAGE_COLUMNS,
    PAIRS,
    Columns,
    Row,
    Schema,
    detect,
    find_schema,
    metadata,
)

TextAs = Literal["continuation", "question"]
ANSWER = "。"  # stands for an answer that a row does not have, for templates show no conversation without one
ROWS = 256  # encoded at a time


@dataclass
class Prompt:
    """One prompt: `ids` to continue, of `length` before any were cut; `question` is its last user turn, or the text.

    `messages` are, of a conversation, all turns before the answer; `row` is what was read.
    """

    location: str
    ids: np.ndarray
    question: str
    reference: str | None
    meta: dict[str, Any] | None
    is_chat: bool
    messages: list[Message] | None = None
    row: Row | None = None
    length: int = 0

    def trim(self, text: str) -> str:
        """`text` without half a character at its end, and as an answer without white space around it."""
        text = text.rstrip("\ufffd")
        return text.strip() if self.is_chat else text


class PromptReader:
    """The rows of files as prompts, in order, each time that it is iterated.

    Of a conversation, the prompt is all before the last answer (or the whole, where it ends with a question), as the
    chat template shows it to a model that has to answer. Rows of bare text (columns `text` or `content`, lines of a
    .txt) are what the model continues, or, with ``text_as="question"``, a user turn.

    Args:
        specs: files, globs, folders or Hub ids, of which `split` is read.
        max_source_length: tokens of a prompt. Of a conversation over it the oldest turns go first (see `ChatEncoder`),
            of a bare text its beginning.

    Raises:
        UserError: a source that cannot be read or whose shape is not known, or conversations for a tokenizer without a
            chat template.
    """

    def __init__(
        self,
        specs: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        columns: Columns | None = None,
        *,
        text_as: TextAs = "continuation",
        max_source_length: int | None = None,
        split: str = "test",
        cache_dir: str | None = None,
    ):
        self.tokenizer, self.max_source_length, self.text_as = tokenizer, max_source_length, text_as
        self._encoder: ChatEncoder | None = None
        self.planned = []
        for source in find_sources(specs, split, cache_dir):
            schema, found = find_plan(source, columns or Columns(), find_prompt_schema)
            is_bare = schema.form == "text" and text_as == "continuation"
            if not is_bare and self._encoder is None:
                self._encoder = ChatEncoder(tokenizer, max_source_length=max_source_length, keep_text=True)
            column = found.prompt or ("text" if schema.form == "text" else None)
            detail = f" ({column})" if column else ""
            detail += ", continued as it is (--text_as question asks it)" if is_bare else ""
            say(f"{source.path}: schema {schema.name}{detail}")
            self.planned.append((source, schema, found))

    @property
    def stop_ids(self) -> list[int]:
        """The token that ends an answer in the chat template, where one is used."""
        return [self.tokenizer.convert_tokens_to_ids(self._encoder.end_of_turn)] if self._encoder else []

    @property
    def template(self) -> str | None:
        """The chat template, where one is used."""
        return self.tokenizer.chat_template if self._encoder else None

    def __iter__(self) -> Iterator[tuple[Record, Prompt | None, str]]:
        """Each row as it was read, its prompt (None where it has none that can be used), and its fate."""
        for source, schema, columns in self.planned:
            rows = read_records(source)
            while records := list(islice(rows, ROWS)):
                yield from zip(records, *self._read(records, schema, columns), strict=True)

    def _read(
        self, records: Sequence[Record], schema: Schema, columns: Columns
    ) -> tuple[list[Prompt | None], list[str]]:
        prompts: list[Prompt | None] = [None] * len(records)
        statuses = [KEPT] * len(records)
        asked: dict[int, tuple[list[Message], list | None, bool]] = {}
        for index, record in enumerate(records):
            try:
                if record.value is None:
                    raise RowProblem(record.problem)
                row = _with_answer(record.value, schema, columns)
                example = schema.convert(row or record.value, columns)
                if schema.form != "text":
                    answer = next((example[name] for name in ("chosen", "completion") if name in example), None)
                    messages = example["messages"] if answer is None else example["prompt"] + answer
                    asked[index] = messages, example.get("tools"), row is None
                elif self.text_as == "question":
                    system = [{"role": "system", "content": columns.system_prompt}] if columns.system_prompt else []
                    asked[index] = [*system, _turn("user", example["text"]), _turn("assistant", ANSWER)], None, False
                else:
                    ids, statuses[index], length = self._encode_text(example["text"])
                    meta = metadata(record.value) or None
                    text, row = example["text"], record.value
                    prompts[index] = Prompt(
                        record.location, ids, text, None, meta, is_chat=False, row=row, length=length
                    )
            except RowProblem as problem:
                statuses[index] = row_status("dropped", problem.reason)
        if asked:
            conversations, tools, answered = zip(*asked.values(), strict=True)
            encoded = self._encoder.encode(list(conversations), tools)
            for index, row, messages, is_answered in zip(asked, encoded, conversations, answered, strict=True):
                statuses[index], record = row.status, records[index]
                if not is_dropped(row.status):
                    ids, reference = row.input_ids[: row.prompt_length], row.reference if is_answered else None
                    meta = metadata(record.value) or None
                    prompts[index] = Prompt(
                        record.location,
                        ids,
                        last_question(messages),
                        reference,
                        meta,
                        is_chat=True,
                        messages=messages[:-1],
                        row=record.value,
                        length=row.full_prompt_length,
                    )
        return prompts, statuses

    def _encode_text(self, text: str) -> tuple[np.ndarray, str, int]:
        tokenizer = self.tokenizer
        ids = tokenizer(text)["input_ids"]
        if ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
            ids = ids[:-1]  # of a tokenizer that puts one behind every text
        length = len(ids)
        over = length - (self.max_source_length or length)
        if over <= 0:
            return np.array(ids, np.int32), KEPT, length
        bos = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        ids = ids[len(bos) + over :]
        while len(ids) > 1 and tokenizer.decode(ids[:4]).startswith("\ufffd"):
            ids = ids[1:]  # the rest of a character
        return np.array(bos + ids, np.int32), row_status("truncated", "prompt cut"), length


def read_prompts(reader: PromptReader, max_drop_ratio: float = 0.01) -> tuple[list[Prompt], Ledger]:
    """All usable prompts, and what became of every row, which is printed.

    Raises:
        UserError: more rows than `max_drop_ratio` allows cannot be used; the first are named.
    """
    prompts, ledger = [], Ledger()
    for record, prompt, status in reader:
        ledger.add(record.location, status)
        prompts += [prompt] if prompt is not None else []
    say(ledger.table())
    ledger.check(max_drop_ratio)
    return prompts, ledger


def find_prompt_schema(row: Row, columns: Columns, path: str) -> tuple[Schema, Columns]:
    """As `find_schema`, of rows that need have no answer, or that are text to continue in a column `content`."""
    pairs = dict(reversed(PAIRS))  # the first of each prompt column counts
    if columns.prompt in row and columns.response is None and columns.schema in (None, "prompt_response"):
        known = next((b for a, b in PAIRS if a == columns.prompt and b in row), None)
        columns = replace(columns, response=known or pairs.get(columns.prompt, "response"))
        return find_schema({columns.response: ANSWER, **row}, columns, path)
    if columns.prompt is None and "content" in row and "text" not in row:
        if columns.schema == "text" or (columns.schema is None and detect(row, columns, list(row)) is None):
            columns = replace(columns, schema="text", prompt="content")
    elif columns.schema in ("alpaca", "promptcblue", "prompt_response") or detect(row, columns, list(row)) is None:
        prompt = columns.prompt or next((a for a, _ in PAIRS if a in row), None)
        if columns.schema == "promptcblue":
            prompt = "input"
        if prompt is not None and not any((prompt, answer) in PAIRS for answer in row):
            row = {**row, columns.response or pairs.get(prompt, "response"): ANSWER}
    return find_schema(row, columns, path)


def _with_answer(row: Row, schema: Schema, columns: Columns) -> Row | None:
    """`row` with `ANSWER` in the place of the answer that it lacks; None where it has one."""
    if schema.name in ("alpaca", "prompt_response", "promptcblue"):
        column = "output" if schema.name == "alpaca" else columns.response
        return {**row, column: ANSWER} if _is_empty(row.get(column)) else None
    if schema.form != "messages":
        return None
    names = ("conversations",) if schema.name == "sharegpt" else (*MESSAGE_COLUMNS, "conversations")
    role_key, text_key = ("from", "value") if schema.name == "sharegpt" else ("role", "content")
    column = next((name for name in names if row.get(name) is not None), None)
    turns = row.get(column) if column else None
    if not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
        return None
    role = turns[-1].get(role_key)
    role = ROLES.get(role) if isinstance(role, str) else None
    answer = {role_key: "assistant", text_key: ANSWER}
    if role in ("user", "tool"):
        return {**row, column: [*turns, answer]}
    is_open = role == "assistant" and _is_empty(turns[-1].get(text_key)) and not turns[-1].get("tool_calls")
    return {**row, column: [*turns[:-1], answer]} if is_open and len(turns) > 1 else None


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}
