"""Packs of whole rows, as SFT's trainer makes them."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_recipes.core.ledger import KEPT
from hf_recipes.inspection.report import Example, Strip, share
from hf_recipes.inspection.rows import Conversations
from hf_recipes.inspection.token_view import Pen

if TYPE_CHECKING:
    from hf_recipes.stages.sft import SFTArguments


class PackedConversations(Conversations):
    """Training rows that are packed into blocks of `max_length` tokens."""

    args: "SFTArguments"

    def packs(self) -> list[np.ndarray]:
        """The numbers of the rows of each pack, in their order."""
        from trl import pack_dataset

        if self._packs is None:
            self.lengths()
            sizes = self._counts["tokens"][self.used]
            # Rows of the same lengths are packed alike; these say which row each token is of.
            offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
            numbers = pa.ListArray.from_arrays(offsets, np.repeat(self.used, sizes).astype(np.int32))
            rows = Dataset(pa.table({"row": numbers}))
            if self.args.shuffle_dataset:
                rows = rows.shuffle(seed=self.args.seed)
            packed = pack_dataset(rows, self.args.max_length, self.args.packing_strategy)
            self._packs = []
            for pack in packed.with_format("numpy"):
                starts = np.cumsum(pack["seq_lengths"]) - pack["seq_lengths"]
                self._packs.append(pack["row"][starts])
        return self._packs

    _packs: list[np.ndarray] | None = None

    def tables(self):
        [counts] = super().tables()
        packs, tokens = self.packs(), int(self._counts["tokens"][self.used].sum())
        room = len(packs) * self.args.max_length
        counts.rows += [["packs", len(packs), ""], ["tokens that fill them", tokens, share(tokens, room)]]
        return [counts]

    def draw(self, pen, count, seed, locations):
        packs, chosen = self.packs(), self.choose(count, seed, locations)
        if not locations:
            numbers = np.random.default_rng(seed).choice(len(packs), min(count, len(packs)), replace=False).tolist()
            return [self._pack(pen, number) for number in sorted(numbers)]
        pack_of = {int(row): number for number, rows in enumerate(packs) for row in rows}
        return [self._pack(pen, pack_of[row]) if row in pack_of else self.example(pen, row) for row in chosen]

    def _pack(self, pen: Pen, number: int) -> Example:
        rows = self.packs()[number].tolist()
        found = [self.tokenized[row] for row in rows]
        segments = [pen.draw(row["input_ids"], row["labels"], row["location"]) for row in found]
        tokens = sum(len(row["input_ids"]) for row in found)
        facts = [f"{len(rows)} rows, {tokens:,} of {self.args.max_length:,} tokens"]
        return Example(f"pack {number + 1:,} of {len(self.packs()):,}", KEPT, facts, [Strip("", segments)])
