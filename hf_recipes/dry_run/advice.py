"""What is worth reading before the start of a run, and the settings that would save memory."""

import os
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PretrainedConfig

from hf_recipes.dry_run.checks import balances_experts
from hf_recipes.dry_run.memory import Memory
from hf_recipes.dry_run.peak_memory import in_units
from hf_recipes.models.devices import has_accelerator

if TYPE_CHECKING:
    from hf_recipes.dry_run.plan import Plan
    from hf_recipes.run.arguments import RunArguments


def notes_of(plan: "Plan", args: "RunArguments", config: PretrainedConfig) -> list[str]:
    """What is worth reading before the start of a run."""
    notes = []
    rows = plan.data.blocks or plan.data.rows
    if rows < plan.global_batch:
        notes.append(
            f"one step takes {plan.global_batch:,} {plan.data.what}, and there are {rows:,}: every epoch is one "
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
    if plan.memory and plan.memory.peak > (free := free_bytes()):
        needed = f"about {in_units(plan.memory.peak)} are needed and {in_units(free)} are free"
        notes.append(f"{needed}: {_memory_advice(plan.memory, args, plan.data.lengthen)}")
    if balances_experts(args, config) and (batches := plan.accumulation * plan.processes) > 1:
        notes.append(
            "the use of a mixture's experts (--router_aux_loss_coef) is measured in each batch by itself: an "
            f"update of {batches} batches weighs it differently from one batch of all its rows"
        )
    return notes


def free_bytes() -> float:
    if has_accelerator():
        return torch.accelerator.get_memory_info()[0]
    import psutil

    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _memory_advice(memory: Memory, args: "RunArguments", flag: str) -> str:
    """The flags that would save the most memory, the most useful first."""
    parts, options = memory.parts, {}
    temporary = parts["activations"] + parts["logits"]
    if memory.evaluates:
        options["a lower --per_device_eval_batch_size"] = temporary
    elif args.per_device_train_batch_size > 1 and not memory.batch.accumulates:
        options["--per_device_train_batch_size 1 with more --gradient_accumulation_steps"] = temporary
    if not args.gradient_checkpointing and not memory.evaluates:
        options["--gradient_checkpointing True"] = parts["activations"]
    options[f"a lower {flag.split()[0]}"] = temporary // 2
    options["--optim adamw_8bit"] = parts["optimizer"] if "8bit" not in args.optim else 0
    if memory.trained == memory.total:
        options["--use_lora True"] = parts["optimizer"] + parts["gradients"]
    else:
        options["a smaller model or a quantized one"] = parts["weights"]
    best = sorted((name for name in options if options[name]), key=lambda name: -options[name])[:3]
    return "try " + ", ".join(best)
