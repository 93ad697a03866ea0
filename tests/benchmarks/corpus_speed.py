"""Tokens per second of prepare_corpus.py against the bare tokenizer's encode_batch; two workers against one; memory.

    python tests/benchmarks/corpus_speed.py --model_name_or_path MODEL [--size 256] [--file texts.jsonl] [--steps …]

The corpus is --size MB of the documents in --file (by default of datasets/pretrain), repeated and with every twentieth
character changed. A worker has one thread, and so has the bare tokenizer. --steps adds flags, as --steps=--near_dedup.
"""

import os

os.environ["RAYON_NUM_THREADS"] = "1"  # before tokenizers is loaded
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from hf_recipes.corpus.arguments import CorpusArguments
from hf_recipes.corpus.pipeline import prepare_corpus
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
BARE_BYTES = 64 << 20  # text that the bare tokenizer is timed on


def made_up_documents(file: str | None, size: int, seed: int = 0) -> Iterator[str]:
    """JSON lines of `size` bytes in all."""
    files = [Path(file)] if file else sorted((ROOT / "datasets" / "pretrain").glob("*.jsonl"))
    texts = [json.loads(line)["text"] for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    draw, written = random.Random(seed), 0
    while written < size:
        characters = [character for _ in range(4) for character in draw.choice(texts)]
        for _ in range(len(characters) // 20):
            characters[draw.randrange(len(characters))] = chr(0x4E00 + draw.randrange(3000))
        line = json.dumps({"text": "".join(characters)}, ensure_ascii=False) + "\n"
        written += len(line.encode())
        yield line


def bare_rate(tokenizer, path: Path) -> float:
    """Tokens per second of `encode_batch` alone, on the beginning of the corpus."""
    tokens, seconds, read = 0, 0.0, 0
    with open(path, encoding="utf-8") as file:
        while read < BARE_BYTES and (lines := file.readlines(1 << 20)):
            texts = [json.loads(line)["text"] for line in lines]
            read += sum(map(len, lines)) * 3
            start = time.perf_counter()
            rows = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
            seconds += time.perf_counter() - start
            tokens += sum(map(len, rows))
    return tokens / seconds


def peak_memory(process: subprocess.Popen) -> float:
    """Wait for a run; the resident MB of the largest of its processes, looked at twice a second."""
    peak = 0.0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    peak = max(peak, one.memory_info().rss / 1e6)
        time.sleep(0.5)
    assert process.returncode == 0
    return peak


def tokens_in(folder: Path) -> int:
    return json.loads((folder / "corpus" / "manifest.json").read_text(encoding="utf-8"))["tokens"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--size", type=float, default=256, help="MB")
    parser.add_argument("--file")
    parser.add_argument("--steps", nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    tokenizer, _ = load_tokenizer(options.model_name_or_path, needs_template=False)
    end = tokenizer.eos_token or tokenizer.pad_token
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "corpus.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(made_up_documents(options.file, int(options.size * 1e6)))
        common = {"tokenize": True, "model_name_or_path": options.model_name_or_path, "document_end_token": end}
        ratios, speedups, memory = [], [], {}
        for repeat in range(options.repeats):
            out = Path(folder, f"single-{repeat}")
            args = CorpusArguments(input_files=[str(path)], output_dir=str(out), shard_size=5000, **common)
            bare = bare_rate(tokenizer, path)
            start = time.perf_counter()
            prepare_corpus(args, {}, tokenizer)
            single = tokens_in(out) / (time.perf_counter() - start)
            ratios.append(single / bare)
            seconds = {}
            for workers in (1, 2):
                out = Path(folder, f"{workers}-{repeat}")
                flags = [item for name, value in common.items() for item in (f"--{name}", str(value))]
                command = [sys.executable, ROOT / "scripts" / "prepare_corpus.py", "--input_files", path, *flags]
                command += ["--output_dir", out, "--shard_size", "5000", "--workers", str(workers), *options.steps]
                start = time.perf_counter()
                memory[workers] = peak_memory(subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL))
                seconds[workers] = time.perf_counter() - start
            speedups.append(seconds[1] / seconds[2])
    print(f"{options.size:g} MB, {options.repeats} runs, medians")
    print(f"bare encode_batch  {bare:12,.0f} tokens/s")
    print(f"prepare_corpus.py  {single:12,.0f} tokens/s")
    print(f"ratio              {statistics.median(ratios):12.2f}")
    print(f"two workers        {statistics.median(speedups):12.2f} times one")
    print(
        f"peak memory        {memory[1]:12,.0f} MB with one worker, {memory[2]:,.0f} MB in the largest process of two"
    )


if __name__ == "__main__":
    main()
