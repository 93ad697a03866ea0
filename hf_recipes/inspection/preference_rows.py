"""Pairs of answers, and single ones that are good or bad."""

from typing import ClassVar

import numpy as np

from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.inspection.checks import Texts
from hf_recipes.inspection.lengths import label_spans
from hf_recipes.inspection.report import share
from hf_recipes.inspection.rows import TokenizedRows, joined, last_question


class Pairs(TokenizedRows):
    """Rows of reward modelling and DPO: tokenized with the labels of both sides."""

    columns = ("prompt", *SIDES)
    strips: ClassVar = {side: (f"{side}_ids", f"{side}_labels") for side in SIDES}

    def texts_of(self, values, locations, choices):
        answers = {side: list(map(joined, values[side])) for side in SIDES}
        return Texts(locations, *_asked(values), answers, choices)

    def lengths_of(self, table):
        spans = {side: label_spans(table[f"{side}_labels"]) for side in SIDES}
        found = {"prompt": spans["chosen"][1]}
        found |= {side: last - first for side, (_, first, last, _) in spans.items()}
        sizes = np.stack([tokens for tokens, *_ in spans.values()])
        labelled = sum(labelled for *_, labelled in spans.values())
        return found | {"longer side": sizes.max(0), "tokens": sizes.sum(0), "labelled": labelled}

    def tables(self):
        [counts] = super().tables()
        lengths = self.lengths()
        longer = int((lengths["chosen"] > lengths["rejected"]).sum())
        counts.rows.append(["chosen is the longer one", longer, share(longer, len(lengths["chosen"]))])
        return [counts]


class Answers(TokenizedRows):
    """Rows of KTO."""

    columns = ("prompt", "completion")
    strips: ClassVar = {"": ("input_ids", "labels")}

    def texts_of(self, values, locations, choices):
        return Texts(locations, *_asked(values), {"answer": list(map(joined, values["completion"]))}, choices)

    def lengths_of(self, table):
        tokens, first, last, labelled = label_spans(table["labels"])
        return {"prompt": first, "answer": last - first, "whole": tokens, "tokens": tokens, "labelled": labelled}

    @property
    def good(self) -> int:
        """How many of the answers that are learned from are good ones."""
        return sum(self.tokenized.select(self.used)["label"][:])

    def tables(self):
        [counts] = super().tables()
        counts.rows.append(["good answers", self.good, share(self.good, len(self.used))])
        return [counts]

    def facts_of(self, row):
        return ["a good answer" if row["label"] else "a bad answer"]


def _asked(values: dict[str, list]) -> tuple[list[str], list[str]]:
    return list(map(joined, values["prompt"])), list(map(last_question, values["prompt"]))
