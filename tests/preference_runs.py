"""Trainers of DPO and KTO on a dozen rows, built as the scripts build them."""

import torch

from conftest import write_jsonl
from hf_recipes.data.arguments import DataArguments, UnpairedArguments
from hf_recipes.models.tokenizer import load_tokenizer
from hf_recipes.run.arguments import DPOArguments, KTOArguments, ModelArguments
from hf_recipes.run.model import build_model, build_reference
from hf_recipes.stages.dpo import build_pair_trainer, prepare_pairs
from hf_recipes.stages.kto import build_rated_trainer, prepare_rated

PAIRS = [
    {"prompt": f"标准{i}：", "chosen": "年龄" * (i % 3 + 1), "rejected": "药物，睡眠" * (i % 2 + 1)} for i in range(12)
]
ANSWERS = [
    {"prompt": f"标准{i}：", "completion": "年龄药物"[i % 4 :] * (i % 3 + 1), "label": i % 3 > 0} for i in range(12)
]


def _make(arguments, kind, prepare, build, rows, model_dir, tmp_path, model, data, template, settings):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {"report_to": "none", "bf16": False, "learning_rate": 1e-2, "save_strategy": "no", **settings}
    args = kind(output_dir=str(tmp_path / "run"), **settings)
    model_args = ModelArguments(model_dir, **dict(model))
    tokenizer, added = load_tokenizer(model_args.tokenizer_source, template)
    data = arguments(train_file=[str(path)], **dict(data))
    train, validation, ledgers = prepare(data, args, tokenizer)
    policy = build_model(model_args, args, tokenizer, added)
    reference = build_reference(model_args, args, tokenizer)
    how = {"reference": reference, "continues_adapter": model_args.peft_path is not None}
    return build(policy, args, train, validation, tokenizer, **how), train, ledgers["train"]


def make_pairs(model_dir, tmp_path, rows=PAIRS, model=(), data=(), template=None, **settings):
    """DPO's trainer, training rows and ledger of a run on `rows`."""
    stage = DataArguments, DPOArguments, prepare_pairs, build_pair_trainer
    return _make(*stage, rows, model_dir, tmp_path, model, data, template, settings)


def make_kto(model_dir, tmp_path, rows=ANSWERS, model=(), data=(), template=None, **settings):
    """KTO's trainer, training rows and ledger of a run on `rows`."""
    stage = UnpairedArguments, KTOArguments, prepare_rated, build_rated_trainer
    return _make(*stage, rows, model_dir, tmp_path, model, data, template, settings)


def stirred(trainer):
    """The trainer, with a policy that is not the reference."""
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return trainer
