"""A run's training and validation rows: read, held out, tokenized, and every row accounted for."""

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import Ledger, is_dropped
from hf_recipes.data.arguments import columns_of
from hf_recipes.data.chat.preference import TOO_LONG, PreferenceEncoder, budget_of
from hf_recipes.data.chat.truncation import ANSWER_CUT, OVER_BUDGET, TOO_SMALL
from hf_recipes.data.examples import hold_out, load_examples, row_statuses, sampled_rows, usable
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import SEED, find_sources, source_names
from hf_recipes.data.files.specs import parse_spec
from hf_recipes.data.pretraining.mixture import select_sources
from hf_recipes.data.pretraining.mixture_policy import read_policy
from hf_recipes.data.tokenized import tokenize_dataset

if TYPE_CHECKING:
    from hf_recipes.data.arguments import DataArguments, SourceArguments
    from hf_recipes.run.arguments import RunArguments

OVER = (ANSWER_CUT, TOO_SMALL, OVER_BUDGET, TOO_LONG)  # the reasons, in statuses, of answers and rows over a budget
FEW_ROWS = 1_000  # that one process tokenizes sooner than several are started


def prepare_rows(
    data: "DataArguments",
    args: "RunArguments",
    encoder_for: Callable,
    form: str = "messages",
) -> tuple[Dataset, Dataset | None, dict[str, Ledger]]:
    """Training rows, evaluation rows or None, and the ledgers of all rows read.

    Args:
        encoder_for: the encoder for `args` and the rows called ``train`` or ``validation``; see `tokenize_dataset`.
        form: of the examples, as for `load_examples`.
    """
    # The first process reads and tokenizes; the others then find its cache.
    with args.main_process_first(local=True, desc="data"):
        ledgers: dict[str, Ledger] = {}
        rows: dict[str, Dataset] = {}
        for name, examples in read_rows(data, args, form).items():
            readable, tokenized, ledgers[name] = tokenize_rows(examples, encoder_for(args, name), data)
            rows[name] = usable(tokenized)
            say(f"{name}\n{ledgers[name].table()}")
            hint = budget_hint(readable, tokenized, encoder_for, args, data.preprocessing_num_workers)
            ledgers[name].check(data.max_drop_ratio, hint=hint)
            if not len(rows[name]):
                raise UserError(f"{name}: no row is left{f'; {hint}' if hint else ''}")
            if hint:
                say(f"note: {name}: {hint}")
    return rows["train"], rows.get("validation"), ledgers


def read_rows(data: "DataArguments", args: "RunArguments", form: str = "messages") -> dict[str, Dataset]:
    """The examples called ``train`` and, where there are any, ``validation``; see `load_examples`."""
    columns = columns_of(data)
    settings = {"form": form, "cache_dir": data.cache_dir, "encoding": data.encoding, "seed": args.seed}
    splits = {"train": load_examples(mixed_files(data), columns, **settings)}
    if data.validation_file:
        splits["validation"] = load_examples(data.validation_file, columns, split="validation", **settings)
    elif data.validation_split_percentage:
        splits["train"], splits["validation"] = hold_out(splits["train"], data.validation_split_percentage, args.seed)
        held, rest = len(splits["validation"]), len(splits["train"])
        say(f"held out {held:,} of {rest + held:,} rows for evaluation")
    for name, rows in splits.items():
        if chosen := limited_rows(data, args, name, len(rows)):
            splits[name] = rows.select(chosen)
    return splits


def mixed_files(data: "DataArguments") -> list[str]:
    """`train_file` with the amounts of each that `mixture` makes."""
    if not data.mixture:
        return data.train_file
    where, policy = f"--mixture {data.mixture}", read_policy(data.mixture)
    if policy.by not in ("documents", "epochs"):
        raise UserError(
            f"{where}: by {policy.by} is for pretraining; rows are sampled by documents or epochs: "
            '{"by": "documents", "sources": {"news": 0.5, "wiki": 0.5}}'
        )
    specs = dict(zip(source_names(data.train_file), data.train_file, strict=True))
    if amount := next((spec for spec in data.train_file if parse_spec(spec).amount is not None), None):
        raise UserError(f"{where} says how much of each source is read; leave the amount of {amount} out")
    specs = {name: specs[name] for name in select_sources(policy, list(specs), where)}
    if policy.by == "epochs":
        return [f"{spec}*{policy.sources[name]:.9f}" for name, spec in specs.items()]
    settings = {"cache_dir": data.cache_dir, "sniff": True, "encoding": data.encoding}
    total = sum(1 for source in find_sources(list(specs.values()), **settings) for _ in read_records(source))
    return [f"{spec}#{round(policy.sources[name] * total)}" for name, spec in specs.items()]


