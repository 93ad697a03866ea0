"""Single answers that are good or bad → `input_ids`, `labels` of the answer, and which of the two it is."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.ledger import fate, is_dropped
from hf_recipes.data.chat import preference as pairs
from hf_recipes.data.chat.encoder import IGNORED, ChatEncoder, Encoded, list_array
from hf_recipes.data.chat.preference import last_turns
from hf_recipes.data.examples import fingerprint


class UnpairedEncoder:
    """Encodes the examples of `load_examples` of the form unpaired.

    Args:
        max_length: tokens of a row. A longer one is dropped, because a cut answer is another answer.

    Raises:
        UserError: as `ChatEncoder`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None):
        self.encoder, self.max_length = ChatEncoder(tokenizer), max_length

    def encode(self, examples: Sequence[Mapping[str, Any]]) -> list[Encoded]:
        """Encode rows with `prompt`, `completion` (messages) and `tools`; the answer begins at `prompt_length`."""
        conversations = [row["prompt"] + row["completion"] for row in examples]
        encoded = self.encoder.encode(conversations, [row["tools"] for row in examples])
        for row, one in zip(examples, encoded, strict=True):
            if is_dropped(one.fate):
                continue
            if self.max_length is not None and len(one.input_ids) > self.max_length:
                one.fate = fate("dropped", f"longer than {self.max_length} tokens")
                continue
            turns = sum(message["role"] == "assistant" for message in row["completion"])
            one.labels = last_turns(one.labels, turns)
            one.prompt_length = int(np.argmax(one.labels != IGNORED))
        return encoded

    def map_batch(self, table: pa.Table) -> pa.Table:
        """`datasets.map` function on Arrow tables with the columns of `load_examples`."""
        names = ("prompt", "completion", "tools")
        columns = [[json.loads(text) if text else None for text in table[name].to_pylist()] for name in names]
        rows = self.encode([dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)])
        return pa.table(
            {
                "input_ids": list_array([row.input_ids for row in rows]),
                "labels": list_array([row.labels for row in rows]),
                "prompt_length": pa.array([row.prompt_length for row in rows], pa.int32()),
                "label": table["label"],
                "fate": pa.array([row.fate for row in rows], pa.string()),
                "place": table["place"],
            }
        )

    @property
    def features(self) -> Features:
        lists = {name: List(Value("int32")) for name in ("input_ids", "labels")}
        rest = {"prompt_length": "int32", "label": "bool", "fate": "string", "place": "string"}
        return Features({**lists, **{name: Value(kind) for name, kind in rest.items()}})

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.encoder.fingerprint, self.max_length, code=(sys.modules[__name__], pairs))
