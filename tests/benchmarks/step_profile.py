"""Where the time of an SFT step on this machine's CPU goes, by torch.profiler: LoRA r=8 on all linear layers.

    python tests/benchmarks/step_profile.py --model_name_or_path MODEL [--steps 3] [--full]

Rows of tokenize_speed.py, packed 4 × 512 and padded four a batch, in bfloat16 and float32. CPU time of each operator by
itself, in shares of the step. Set OMP_NUM_THREADS=1 where the machine has other work.
"""

import argparse
import logging
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from tokenize_speed import made_up_rows
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_recipes.data.arguments import DataArguments
from hf_recipes.stages.sft import STAGE, SFTArguments

sys.path.insert(0, str(Path(__file__).parents[1]))
from stage_runs import trainer_of

GROUPS = {  # the first whose pattern is in an operator's name
    "attention": "attention",
    "matmuls": r"aten::(mm|addmm|bmm|linear|matmul)$",
    "softmax and loss": r"softmax|logsumexp|nll|gather|::exp|amax|entropy|masked_scatter",
    "casts and copies": r"copy_|_to_copy|::cat|clone|contiguous|fill_|zero_|index",
    "optimizer": r"[Aa]dam|foreach|norm_",
    "elementwise": r"::(mul|add|div|pow|mean|rsqrt|silu|neg|sub|sum|cos|sin)",
}


def trained_model(path: str, dtype: torch.dtype, full: bool):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32 if full else dtype)
    return model if full else get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))


def group_of(name: str) -> str:
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), "the rest")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="train all weights")
    parser.add_argument("--operators", type=int, default=0, help="print so many of the costliest, too")
    options = parser.parse_args()
    disable_progress_bars()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/rows.parquet"
        Dataset.from_list(made_up_rows(200)).to_parquet(path)
        data = DataArguments(train_file=[path], cache_dir=folder)
        for packing in (True, False):
            for bf16 in (True, False):
                args = SFTArguments(
                    output_dir=f"{folder}/run",
                    packing=packing,
                    bf16=bf16,
                    max_length=512,
                    per_device_train_batch_size=4,
                    use_cpu=True,
                    report_to="none",
                )
                model = trained_model(
                    options.model_name_or_path, torch.bfloat16 if bf16 else torch.float32, options.full
                )
                trainer, _ = trainer_of(STAGE, args, data, tokenizer, model)
                print_profile(trainer, options, f"{'packed' if packing else 'padded'}, {'bf16' if bf16 else 'fp32'}")


def print_profile(trainer, options: argparse.Namespace, name: str) -> None:
    trainer.create_optimizer()
    batches = iter(trainer.get_train_dataloader())
    step(trainer, next(batches))
    tokens, start = 0, time.process_time()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(options.steps):
            tokens += step(trainer, next(batches))
    seconds = time.process_time() - start
    events, groups = profiler.key_averages(), Counter()
    for event in events:
        groups[group_of(event.key)] += event.self_cpu_time_total / 1e6
    total = groups.total()
    print(f"{name}: {seconds / options.steps:.2f} s of CPU a step, {tokens / seconds:.0f} tokens/s of CPU", flush=True)
    print("  " + ", ".join(f"{group} {spent / total:.0%}" for group, spent in groups.most_common()), flush=True)
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[: options.operators]:
        share = event.self_cpu_time_total / 1e6 / total
        print(f"    {event.key:60}{share:6.1%} {event.count:7}", flush=True)


def step(trainer, batch: dict) -> int:
    trainer.training_step(trainer.model, batch, num_items_in_batch=(batch["labels"][:, 1:] != -100).sum())
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    return trainer.tokens_in(batch)


if __name__ == "__main__":
    main()
