"""What a run is going to do: rows, tokens, steps, memory and disk, and what in its settings cannot work together."""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import Ledger
from hf_recipes.dry_run.checks import balances_experts, check_trained
from hf_recipes.dry_run.memory import Batch, Memory, estimate, skeleton
from hf_recipes.dry_run.peak_memory import in_units
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.packing import joins_rows, keeps_packed_rows_apart
from hf_recipes.models.devices import has_accelerator
from hf_recipes.models.inference.compute import ForwardPass
from hf_recipes.models.loading import without_deepspeed
from hf_recipes.models.quantization import read_bnb_config

if TYPE_CHECKING:
    from hf_recipes.run.arguments import RunArguments
    from hf_recipes.stages.sft import SFTArguments

# What a twin of a model is shrunk to; a family whose sizes hang together in another way has no twin.
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@dataclass
class DataStats:
    """What a stage's rows are: their number and that of packed blocks of them, tokens, and the largest batch."""

    rows: int
    tokens: int
    labelled: int | None  # tokens that carry loss; None where rows are scored as a whole
    longest: int
    batch: Batch
    digest: str  # of what is trained on, wherever it lies
    truncated: float | None = None  # share of the rows; None where none is ever
    blocks: int | None = None
    what: str = "rows"
    lengthen: str = "--max_length (or the two budgets)"  # the flag that says how long a row may be


@dataclass
class Plan:
    """Figures of the training rows, of the steps, and of one device; `notes` are worth reading before starting."""

    figures: DataStats
    per_device: int
    accumulation: int
    processes: int
    steps_per_epoch: int
    steps: int
    warmup: int
    memory: Memory | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def global_batch(self) -> int:
        """Rows (packed blocks) in one optimizer step."""
        return self.per_device * self.accumulation * self.processes

    @property
    def batch_parts(self) -> str:
        processes = f"{self.processes} process{'es' * (self.processes > 1)}"
        return f"{self.per_device} a device × {self.accumulation} accumulated × {processes}"

    def table(self) -> str:
        found = self.figures
        what = found.what if found.blocks is None else "packed blocks"
        count = found.blocks or found.rows
        a_step = found.tokens / count * min(self.global_batch, count)
        lines = [
            (
                found.what,
                f"{found.rows:,}" + (f" in {found.blocks:,} packed blocks" if found.blocks is not None else ""),
            ),
            (
                "tokens an epoch",
                f"{found.tokens:,}" + (f", {found.labelled:,} of them learned" if found.labelled else ""),
            ),
            (f"longest {found.what.removesuffix('s')}", f"{found.longest:,} tokens"),
        ]
        if found.truncated is not None:
            lines.append(("truncated", f"{found.truncated:.1%} of the rows"))
        lines += [
            ("global batch", f"{self.global_batch:,} {what} ({self.batch_parts}), about {a_step:,.0f} tokens"),
            ("steps", f"{self.steps_per_epoch:,} an epoch, {self.steps:,} in all, {self.warmup:,} of them warmup"),
        ]
        if self.memory:
            found = self.memory
            lines.append(
                ("trained", f"{found.trained:,} of {found.total:,} weights ({found.trained / found.total:.2%})")
            )
            size = f"{found.batch.rows} × {found.batch.length:,} tokens"
            which = "evaluation batch" if found.evaluates else "batch"
            lines.append(("memory", f"{in_units(found.peak)} a device, estimated for the largest {which} ({size})"))
            lines += [(f"  {name}", in_units(size)) for name, size in found.parts.items()]
            lines.append(("checkpoint", f"{in_units(found.checkpoint)} on disk"))
        return "\n".join(f"{name.ljust(17)} {text}" for name, text in lines)

    def show(self, whole: bool) -> None:
        """Print the notes, and with `whole` the table before them."""
        if whole:
            say(self.table())
        elif self.processes > 1:
            say(f"{self.processes} processes, {self.global_batch:,} {self.figures.what} a step ({self.batch_parts})")
        for note in self.notes:
            say(f"note: {note}")


def rows_digest(rows: Dataset, *columns: str) -> str:
    """A digest of the values of `columns`, numbers or lists of them, in the order of the rows."""
    import xxhash

    found = xxhash.xxh3_128()
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(10_000):
        for name in columns:
            values: pa.Array = table[name].combine_chunks()
            if pa.types.is_list(values.type):
                found.update(pc.list_value_length(values).to_numpy())
                values = values.flatten()
            found.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)))
    return found.hexdigest()


