"""Prompts per second, batched as everywhere in hf_recipes against one by one: same model, prompts and number of tokens.

    python tests/benchmarks/generation_speed.py --model_name_or_path MODEL [--file rows.json] [--rows 24]
    python tests/benchmarks/generation_speed.py --model_name_or_path MODEL --engine vllm --rows 256 --repeats 3

With --engine vllm it is `predict`'s way to vLLM, against vLLM's own `LLM.generate` on the same engine, in turn.
Without --file the prompts are of alpaca_zh's lengths, as tokenize_speed.py makes them up, every eighth much longer.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

from tokenize_speed import made_up_rows

from hf_recipes.data.chat.prompts import PromptReader, read_prompts
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches, plan_batches, stop_tokens
from hf_recipes.models.inference.loading import open_for_inference
from hf_recipes.models.inference.vllm_model import load_for_answers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--file")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--vllm_args")
    options = parser.parse_args()
    arguments = ModelArguments(options.model_name_or_path, dtype=options.dtype)
    config, tokenizer = open_for_inference(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = options.file
        if path is None:
            path = Path(folder, "rows.jsonl")
            made_up = made_up_rows(options.rows)
            texts = [row["instruction"] if i % 8 else row["output"][:100] for i, row in enumerate(made_up)]
            path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
        reader = PromptReader([str(path)], tokenizer)
        prompts = [prompt.ids for prompt in read_prompts(reader)[0][: options.rows]]
    engine = {"engine": options.engine, "vllm_args": options.vllm_args}
    model = load_for_answers(arguments, tokenizer, config=config, **engine)

    def ours(batch_size: int) -> tuple[float, int]:
        """Prompts per second, and the tokens that were generated."""
        start, tokens = time.perf_counter(), 0
        batches, decoding = plan_batches(prompts, batch_size), Decoding(options.max_new_tokens)
        for _, texts in continue_batches(model, tokenizer, prompts, batches, decoding, stop_ids=reader.stop_ids):
            tokens += sum(text.tokens for text in texts)
        return len(prompts) / (time.perf_counter() - start), tokens

    def plain_vllm() -> tuple[float, int]:
        from vllm import SamplingParams

        stops = sorted(stop_tokens(tokenizer, model.generation_config.eos_token_id, reader.stop_ids))
        settings = {"temperature": 0.0, "stop_token_ids": stops, "ignore_eos": True, "detokenize": False}
        parameters = SamplingParams(max_tokens=options.max_new_tokens, **settings)
        given = [{"prompt_token_ids": list(map(int, prompt))} for prompt in prompts]
        start = time.perf_counter()
        outputs = model._llm.generate(given, parameters, use_tqdm=False)
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        return len(prompts) / (time.perf_counter() - start), tokens

    if options.engine == "vllm":
        runs = {"LLM.generate": plain_vllm, "hf_recipes": partial(ours, options.batch_size)}
        plain_vllm()  # the first prompts wait for kernels
    else:
        runs = {"one by one": partial(ours, 1), f"batches of {options.batch_size}": partial(ours, options.batch_size)}
    rounds = [{name: run() for name, run in runs.items()} for _ in range(options.repeats)]
    best = {name: max(one[name] for one in rounds) for name in runs}
    lengths = sorted(map(len, prompts))
    print(
        f"{len(prompts)} prompts of {lengths[0]} to {lengths[-1]} tokens (median {lengths[len(lengths) // 2]}), up to "
        f"{options.max_new_tokens} new ones, {options.engine}, best of {options.repeats}"
    )
    first = next(iter(best.values()))[0]
    for name, (speed, tokens) in best.items():
        per_second = speed * tokens / len(prompts)
        print(f"{name:18}{speed:8.2f} prompts/s{per_second:8.0f} tokens/s{speed / first:8.2f} x")


if __name__ == "__main__":
    main()
