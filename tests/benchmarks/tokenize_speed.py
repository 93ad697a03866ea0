"""Rows per second from examples to `input_ids` and `labels`: hf_recipes against TRL's SFTTrainer, same rows and run.

    python tests/benchmarks/tokenize_speed.py --model_name_or_path MODEL [--rows 5000] [--file alpaca.json]

Without --file the rows are made of jieba's dictionary, with lengths like alpaca_zh's. One process each.
"""

import argparse
import itertools
import os
import random
import statistics
import tempfile
import time

from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.examples import load_examples
from hf_recipes.data.tokenized import tokenize_dataset

ENGLISH = ["the", "model", "Python", "data", "2023", "100", "def", "return", "learning", "is", "of", "print(x)", "GPU"]


def made_up_rows(count: int, seed: int = 0) -> list[dict]:
    """`count` different instruction/output rows of Chinese words in their natural frequency.

    Lengths follow alpaca_zh's: log-normal, about 17 and 190 characters on average, one in five of them not Chinese.
    """
    import jieba

    with open(os.path.join(os.path.dirname(jieba.__file__), "dict.txt"), encoding="utf-8") as file:
        entries = [line.split(" ") for line in file]
    words, totals = [entry[0] for entry in entries], list(itertools.accumulate(int(entry[1]) for entry in entries))
    draw = random.Random(seed)

    def text(mu: float, sigma: float) -> str:
        length, out = min(1200, max(4, int(draw.lognormvariate(mu, sigma)))), ""
        while len(out) < length:
            out += "".join(draw.choices(words, cum_weights=totals, k=draw.randint(4, 9)))
            out += draw.choice(["，", "。", "、", "\n", f" {draw.choice(ENGLISH)} ", f" {draw.choice(ENGLISH)} "])
        return out[:length]

    return [{"instruction": text(2.77, 0.44), "output": text(4.81, 1.06)} for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--file")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    with tempfile.TemporaryDirectory() as folder:
        path = options.file
        if path is None:
            path = os.path.join(folder, "rows.parquet")
            Dataset.from_list(made_up_rows(options.rows)).to_parquet(path)
        examples = load_examples([path], cache_dir=folder)
        examples = examples.select(range(min(options.rows, len(examples))))
        pairs = Dataset.from_list([{"prompt": m[:-1], "completion": m[-1:]} for m in examples["messages"]])
        # The trainer only lends its preparation: any model will do.
        config = LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=len(tokenizer)
        )
        arguments = SFTConfig(folder, use_cpu=True, bf16=False, report_to="none", max_length=None)
        trainer = SFTTrainer(
            LlamaForCausalLM(config), arguments, train_dataset=pairs.select([0]), processing_class=tokenizer
        )
        ours, trl = [], []
        for repeat in range(options.repeats):
            # A copy of the data each time, so that neither finds its cache.
            fresh = Dataset(pairs.data, fingerprint=f"pairs-{repeat}")
            start = time.perf_counter()
            theirs = trainer._prepare_dataset(fresh, tokenizer, arguments, False, None, "train")
            trl.append(len(theirs) / (time.perf_counter() - start))
            fresh = Dataset(examples.data, fingerprint=f"examples-{repeat}")
            start = time.perf_counter()
            mine = tokenize_dataset(fresh, ChatEncoder(tokenizer))
            ours.append(len(mine) / (time.perf_counter() - start))
        # TRL's have what the template writes after the end of the turn too.
        pairs = zip(mine["input_ids"][:], theirs["input_ids"][:], strict=True)
        assert all(ids == more[: len(ids)] for ids, more in pairs)
        tokens = sum(map(len, mine["input_ids"]))
        print(f"{len(mine):,} rows, {tokens / len(mine):.0f} tokens a row, {options.repeats} runs, medians")
        print(f"TRL SFTTrainer     {statistics.median(trl):10,.0f} rows/s")
        print(f"hf_recipes         {statistics.median(ours):10,.0f} rows/s")
        print(f"ratio              {statistics.median(a / b for a, b in zip(ours, trl, strict=True)):10.2f}")


if __name__ == "__main__":
    main()
