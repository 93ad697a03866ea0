"""Prompts per second, batched as everywhere in hf_recipes against one by one: same model, prompts and number of tokens.

    python tests/benchmarks/generation_speed.py --model_name_or_path MODEL [--file rows.json] [--rows 24]

Without --file the prompts are of alpaca_zh's lengths, as tokenize_speed.py makes them up, every eighth much longer.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from tokenize_speed import made_up_rows

from hf_recipes.data.chat.prompts import PromptReader, read_prompts
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches, plan_batches
from hf_recipes.models.inference.loading import load_for_inference, open_for_inference


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--file")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    arguments = ModelArguments(options.model_name_or_path, dtype=options.dtype)
    _, tokenizer = open_for_inference(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = options.file
        if path is None:
            path = Path(folder, "rows.jsonl")
            made_up = made_up_rows(options.rows)
            texts = [row["instruction"] if i % 8 else row["output"][:100] for i, row in enumerate(made_up)]
            path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
        reader = PromptReader([str(path)], tokenizer)
        prompts = [prompt.ids for prompt in read_prompts(reader)[0][: options.rows]]
    model = load_for_inference(arguments, tokenizer)

    def run(batch_size: int) -> tuple[float, int]:
        """Prompts per second, and the tokens that were generated."""
        start, tokens = time.perf_counter(), 0
        batches, decoding = plan_batches(prompts, batch_size), Decoding(options.max_new_tokens)
        for _, texts in continue_batches(model, tokenizer, prompts, batches, decoding, stop_ids=reader.stop_ids):
            tokens += sum(text.tokens for text in texts)
        return len(prompts) / (time.perf_counter() - start), tokens

    sizes = {"one by one": 1, f"batches of {options.batch_size}": options.batch_size}
    found = {name: max(run(size) for _ in range(options.repeats)) for name, size in sizes.items()}
    lengths = sorted(map(len, prompts))
    print(
        f"{len(prompts)} prompts of {lengths[0]} to {lengths[-1]} tokens (median {lengths[len(lengths) // 2]}), up to "
        f"{options.max_new_tokens} new ones, {str(model.dtype).removeprefix('torch.')}, best of {options.repeats}"
    )
    slow = found["one by one"][0]
    for name, (speed, tokens) in found.items():
        per_second = speed * tokens / len(prompts)
        print(f"{name:18}{speed:8.2f} prompts/s{per_second:8.0f} tokens/s{speed / slow:8.2f} x")


if __name__ == "__main__":
    main()
