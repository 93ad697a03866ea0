"""Collators of pairs and of single answers that keep each row's index in the data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

from hf_recipes.data.chat.encoder import IGNORED
from hf_recipes.data.schemas.registry import SIDES

PADDING_ROW = -1  # the `row` of a padding row, which is in no loss

KL_PREFIX = "KL_"  # TRL's prefix of the names of a mismatched completion: a prompt with another row's answer


def padded(rows: Sequence[Sequence[int]], value: int, multiple: int | None) -> torch.Tensor:
    """int64 (B, T): `rows` of any lengths, padded on the right to a multiple of `multiple`."""
    return pad([torch.as_tensor(row) for row in rows], value, pad_to_multiple_of=multiple)


def labelled(labels: Sequence[int]) -> list[int]:
    """1 where a token has a label."""
    return [int(label != IGNORED) for label in labels]


class PairCollator(DataCollatorForPreference):
    """Pairs as a batch, the chosen sides first.

    Returns:
        `input_ids`, `attention_mask`, and `completion_mask` where the pairs have labels: int64 (2B, T); `row`, int64
        (B,); and `ref_chosen_logps` and `ref_rejected_logps`, float32 (B,), where they were computed before.
    """

    def torch_call(self, examples):
        batch = super().torch_call(examples)
        if "chosen_labels" in examples[0]:
            masks = [labelled(example[f"{side}_labels"]) for side in SIDES for example in examples]
            batch["completion_mask"] = padded(masks, 0, self.pad_to_multiple_of)
        before = [name for name in ("ref_chosen_logps", "ref_rejected_logps") if name in examples[0]]
        return batch | {name: torch.tensor([example[name] for example in examples]) for name in ("row", *before)}


class UnpairedCollator:
    """Single answers as a batch.

    Returns:
        `input_ids`, `attention_mask`, `completion_mask`: int64 (B, T), and with `KL_` before their names the same of
        each prompt with another row's answer, cut at `max_length`; `row`, int64 (B,), `label`, bool (B,); `ref_logps`
        and `ref_KL_logps`, float32 (B,), where they were computed before.
    """

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int | None = None, max_length: int | None = None):
        self.pad_token_id, self.multiple, self.max_length = pad_token_id, pad_to_multiple_of, max_length

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self._padded([(example["input_ids"], example["labels"]) for example in examples])
        if f"{KL_PREFIX}input_ids" in examples[0]:
            mismatched = self._padded([self._mismatched(example) for example in examples])
            batch |= {KL_PREFIX + name: value for name, value in mismatched.items()}
        before = [name for name in ("ref_logps", f"ref_{KL_PREFIX}logps") if name in examples[0]]
        names = ("row", "label", *before)
        return batch | {name: torch.tensor([example[name] for example in examples]) for name in names}

    def _mismatched(self, example: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        end, start = example["prompt_length"], example[f"{KL_PREFIX}prompt_length"]
        ids = example["input_ids"][:end] + example[f"{KL_PREFIX}input_ids"][start:]
        labels = [IGNORED] * len(example["input_ids"][:end]) + example[f"{KL_PREFIX}labels"][start:]
        return ids[: self.max_length], labels[: self.max_length]

    def _padded(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        return {
            "input_ids": padded([ids for ids, _ in rows], self.pad_token_id, self.multiple),
            "attention_mask": padded([[1] * len(ids) for ids, _ in rows], 0, self.multiple),
            "completion_mask": padded([labelled(labels) for _, labels in rows], 0, self.multiple),
        }


def side_lengths(rows: Dataset) -> np.ndarray:
    """Tokens of each side of pairs, (2, N): the chosen ones first."""
    table = rows.select_columns([f"{side}_ids" for side in SIDES]).with_format("arrow")[:]
    return np.stack([pc.list_value_length(column).to_numpy() for column in table.columns])
