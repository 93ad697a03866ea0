"""From settings to the data sets of their stage."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.chat.preference import PairEncoder, UnpairedEncoder
from hf_recipes.data.pretraining.mixture_policy import read_policy
from hf_recipes.inspection.lengths import Budget
from hf_recipes.inspection.packed_rows import PackedConversations
from hf_recipes.inspection.preference_rows import Answers, Pairs
from hf_recipes.inspection.pretrain_rows import MixtureRows
from hf_recipes.inspection.rows import Conversations, PromptRows, Rows
from hf_recipes.inspection.stages import Settings
from hf_recipes.rewards.weighted_sum import Rewards
from hf_recipes.run.data import read_rows, tokenize_rows
from hf_recipes.stages import sft
from hf_recipes.stages.grpo import read_prompt_sets
from hf_recipes.stages.preference import weigh_labels
from hf_recipes.stages.pretrain_data import open_corpora, prepare_mixture


def read_sets(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Rows], list[str]]:
    """The data sets of a stage, the training rows first, and what to know before the run.

    Raises:
        UserError: data that cannot be read, or of which no row can be used.
    """
    allowed = settings.data.max_drop_ratio
    settings = replace(settings, data=replace(settings.data, max_drop_ratio=1.0))
    sets = READERS[settings.stage](settings, tokenizer)
    warnings = []
    for rows in sets:
        warnings += _problems(partial(rows.ledger.check, allowed))
    if settings.stage == "kto":
        good = sets[0].good
        warnings += _problems(lambda: weigh_labels(good, len(sets[0].used) - good, settings.args))
    if settings.stage == "grpo":
        warnings += _problems(lambda: Rewards(settings.evaluation).check(sets[0].prompts))
    return sets, warnings


def _problems(check: Callable[[], str | None]) -> list[str]:
    try:
        note = check()
    except UserError as error:
        return [f"the run would stop: {error}"]
    return [note] if note else []


def _read_sft(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> list[Rows]:
    args = settings.args
    limits = {"prompt": "max_source_length", "answer": "max_target_length", "whole": "max_length"}
    budgets = {
        name: Budget(f"--{flag}", getattr(args, flag), "cut") for name, flag in limits.items() if getattr(args, flag)
    }
    unlimited = ChatEncoder(tokenizer, train_on=args.train_on)
    found = []
    for name, examples in read_rows(settings.data, args).items():
        kind = PackedConversations if args.packing and name == "train" else Conversations
        encoder = sft.encoder_for(tokenizer, args, keep_text=name == "validation")
        rows = kind(name, examples, *tokenize_rows(examples, encoder, settings.data), budgets, unlimited)
        rows.args = args
        found.append(rows)
    return found


def _read_pairs(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> list[Rows]:
    encoder, unlimited = (
        PairEncoder(tokenizer, length, keep_labels=True) for length in (settings.args.max_length, None)
    )
    found = _left_out(settings, Pairs, "preference", encoder, unlimited, "longer side")
    for rows in found if settings.stage == "reward" else ():
        rows.labelled = "tokens of the answers"  # it is the whole that is scored
    return found


def _read_kto(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> list[Rows]:
    encoder, unlimited = (UnpairedEncoder(tokenizer, length) for length in (settings.args.max_length, None))
    return _left_out(settings, Answers, "unpaired", encoder, unlimited, "whole")


def _left_out(settings: Settings, kind: type, form: str, encoder: Any, unlimited: Any, limited: str) -> list[Rows]:
    """Rows that are left out where what is `limited` is longer than `max_length`."""
    data, limit = settings.data, settings.args.max_length
    budgets = {limited: Budget("--max_length", limit, "left out")} if limit else {}
    sets = read_rows(data, settings.args, form)
    return [
        kind(name, examples, *tokenize_rows(examples, encoder, data), budgets, unlimited)
        for name, examples in sets.items()
    ]


def _read_grpo(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> list[Rows]:
    args = settings.args
    sets, ledgers, _ = read_prompt_sets(settings.data, args, tokenizer)
    budgets = {"reference": Budget("--max_completion_length", args.max_completion_length, "longer than answers may be")}
    if args.max_source_length:
        budgets["prompt"] = Budget("--max_source_length", args.max_source_length, "cut")
    found = []
    for name, prompts in sets.items():
        references = [prompt.reference for prompt in prompts if prompt.reference]
        ids = tokenizer(references, add_special_tokens=False)["input_ids"] if references else []
        lengths = np.array([len(row) for row in ids], np.int64)
        found.append(PromptRows(name, prompts, ledgers.get(name) or Ledger(), budgets, lengths))
    return found


def _read_pretrain(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> list[Rows]:
    data, args = settings.data, settings.args
    mixture, ledger = prepare_mixture(data, args, tokenizer)
    _, readers = open_corpora(data, args, read_policy(args.mixture) if args.mixture else None)
    return [MixtureRows(mixture, readers, ledger, args)]


READERS = {
    "sft": _read_sft,
    "pretrain": _read_pretrain,
    "reward": _read_pairs,
    "dpo": _read_pairs,
    "kto": _read_kto,
    "grpo": _read_grpo,
}
