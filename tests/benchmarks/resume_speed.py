"""Seconds from a checkpoint's state to the first block, near the beginning of a run and far into it.

    python tests/benchmarks/resume_speed.py [--steps 100000]

A source of 200 files, from token shards and streamed, blocks of 256, 8 a step; the far end is that of so many steps,
which is many epochs. No model is involved.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from train_speed import build_tokenizer, made_up_rows

from hf_recipes.data.arguments import SourceArguments
from hf_recipes.stages.data.pretrain import prepare_mixture
from hf_recipes.stages.pretrain import PretrainArguments

NEAR, STEP = 10, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    options = parser.parse_args()
    rows = made_up_rows(4000)
    tokenizer = build_tokenizer(rows)
    with tempfile.TemporaryDirectory() as folder:
        for part in range(200):
            text = "".join(json.dumps({"text": row["output"]}) + "\n" for row in rows[part * 20 : part * 20 + 20])
            Path(folder, "all").mkdir(exist_ok=True)
            Path(folder, "all", f"part-{part:03d}.jsonl").write_text(text)

        def mixture(streaming: bool):
            args = PretrainArguments(
                output_dir=f"{folder}/run", report_to="none", block_size=256, streaming=streaming, max_steps=1
            )
            return prepare_mixture(SourceArguments([f"{folder}/all"], cache_dir=f"{folder}/cache"), args, tokenizer)[0]

        for streaming in (False, True):
            found = {}
            for steps in (NEAR, options.steps):
                location = steps * STEP
                if streaming:  # what a run would have saved there; only the stream's own place counts
                    whole = mixture(True)
                    for index in range(min(location, 4000)):
                        whole[index]
                    state = whole.state()
                    cursor = state["all"]["cursor"]
                    state["all"]["cursor"] = {**cursor, "epoch": cursor["epoch"] + location // 4000}
                else:
                    state = {}
                fresh = mixture(streaming)
                start = time.perf_counter()
                fresh.start_at(state)
                batches = fresh.stream(location, location + STEP, STEP, 0, 1, STEP)
                next(batches)
                found[steps] = time.perf_counter() - start
            way = "streamed" if streaming else "shards"
            near, far = found[NEAR], found[options.steps]
            print(f"{way.ljust(9)} step {NEAR}: {near:.3f} s; step {options.steps:,}: {far:.3f} s")


if __name__ == "__main__":
    main()
