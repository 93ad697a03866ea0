"""Conversations → `input_ids` and unshifted `labels`: only here is decided what carries loss.

Loss is on what the model must say after the generation prompt: the assistant's turn and its end-of-turn token. The
conversation is rendered by the tokenizer's own chat template and tokenized as one text, so the ids are those of the
rendered text; a second rendering shows where each turn is in it (see `template`).
"""

import gc
import json
import os
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Json, List, Value
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import disk_problem, writing
from hf_recipes.core.ledger import KEPT, row_status
from hf_recipes.data.chat import template, token_offsets
from hf_recipes.data.chat.template import ChatTemplate, Rendered, has_answer
from hf_recipes.data.chat.token_offsets import Aligned, ByteAligned, OffsetAligned, PrefixAligned, byte_lengths
from hf_recipes.data.examples import fingerprint
from hf_recipes.data.schemas.conversation import Message

IGNORED = -100
FEATURES = {
    "input_ids": List(Value("int32")),
    "labels": List(Value("int32")),
    "prompt_length": Value("int32"),
    "status": Value("string"),
}


@dataclass
class Encoded:
    """One example: `input_ids` and `labels` of one length; the last answer begins at `prompt_length`.

    `full_prompt_length` is that before truncation. `reference` is, with `keep_text`, the whole answer as text.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    prompt_length: int
    status: str = KEPT
    reference: str | None = None
    full_prompt_length: int = 0


class ChatEncoder:
    """Encodes conversations for one tokenizer and one set of budgets.

    Args:
        tokenizer: with a chat template; fast or slow.
        train_on: ``"all"`` assistant turns carry loss, or only the ``"last"``.
        max_source_length: tokens before the last answer. Over it, the oldest exchanges go first, then text of the
            last user turn, on `truncation_side`; the template's own tokens and the system turn stay.
        max_target_length: tokens of the last answer. Over it, its end is cut; the end-of-turn token stays.
        max_length: tokens in all. Over it, the prompt is cut to half of it at the least, then the answer.
        keep_text: also return, for evaluation, the columns `question` (the last user turn), `reference` (the last
            answer as the template shows it: thoughts and tool calls as the model has to write them), and `messages`
            and `meta` unchanged.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        train_on: str = "all",
        max_source_length: int | None = None,
        max_target_length: int | None = None,
        max_length: int | None = None,
        truncation_side: str = "left",
        keep_text: bool = False,
    ):
        if tokenizer.chat_template is None:
            raise UserError("the tokenizer has no chat template; name one with --chat_template (chatml, …)")
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.max_source_length = max_source_length or sys.maxsize
        self.max_target_length = max_target_length or sys.maxsize
        self.max_length = max_length or sys.maxsize
        self.truncation_side = truncation_side
        self.keep_text = keep_text
        self.template = ChatTemplate(tokenizer)
        self._byte_lengths = byte_lengths(tokenizer)

    @property
    def end_of_turn(self) -> str:
        return self.template.end_of_turn

    @property
    def fingerprint(self) -> str:
        """A digest of all that ids and labels depend on: vocabulary, template, budgets, this code."""
        tokenizer = self.tokenizer
        state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
        settings = [self.train_on, self.max_source_length, self.max_target_length, self.max_length]
        settings += [self.truncation_side, self.keep_text, tokenizer.chat_template, str(tokenizer.special_tokens_map)]
        return fingerprint(
            type(tokenizer).__name__, state, settings, code=(sys.modules[__name__], token_offsets, template)
        )

    def encode(self, conversations: list[list[Message]], tools: Sequence[list | None] | None = None) -> list[Encoded]:
        """Encode a batch; a row that cannot be used comes back empty, with its status.

        A conversation that ends with a question becomes a prompt: all up to where the answer begins.
        """
        tools = tools or [None] * len(conversations)
        rendered = self.template.render_all(conversations, tools)
        aligned = self._align([row.text for row in rendered])
        return [self._finish(*row) for row in zip(rendered, aligned, conversations, tools, strict=True)]

    def _align(self, texts: list[str]) -> list[Aligned]:
        if not self.tokenizer.is_fast:
            return [PrefixAligned(text, self.tokenizer) for text in texts]
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        if self._byte_lengths is None:
            encodings = backend.encode_batch(texts, add_special_tokens=False)
            return [OffsetAligned(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]
        aligned: list[Aligned] = []
        for text, encoding in zip(texts, backend.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            row = ByteAligned(text, np.array(encoding.ids, dtype=np.int32), self._byte_lengths)
            aligned.append(row if row.is_exact else OffsetAligned(text, backend.encode(text, add_special_tokens=False)))
        return aligned

    def _finish(self, row: Rendered, aligned: Aligned, messages: list[Message], tools: list | None) -> Encoded:
        """Label the tokens to train on and truncate what is over the budgets."""
        notes, full_prompt_length, is_prompt = [], 0, not has_answer(messages)
        while True:
            if row.problem:
                return _dropped(row.problem)
            size = len(aligned.ids)
            start, end = (size, size) if is_prompt else aligned.tokens(*row.answers[-1])
            full_prompt_length = full_prompt_length or start
            source, target = self._budgets(start, end - start)
            shorter = _without_oldest(messages, row, aligned, start - source) if start > source else None
            if shorter is None:
                break
            messages, notes = shorter, ["oldest turns left out"]
            row = self.template.render(messages, tools)
            [aligned] = self._align([row.text])
        ids = np.asarray(aligned.ids, dtype=np.int32)
        labels = np.full(len(ids), IGNORED, dtype=np.int32)
        for answer in row.labelled if self.train_on == "all" else row.answers[-1:]:
            first, last = aligned.tokens(*answer)
            labels[first:last] = ids[first:last]
        removed = (0, 0)
        if start > source:
            question = row.turns[-1 if is_prompt else -2]
            first, last = aligned.tokens(question.start, question.end)
            removed = aligned.cut(first, last, start - source, self.truncation_side)
            if removed is None:
                return _dropped("the template and system turn alone fill the prompt's budget")
            notes.append("prompt cut")
        stop = end - 1
        if end - start > target:
            stop = aligned.boundary(start, start + target - 1)
            if stop == start:
                return _dropped("no token of the answer fits the budget")
            notes.append("answer cut")
        reference = self._reference(row, ids[start:end], messages[-1]) if self.keep_text and not is_prompt else None
        prompt_length = start - (removed[1] - removed[0])
        if notes or len(ids) > self.max_length:
            # Without what a template writes after the end of turn.
            keep = np.r_[: removed[0], removed[1] : stop, end - 1]
            ids, labels = ids[keep], labels[keep]
        notes = [row.note, *notes] if row.note else notes
        status = row_status("truncated", ", ".join(notes)) if notes else KEPT
        return Encoded(ids, labels, prompt_length, status, reference, full_prompt_length)

    def _budgets(self, prompt: int, answer: int) -> tuple[int, int]:
        """How many of `prompt` and of `answer` tokens may stay."""
        target = min(answer, self.max_target_length)
        source = min(prompt, self.max_source_length)
        if source + target > self.max_length:
            target = min(target, max(self.max_length - source, self.max_length // 2))
            source = min(source, self.max_length - target)
        return source, target

    def _reference(self, row: Rendered, ids: np.ndarray, answer: Message) -> str:
        if answer.get("tool_calls"):  # as a prediction is decoded: without special tokens
            return self.tokenizer.decode(ids[:-1], skip_special_tokens=True).strip()
        start, end = row.answers[-1]
        return row.text[start:end].removesuffix(self.end_of_turn).strip()

    def map_batch(self, table: pa.Table) -> pa.Table:
        """`datasets.map` function on Arrow tables with the columns `messages`, `tools`, `meta` and `location`."""
        conversations = [json.loads(text) for text in table["messages"].to_pylist()]
        tools = [json.loads(text) if text else None for text in table["tools"].to_pylist()]
        rows = self.encode(conversations, tools)
        columns = {**table_of(rows), "location": table["location"]}
        if self.keep_text:
            columns["question"] = pa.array([last_question(messages) for messages in conversations], pa.string())
            columns["reference"] = pa.array([row.reference for row in rows], pa.string())
            columns |= {name: table[name] for name in ("messages", "meta")}
        return pa.table(columns)

    @property
    def features(self) -> Features:
        features = {**FEATURES, "location": Value("string")}
        if self.keep_text:
            features |= {"question": Value("string"), "reference": Value("string"), "messages": Json(), "meta": Json()}
        return Features(features)


def tokenize_dataset(examples: Dataset, encoder, num_proc: int | None = None) -> Dataset:
    """Encode every row of `examples` (those of `load_examples`), cached by content.

    Args:
        encoder: a `ChatEncoder` for the form messages, a `PairEncoder` for preference, an `UnpairedEncoder` for
            unpaired.
    """
    if len(examples) == 0:
        raise UserError("there is no row left to train on")
    # Full garbage collections need not walk the million objects of torch and transformers: a tenth less time.
    gc.freeze()
    encode = partial(
        examples.with_format("arrow").map,
        encoder.map_batch,
        batched=True,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        remove_columns=examples.column_names,
        features=encoder.features,
        new_fingerprint=fingerprint(examples._fingerprint, encoder.fingerprint),
        desc="Tokenizing",
    )
    cache = next((os.path.dirname(file["filename"]) for file in examples.cache_files), "memory")
    try:
        with writing(f"the cache in {cache}", "make room there or name another with --cache_dir"):
            try:
                tokenized = encode()
            except (pa.ArrowException, OSError) as error:
                if disk_problem(error):
                    raise
                say(f"{cache}: tokenized rows are damaged ({' '.join(str(error).split())[:100]}); they are made anew")
                tokenized = encode(load_from_cache_file=False)
    finally:
        gc.unfreeze()
    return tokenized.with_format(None)


def _without_oldest(messages: list[Message], row: Rendered, aligned: Aligned, over: int) -> list[Message] | None:
    """`messages` without the first exchanges that hold `over` tokens, at the most all but the last; None where there is
    but one exchange."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if len(users) == 1:
        return None

    def token_of(index: int) -> int:
        return aligned.tokens(row.turns[index].start, row.turns[index].end)[0]

    first = bisect_left(users, token_of(users[0]) + over, lo=1, hi=len(users) - 1, key=token_of)
    return messages[: users[0]] + messages[users[first] :]


def _dropped(reason: str) -> Encoded:
    nothing = np.empty(0, np.int32)
    return Encoded(nothing, nothing, 0, row_status("dropped", reason))


def last_question(messages: list[Message]) -> str:
    return next(message["content"] for message in reversed(messages) if message["role"] == "user")


def table_of(rows: Sequence[Encoded]) -> dict[str, pa.Array]:
    """The columns of `FEATURES`."""
    return {
        "input_ids": list_array([row.input_ids for row in rows]),
        "labels": list_array([row.labels for row in rows]),
        "prompt_length": pa.array([row.prompt_length for row in rows], pa.int32()),
        "status": pa.array([row.status for row in rows], pa.string()),
    }


def list_array(rows: list[np.ndarray]) -> pa.ListArray:
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.concatenate(rows) if rows else np.empty(0, np.int32)
    return pa.ListArray.from_arrays(offsets, values)
