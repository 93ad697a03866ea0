"""Pairs scored per second by ROUGE-1, -2 and -L: hf_recipes against rouge-chinese, same pairs, same process.

    python tests/benchmarks/score_speed.py [--pairs 10000] [--characters 200] [--file texts.txt]

A text is a chain of clauses of --file, by default of the Chinese in datasets/; a prediction shares about half of its
clauses with its reference.
"""

import argparse
import random
import re
import statistics
import time
from pathlib import Path

import jieba
from rouge_chinese import Rouge

from hf_recipes.metrics import segmentation
from hf_recipes.metrics.text import rouge_pairs

SAMPLES = Path(__file__).parents[2] / "datasets"


def sentences(path: str | None) -> list[str]:
    files = [Path(path)] if path else sorted(file for file in SAMPLES.rglob("*.json*") if file.is_file())
    found = (re.findall("[\u4e00-\u9fff、：；《》]+[，。！？]", file.read_text(encoding="utf-8")) for file in files)
    return list(dict.fromkeys(part for parts in found for part in parts))


def made_up_pairs(parts: list[str], count: int, characters: int) -> tuple[list[str], list[str]]:
    draw, pairs = random.Random(0), []
    for _ in range(count):
        own, shared = draw.choices(parts, k=characters), draw.choices(parts, k=characters)
        mixed = [draw.choice(both) for both in zip(own, shared, strict=True)]
        pairs.append(("".join(mixed)[:characters], "".join(shared)[:characters]))
    predictions, references = zip(*pairs, strict=True)
    return list(predictions), list(references)


def rate(count: int, function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--characters", type=int, default=200)
    parser.add_argument("--file")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    count, parts = options.pairs, sentences(options.file)
    predictions, references = made_up_pairs(parts, count, options.characters)
    few = max(1, count // 20)  # rouge-chinese and jieba alone are too slow for all of them
    jieba.lcut("读入词典"), segmentation.cut(["读入词典"])

    def jieba_words(texts):
        return [" ".join(word for word in jieba.lcut(text) if word.strip()) for text in texts]

    def ours():
        return rouge_pairs(predictions, references)

    names = "jieba", "rouge-chinese", "both", "words", "rouge", "first", "known references"
    rates = {name: [] for name in names}
    for _ in range(options.repeats):
        spaced = jieba_words(predictions[:few]), jieba_words(references[:few])
        rates["jieba"].append(rate(few, jieba_words, predictions[:few] + references[:few]))
        rates["rouge-chinese"].append(rate(few, Rouge().get_scores, *spaced))
        rates["both"].append(1 / (1 / rates["jieba"][-1] + 1 / rates["rouge-chinese"][-1]))
        segmentation._cache.clear()
        rates["words"].append(rate(few, segmentation.cut, predictions[:few] + references[:few]))
        segmentation._cache.clear()
        rates["first"].append(rate(count, ours))
        rates["rouge"].append(rate(count, ours))
        segmentation._cache.clear()
        segmentation.cut(references)
        rates["known references"].append(rate(count, ours))
    found = {name: statistics.median(values) for name, values in rates.items()}
    scores = Rouge().get_scores(*spaced)
    for row, theirs in zip(ours(), scores, strict=False):
        assert abs(row["rougeL"] - theirs["rouge-l"]["f"]) < 1e-9 and abs(row["rouge2"] - theirs["rouge-2"]["f"]) < 1e-9
    print(f"{count:,} pairs of {options.characters} characters, {options.repeats} runs, medians, pairs/s and ratio")
    for title, our, their in (
        ("words alone", "words", "jieba"),
        ("ROUGE of known words", "rouge", "rouge-chinese"),
        ("both, all texts new", "first", "both"),
        ("both, references known", "known references", "both"),
    ):
        print(f"{title:24}{found[their]:10,.0f}{found[our]:10,.0f}{found[our] / found[their]:8.1f}")


if __name__ == "__main__":
    main()
