"""Pairs of answers, and single answers that are labelled good or bad."""

from typing import ClassVar

import numpy as np

from hf_recipes.data.chat.encoder import IGNORED, last_question
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.inspection.checks import RowTexts
from hf_recipes.inspection.lengths import label_spans
from hf_recipes.inspection.rows.base import TokenizedRows, answer_of, joined, thoughts_of
from hf_recipes.stages.kto import weigh_labels


class PreferenceRows(TokenizedRows):
    """Pairs, tokenized with the labels of both sides."""

    columns = ("prompt", *SIDES)
    sequences: ClassVar = {side: (f"{side}_ids", f"{side}_labels") for side in SIDES}
    limits: ClassVar = {"longer side": "max_length"}
    effect = "left out"

    def texts_of(self, values, locations, choices):
        answers = {side: list(map(answer_of, values[side])) for side in SIDES}
        thoughts = [thoughts_of([*chosen, *rejected]) for chosen, rejected in zip(*map(values.get, SIDES), strict=True)]
        return RowTexts(locations, *_prompts(values), answers, choices, thoughts)

    @property
    def chat_encoder(self):
        return self.encoder.encoder

    def prompt_of(self, columns, source):
        start = next(index for index, label in enumerate(columns["chosen_labels"]) if label != IGNORED)
        return columns["chosen_ids"][:start], source["prompt"]

    def lengths_of(self, table):
        spans = {side: label_spans(table[f"{side}_labels"]) for side in SIDES}
        lengths = {"prompt": spans["chosen"][1]}
        lengths |= {side: end - start for side, (_, start, end, _) in spans.items()}
        sizes = np.stack([tokens for tokens, *_ in spans.values()])
        labelled = sum(labelled for *_, labelled in spans.values())
        return lengths | {"longer side": sizes.max(0), "tokens": sizes.sum(0), "labelled": labelled}

    def counts(self):
        lengths = self.lengths()
        longer = lengths["chosen"] > lengths["rejected"]
        return super().counts() | {"chosen is the longer one": (int(longer.sum()), len(longer))}


class UnpairedRows(TokenizedRows):
    """Single answers with a label: good or bad."""

    columns = ("prompt", "completion")
    sequences: ClassVar = {"": ("input_ids", "labels")}
    limits: ClassVar = {"whole": "max_length"}
    effect = "left out"

    def texts_of(self, values, locations, choices):
        answers = {"answer": list(map(answer_of, values["completion"]))}
        thoughts = list(map(thoughts_of, values["completion"]))
        return RowTexts(locations, *_prompts(values), answers, choices, thoughts)

    @property
    def chat_encoder(self):
        return self.encoder.encoder

    def prompt_of(self, columns, source):
        return columns["input_ids"][: columns["prompt_length"]], source["prompt"]

    def lengths_of(self, table):
        tokens, start, end, labelled = label_spans(table["labels"])
        return {"prompt": start, "answer": end - start, "whole": tokens, "tokens": tokens, "labelled": labelled}

    @property
    def good(self) -> int:
        """How many of the answers that are trained on are good ones."""
        return sum(self.tokenized.select(self.used)["label"][:])

    def check(self, context):
        return weigh_labels(self.good, len(self.used) - self.good, context.args)

    def counts(self):
        return super().counts() | {"good answers": (self.good, len(self.used))}

    def facts_of(self, row):
        return [Phrase("a good answer" if row["label"] else "a bad answer")]


def _prompts(values: dict[str, list]) -> tuple[list[str], list[str]]:
    """The prompts of rows as texts, and the last question of each."""
    return list(map(joined, values["prompt"])), list(map(last_question, values["prompt"]))
