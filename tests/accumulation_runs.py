"""What an epoch of each stage and loss makes of a model, with updates of eight rows however they are accumulated.

A script: accumulation_runs.py FOLDER BATCH ACCUMULATION [CASE …], in one process or several. FOLDER has `model` and
`mixture` (a model of experts); the result is `BATCH-ACCUMULATION-WORLD.pt`, by case the losses that were logged and the
change of all weights.
"""

import os
import sys
from pathlib import Path

import torch
from stage_runs import context_of
from transformers import set_seed

from conftest import conversation, write_jsonl
from hf_recipes.models.loading import load_config, load_model
from hf_recipes.models.reward_head import load_reward_model
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.stages.dpo import PAIR_LOSSES, SORTING_LOSSES
from hf_recipes.stages.table import STAGES

UPDATE = 8
COUNT = 12  # an update of eight rows, and one of four
WORDS = ["年龄", "药物，睡眠", "性别不限", "今天天气很好，我们去公园散步吧"]


def _texts(number: int) -> tuple[str, str]:
    return WORDS[number % 4] * (number % 3 + 1), WORDS[(number + 1) % 4] * (number * 5 % 4 + 1)


def _prompt(number: int) -> str:
    return f"标准{number}：{'请问' * (number % 4)}"


CONVERSATIONS = [{"messages": conversation(_prompt(n), _texts(n)[0])} for n in range(COUNT)]
PAIRS = [{"prompt": _prompt(n), "chosen": _texts(n)[0], "rejected": _texts(n)[1]} for n in range(COUNT)]
RATED = [{"prompt": _prompt(n), "completion": _texts(n)[0], "label": n % 3 > 0} for n in range(COUNT)]
TEXTS = [{"text": "".join(_texts(n)) * 4} for n in range(60)]

