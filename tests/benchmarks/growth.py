"""Time and memory of what goes through rows, at 1, 10 and 100 times as many.

    python tests/benchmarks/growth.py --model_name_or_path MODEL [--rows 1000] [--times 1 10 100] [--jobs dry_run]

CPU seconds of each command with all its processes, and the largest memory of one that no file is behind: pages of
mapped files, such as those of a cache, are the system's to drop. Starting is in them, so that ten times the rows are at
most ten times the time. The rows are those of inspect_speed.py.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from inspect_speed import rows_for

ROOT = Path(__file__).parents[2]


def commands(model: str, rows: Path, folder: Path, workers: int) -> dict[str, list]:
    read = ["--model_name_or_path", model, "--train_file", rows, "--preprocessing_num_workers", workers]
    return {
        "dry_run": ["sft.py", *read, "--use_lora", "--dry_run", "--output_dir", folder / "run", "--report_to", "none"],
        "inspect": ["inspect_data.py", "--stage", "sft", *read, "--html", folder / "page.html"],
    }


def measure(command: list) -> tuple[float, float, float]:
    """Seconds, CPU seconds and the largest anonymous memory of a process in MB."""
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    process = psutil.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        with suppress(psutil.Error, OSError):
            peak = max(peak, *(anonymous(one.pid) for one in (process, *process.children(recursive=True))))
        time.sleep(0.5)
    assert process.returncode == 0, command
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu, peak / 1e6


def anonymous(pid: int) -> int:
    """Bytes of a process that no file is behind (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Anonymous:")))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs", nargs="+", default=["dry_run", "inspect"])
    options = parser.parse_args()
    print(f"{'job':10}{'rows':>12}{'s':>10}{'CPU s':>10}{'MB':>10}")
    for times in options.times:
        with tempfile.TemporaryDirectory() as temporary:
            folder, count = Path(temporary), options.rows * times
            rows = folder / "rows.jsonl"
            with rows.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_for("sft", count))
            for job in options.jobs:
                script, *rest = commands(options.model_name_or_path, rows, folder, options.workers)[job]
                command = [ROOT / "scripts" / script, *rest, "--cache_dir", folder / f"cache-{job}"]
                seconds, cpu, peak = measure(command)
                print(f"{job:10}{count:12,}{seconds:10.1f}{cpu:10.1f}{peak:10,.0f}", flush=True)


if __name__ == "__main__":
    main()
