"""Tokens per second of pretraining on this machine's CPU, against a plain PyTorch loop over the same blocks.

    python tests/benchmarks/pretrain_speed.py [--steps 20] [--repeats 3]

The 30M shape of configs/models in bfloat16 where the processor computes in it, blocks of 256, 8 a step, from token
shards and streamed with two workers. The two are timed by turns; printed are the medians and their ratio, and the share
of the time that training waited for data.
"""

import argparse
import copy
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import torch
from datasets import disable_progress_bars

from hf_recipes.data.arguments import SourceArguments
from hf_recipes.models.devices import cpu_computes_bf16
from hf_recipes.models.from_config import PretrainModelArguments, make_model, read_model_config
from hf_recipes.stages.data.pretrain import prepare_mixture
from hf_recipes.stages.pretrain import STAGE, PretrainArguments
from hf_recipes.stages.trainers.pretrain import collate, step_blocks

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from plain_loop import plain_loop  # noqa: E402
from stage_runs import trainer_of  # noqa: E402
from train_speed import build_tokenizer, made_up_rows  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bars()
    rows = made_up_rows(3000)
    tokenizer = build_tokenizer(rows)
    with tempfile.TemporaryDirectory() as folder:
        import json

        data = Path(folder, "text.jsonl")
        data.write_text("".join(json.dumps({"text": row["output"]}, ensure_ascii=False) + "\n" for row in rows))
        tokenizer.save_pretrained(folder)
        shape = PretrainModelArguments(
            config_name=str(ROOT / "configs/models/qwen3_30m.json"), tokenizer_name=folder, initializer_range=0.02
        )
        config = read_model_config(shape, tokenizer)
        config.vocab_size = 49_152  # as with a vocabulary of the usual size
        torch.manual_seed(0)
        first = make_model(shape, config=config)

        def ours(streaming: bool) -> tuple[float, float]:
            args = PretrainArguments(
                output_dir=f"{folder}/run",
                report_to="none",
                block_size=256,
                max_steps=options.steps,
                logging_steps=options.steps,
                save_strategy="no",
                disable_tqdm=True,
                streaming=streaming,
                dataloader_num_workers=2,
            )
            sources = SourceArguments(train_file=[str(data)], cache_dir=f"{folder}/cache")
            trainer, _ = trainer_of(STAGE, args, sources, tokenizer, copy.deepcopy(first))
            trainer.train()
            [entry] = [entry for entry in trainer.state.log_history if "loss" in entry]
            return entry["tokens_per_second"], entry["data_wait"]

        def plain() -> float:
            args = PretrainArguments(output_dir=f"{folder}/run", report_to="none", block_size=256)
            sources = SourceArguments(train_file=[str(data)], cache_dir=f"{folder}/cache")
            mixture, _ = prepare_mixture(sources, args, tokenizer)
            size = args.per_device_train_batch_size
            own = mixture.batches_of(0, options.steps * size, size, 0, 1, step_blocks(args))
            batches = [collate([mixture[index] for index in indices]) for indices in own]
            model = copy.deepcopy(first)
            start = time.perf_counter()
            plain_loop(model, batches, 3e-4, steps=options.steps, warmup=1, floor=0.1, bf16=cpu_computes_bf16())
            return sum(int(batch["tokens"].sum()) for batch in batches) / (time.perf_counter() - start)

        found: dict[str, list] = {"plain loop": [], "shards": [], "streamed": []}
        plain()  # to warm up
        for _ in range(options.repeats):
            found["plain loop"].append((plain(), 0.0))
            found["shards"].append(ours(False))
            found["streamed"].append(ours(True))
    base = median(speed for speed, _ in found["plain loop"])
    for name, values in found.items():
        speed, wait = median(speed for speed, _ in values), median(wait for _, wait in values)
        ratios = [one / two for (one, _), (two, _) in zip(values, found["plain loop"], strict=True)]
        print(
            f"{name.ljust(11)} {speed:8,.0f} tokens/s, {speed / base:.3f} of the plain loop "
            f"(by turns {', '.join(f'{ratio:.3f}' for ratio in ratios)}), waited {wait:.2%}"
        )


if __name__ == "__main__":
    main()
