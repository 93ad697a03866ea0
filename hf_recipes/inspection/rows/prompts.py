"""Prompts of reinforcement learning."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from hf_recipes.core.ledger import KEPT, Ledger
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.evaluation.methods.generation import choices_of
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import Example, TokenSequence
from hf_recipes.inspection.checks import RowTexts
from hf_recipes.inspection.lengths import Budget
from hf_recipes.inspection.rows.base import BATCH, Rows, TrainedPrompt, at_location, first_by_location, joined
from hf_recipes.rewards.weighted_sum import Rewards
from hf_recipes.stages.base import Context
from hf_recipes.stages.grpo import read_prompt_sets


class PromptRows(Rows):
    @classmethod
    def read(cls, context):
        sets, ledgers, _ = read_prompt_sets(context.data_args, context.args, context.tokenizer)
        return [cls(name, prompts, ledgers.get(name) or Ledger(), context) for name, prompts in sets.items()]

    def __init__(self, name: str, prompts: Sequence[Prompt], ledger: Ledger, context: Context):
        self.name, self.prompts, self.ledger, args = name, prompts, ledger, context.args
        self.references = [prompt.reference for prompt in prompts if prompt.reference]
        self.has_answers, self.tokenizer = bool(self.references), context.tokenizer
        longest = args.max_completion_length
        self.budgets = {"reference": Budget("--max_completion_length", longest, "longer than answers may be")}
        if args.max_source_length:
            self.budgets["prompt"] = Budget("--max_source_length", args.max_source_length, "cut")

    def texts(self, rows=None):
        chosen = self.prompts if rows is None else [self.prompts[row] for row in rows]
        for start in range(0, len(chosen), BATCH):
            prompts = chosen[start : start + BATCH]
            yield RowTexts(
                [prompt.location for prompt in prompts],
                [joined(prompt.messages) if prompt.is_chat else prompt.question for prompt in prompts],
                [prompt.question if prompt.is_chat else "" for prompt in prompts],
                {"reference": [prompt.reference or "" for prompt in prompts]} if self.has_answers else {},
                [choices_of(prompt.meta) for prompt in prompts],
            )

    def lengths(self):
        lengths = {"prompt": np.array([prompt.length for prompt in self.prompts])}
        if self.references:
            ids = self.tokenizer(self.references, add_special_tokens=False)["input_ids"]
            lengths["reference"] = np.array(list(map(len, ids)))
        return lengths

    def check(self, context):
        return Rewards(context.evaluation).check(self.prompts)

    @cached_property
    def chat_encoder(self):
        return ChatEncoder(self.tokenizer)

    def trained_prompts(self):
        for prompt in self.prompts:
            if prompt.is_chat and prompt.length == len(prompt.ids):
                yield TrainedPrompt(prompt.location, prompt.ids, prompt.messages, prompt.tools)

    def counts(self):
        answered, size = sum(prompt.reference is not None for prompt in self.prompts), len(self.prompts)
        return {"prompts": size, "with a reference": (answered, size)}

    def token_counts(self):
        return {"tokens of the prompts": sum(len(prompt.ids) for prompt in self.prompts)}

    def render(self, renderer, count, seed, locations):
        if locations:
            known = first_by_location((prompt.location, prompt) for prompt in self.prompts)
            chosen = [at_location(known, location) for location in locations]
        else:
            size = len(self.prompts)
            rows = np.random.default_rng(seed).choice(size, min(count, size), replace=False)
            chosen = [self.prompts[row] for row in sorted(rows.tolist())]
        return [
            Example(
                prompt.location,
                KEPT if prompt.length == len(prompt.ids) else Phrase("cut from {count:,} tokens", count=prompt.length),
                [] if prompt.reference is None else [Phrase("reference: {text}", text=renderer.mask(prompt.reference))],
                [TokenSequence("", [renderer.render(prompt.ids, np.full(len(prompt.ids), -100))])],
            )
            for prompt in chosen
        ]
