"""What a run will do: rows, tokens, steps, memory and disk, and settings that cannot work together."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import in_units
from hf_recipes.core.language import locale_language
from hf_recipes.dry_run.advice import free_bytes, notes_of
from hf_recipes.dry_run.checks import balances_experts, check_trained
from hf_recipes.dry_run.data_stats import DataStats
from hf_recipes.dry_run.memory import Memory, estimate
from hf_recipes.dry_run.peak_memory import as_range
from hf_recipes.dry_run.simulate import meta_model
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import report_values
from hf_recipes.models.adapters.targets import what_is_trained
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.packing import leaks_in_tiny_copy
from hf_recipes.models.inference.batch_options import ForwardPass
from hf_recipes.models.loading import loading_error, without_deepspeed
from hf_recipes.models.quantization.settings import read_bnb_config
from hf_recipes.trainer.reports.throughput import flops_per_token, matmul_flops

if TYPE_CHECKING:
    from hf_recipes.run.arguments import RunArguments

# Shares of a matrix multiplication's speed that trainings reach: long rows of a large model, short ones of a small one.
USED = (0.5, 0.1)


@dataclass
class Plan:
    """The training rows, steps, and memory on one device; `notes` are worth reading before the start."""

    data: DataStats
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
    def batch_formula(self) -> str:
        processes = f"{self.processes} process{'es' * (self.processes > 1)}"
        return f"{self.per_device} a device × {self.accumulation} accumulated × {processes}"

    def table(self) -> str:
        data = self.data
        what = data.what if data.blocks is None else "packed blocks"
        count = data.blocks or data.rows
        per_step = data.tokens / count * min(self.global_batch, count)
        blocks = "" if data.blocks is None else f" in {data.blocks:,} packed blocks"
        labelled = f", {data.labelled:,} of them trained on" if data.labelled else ""
        lines = [
            (data.what, f"{data.rows:,}{blocks}"),
            ("tokens an epoch", f"{data.tokens:,}{labelled}"),
            (f"longest {data.what.removesuffix('s')}", f"{data.longest:,} tokens"),
        ]
        if data.truncated is not None:
            lines.append(("truncated", f"{data.truncated:.1%} of the rows"))
        lines += [
            ("global batch", f"{self.global_batch:,} {what} ({self.batch_formula}), about {per_step:,.0f} tokens"),
            ("steps", f"{self.steps_per_epoch:,} an epoch, {self.steps:,} in all, {self.warmup:,} of them warmup"),
        ]
        if memory := self.memory:
            size = f"{memory.batch.rows} × {memory.batch.length:,} tokens"
            which = "evaluation batch" if memory.evaluates else "batch"
            amount = as_range(memory.peak, memory.most)
            kernels = f"up to {in_units(memory.kernels)}, compiled for each shape of batch in bfloat16"
            lines += [
                ("trained", what_is_trained(memory.trained, memory.total, memory.shares)),
                ("memory", f"{amount} a device, estimated for the largest {which} ({size})"),
                *((f"  {name}", in_units(size)) for name, size in memory.parts.items()),
                *([("  kernels", kernels)] if memory.kernels else []),
                ("checkpoint", f"{in_units(memory.checkpoint)} on disk"),
            ]
        return "\n".join(f"{name.ljust(17)} {text}" for name, text in lines)

    def to_dict(self) -> dict[str, Any]:
        """The table and the notes for --json: bytes, tokens and steps as numbers."""
        data, memory = asdict(self.data), self.memory
        names = ("what", "rows", "blocks", "tokens", "labelled", "longest", "truncated")
        batch = {"per_device": self.per_device, "accumulation": self.accumulation, "processes": self.processes}
        return {
            "data": {name: data[name] for name in names},
            "batch": {**batch, "global": self.global_batch},
            "steps": {"per_epoch": self.steps_per_epoch, "total": self.steps, "warmup": self.warmup},
            "memory": memory
            and asdict(memory) | {name: getattr(memory, name) for name in ("peak", "most", "evaluates")},
            "free_memory": free_bytes(),
            "notes": report_values(self.notes, locale_language()),
        }

    def seconds(self, model: PreTrainedModel | None, args: "RunArguments") -> list[float] | None:
        """About how long the training takes, from a device that is used well to one that is not; without evaluations.

        None for what also generates, and where the model is unknown.
        """
        if model is None or hasattr(args, "num_generations"):
            return None
        epochs = self.steps / self.steps_per_epoch
        operations = flops_per_token(model, self.data.longest) * self.data.tokens * epochs / self.processes
        if args.gradient_checkpointing:
            operations *= 4 / 3  # the forward pass is done twice
        speed = matmul_flops(torch.device("cpu") if args.use_cpu else args.device, args.bf16 or args.fp16)
        return [round(operations / speed / share, 1) for share in USED]

    def show(self, whole: bool) -> None:
        """Print the notes, and with `whole` the table before them."""
        if whole:
            say(self.table())
        elif self.processes > 1:
            say(f"{self.processes} processes, {self.global_batch:,} {self.data.what} a step ({self.batch_formula})")
        for note in self.notes:
            say(f"note: {note}")


def outline(
    model_args: ModelArguments,
    args: "RunArguments",
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    added_tokens: list[str],
    packing_error: UserError | None = None,
    freeze: Callable[[PreTrainedModel], None] = lambda model: None,
    is_reward: bool = False,
) -> PreTrainedModel | None:
    """The model that a run trains, without weights; None where its own code can build none.

    Args:
        packing_error: the error to raise where packed rows would see each other; None where rows are not packed.
        freeze: makes weights of the model untrained.

    Raises:
        UserError: the model cannot be built, or not with these settings.
    """
    balances_experts(args, config)
    if packing_error is not None and leaks_in_tiny_copy(config, args.trust_remote_code):
        raise packing_error
    name = model_args.model_name_or_path or getattr(model_args, "config_name", None)
    options = {"bf16": args.bf16, "trust_remote_code": args.trust_remote_code, "is_reward": is_reward}
    try:
        with without_deepspeed():
            model = meta_model(model_args, config, tokenizer, added_tokens, **options)
            freeze(model)
    except UserError:
        raise
    except Exception as error:
        if args.trust_remote_code:  # which may not be made for the meta device, and train all the same
            return None
        if "Unrecognized configuration class" in str(error):
            raise loading_error(error, name) from None
        raise UserError(f"{name}: no model can be built from its configuration ({_first_line(error)})") from None
    text = config.get_text_config()
    heads, shared = (getattr(text, key, None) for key in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(shared, int) and 0 < shared < heads and heads % shared:
        why = f"{heads} num_attention_heads are no multiple of {shared} num_key_value_heads"
        raise UserError(f"{name}: no model can be built from its configuration ({why})")
    if empty := next((key for key, weight in model.named_parameters() if not weight.numel()), None):
        raise UserError(f"{name}: no model can be built from its configuration ({empty} would have no element)")
    check_trained(model, args, model_args.quantizes or bool(getattr(config, "quantization_config", None)))
    return model


def make_plan(
    model_args: ModelArguments,
    args: "RunArguments",
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | None,
    data: DataStats,
    keeps_reference: bool = False,
    passes: Sequence[ForwardPass] = (),
) -> Plan:
    """The plan of a run over these rows; no weight is loaded.

    Args:
        model: its `outline`.
        keeps_reference: a frozen copy of the trained weights is kept as reference.
        passes: the largest forward pass of each evaluation.
    """
    batches = -(-(data.blocks or data.rows) // (args.per_device_train_batch_size * args.world_size))
    per_epoch = max(1, -(-batches // args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else int(np.ceil(args.num_train_epochs * per_epoch))
    plan = Plan(
        data=data,
        per_device=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        processes=args.world_size,
        steps_per_epoch=per_epoch,
        steps=steps,
        warmup=args.get_warmup_steps(steps),
    )
    _check_positions(plan, config, model)
    if model is None:
        plan.notes.append(Phrase("no estimate of the memory (the model's own code builds none without weights)"))
    elif args.process_index == 0:
        try:
            with without_deepspeed():
                plan.memory = estimate(
                    model,
                    data.batch,
                    args,
                    linear_bits=_linear_bits(model_args),
                    tokenizer_bytes=len(tokenizer.backend_tokenizer.to_str().encode()) if tokenizer.is_fast else 0,
                    keeps_reference=keeps_reference,
                    passes=passes,
                )
        except Exception as error:
            plan.notes.append(Phrase("no estimate of the memory ({error})", error=_first_line(error)))
    plan.notes += notes_of(plan, args, config)
    return plan


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _linear_bits(model_args: ModelArguments) -> float | None:
    """Bits a weight, with its share of the scales: 0.5 (32 bits for 64 weights), or 0.13 where these are quantized
    too (QLoRA, arXiv 2305.14314)."""
    config = read_bnb_config(
        model_args.bnb_config, load_in_4bit=model_args.load_in_4bit, load_in_8bit=model_args.load_in_8bit
    )
    if config is None or config.load_in_8bit:
        return None if config is None else 8.0
    return 4.13 if config.bnb_4bit_use_double_quant else 4.5


def _check_positions(plan: Plan, config: PretrainedConfig, model) -> None:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest, flag = plan.data.longest, plan.data.lengthen
    if not isinstance(limit, int) or longest <= limit:
        return
    lengths = {"longest": longest, "limit": limit}
    text = Phrase("the longest row has {longest:,} tokens, and the model was made for {limit:,}", **lengths)
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, torch.nn.Embedding)] if model else []
    if any(limit <= rows <= limit + 2 for rows in tables):  # no embedding for a later position
        raise UserError(f"{text}; lower {flag} to {limit}")
    stays = {"flag": flag.split()[0], "limit": limit}
    plan.notes.append(Phrase("{text}, which may cost quality; {flag} {limit} stays within it", text=text, **stays))
