"""Conversations of supervised fine-tuning, and the packs of them that TRL makes."""

from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_recipes.core.ledger import KEPT
from hf_recipes.data.chat.encoder import last_question
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import Example, TokenSequence
from hf_recipes.inspection.checks import RowTexts
from hf_recipes.inspection.lengths import label_spans
from hf_recipes.inspection.rows.base import TokenizedRows, answer_of, joined, thoughts_of
from hf_recipes.inspection.token_renderer import TokenRenderer


class Conversations(TokenizedRows):
    columns = ("messages",)
    sequences: ClassVar = {"": ("input_ids", "labels")}
    limits: ClassVar = {"prompt": "max_source_length", "answer": "max_target_length", "whole": "max_length"}
    effect = "cut"

    @classmethod
    def class_for(cls, context, name):
        return PackedConversations if getattr(context.args, "packing", False) and name == "train" else cls

    def texts_of(self, values, locations, choices):
        conversations = values["messages"]
        prompts = [joined(messages[:-1]) for messages in conversations]
        questions = list(map(last_question, conversations))
        answers = [answer_of(messages[-1:]) for messages in conversations]
        thoughts = [thoughts_of(messages[-1:]) for messages in conversations]
        return RowTexts(locations, prompts, questions, {"answer": answers}, choices, thoughts)

    def prompt_of(self, columns, source):
        return columns["input_ids"][: columns["prompt_length"]], source["messages"][:-1]

    def lengths_of(self, table):
        tokens, _, end, labelled = label_spans(table["labels"])
        prompt = table["prompt_length"].to_numpy().astype(np.int64)
        # The last answer ends with its end-of-turn token; what a template writes after it counts for no budget.
        return {"prompt": prompt, "answer": end - prompt, "whole": end, "tokens": tokens, "labelled": labelled}


class PackedConversations(Conversations):
    """Training rows that are packed into blocks of `max_length` tokens."""

    @cached_property
    def packs(self) -> list[np.ndarray]:
        """The indices of the rows of each pack, in their order."""
        from trl import pack_dataset

        self.lengths()
        sizes = self.tokens[self.used]
        # Rows of the same lengths are packed alike; in place of tokens, these hold the index of their row.
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        indices = pa.ListArray.from_arrays(offsets, np.repeat(self.used, sizes).astype(np.int32))
        rows = Dataset(pa.table({"row": indices}))
        if self.args.shuffle_dataset:
            rows = rows.shuffle(seed=self.args.seed)
        packed = pack_dataset(rows, self.args.max_length, self.args.packing_strategy)
        return [
            pack["row"][np.cumsum(pack["seq_lengths"]) - pack["seq_lengths"]] for pack in packed.with_format("numpy")
        ]

    def counts(self):
        return super().counts() | {"packs": len(self.packs)}

    def token_counts(self):
        counts = super().token_counts()
        filled = counts["tokens of an epoch"], len(self.packs) * self.args.max_length
        return counts | {"tokens that fill the packs": filled}

    def render(self, renderer, count, seed, locations):
        if not locations:
            size = len(self.packs)
            chosen = np.random.default_rng(seed).choice(size, min(count, size), replace=False)
            return [self._pack(renderer, index) for index in sorted(chosen.tolist())]
        pack_of = {int(row): index for index, rows in enumerate(self.packs) for row in rows}
        return [
            self._pack(renderer, pack_of[row]) if row in pack_of else self.example(renderer, row)
            for row in self.choose(count, seed, locations)
        ]

    def _pack(self, renderer: TokenRenderer, index: int) -> Example:
        rows = [self.tokenized[row] for row in self.packs[index].tolist()]
        documents = [renderer.render(row["input_ids"], row["labels"], row["location"]) for row in rows]
        tokens = sum(len(row["input_ids"]) for row in rows)
        fact = Phrase(
            "{rows} rows, {tokens:,} of {all:,} tokens", rows=len(rows), tokens=tokens, all=self.args.max_length
        )
        name = Phrase("pack {number:,} of {all:,}", number=index + 1, all=len(self.packs))
        return Example(name, KEPT, [fact], [TokenSequence("", documents)])
