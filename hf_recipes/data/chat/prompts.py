"""Rows of any known shape as prompts, with the reference answer where a row has one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.errors import say
from hf_recipes.core.ledger import KEPT, Ledger, is_dropped, row_status
from hf_recipes.data.chat.encoder import ChatEncoder, last_question
from hf_recipes.data.chat.templates.template import has_answer
from hf_recipes.data.conversations.cells import is_empty
from hf_recipes.data.conversations.conversation import Message, RowProblem, with_thoughts
from hf_recipes.data.conversations.thoughts import ThoughtMarks
from hf_recipes.data.examples import described, fitting_columns, schema_of
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.source import Record, Source
from hf_recipes.data.files.sources import SEED, find_sources
from hf_recipes.data.schemas.columns import Columns, Row, Schema, status_of
from hf_recipes.data.schemas.registry import metadata
from hf_recipes.data.tokenized import Encoded

TextAs = Literal["continuation", "question"]
ROWS = 256  # encoded at a time


@dataclass
class Prompt:
    """One prompt: `ids` to continue, `length` before truncation; `question` is its last user turn, or the text.

    `messages` are all turns of a conversation before the answer, `tools` what its prompt describes; `row` is the row of
    the file, `source` the name of its source.
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
    tools: list | None = None
    source: str = ""

    @classmethod
    def of(
        cls, record: Record, ids: np.ndarray, question: str, *, reference=None, messages=None, length: int, tools=None
    ):
        meta, is_chat = metadata(record.value) or None, messages is not None
        return cls(record.location, ids, question, reference, meta, is_chat, messages, record.value, length, tools)

    def trim(self, text: str) -> str:
        """A generated `text` without half a character at its end and, in a chat, without white space around it."""
        text = text.rstrip("\ufffd")
        return text.strip() if self.is_chat else text


