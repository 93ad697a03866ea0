"""Rows per second of inspect_data.py, from the file to the page, in a process of its own with nothing in the cache.

    python tests/benchmarks/inspect_speed.py --model_name_or_path MODEL [--rows 100000] [--stage sft] [--workers 2]

The rows are those of tokenize_speed.py, 10,000 of them repeated under other numbers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from tokenize_speed import made_up_rows

ROOT = Path(__file__).parents[2]
DIFFERENT = 10_000


def rows_for(stage: str, count: int) -> Iterator[dict]:
    """`count` rows of the shape that a stage learns from, no two alike."""
    rows = made_up_rows(min(count, DIFFERENT))
    for number in range(count):
        row, other = rows[number % len(rows)], rows[(number + 1) % len(rows)]
        prompt, answer = f"第{number}题：{row['instruction']}", row["output"]
        if stage == "pretrain":
            yield {"text": f"{prompt}\n{answer}"}
        elif stage in ("dpo", "reward"):
            yield {"prompt": prompt, "chosen": answer, "rejected": other["output"]}
        elif stage == "kto":
            yield {"prompt": prompt, "completion": answer, "label": number % 2 == 0}
        else:
            yield {"instruction": prompt, "output": answer}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--stage", default="sft")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, page = os.path.join(folder, "rows.jsonl"), os.path.join(folder, "report.html")
        with open(path, "w", encoding="utf-8") as file:
            for row in rows_for(options.stage, options.rows):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        model = "--tokenizer_name" if options.stage == "pretrain" else "--model_name_or_path"
        command = [sys.executable, ROOT / "scripts" / "inspect_data.py", "--stage", options.stage, "--html", page]
        command += [model, options.model_name_or_path, "--train_file", path, "--cache_dir", folder]
        command += ["--preprocessing_num_workers", str(options.workers)]
        if options.stage == "pretrain":
            command += ["--config_name", ROOT / "configs" / "models" / "qwen3_30m.json"]
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                family = [watched, *watched.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in family))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.2)
        seconds = time.perf_counter() - start
        assert process.returncode == 0 and os.path.isfile(page)
    rate = options.rows / seconds
    print(
        f"{options.stage}: {options.rows:,} rows in {seconds:.1f} s, {rate:,.0f} rows/s, {peak / 1e9:.1f} GB of memory"
    )


if __name__ == "__main__":
    main()
