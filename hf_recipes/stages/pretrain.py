"""Pretraining over mixtures of documents."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
from transformers import PreTrainedModel, TrainingArguments

from hf_recipes.core.arguments.limits import Share, at
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import to_json
from hf_recipes.data.arguments import SourceArguments
from hf_recipes.dry_run.data_stats import DataStats
from hf_recipes.dry_run.simulate import Batch
from hf_recipes.evaluation.held_out import with_validation
from hf_recipes.evaluation.method import Method
from hf_recipes.models.checks.packing import packing_leaks
from hf_recipes.models.from_config import PretrainModelArguments, freeze, make_model, read_model_config
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.evaluate_callback import build_evaluations
from hf_recipes.run.inherited import INERT
from hf_recipes.stages.base import Context, Data, Stage
from hf_recipes.stages.data.pretrain import prepare_mixture
from hf_recipes.stages.trainers.pretrain import PretrainTrainer, step_blocks

# Schedules of transformers that pretraining uses, and the argument of each that --min_lr_ratio sets.
FLOORED = "cosine_with_min_lr"
FLOORS = {FLOORED: "min_lr_rate", "warmup_stable_decay": "min_lr_ratio"}


@dataclass
class PretrainArguments(RunArguments, TrainingArguments):
    """transformers' `TrainingArguments` with how documents become blocks, and defaults for learning from text."""

    calls_head: ClassVar = True
    unusable: ClassVar = {
        "data_seed": f"{INERT}use --seed",
        "dataloader_multiprocessing_context": f"{INERT}leave it out",
        "dataloader_persistent_workers": f"{INERT}a run is one pass over the blocks",
        "label_smoothing_factor": f"{INERT}leave it out",
        "train_sampling_strategy": f"{INERT}use --shuffle",
    }

    inexact_resume: bool = setting("Resume what another number of processes wrote: every document is seen once.", True)
    block_size: Annotated[int, at(ge=2)] = setting("Tokens of a block, which is what a row of a batch is.", 2048)
    document_end_token: str | None = setting("Token after each document; by default the tokenizer's end token.")
    document_attention: bool = setting("Whether tokens attend within their document only.", True)
    sequence_sample_mode: Literal["none", "truncate", "sample", "split"] = setting(
        "Documents longer than a block: run on into the next, keep the beginning, keep a random window, or part.",
        "none",
    )
    drop_last: bool = setting("Leave out the last, shorter block of each source.", False)
    mixture: str | None = setting("Policy file (configs/mixtures): the share of each source.")
    streaming: bool = setting("Tokenize while training; nothing is written. Needs --max_steps.", False)
    shuffle: bool = setting("Draw the order of the blocks anew in each epoch.", True)
    train_only: Literal["embeddings"] | None = setting("Train input and output embeddings alone.")
    freeze_layers: str | None = setting("Layers that stay as they are, counted from 0: 0-11, or 0,2,4.")
    router_aux_loss_coef: float | None = setting(
        "Weight of the loss that balances a mixture's experts; by default the model's own, 0 for none."
    )
    min_lr_ratio: Share = setting("The learning rate's floor, as a share of --learning_rate.", 0.1)
    decay_ratio: Share = setting("Share of the steps in which warmup_stable_decay lowers the rate at the end.", 0.1)
    learning_rate: float = setting("The highest learning rate.", 3e-4)
    lr_scheduler_type: str = setting("cosine_with_min_lr, warmup_stable_decay, or any of transformers'.", FLOORED)
    warmup_steps: float = setting("Steps in which the learning rate rises, or below 1 their share.", 0.01)
    weight_decay: float = setting("Of matrices; norms and biases have none.", 0.1)
    adam_beta2: float = setting("AdamW's second beta.", 0.95)
    logging_steps: float = setting("Log every so many steps.", 10)
    num_train_epochs: float = setting("How often the data is gone through.", 1.0)

    def __post_init__(self):
        self.check_fields()
        if self.streaming and self.max_steps <= 0:
            raise ValueError("--streaming needs --max_steps: how long a stream is is known only at its end")
        if self.train_only and self.freeze_layers:
            raise ValueError("--train_only embeddings freezes all layers; leave --freeze_layers out")
        floor = FLOORS.get(str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)))
        if floor and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {floor: self.min_lr_ratio}
        super().__post_init__()


def read_mixture(context: Context) -> Data:
    mixture, ledger = prepare_mixture(context.data_args, context.args, context.tokenizer)
    return Data(mixture, None, {"train": ledger})


def evaluations(context: Context, data: Data) -> dict[str, Method]:
    """Of the validation files too, each under its own name."""
    files, tokenizer = context.data_args, context.tokenizer
    evaluation = with_validation(context.evaluation, files.validation_file)
    stop_ids = [tokenizer.convert_tokens_to_ids(context.args.document_end_token or tokenizer.eos_token)]
    return build_evaluations(evaluation, context.args, files, context.config, tokenizer, None, stop_ids)


def block_stats(context: Context, data: Data) -> DataStats:
    """The sizes of the blocks of an epoch, or of the whole run where they are streamed."""
    mixture, args = data.train, context.args
    size, rows = mixture.blocking.size, mixture.blocks or args.max_steps * step_blocks(args)
    tokens = rows * size
    if mixture.blocks:
        each = [source.tokens / len(source) for source in mixture.sources]
        tokens = round(rows * float(np.dot(each, mixture.schedule.quotas)) / mixture.schedule.epoch_blocks)
    a_batch = min(args.per_device_train_batch_size, rows)
    batch = Batch(a_batch, size, a_batch * size, packed=mixture.mask_documents)
    digest = hashlib.sha256(to_json([mixture.identity(), mixture.digests()]).encode()).hexdigest()
    return DataStats(rows, tokens, tokens, size, batch, digest, what="blocks", lengthen="--block_size")


def packing_error(context: Context) -> UserError | None:
    """The error where tokens would attend beyond their document, and shall not."""
    instead = "give --document_attention false, which lets them"
    if not context.args.document_attention:
        return None
    return packing_leaks(context.config.model_type, "--document_attention", instead)


def build_trainer(
    context: Context, data: Data, model: PreTrainedModel, methods: Mapping[str, Method]
) -> PretrainTrainer:
    return PretrainTrainer(
        data.train,
        data.ledgers["train"],
        max_drop_ratio=context.data_args.max_drop_ratio,
        model=model,
        args=context.args,
        eval_dataset={} if methods else None,
        processing_class=context.tokenizer,
    )


STAGE = Stage(
    "pretrain",
    PretrainArguments,
    forms=("text", "messages"),
    data=SourceArguments,
    model=PretrainModelArguments,
    tokenizer={"needs_template": False},
    read_config=read_model_config,
    read=read_mixture,
    data_stats=block_stats,
    evaluations=evaluations,
    load_model=lambda context: partial(make_model, config=context.config),
    freeze=lambda context: partial(freeze, train_only=context.args.train_only, layers=context.args.freeze_layers),
    packing_error=packing_error,
    trainer=build_trainer,
    card=CardWords("pretraining", ("documents", "篇文档"), "continues"),
    legend="In colour: the tokens that carry loss; the first of each document is given and has none.",
)
