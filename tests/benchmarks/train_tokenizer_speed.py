"""Seconds and memory of scripts/train_tokenizer.py beside bare `tokenizers` and `sentencepiece` on the same texts.

    python tests/benchmarks/train_tokenizer_speed.py [--file texts.jsonl] [--megabytes 10] [--vocab_size 8000]

Without --file the texts are made of jieba's dictionary. Each training is a process of its own; the ratio is of their
times in the same minute, and above 1 where the script is the faster one.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenize_speed import made_up_rows

ROOT = Path(__file__).parents[2]
BARE = {
    "byte_level_bpe": """
from tokenizers import Tokenizer, models, trainers
from hf_recipes.models.tokenizers.pretokenizers import pre_tokenizer
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizer("qwen2")
trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=["<|endoftext|>"])
tokenizer.train_from_iterator(texts, trainer)
""",
    **dict.fromkeys(
        ("bpe", "unigram"),
        """
import sentencepiece
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=(line for text in texts for line in text.splitlines()), model_prefix=PREFIX, vocab_size=SIZE,
    model_type=KIND, byte_fallback=True, split_digits=True, normalization_rule_name="identity", num_threads=1,
    max_sentence_length=16384, hard_vocab_limit=False, minloglevel=2)
""",
    ),
}


def run(command: list[str]) -> tuple[float, float]:
    """Seconds, and the peak of the children's memory so far in GB."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file")
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--vocab_size", type=int, default=8000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.file or write_texts(Path(folder) / "texts.jsonl", args.megabytes * 1e6)
        print(f"{Path(path).stat().st_size / 1e6:.1f} MB of texts, {args.vocab_size:,} tokens")
        for kind, code in BARE.items():
            names = {"SIZE": args.vocab_size, "KIND": kind, "PREFIX": f"{folder}/{kind}"}
            head = "\n".join(f"{name} = {value!r}" for name, value in names.items())
            read = f"import json\ntexts = (json.loads(line)['text'] for line in open({str(path)!r}))\n"
            bare, bare_memory = run([sys.executable, "-c", f"{head}\n{read}{code}"])
            flags = ["--train_file", str(path), "--vocab_size", str(args.vocab_size), "--model_type", kind]
            flags += ["--max_bytes", "2000000000", "--held_out_share", "0", "--output_dir", f"{folder}/ours-{kind}"]
            ours, memory = run([sys.executable, "scripts/train_tokenizer.py", *flags])
            print(
                f"{kind:15} {ours:6.1f} s, bare {bare:6.1f} s, ratio {bare / ours:.2f}; "
                f"peak {memory:.2f} GB (bare {bare_memory:.2f} GB)"
            )


def write_texts(path: Path, size: float) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for row in made_up_rows(round(size / 500)):
            file.write(json.dumps({"text": row["output"]}, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    main()