class PromptReader:
    """The rows of files as prompts, in order, each time that it is iterated.

    The prompt of a conversation is all before the last answer (or all, where it ends with a question), as the chat
    template shows it to a model that has to answer. Rows of bare text (columns `text` or `content`, lines of a .txt)
    are continued by the model, or, with ``text_as="question"``, are a user turn.

    Args:
        specs: as for `parse_spec`; of a data set on a hub, `split` is read.
        seed: draws the rows of ``file#500``.
        max_source_length: tokens of a prompt. A conversation over it loses its oldest turns first (see `ChatEncoder`),
            a bare text its beginning.
        budgets: keywords of `ChatEncoder` with which a run was trained. With one of the answer's, rows are left out
            that the run could not train on; else each row with a question is a prompt.
        may_lack: a file may lack the columns and the schema that `columns` name; see `fitting_columns`.
    """

    def __init__(
        self,
        specs: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        columns: Columns | None = None,
        *,
        text_as: TextAs = "continuation",
        max_source_length: int | None = None,
        budgets: Mapping[str, Any] | None = None,
        may_lack: bool = False,
        split: str = "test",
        cache_dir: str | None = None,
        encoding: str | None = None,
        seed: int = SEED,
    ):
        self.tokenizer, self.max_source_length, self.text_as = tokenizer, max_source_length, text_as
        self._encoder: ChatEncoder | None = None
        self._as_trained = bool({"max_target_length", "max_length"} & set(budgets or ()))
        self.files: list[tuple[Source, Schema]] = []
        columns = replace(columns or Columns(), reads="prompts")
        for source in find_sources(specs, split, cache_dir, encoding=encoding, seed=seed):
            schema = schema_of(source, fitting_columns(source, columns) if may_lack else columns)
            is_bare = schema.form == "text" and text_as == "continuation"
            if not is_bare and self._encoder is None:
                settings = {"train_on": "last", **(budgets or {}), "max_source_length": max_source_length}
                self._encoder = ChatEncoder(tokenizer, **settings, keep_text=True)
            detail = ", continued as it is (--text_as question asks it)" if is_bare else ""
            say(f"{source.path}: {described(source, schema)}{detail}")
            self.files.append((source, schema))

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer or a call in the chat template, where one is used."""
        return self._encoder.stop_ids if self._encoder else []

    @property
    def marks(self) -> ThoughtMarks | None:
        """What stands around thoughts in the chat template, where one is used."""
        return self._encoder.template.marks if self._encoder else None

    @property
    def template(self) -> str | None:
        """The chat template, where one is used."""
        return self.tokenizer.chat_template if self._encoder else None

    def __iter__(self) -> Iterator[tuple[Record, Prompt | None, str]]:
        """Each row of the files, its prompt (None where it is dropped), and its status."""
        for source, schema in self.files:
            rows = read_records(source)
            while records := list(islice(rows, ROWS)):
                prompts, statuses = self._read(records, schema)
                for prompt in filter(None, prompts):
                    prompt.source = source.name
                yield from zip(records, prompts, statuses, strict=True)

    def _read(self, records: Sequence[Record], schema: Schema) -> tuple[list[Prompt | None], list[str]]:
        prompts: list[Prompt | None] = [None] * len(records)
        statuses = [KEPT] * len(records)
        chats: dict[int, tuple[list[Message], list | None]] = {}
        for index, record in enumerate(records):
            try:
                example = schema.read(record)
                statuses[index] = status_of(example)
                if schema.form != "text":
                    answer = example.get("chosen") or example.get("completion")
                    messages = example["prompt"] + answer if answer else example["messages"]
                    chats[index] = messages, example.get("tools")
                elif self.text_as == "question":
                    system = schema.columns.system_prompt
                    messages = [] if is_empty(system) else [{"role": "system", "content": system}]
                    chats[index] = [*messages, {"role": "user", "content": example["text"]}], None
                else:
                    text = example["text"]
                    ids, statuses[index], length = self._encode_text(text)
                    prompts[index] = Prompt.of(record, ids, text, length=length)
            except RowProblem as problem:
                statuses[index] = row_status("dropped", problem.reason)
        if not chats:
            return prompts, statuses
        conversations, tools = map(list, zip(*chats.values(), strict=True))
        encoded = self._encode(conversations, tools)
        for index, row, messages, of_row in zip(chats, encoded, conversations, tools, strict=True):
            statuses[index] = statuses[index] if row.status == KEPT else row.status
            if not is_dropped(row.status):
                prompts[index] = Prompt.of(
                    records[index],
                    row.input_ids[: row.prompt_length],
                    last_question(messages),
                    reference=row.reference,
                    messages=messages[:-1] if has_answer(messages) else messages,
                    length=row.full_prompt_length,
                    tools=of_row,
                )
        return prompts, statuses

    def _encode(self, conversations: list[list[Message]], tools: list[list | None]) -> list[Encoded]:
        """Conversations with their prompts; of an answer that the template cannot show, the reference is its text."""
        encoded = [row for row in self._encoder.encode(conversations, tools) if row.following == 0]
        if self._as_trained:
            return encoded
        rows = zip(encoded, conversations, strict=True)
        failed = [row for row, (one, chat) in enumerate(rows) if is_dropped(one.status) and has_answer(chat)]
        prompts = [conversations[row][:-1] for row in failed]
        for row, prompt in zip(failed, self._encoder.encode(prompts, [tools[row] for row in failed]), strict=True):
            if is_dropped(prompt.status):
                continue
            answer, (action, _, note) = with_thoughts(conversations[row][-1]), prompt.status.partition(": ")
            if not answer.get("tool_calls"):
                prompt.reference = answer["content"].strip()
            problem = encoded[row].status.removeprefix("dropped: ")
            notes = [note, f"the answer is not as the template shows it: {problem}"]
            prompt.status = row_status(action, ", ".join(filter(None, notes)))
            encoded[row] = prompt
        return encoded

    def _encode_text(self, text: str) -> tuple[np.ndarray, str, int]:
        tokenizer = self.tokenizer
        ids = tokenizer(text)["input_ids"]
        if ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
            ids = ids[:-1]  # some tokenizers put one after every text
        length = len(ids)
        over = length - (self.max_source_length or length)
        if over <= 0:
            return np.array(ids, np.int32), KEPT, length
        bos = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        ids = ids[len(bos) + over :]
        while len(ids) > 1 and tokenizer.decode(ids[:4]).startswith("\ufffd"):
            ids = ids[1:]  # the rest of a character
        return np.array(bos + ids, np.int32), row_status("truncated", "prompt cut"), length


def read_prompts(
    reader: PromptReader, max_drop_ratio: float = 0.01, limit: int | None = None
) -> tuple[list[Prompt], Ledger]:
    """All usable prompts of the first `limit` rows, and these rows' ledger, printed and checked by `max_drop_ratio`."""
    prompts, ledger = [], Ledger()
    for record, prompt, status in islice(reader, limit):
        ledger.add(record.location, status)
        prompts += [prompt] if prompt is not None else []
    say(ledger.table())
    ledger.check(max_drop_ratio)
    return prompts, ledger
