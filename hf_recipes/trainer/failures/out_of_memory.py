"""A run that ran out of memory: known by its error, and what to do about it."""

from typing import TYPE_CHECKING

import torch

from hf_recipes.trainer.sharding import Sharding

if TYPE_CHECKING:
    from transformers import TrainingArguments


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def out_of_memory(doing: str, args: "TrainingArguments", quantized: bool, adapter: bool) -> str:
    """The sentence for a run that ran out of memory while `doing` something: which flags to turn, from where."""
    turn = []
    if "evaluation" in doing:
        turn.append(f"--per_device_eval_batch_size below {args.per_device_eval_batch_size}")
    elif args.per_device_train_batch_size > 1:
        size, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
        turn.append(
            f"--per_device_train_batch_size {size // 2} --gradient_accumulation_steps {steps * 2} (the same update)"
        )
    if getattr(args, "max_length", None) or getattr(args, "max_source_length", None):
        turn.append("a smaller --max_length (or --max_source_length)")
    if "evaluation" not in doing and not args.gradient_checkpointing:
        turn.append("--gradient_checkpointing True")
    if adapter and not quantized:
        turn.append("--load_in_4bit")
    if Sharding.of(args).stage < 3:
        turn.append("--deepspeed configs/deepspeed/zero3_offload.json" if not quantized else "a larger device")
    return f"out of memory in {doing}; try, in this order: {'; '.join(turn)}"
