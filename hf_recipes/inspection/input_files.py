"""From settings to the data sets of their stage."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.pretraining.mixture_policy import read_policy
from hf_recipes.inspection.lengths import Budget
from hf_recipes.inspection.packed_rows import PackedConversations
from hf_recipes.inspection.preference_rows import Answers, Pairs
from hf_recipes.inspection.pretrain_rows import MixtureRows
from hf_recipes.inspection.rows import Conversations, PromptRows, Rows, TokenizedRows
from hf_recipes.inspection.stages import Settings
from hf_recipes.rewards.weighted_sum import Rewards
from hf_recipes.run.data import read_rows, tokenize_rows
from hf_recipes.stages.grpo import read_prompt_sets
from hf_recipes.stages.kto import weigh_labels
from hf_recipes.stages.pretrain_data import open_corpora, prepare_mixture


def read_sets(settings: Settings) -> tuple[list[Rows], list[str]]:
    """The data sets of a stage, the training rows first, and what to know before the run.

    Raises:
        UserError: data that cannot be read, or of which no row can be used.
    """
    allowed, form = settings.data_args.max_drop_ratio, settings.stage.data_form
    settings = replace(settings, data_args=replace(settings.data_args, max_drop_ratio=1.0))
    sets = READERS.get(form, _read_rows)(settings)
    warnings = []
    for rows in sets:
        warnings += _problems(partial(rows.ledger.check, allowed))
    if form == "unpaired":
        good = sets[0].good
        warnings += _problems(lambda: weigh_labels(good, len(sets[0].used) - good, settings.args))
    if form == "prompt":
        warnings += _problems(lambda: Rewards(settings.evaluation).check(sets[0].prompts))
    return sets, warnings


def _problems(check: Callable[[], str | None]) -> list[str]:
    try:
        note = check()
    except UserError as error:
        return [f"the run would stop: {error}"]
    return [note] if note else []


def _read_rows(settings: Settings) -> list[Rows]:
    """Rows as the stage's encoder makes them."""
    args, data, stage, tokenizer = settings.args, settings.data_args, settings.stage, settings.tokenizer
    kind, limits, effect = KINDS[stage.data_form]
    lengths = {length: (flag, getattr(args, flag)) for length, flag in limits.items()}
    budgets = {length: Budget(f"--{flag}", limit, effect) for length, (flag, limit) in lengths.items() if limit}
    without = copy(args)
    for flag in limits.values():
        setattr(without, flag, None)
    found = []
    for name, examples in read_rows(data, args, stage.data_form).items():
        packs = getattr(args, "packing", False) and name == "train"
        tokenized = tokenize_rows(examples, stage.encoder(tokenizer, args, name), data)
        unlimited = stage.encoder(tokenizer, without, "train")
        rows = (PackedConversations if packs else kind)(name, examples, *tokenized, budgets, unlimited)
        rows.args = args
        if stage.task_type == "SEQ_CLS":
            rows.labelled = "tokens of the answers"  # it is the whole that is scored
        found.append(rows)
    return found


def _read_prompts(settings: Settings) -> list[Rows]:
    args, tokenizer = settings.args, settings.tokenizer
    sets, ledgers, _ = read_prompt_sets(settings.data_args, args, tokenizer)
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


def _read_documents(settings: Settings) -> list[Rows]:
    data, args = settings.data_args, settings.args
    mixture, ledger = prepare_mixture(data, args, settings.tokenizer)
    _, readers = open_corpora(data, args, read_policy(args.mixture) if args.mixture else None)
    return [MixtureRows(mixture, readers, ledger, args)]


READERS = {"prompt": _read_prompts, "text": _read_documents}
# By form: what the rows are, and the flags that limit their lengths, with what becomes of longer ones.
KINDS: dict[str, tuple[type[TokenizedRows], dict[str, str], str]] = {
    "messages": (
        Conversations,
        {"prompt": "max_source_length", "answer": "max_target_length", "whole": "max_length"},
        "cut",
    ),
    "preference": (Pairs, {"longer side": "max_length"}, "left out"),
    "unpaired": (Answers, {"whole": "max_length"}, "left out"),
}