def limited_rows(data: "DataArguments", args: "RunArguments", name: str, count: int) -> list[int] | None:
    """The sorted indices of the rows of a split that `max_train_samples` and `max_eval_samples` leave; None for all.

    They are sampled from all sources; those to evaluate on are the same whatever the seed of the run.
    """
    size, seed = (data.max_train_samples, args.seed) if name == "train" else (data.max_eval_samples, SEED)
    chosen = sampled_rows(count, size, seed)
    if chosen:
        say(f"{name}: {size:,} of {count:,} rows, sampled with the seed {seed}")
    return chosen


def budget_hint(
    readable: Dataset, tokenized: Dataset, encoder_for: Callable, args: "RunArguments", workers: int | None
) -> str:
    """How many answers, or rows that cannot be cut, are over the budgets, and which would keep them whole."""
    over = [row for row, (_, status) in enumerate(row_statuses(tokenized)) if any(reason in status for reason in OVER)]
    if not over:
        return ""
    unlimited = copy(args)
    for name in ("max_source_length", "max_target_length", "max_length"):
        if hasattr(args, name):
            setattr(unlimited, name, None)
    encoder = encoder_for(unlimited, "train")
    whole = usable(tokenize_dataset(readable.select(over), encoder, workers if len(over) > FEW_ROWS else None))
    if not len(whole):
        return ""
    if isinstance(encoder, PreferenceEncoder):
        lengths = np.r_[row_sizes(usable(tokenized)), row_sizes(whole)]
        return budget_of(lengths, args.max_length, len(readable), "--max_length")
    prompts = np.array(whole["prompt_length"][:])
    answers = row_sizes(whole) - prompts
    needed = {"max_target_length": answers.max()}
    needed["max_length"] = (np.minimum(prompts, args.max_source_length or prompts) + answers).max()
    flags = [f"--{name} {size}" for name, size in needed.items() if size > (getattr(args, name) or size)]
    effect = "left out" if args.truncation == "drop" else "cut, and each teaches to stop in the middle"
    other = "" if args.truncation == "drop" else "; --truncation drop leaves such rows out"
    return f"{len(over):,} of {len(readable):,} answers are {effect}; {' '.join(flags)} keeps all whole{other}"


def row_sizes(rows: Dataset) -> np.ndarray:
    """Tokens of each row, of a pair those of its longer side."""
    names = [name for name in rows.column_names if name.endswith("_ids")]
    table = rows.select_columns(names).with_format("arrow")[:]
    return np.max([pc.list_value_length(column).to_numpy() for column in table.columns], axis=0)


def check_evaluation_rows(data: "SourceArguments", args: "RunArguments", evaluates: bool) -> None:
    """Refuse to evaluate on nothing."""
    wants = args.eval_strategy != "no" or args.eval_on_start
    sources = [name for name in ("validation_file", "validation_split_percentage") if hasattr(data, name)]
    if wants and not (evaluates or any(getattr(data, name) for name in sources)):
        flags = "--eval_on_start" if args.eval_strategy == "no" else "--eval_steps or --eval_strategy"
        give = ", ".join(f"--{name}" for name in sources)
        raise UserError(f"{flags} without rows to evaluate on: give {give} or --eval_files")


def tokenize_rows(examples: Dataset, encoder, data: "DataArguments") -> tuple[Dataset, Dataset, Ledger]:
    """The examples that can be read, each of them tokenized (dropped ones among them), and the ledger of all."""
    ledger = Ledger()
    for location, status in row_statuses(examples):
        if is_dropped(status):
            ledger.add(location, status)
    readable = usable(examples)
    if not len(readable):
        ledger.check(data.max_drop_ratio)
    tokenized = tokenize_dataset(readable, encoder, data.preprocessing_num_workers)
    # What was done to a row when it was read, and what when it was tokenized.
    for (location, before), (_, after) in zip(row_statuses(readable), row_statuses(tokenized), strict=True):
        ledger.add(location, *((after,) if is_dropped(after) else (before, after)))
    return readable, tokenized, ledger
