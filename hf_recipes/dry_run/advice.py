"""What is worth reading before the start of a run, and the settings that would save memory."""

import os
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PretrainedConfig

from hf_recipes.core.files import in_units
from hf_recipes.dry_run.checks import balances_experts
from hf_recipes.dry_run.memory import Memory
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.models.devices import has_accelerator

if TYPE_CHECKING:
    from hf_recipes.dry_run.plan import Plan
    from hf_recipes.run.arguments import RunArguments


def notes_of(plan: "Plan", args: "RunArguments", config: PretrainedConfig) -> list[Phrase]:
    """What is worth reading before the start of a run."""
    notes = []
    rows = plan.data.blocks or plan.data.rows
    if rows < plan.global_batch:
        notes.append(
            Phrase(
                "one step takes {batch:,} {what}, and there are {rows:,}: every epoch is one smaller step; lower "
                "--gradient_accumulation_steps or --per_device_train_batch_size",
                batch=plan.global_batch,
                what=Phrase(plan.data.what),
                rows=rows,
            )
        )
    for name, strategy, loss in (
        ("eval_steps", args.eval_strategy, Phrase("no evaluation before the end")),
        ("save_steps", args.save_strategy, Phrase("no checkpoint before the end, so a killed run starts over")),
    ):
        value = getattr(args, name) or 0
        every = int(np.ceil(value * plan.steps)) if value < 1 else value
        if strategy == "steps" and every > plan.steps:
            flag = {"name": name, "value": value, "steps": plan.steps}
            notes.append(Phrase("--{name} {value:g} with {steps:,} steps: {loss}", **flag, loss=loss))
    if plan.warmup >= plan.steps:
        steps = {"warmup": plan.warmup, "steps": plan.steps}
        notes.append(Phrase("{warmup:,} of {steps:,} steps are warmup: the learning rate is never reached", **steps))
    if plan.memory and plan.memory.peak > (free := free_bytes()):
        notes.append(
            Phrase(
                "about {needed} are needed and {free} are free: try {options}",
                needed=in_units(plan.memory.peak),
                free=in_units(free),
                options=_memory_advice(plan.memory, args, plan.data.lengthen),
            )
        )
    if balances_experts(args, config) and (batches := plan.accumulation * plan.processes) > 1:
        notes.append(
            Phrase(
                "the use of a mixture's experts (--router_aux_loss_coef) is measured in each batch by itself: an "
                "update of {batches} batches weighs it differently from one batch of all its rows",
                batches=batches,
            )
        )
    return notes


def free_bytes() -> float:
    if has_accelerator():
        return torch.accelerator.get_memory_info()[0]
    import psutil

    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _memory_advice(memory: Memory, args: "RunArguments", flag: str) -> Phrase:
    """The flags that would save the most memory, the most useful first."""
    parts, options = memory.parts, {}
    temporary = parts["activations"] + parts["logits"]
    if memory.evaluates:
        options[Phrase("a lower {flag}", flag="--per_device_eval_batch_size")] = temporary
    elif args.per_device_train_batch_size > 1 and not memory.batch.accumulates:
        options[Phrase("--per_device_train_batch_size 1 with more --gradient_accumulation_steps")] = temporary
    if not args.gradient_checkpointing and not memory.evaluates:
        options["--gradient_checkpointing True"] = parts["activations"]
    options[Phrase("a lower {flag}", flag=flag.split()[0])] = temporary // 2
    options["--optim adamw_8bit"] = parts["optimizer"] if "8bit" not in args.optim else 0
    if memory.trained == memory.total:
        options["--use_lora True"] = parts["optimizer"] + parts["gradients"]
    else:
        options[Phrase("a smaller model or a quantized one")] = parts["weights"]
    best = sorted((name for name in options if options[name]), key=lambda name: -options[name])[:3]
    named = {f"option{number}": option for number, option in enumerate(best)}
    return Phrase(", ".join(f"{{{name}}}" for name in named), **named)