def row_lengths(rows: Dataset, column: str = "labels") -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each row, and those of them that are learned, by the labels in `column`: two (N,) arrays."""
    tokens, labelled = [], []
    for table in rows.select_columns([column]).with_format("arrow").iter(10_000):
        labels: pa.Array = table[column].combine_chunks()
        sizes = pc.list_value_length(labels).to_numpy()
        values = labels.flatten().to_numpy() != -100
        ends = np.cumsum(sizes)
        counts = np.concatenate([[0], np.cumsum(values)])
        tokens.append(sizes)
        labelled.append(counts[ends] - counts[ends - sizes])
    return np.concatenate(tokens), np.concatenate(labelled)


def largest_batch(tokens: np.ndarray, labelled: np.ndarray, args: "SFTArguments", joined: bool = False) -> Batch:
    """The batch of the longest rows, with logits wherever one of them has a label.

    Args:
        tokens, learned: of each row or pack, (N,).
        joined: they are joined into one row.
    """
    longest = np.argsort(tokens, kind="stable")[-args.per_device_train_batch_size :]
    shape = (1, int(tokens[longest].sum())) if joined else (len(longest), int(tokens[longest].max()))
    packed = args.packing or args.padding_free
    return Batch(*shape, max(1, int(labelled[longest].sum())), packed=packed, fused_head=not args.use_cpu)


def row_stats(train: Dataset, ledger: Ledger, args: "SFTArguments", attention: str | None = None) -> DataStats:
    """The figures of tokenized rows, packed or not, for this implementation of attention."""
    tokens, labelled = own = row_lengths(train)
    blocks = None
    if args.packing:
        from trl import pack_dataset

        packs = pack_dataset(train.select_columns(["input_ids", "labels"]), args.max_length, "bfd")
        blocks, own = len(packs), row_lengths(packs)
    read = ledger.totals["read"]
    return DataStats(
        rows=len(train),
        tokens=int(tokens.sum()),
        labelled=int(labelled.sum()),
        longest=int(tokens.max()),
        batch=largest_batch(*own, args, joined=(args.packing or args.padding_free) and joins_rows(attention)),
        digest=rows_digest(train, "input_ids", "labels"),
        truncated=ledger.totals["truncated"] / read if read else 0.0,
        blocks=blocks,
    )


def make_plan(
    model_args: ModelArguments,
    args: "RunArguments",
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    added_tokens: list[str],
    figures: DataStats,
    packs: UserError | None = None,
    freeze: Callable[[PreTrainedModel], None] = lambda model: None,
    is_reward: bool = False,
    keeps_reference: bool = False,
    passes: Sequence[ForwardPass] = (),
) -> Plan:
    """The plan of a run over rows of these `figures`, whose weights have not been loaded.

    Args:
        packs: the error to raise where rows that are packed would see each other; None where none are.
        freeze: takes weights out of the training.
        keeps_start: the trained weights are kept as they were at the start too.
        passes: the largest forward pass of each evaluation.

    Raises:
        UserError: settings that cannot work together, or that do not fit the model.
    """
    experts = balances_experts(args, config)
    if packs is not None and _leaks(config, args.trust_remote_code):
        raise packs
    batches = -(-(figures.blocks or figures.rows) // (args.per_device_train_batch_size * args.world_size))
    per_epoch = max(1, -(-batches // args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else int(np.ceil(args.num_train_epochs * per_epoch))
    plan = Plan(
        figures=figures,
        per_device=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        processes=args.world_size,
        steps_per_epoch=per_epoch,
        steps=steps,
        warmup=args.get_warmup_steps(steps),
    )
    with without_deepspeed():
        try:
            how = {"bf16": args.bf16, "trust_remote_code": args.trust_remote_code, "is_reward": is_reward}
            model = skeleton(model_args, config, tokenizer, added_tokens, **how)
            freeze(model)
        except UserError:
            raise
        except Exception as error:  # what a family cannot do without weights is no reason not to train it
            model = None
            plan.notes.append(f"no estimate of the memory ({_first_line(error)})")
        _check_positions(plan, config, model)
        if model is not None and args.process_index == 0:
            try:
                plan.memory = estimate(
                    model,
                    figures.batch,
                    args,
                    linear_bits=_linear_bits(model_args),
                    tokenizer_bytes=_tokenizer_bytes(tokenizer),
                    keeps_reference=keeps_reference,
                    passes=passes,
                )
            except Exception as error:
                plan.notes.append(f"no estimate of the memory ({_first_line(error)})")
    if model is not None:
        check_trained(model, args, model_args.quantizes or bool(getattr(config, "quantization_config", None)))
    plan.notes += _notes(plan, args)
    if experts and (batches := plan.accumulation * plan.processes) > 1:
        plan.notes.append(
            "the use of a mixture's experts (--router_aux_loss_coef) is measured in each batch by itself: an "
            f"update of {batches} batches weighs it otherwise than one batch of all its rows"
        )
    return plan


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _linear_bits(model_args: ModelArguments) -> float | None:
    """Bits a weight, with those of its scales: one of 32 bits for 64 weights, or 0.13 (QLoRA, arXiv 2305.14314)."""
    config = read_bnb_config(
        model_args.bnb_config, load_in_4bit=model_args.load_in_4bit, load_in_8bit=model_args.load_in_8bit
    )
    if config is None or config.load_in_8bit:
        return None if config is None else 8.0
    return 4.13 if config.bnb_4bit_use_double_quant else 4.5


def _tokenizer_bytes(tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer.backend_tokenizer.to_str().encode()) if tokenizer.is_fast else 0


def _leaks(config: PretrainedConfig, trust_remote_code: bool) -> bool:
    """Whether packed rows see each other in a random tiny twin; False too where there is none (loading then tells)."""
    twin = copy.deepcopy(config)
    text = twin.get_text_config()
    for name, value in {**TINY, "vocab_size": 128}.items():
        if hasattr(text, name):
            setattr(text, name, value)
    layers = min(4, text.num_hidden_layers)
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(twin, trust_remote_code=trust_remote_code)
            return not keeps_packed_rows_apart(model)
    except Exception:
        return False


def _check_positions(plan: Plan, config: PretrainedConfig, model) -> None:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest, flag = plan.figures.longest, plan.figures.lengthen
    if not isinstance(limit, int) or longest <= limit:
        return
    text = f"the longest row has {longest:,} tokens, and the model was made for {limit:,}"
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, torch.nn.Embedding)] if model else []
    if any(limit <= rows <= limit + 2 for rows in tables):  # learned positions: there is no vector for a later one
        raise UserError(f"{text}; lower {flag} to {limit}")
    plan.notes.append(f"{text}, which may cost quality; {flag.split()[0]} {limit} keeps to it")


def _notes(plan: Plan, args: "RunArguments") -> list[str]:
    notes = []
    rows = plan.figures.blocks or plan.figures.rows
    if rows < plan.global_batch:
        notes.append(
            f"one step takes {plan.global_batch:,} {plan.figures.what}, and there are {rows:,}: every epoch is one "
            "smaller step; lower --gradient_accumulation_steps or --per_device_train_batch_size"
        )
    for name, strategy, loss in (
        ("eval_steps", args.eval_strategy, "no evaluation before the end"),
        ("save_steps", args.save_strategy, "no checkpoint before the end, so a killed run starts over"),
    ):
        value = getattr(args, name) or 0
        every = int(np.ceil(value * plan.steps)) if value < 1 else value
        if strategy == "steps" and every > plan.steps:
            notes.append(f"--{name} {value:g} with {plan.steps:,} steps: {loss}")
    if plan.warmup >= plan.steps:
        notes.append(f"{plan.warmup:,} of {plan.steps:,} steps are warmup: the learning rate is never reached")
    if plan.memory and plan.memory.peak > (free := _free_bytes()):
        needed = f"about {in_units(plan.memory.peak)} are needed and {in_units(free)} are free"
        notes.append(f"{needed}: {_lighter(plan.memory, args, plan.figures.lengthen)}")
    return notes


def _free_bytes() -> float:
    if has_accelerator():
        return torch.accelerator.get_memory_info()[0]
    import psutil

    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _lighter(memory: Memory, args: "RunArguments", flag: str) -> str:
    """The flags that would lower the largest parts, the most useful first."""
    found = memory.parts
    options = {}
    if memory.evaluates:
        options["a lower --per_device_eval_batch_size"] = found["activations"] + found["logits"]
    elif args.per_device_train_batch_size > 1:
        more = "--per_device_train_batch_size 1 with more --gradient_accumulation_steps"
        options[more] = found["activations"] + found["logits"]
    if not args.gradient_checkpointing and not memory.evaluates:
        options["--gradient_checkpointing True"] = found["activations"]
    options[f"a lower {flag.split()[0]}"] = (found["activations"] + found["logits"]) // 2
    options["--optim adamw_8bit"] = found["optimizer"] if "8bit" not in args.optim else 0
    if memory.trained == memory.total:
        options["--use_lora True"] = found["optimizer"] + found["gradients"]
    else:
        options["a smaller model or a quantized one"] = found["weights"]
    best = sorted((name for name in options if options[name]), key=lambda name: -options[name])[:3]
    return "try " + ", ".join(best)