SMOOTHED = {name: {"label_smoothing": 0.1} for name in ("exo_pair", "robust", *SORTING_LOSSES)}
CASES: dict[str, tuple[str, dict]] = {
    "sft nll": ("sft", {}),
    "sft dft": ("sft", {"loss_type": "dft"}),
    "sft label smoothing": ("sft", {"label_smoothing_factor": 0.1}),
    "pretrain": ("pretrain", {}),
    "reward": ("reward", {}),
    "reward centred": ("reward", {"center_rewards_coefficient": 0.1}),
    **{f"dpo {name}": ("dpo", {"loss_type": [name], **SMOOTHED.get(name, {})}) for name in PAIR_LOSSES},
    "dpo sigmoid sft": ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    "dpo weighted": ("dpo", {"loss_type": ["sigmoid", "sft"], "use_weighting": True}),
    "dpo ld_alpha": ("dpo", {"loss_type": ["sigmoid", "sft"], "ld_alpha": 0.3}),
    "dpo forward_kl": ("dpo", {"f_divergence_type": "forward_kl"}),
    "dpo three": ("dpo", {"loss_type": ["aot", "bco_pair", "sft"], "loss_weights": [0.5, 1.0, 2.0]}),
    "orpo": ("orpo", {"beta": 0.5}),
    "kto": ("kto", {}),
    "kto weights": ("kto", {"desirable_weight": 1.5, "undesirable_weight": 0.5}),
    "kto apo_zero_unpaired": ("kto", {"loss_type": "apo_zero_unpaired"}),
    **{
        f"grpo {name}": ("grpo", {"loss_type": name})
        for name in ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo")
    },
    "grpo sequences": ("grpo", {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    "grpo entropy": ("grpo", {"entropy_coef": 0.1}),
    "grpo adaptive entropy": ("grpo", {"use_adaptive_entropy": True, "entropy_coef": 0.1, "entropy_target": 9.0}),
    "grpo two iterations": ("grpo", {"num_iterations": 2}),
    "grpo batch scale": ("grpo", {"scale_rewards": "batch"}),
    "grpo truncated": ("grpo", {"mask_truncated_completions": True, "max_completion_length": 5}),
    "rloo": ("rloo", {}),
}
EXPERTS = {
    f"{stage} experts": (stage, {"router_aux_loss_coef": 0.0}) for stage in ("sft", "dpo", "kto", "grpo", "rloo")
}
# How evenly experts are used is no mean over rows, so that only of rows that are alike each batch has the same.
BALANCED = {f"{stage} balanced experts": (stage, {"router_aux_loss_coef": 1.0}) for stage in ("sft", "dpo", "kto")}
EXPERTS |= BALANCED
CASES |= EXPERTS

ROWS = {"sft": CONVERSATIONS, "pretrain": TEXTS, "kto": RATED}  # the others have pairs


def build(case: str, folder: Path, batch: int, accumulation: int):
    name, settings = CASES[case]
    defaults = {"report_to": "none", "bf16": False, "learning_rate": 0.05, "save_strategy": "no", "logging_steps": 1}
    defaults |= {"optim": "sgd", "max_grad_norm": 0.0, "num_train_epochs": 1, "per_device_train_batch_size": batch}
    defaults |= {"gradient_accumulation_steps": accumulation, "lr_scheduler_type": "constant", "warmup_steps": 0}
    if name == "pretrain":
        defaults |= {"block_size": 32, "max_steps": 2, "num_train_epochs": 1, "weight_decay": 0.0}
    if name in ("grpo", "rloo"):
        defaults |= {"num_generations": 4, "max_completion_length": 12, "max_steps": 2, "algorithm": name}
    stage = STAGES["grpo" if name == "rloo" else name]
    args = stage.arguments(output_dir=str(folder / "run"), **{**defaults, **settings})
    path = str(folder / "mixture" if case in EXPERTS else folder / "model")
    tokenizer, _ = load_tokenizer(path)
    rank = args.process_index
    examples = ROWS.get(name, PAIRS)
    if case in BALANCED:
        examples = [
            {**examples[1], "label": example["label"]} if name == "kto" else examples[1] for example in examples
        ]
    file = write_jsonl(folder / f"{name}-{rank}.jsonl", examples)
    rewards = ["chinese", "length:2-40=0.5"] if name in ("grpo", "rloo") else None
    data = stage.data(train_file=[str(file)], cache_dir=str(folder / f"cache{rank}"))
    context = context_of(stage, args, data, tokenizer, path, rewards=rewards)

    def model(make=load_model, **more):
        set_seed(0)
        return make(context.model_args, trains_all=True, bf16=False, trust_remote_code=False, **more)

    rows, reference = stage.read(context), {}
    if name == "reward":
        how = {"config": load_config(context.model_args, False), "initializer_range": 0.5, "tokenizer": tokenizer}
        policy = model(load_reward_model, **how)
    else:
        policy = model()
    if args.has_reference:
        reference["reference"] = model().requires_grad_(False)
    if name in ("dpo", "kto"):
        size = 0.03 if case == "dpo forward_kl" else 0.3  # its loss grows as the exponential of the difference
        with torch.no_grad():
            for weight in policy.parameters():  # that is not the reference
                weight += size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    if name in ("grpo", "rloo"):
        policy.generation_config.eos_token_id = list(range(300))  # half of the vocabulary: answers of many lengths
    return stage.trainer(context, rows, policy, {}, **reference)


def labelled(case: str, folder: Path, batch: int, accumulation: int) -> tuple[list[float], torch.Tensor]:
    trainer = build(case, folder, batch, accumulation)
    before = torch.cat([weight.detach().flatten().clone() for weight in trainer.model.parameters()])
    trainer.train()
    after = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], after - before


def main() -> None:
    folder, batch, accumulation = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    found = {}
    for case in sys.argv[4:] or CASES:
        found[case] = labelled(case, folder, batch, accumulation)
    if rank == 0:
        torch.save(found, folder / f"{batch}-{accumulation}-{world}.pt")


if __name__ == "__main__":
    main()
