"""Better and worse answers, in pairs or one by one, as ids and as labels on the answer alone."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.ledger import KEPT, is_dropped, row_status
from hf_recipes.data.chat.encoder import IGNORED, ChatEncoder
from hf_recipes.data.examples import fingerprint
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.data.tokenized import FEATURES, Encoded, list_array, table_of

Example = Mapping[str, Any]
NO_TOKENS = np.empty(0, np.int32)


TOO_LONG = "longer than"  # in statuses


class PreferenceEncoder:
    """Encodes a prompt with each of its answers.

    Args:
        max_length: tokens of a prompt and answer. A longer row is dropped, because a cut answer is another answer.
    """

    answers: ClassVar[tuple[str, ...]]  # columns of messages

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None):
        self.encoder, self.max_length = ChatEncoder(tokenizer, keep_rest=True, split_turns="never"), max_length

    def encode_answers(self, examples: Sequence[Example]) -> list[list[Encoded]]:
        """The answers of each row (`prompt` and answers as messages, and `tools`), labelled on the answer alone."""
        prompts = [[{**message, "weight": 0} for message in row["prompt"]] for row in examples]
        chats = [p + row[answer] for p, row in zip(prompts, examples, strict=True) for answer in self.answers]
        tools = [row.get("tools") for row in examples for _ in self.answers]
        encoded = iter(self.encoder.encode(chats, tools) if chats else ())
        return [[next(encoded) for _ in self.answers] for _ in examples]

    def is_too_long(self, answers: Sequence[Encoded]) -> bool:
        return self.max_length is not None and max(len(answer.input_ids) for answer in answers) > self.max_length

    def read(self, table: pa.Table) -> list[Example]:
        """Rows of an Arrow table with the columns of `load_examples`."""
        names = ("prompt", *self.answers, "tools")
        columns = [[json.loads(text) if text else None for text in table[name].to_pylist()] for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            self.encoder.fingerprint, self.max_length, list(self.features), code=(sys.modules[__name__],)
        )


def budget_of(lengths: Sequence[int], limit: int, rows: int, flag: str | None) -> str:
    """How many of the `lengths` of `rows` are over the limit of a flag, and the limits that keep all and 99 % of them.

    Args:
        flag: None where the limit is that of the model.
    """
    ordered = np.sort(lengths)
    if not (over := int((ordered > limit).sum())):
        return ""
    if flag is None:
        return f"{over:,} of {rows:,} rows are longer than the {limit} tokens that the model was made for"
    most = ordered[-(-99 * len(ordered) // 100) - 1]
    return f"{over:,} of {rows:,} rows are longer than {flag} {limit}; {ordered[-1]} keeps all, {most} keeps 99 %"


@dataclass
class EncodedPair:
    """Both sides, prompt included; None if the pair is dropped."""

    chosen: Encoded | None
    rejected: Encoded | None
    status: str = KEPT
    length: int = 0  # tokens of the longer side, also of a pair that is dropped for it


class PairEncoder(PreferenceEncoder):
    """Encodes the examples of `load_examples` of the form preference.

    Args:
        keep_labels: also return, for training on the answers, the columns `chosen_labels` and `rejected_labels`.
    """

    answers = SIDES

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, *, keep_labels: bool = False):
        super().__init__(tokenizer, max_length)
        self.columns = {"ids": "input_ids"} | ({"labels": "labels"} if keep_labels else {})

    def encode(self, examples: Sequence[Example]) -> list[EncodedPair]:
        """Encode rows with `prompt`, `chosen` and `rejected`, and maybe `tools`; one dropped before stays dropped."""
        encoded = iter(self.encode_answers([row for row in examples if not is_dropped(row.get("status", KEPT))]))
        pairs = []
        for row in examples:
            status, length = row.get("status", KEPT), 0
            if not is_dropped(status):
                sides = next(encoded)
                status, length = self._status(sides), max(len(side.input_ids) for side in sides)
            kept = (None, None) if is_dropped(status) else sides
            pairs.append(EncodedPair(*kept, status, length))
        return pairs

    def _status(self, sides: Sequence[Encoded]) -> str:
        if dropped := [side.status for side in sides if is_dropped(side.status)]:
            return dropped[0]
        if self.is_too_long(sides):
            return row_status("dropped", f"a side is {TOO_LONG} {self.max_length} tokens")
        if np.array_equal(*(side.input_ids for side in sides)):
            return row_status("dropped", "chosen and rejected are the same tokens")
        return next((side.status for side in sides if side.status != KEPT), KEPT)

    def map_batch(self, table: pa.Table) -> pa.Table:
        """`datasets.map` function on Arrow tables with the columns of `load_examples`."""
        pairs = self.encode(self.read(table))
        columns = {}
        for side in SIDES:
            rows = [getattr(pair, side) for pair in pairs]
            for name, field in self.columns.items():
                values = [NO_TOKENS if row is None else getattr(row, field) for row in rows]
                columns[f"{side}_{name}"] = list_array(values)
        statuses = pa.array([pair.status for pair in pairs], pa.string())
        return pa.table({**columns, "status": statuses, "location": table["location"], "source": table["source"]})

    @property
    def features(self) -> Features:
        lists = {f"{side}_{name}": List(Value("int32")) for side in SIDES for name in self.columns}
        return Features({**lists, **dict.fromkeys(("status", "location", "source"), Value("string"))})


class UnpairedEncoder(PreferenceEncoder):
    """Encodes the examples of `load_examples` of the form unpaired: an answer is good or bad, as `label` says."""

    answers = ("completion",)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode rows with `prompt`, `completion` (messages) and `tools`; the answer begins at `prompt_length`."""
        rows = [row for [row] in self.encode_answers(examples)]
        for row in rows:
            if is_dropped(row.status):
                continue
            if self.is_too_long([row]):
                row.status = row_status("dropped", f"{TOO_LONG} {self.max_length} tokens")
            else:
                row.prompt_length = int(np.argmax(row.labels != IGNORED))
        return rows

    def map_batch(self, table: pa.Table) -> pa.Table:
        """`datasets.map` function on Arrow tables with the columns of `load_examples`."""
        columns = table_of(self.encode(self.read(table)))
        return pa.table({**columns, **{name: table[name] for name in ("label", "location", "source")}})

    @property
    def features(self) -> Features:
        return Features({**FEATURES, "label": Value("bool"), "location": Value("string"), "source": Value("string")})
