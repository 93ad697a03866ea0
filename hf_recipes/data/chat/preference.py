"""Better and worse answers, in pairs or one by one → ids, and labels on the answer, for training as for scoring."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.ledger import KEPT, is_dropped, row_status
from hf_recipes.data.chat.encoder import IGNORED, ChatEncoder, Encoded, list_array
from hf_recipes.data.examples import fingerprint
from hf_recipes.data.schemas.registry import SIDES

Example = Mapping[str, Any]


class AnswerEncoder:
    """Encodes a prompt with each of its answers.

    Args:
        max_length: tokens of a prompt and answer. A longer row is dropped, because a cut answer is another answer.

    Raises:
        UserError: as `ChatEncoder`.
    """

    answers: ClassVar[tuple[str, ...]]  # columns of messages

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None):
        self.encoder, self.max_length = ChatEncoder(tokenizer), max_length

    def encode_answers(self, examples: Sequence[Example]) -> Iterator[list[Encoded]]:
        """For each row, `prompt` (messages, with `tools`) and each answer, labelled on the answer alone."""
        texts = [row["prompt"] + row[answer] for row in examples for answer in self.answers]
        tools = [row.get("tools") for row in examples for _ in self.answers]
        encoded = iter(self.encoder.encode(texts, tools) if texts else ())
        for row in examples:
            sides = [next(encoded) for _ in self.answers]
            for answer, side in zip(self.answers, sides, strict=True):
                if not is_dropped(side.status):
                    side.labels = last_turns(
                        side.labels, sum(message["role"] == "assistant" for message in row[answer])
                    )
            yield sides

    def is_too_long(self, sides: Sequence[Encoded]) -> bool:
        return self.max_length is not None and max(len(side.input_ids) for side in sides) > self.max_length

    def read(self, table: pa.Table) -> list[Example]:
        """Rows of an Arrow table with the columns of `load_examples`."""
        names = ("prompt", *self.answers, "tools")
        columns = [[json.loads(text) if text else None for text in table[name].to_pylist()] for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            self.encoder.fingerprint, self.max_length, type(self).__name__, code=(sys.modules[__name__],)
        )


@dataclass
class EncodedPair:
    """Both sides, prompt included, as `ChatEncoder` encodes them; `labels` are on the answer alone. None if dropped."""

    chosen: Encoded | None
    rejected: Encoded | None
    status: str = KEPT


class PairEncoder(AnswerEncoder):
    """Encodes the examples of `load_examples` of the form preference.

    Args:
        keep_labels: also return, for training on the answers, the columns `chosen_labels` and `rejected_labels`.
    """

    answers = SIDES

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, *, keep_labels: bool = False):
        super().__init__(tokenizer, max_length)
        self.columns = {"ids": "input_ids"} | ({"labels": "labels"} if keep_labels else {})

    def encode(self, examples: Sequence[Example]) -> list[EncodedPair]:
        """Encode rows with `prompt`, `chosen` and `rejected` (messages) and maybe `tools`; a bad `fate` is kept."""
        statuses = [row.get("status", KEPT) for row in examples]
        usable = [row for row, own in zip(examples, statuses, strict=True) if not is_dropped(own)]
        encoded = self.encode_answers(usable)
        pairs = []
        for own in statuses:
            sides = None if is_dropped(own) else next(encoded)
            found = self._fate(sides) if sides else own
            pairs.append(EncodedPair(None, None, found) if is_dropped(found) else EncodedPair(*sides, found))
        return pairs

    def _fate(self, sides: Sequence[Encoded]) -> str:
        if dropped := [side.status for side in sides if is_dropped(side.status)]:
            return dropped[0]
        if self.is_too_long(sides):
            return row_status("dropped", f"a side is longer than {self.max_length} tokens")
        if np.array_equal(*(side.input_ids for side in sides)):
            return row_status("dropped", "chosen and rejected are the same tokens")
        return next((side.status for side in sides if side.status != KEPT), KEPT)

    def map_batch(self, table: pa.Table) -> pa.Table:
        """`datasets.map` function on Arrow tables with the columns of `load_examples`."""
        pairs = self.encode(self.read(table))
        none = np.empty(0, np.int32)
        found = {
            f"{side}_{name}": list_array(
                [none if is_dropped(pair.status) else getattr(getattr(pair, side), own) for pair in pairs]
            )
            for side in SIDES
            for name, own in self.columns.items()
        }
        statuses = pa.array([pair.status for pair in pairs], pa.string())
        return pa.table({**found, "status": statuses, "location": table["location"]})

    @property
    def features(self) -> Features:
        lists = {f"{side}_{name}": List(Value("int32")) for side in SIDES for name in self.columns}
        return Features({**lists, "status": Value("string"), "location": Value("string")})

    @property
    def fingerprint(self) -> str:
        return fingerprint(super().fingerprint, list(self.columns))


class UnpairedEncoder(AnswerEncoder):
    """Encodes the examples of `load_examples` of the form unpaired: an answer is good or bad, as `label` says."""

    answers = ("completion",)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode rows with `prompt`, `completion` (messages) and `tools`; the answer begins at `prompt_length`."""
        rows = [row for [row] in self.encode_answers(examples)]
        for row in rows:
            if is_dropped(row.status):
                continue
            if self.is_too_long([row]):
                row.status = row_status("dropped", f"longer than {self.max_length} tokens")
            else:
                row.prompt_length = int(np.argmax(row.labels != IGNORED))
        return rows

    def map_batch(self, table: pa.Table) -> pa.Table:
        """`datasets.map` function on Arrow tables with the columns of `load_examples`."""
        rows = self.encode(self.read(table))
        return pa.table(
            {
                "input_ids": list_array([row.input_ids for row in rows]),
                "labels": list_array([row.labels for row in rows]),
                "prompt_length": pa.array([row.prompt_length for row in rows], pa.int32()),
                "label": table["label"],
                "status": pa.array([row.status for row in rows], pa.string()),
                "location": table["location"],
            }
        )

    @property
    def features(self) -> Features:
        lists = {name: List(Value("int32")) for name in ("input_ids", "labels")}
        rest = {"prompt_length": "int32", "label": "bool", "status": "string", "location": "string"}
        return Features({**lists, **{name: Value(kind) for name, kind in rest.items()}})


def last_turns(labels: np.ndarray, turns: int) -> np.ndarray:
    """`labels` of the last `turns` runs of labelled tokens, which are the assistant's turns."""
    labelled = labels != IGNORED
    starts = np.flatnonzero(labelled & ~np.r_[False, labelled[:-1]])
    kept = labels.copy()
    kept[: starts[-turns]] = IGNORED
    return kept
