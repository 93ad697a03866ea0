"""Useful tokens per second (padding not counted) of LoRA training on this machine's CPU, all in one run:

a bare PyTorch loop over packs, our SFT trainer over the same packs, four a batch and four accumulated, and TRL's
SFTTrainer packed and padded. A pack is a row of its own in the loop and in our trainer; TRL joins those of a batch.

    python tests/benchmarks/train_speed.py [--steps 30] [--rows 2000]
    python tests/benchmarks/train_speed.py --model .cache/SmolLM2-135M-Instruct --steps 6 --warm_up 2 --repeats 1

Without --model a Qwen3 of 4 layers, hidden size 128, vocabulary 8,000. LoRA r=8 on all linear layers; float32; no
checkpointing.
"""

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from tokenize_speed import made_up_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from hf_recipes.data.arguments import DataArguments
from hf_recipes.models.templates.options import TEMPLATES
from hf_recipes.stages.sft import STAGE, SFTArguments

sys.path.insert(0, str(Path(__file__).parents[1]))
from stage_runs import trainer_of

BLOCK, BATCH = 512, 4


def build_tokenizer(rows: list[dict]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator((row["output"] for row in rows), trainer)
    template = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template
    )


def build_model(vocab_size: int, path: str | None):
    torch.manual_seed(0)
    lora = LoraConfig(r=8, target_modules="all-linear")
    if path:
        return get_peft_model(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), lora)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    return get_peft_model(Qwen3ForCausalLM(config), lora)


def speed(trainer, warm_up: int) -> float:
    """Tokens per second of `trainer.train()` from the end of the warm-up on."""
    steps: list[tuple[float, int]] = []
    original, count = trainer.training_step, getattr(trainer, "tokens_in", None)

    def counted(model, inputs, *args, **kwargs):
        mask = inputs.get("attention_mask")
        tokens = count(inputs) if count else int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        steps.append((time.perf_counter(), tokens))
        return original(model, inputs, *args, **kwargs)

    trainer.training_step = counted
    trainer.train()
    warm_up *= trainer.args.gradient_accumulation_steps
    seconds = time.perf_counter() - steps[warm_up][0]
    return sum(tokens for _, tokens in steps[warm_up:]) / seconds


def rows_of(packs: list[dict]) -> tuple[torch.Tensor, ...]:
    """Ids, labels and positions of some packs, (B, T)."""
    positions = [torch.cat([torch.arange(length) for length in pack["seq_lengths"]]) for pack in packs]
    columns = [[torch.tensor(pack[key]) for pack in packs] for key in ("input_ids", "labels")] + [positions]
    fills = (0, -100, 0)
    return tuple(pad_sequence(c, batch_first=True, padding_value=f) for c, f in zip(columns, fills, strict=True))


def bare_loop(model, packs: list[dict], warm_up: int) -> float:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    model.train()
    for step, first in enumerate(range(0, len(packs), BATCH)):
        if step == warm_up:
            start, tokens = time.perf_counter(), 0
        batch = packs[first : first + BATCH]
        ids, labels, positions = rows_of(batch)
        loss = model(ids, position_ids=positions, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= warm_up:
            tokens += sum(len(pack["input_ids"]) for pack in batch)
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a folder; by default a tiny model is made")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm_up", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    disable_progress_bars()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = made_up_rows(options.rows)
    tokenizer = AutoTokenizer.from_pretrained(options.model) if options.model else build_tokenizer(rows)
    common = {
        "max_steps": options.steps,
        "learning_rate": 1e-4,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "max_length": BLOCK,
        "disable_tqdm": True,
    }

    def model():
        return build_model(len(tokenizer), options.model)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        Dataset.from_list(rows).to_parquet(path)
        conversations = [
            {
                "prompt": [{"role": "user", "content": r["instruction"]}],
                "completion": [{"role": "assistant", "content": r["output"]}],
            }
            for r in rows
        ]
        pairs = Dataset.from_list(conversations)

        def ours(size: int) -> float:
            args = SFTArguments(
                output_dir=f"{folder}/ours",
                packing=True,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=BATCH // size,
                **common,
            )
            data = DataArguments(train_file=[str(path)], cache_dir=folder)
            trainer, _ = trainer_of(STAGE, args, data, tokenizer, model())
            packs[:] = [trainer.train_dataset[i] for i in range(min(len(trainer.train_dataset), BATCH * options.steps))]
            return speed(trainer, options.warm_up)

        def trl(packing: bool) -> float:
            args = SFTConfig(f"{folder}/trl", packing=packing, per_device_train_batch_size=BATCH, **common)
            trainer = SFTTrainer(model(), args, train_dataset=pairs, processing_class=tokenizer)
            trainer.remove_callback(ProgressCallback)
            trainer.remove_callback(PrinterCallback)
            return speed(trainer, options.warm_up)

        packs: list[dict] = []
        found: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            for name, run in (
                (f"hf_recipes, {BATCH} packs", lambda: ours(BATCH)),
                (f"hf_recipes, {BATCH} × 1 pack", lambda: ours(1)),
                (f"bare loop, {BATCH} packs", lambda: bare_loop(model(), packs, options.warm_up)),
                (f"TRL, {BATCH} packs", lambda: trl(True)),
                (f"TRL, {BATCH} padded rows", lambda: trl(False)),
            ):
                found.setdefault(name, []).append(run())
                print(f"{name}: {found[name][-1]:,.0f}", flush=True)
    own = max(next(iter(found.values())))
    print(f"useful tokens/s, best of {options.repeats}, {options.steps} steps")
    for name, values in found.items():
        print(f"{name:28}{max(values):8,.0f}   hf_recipes is {own / max(values):.2f} x")


if __name__ == "__main__":
    main()
