"""Useful tokens per second (padding not counted) of LoRA training on this machine's CPU, all in one run:

a bare PyTorch loop over packed blocks, our SFT trainer over the same blocks, and TRL's SFTTrainer packed and padded.

    python tests/benchmarks/train_speed.py [--steps 30] [--rows 2000]

A Qwen3 of 4 layers, hidden size 128, vocabulary 8,000; LoRA r=8 on all linear layers; float32; no checkpointing.
"""

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from tokenize_speed import made_up_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from hf_recipes.arguments import DataArguments, SFTArguments
from hf_recipes.models.loading import TEMPLATES
from hf_recipes.training.sft import build_trainer, prepare_data

BLOCK, WARM_UP = 2048, 4


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


def build_model(vocab_size: int):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    return get_peft_model(Qwen3ForCausalLM(config), LoraConfig(r=8, target_modules="all-linear"))


def speed(trainer) -> float:
    """Tokens per second of `trainer.train()` from the end of the warm-up on."""
    steps: list[tuple[float, int]] = []
    original = trainer.training_step

    def counted(model, inputs, *args, **kwargs):
        mask = inputs.get("attention_mask")
        steps.append((time.perf_counter(), int(mask.sum()) if mask is not None else inputs["input_ids"].numel()))
        return original(model, inputs, *args, **kwargs)

    trainer.training_step = counted
    trainer.train()
    seconds = time.perf_counter() - steps[WARM_UP][0]
    return sum(tokens for _, tokens in steps[WARM_UP:]) / seconds


def bare_loop(model, blocks: list[dict]) -> float:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    model.train()
    for step, block in enumerate(blocks):
        if step == WARM_UP:
            start, tokens = time.perf_counter(), 0
        lengths = block["seq_lengths"]
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        ids, labels = (torch.tensor(block[key])[None] for key in ("input_ids", "labels"))
        loss = model(ids, position_ids=positions, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= WARM_UP:
            tokens += ids.numel()
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    disable_progress_bars()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = made_up_rows(options.rows)
    tokenizer = build_tokenizer(rows)
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

        def ours() -> float:
            args = SFTArguments(output_dir=f"{folder}/ours", packing=True, per_device_train_batch_size=1, **common)
            data = DataArguments(train_file=[str(path)], cache_dir=folder)
            train, _, _ = prepare_data(data, args, tokenizer)
            trainer = build_trainer(build_model(len(tokenizer)), args, train, None, tokenizer)
            blocks[:] = [trainer.train_dataset[i] for i in range(options.steps)]
            return speed(trainer)

        def trl(packing: bool) -> float:
            size = 1 if packing else 8
            args = SFTConfig(f"{folder}/trl", packing=packing, per_device_train_batch_size=size, **common)
            trainer = SFTTrainer(build_model(len(tokenizer)), args, train_dataset=pairs, processing_class=tokenizer)
            trainer.remove_callback(ProgressCallback)
            trainer.remove_callback(PrinterCallback)
            return speed(trainer)

        blocks: list[dict] = []
        found: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            found.setdefault("hf_recipes, packed", []).append(ours())
            found.setdefault("bare PyTorch loop, packed", []).append(bare_loop(build_model(len(tokenizer)), blocks))
            found.setdefault("TRL SFTTrainer, packed", []).append(trl(True))
            found.setdefault("TRL SFTTrainer, padded", []).append(trl(False))
    own = max(found["hf_recipes, packed"])
    print(f"useful tokens/s, best of {options.repeats}, {options.steps} steps")
    for name, values in found.items():
        print(f"{name:28}{max(values):8,.0f}   hf_recipes is {own / max(values):.2f} x")


if __name__ == "__main__":
    main()
