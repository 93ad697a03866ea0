"""Trainers of DPO and KTO on a dozen rows, built as the scripts build them."""

import torch
from stage_runs import context_of

from conftest import write_jsonl
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.loading import load_config
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.run.evaluate_callback import add_callbacks
from hf_recipes.run.model import build_model, build_reference
from hf_recipes.stages.table import STAGES

PAIRS = [
    {"prompt": f"标准{i}：", "chosen": "年龄" * (i % 3 + 1), "rejected": "药物，睡眠" * (i % 2 + 1)} for i in range(12)
]
ANSWERS = [
    {"prompt": f"标准{i}：", "completion": "年龄药物"[i % 4 :] * (i % 3 + 1), "label": i % 3 > 0} for i in range(12)
]


def _make(stage, rows, model_dir, tmp_path, model, data, template, settings):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {"report_to": "none", "bf16": False, "learning_rate": 1e-2, "save_strategy": "no", **settings}
    args = stage.arguments(output_dir=str(tmp_path / "run"), **settings)
    model_args = ModelArguments(model_dir, **dict(model))
    tokenizer, added = load_tokenizer(model_args.tokenizer_source, template)
    data_args = stage.data(train_file=[str(path)], **dict(data))
    context = context_of(stage, args, data_args, tokenizer, model_args)
    context.config = load_config(model_args, False)
    rows = stage.read(context)
    methods = stage.evaluations(context, rows)
    policy = build_model(model_args, args, tokenizer, added)
    reference = build_reference(model_args, args, tokenizer)
    trainer = stage.trainer(context, rows, policy, methods, reference)
    add_callbacks(trainer, methods)
    return trainer, rows.train, rows.ledgers["train"]


def make_pairs(model_dir, tmp_path, rows=PAIRS, model=(), data=(), template=None, **settings):
    """DPO's trainer, training rows and ledger of a run on `rows`."""
    return _make(STAGES["dpo"], rows, model_dir, tmp_path, model, data, template, settings)


def make_kto(model_dir, tmp_path, rows=ANSWERS, model=(), data=(), template=None, **settings):
    """KTO's trainer, training rows and ledger of a run on `rows`."""
    return _make(STAGES["kto"], rows, model_dir, tmp_path, model, data, template, settings)


def stirred(trainer):
    """The trainer, with a policy that is not the reference."""
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return trainer
