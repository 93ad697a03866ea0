"""Pairs of a better and a worse answer → `chosen_ids` and `rejected_ids`, for training as for scoring."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.ledger import KEPT, fate, is_dropped
from hf_recipes.data.chat.encoder import ChatEncoder, Encoded, list_array
from hf_recipes.data.examples import fingerprint
from hf_recipes.data.schemas.registry import SIDES


@dataclass
class EncodedPair:
    """Both sides, prompt included, as `ChatEncoder` encodes them; `labels` are on the answer alone. None if dropped."""

    chosen: Encoded | None
    rejected: Encoded | None
    fate: str = KEPT


class PairEncoder:
    """Encodes the examples of `load_examples` of the form preference.

    Args:
        max_length: tokens of a side. A pair with a longer one is dropped, because a cut answer is another answer.
        keep_labels: also return, for training on the answers, the columns `chosen_labels` and `rejected_labels`.

    Raises:
        UserError: as `ChatEncoder`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, *, keep_labels: bool = False):
        self.encoder, self.max_length = ChatEncoder(tokenizer), max_length
        self.columns = {"ids": "input_ids"} | ({"labels": "labels"} if keep_labels else {})

    def encode(self, examples: Sequence[Mapping[str, Any]]) -> list[EncodedPair]:
        """Encode rows with `prompt`, `chosen` and `rejected` (messages) and maybe `tools`; a bad `fate` is kept."""
        usable = [row for row in examples if not is_dropped(row.get("fate", KEPT))]
        talks = [(row["prompt"] + row[side], row.get("tools")) for row in usable for side in SIDES]
        encoded = iter(self.encoder.encode(*map(list, zip(*talks, strict=True)))) if talks else iter(())
        pairs = []
        for row in examples:
            if is_dropped(row.get("fate", KEPT)):
                pairs.append(EncodedPair(None, None, row["fate"]))
                continue
            sides = [next(encoded) for _ in SIDES]
            found = self._fate(sides)
            if is_dropped(found):
                pairs.append(EncodedPair(None, None, found))
                continue
            for side, one in zip(SIDES, sides, strict=True):
                turns = sum(message["role"] == "assistant" for message in row[side])
                one.labels = last_turns(one.labels, turns)
            pairs.append(EncodedPair(*sides, found))
        return pairs

    def _fate(self, sides: Sequence[Encoded]) -> str:
        for side in sides:
            if is_dropped(side.fate):
                return side.fate
        chosen, rejected = (side.input_ids for side in sides)
        if self.max_length is not None and max(len(chosen), len(rejected)) > self.max_length:
            return fate("dropped", f"a side is longer than {self.max_length} tokens")
        if np.array_equal(chosen, rejected):
            return fate("dropped", "chosen and rejected are the same tokens")
        return next((side.fate for side in sides if side.fate != KEPT), KEPT)

    def map_batch(self, table: pa.Table) -> pa.Table:
        """`datasets.map` function on Arrow tables with the columns of `load_examples`."""
        names = ("prompt", *SIDES, "tools")
        columns = [[json.loads(text) if text else None for text in table[name].to_pylist()] for name in names]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        pairs = self.encode(rows)
        none = np.empty(0, np.int32)
        found = {
            f"{side}_{name}": list_array(
                [none if is_dropped(pair.fate) else getattr(getattr(pair, side), own) for pair in pairs]
            )
            for side in SIDES
            for name, own in self.columns.items()
        }
        fates = pa.array([pair.fate for pair in pairs], pa.string())
        return pa.table({**found, "fate": fates, "place": table["place"]})

    @property
    def features(self) -> Features:
        lists = {f"{side}_{name}": List(Value("int32")) for side in SIDES for name in self.columns}
        return Features({**lists, "fate": Value("string"), "place": Value("string")})

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.encoder.fingerprint, self.max_length, list(self.columns), code=(sys.modules[__name__],))


def last_turns(labels: np.ndarray, turns: int) -> np.ndarray:
    """`labels` of the last `turns` runs of labelled tokens, which are the assistant's turns."""
    labelled = labels != -100
    starts = np.flatnonzero(labelled & ~np.r_[False, labelled[:-1]])
    kept = labels.copy()
    kept[: starts[-turns]] = -100
    return kept
