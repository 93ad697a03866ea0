"""Supervised fine-tuning: TRL's `SFTTrainer` over our tokens, losses and checkpoints."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hf_recipes.core.arguments.limits import at
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.chat.encoder import IGNORED, ChatEncoder, SplitTurns, Truncation
from hf_recipes.data.chat.streamed_rows import RowMixture
from hf_recipes.data.chat.truncation import total_length
from hf_recipes.dry_run.data_stats import DataStats, row_lengths, row_stats
from hf_recipes.evaluation.method import Method
from hf_recipes.evaluation.methods.perplexity import NLL
from hf_recipes.models.checks.packing import joins_rows, packing_leaks
from hf_recipes.models.templates.options import TemplateArguments
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.evaluate_callback import VALIDATION_LOSS, build_evaluations, prompts_of
from hf_recipes.stages.base import Context, Data, Stage, read_examples
from hf_recipes.stages.data.sft import read_stream, stream_stats
from hf_recipes.trainer.base import RunMixin
from hf_recipes.trainer.losses.cpu_lm_head import add_cpu_lm_head
from hf_recipes.trainer.mixture_data import MixtureData, step_blocks

TOKEN_LOSSES = ("nll", "dft")
TRAINED = at(ge=1, text="at least 1; with {} there is no token to learn from")


@dataclass
class SFTArguments(TemplateArguments, RunArguments, SFTConfig):
    """TRL's `SFTConfig` with token budgets and the choices that it leaves to the user's hardware made by default."""

    adapter_learning_rate: ClassVar = 2e-4
    needs: ClassVar = {
        "label_smoothing_factor": ("--loss_type nll", lambda args: args.loss_type == "nll"),
        **dict.fromkeys(("packing_strategy", "shuffle_dataset"), ("--packing", lambda args: args.packing)),
    }

    learning_rate: float = setting("The highest learning rate; with an adapter 2e-4 by default.", 2e-5)
    train_on: Literal["all", "last"] = setting("Assistant turns that carry loss.", "all")
    split_turns: SplitTurns = setting(
        "When turns become examples of their own: where one cannot serve several (auto), always, or never, and rows "
        "that need it are dropped.",
        "auto",
    )
    max_source_length: Annotated[int | None, TRAINED] = setting("Tokens before the last answer at the most.")
    max_target_length: Annotated[int | None, TRAINED] = setting("Tokens of the last answer at the most.")
    max_length: Annotated[int | None, TRAINED] = setting(
        "Tokens in all; by default both budgets together (1024 for one not given) or 1024."
    )
    truncation_side: Literal["left", "right"] = setting("Side on which an over-long question is cut.", "left")
    streaming: bool = setting(
        "Encode while training, for sets beyond memory; nothing is cached. Needs --max_steps.", False
    )
    truncation: Truncation = setting(
        "What happens to an answer over its budget: cut, and the model learns to stop there; or drop, which leaves it "
        "out, and its row where that has no other; both are counted.",
        "cut",
    )

    def __post_init__(self):
        self.check_fields()
        if self.streaming and self.max_steps <= 0:
            raise ValueError("--streaming needs --max_steps: how long a stream is is known only at its end")
        if self.streaming and self.packing:
            raise ValueError("--packing needs all rows, which --streaming does not read before; leave one of them out")
        if self.streaming and self.train_sampling_strategy != "random":
            raise ValueError("--train_sampling_strategy has no effect with --streaming; leave it out")
        if self.loss_type not in TOKEN_LOSSES:
            raise ValueError(f"--loss_type {self.loss_type}: no such loss; there are {' and '.join(TOKEN_LOSSES)}")
        self.max_length = total_length(self.max_source_length, self.max_target_length, self.max_length)
        if self.packing and self.packing_strategy != "bfd":
            raise ValueError(f"--packing_strategy {self.packing_strategy}: rows would leak into each other; use bfd")
        if self.label_smoothing_factor and self.router_aux_loss_coef:
            raise ValueError("--router_aux_loss_coef has no effect with --label_smoothing_factor; leave one out")
        super().__post_init__()


class PackCollator(DataCollatorForLanguageModeling):
    """Packs as the rows of a batch, (B, T), where attention works on whole rows and not on each document by itself.

    Joined into one row, as flash attention takes them, B packs would cost B times the attention of B rows.

    Returns:
        `input_ids`, `labels` and `position_ids`, int64 (B, T). Positions restart at each document, and in the padding
        at each token; there is no attention mask, with which attention would not restart where they do.
    """

    def torch_call(self, examples):
        batch = super().torch_call(examples)
        del batch["attention_mask"]
        batch["labels"][batch["position_ids"] == 0] = -100
        return batch


class Trainer(RunMixin, SFTTrainer):
    """TRL's trainer on rows that are already `input_ids` and `labels`; those of several sources have `sources` too."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # TRL's compute_loss divides by num_items_in_batch for every architecture.
        self.model_accepts_loss_kwargs = True
        if self.args.use_cpu:
            add_cpu_lm_head(self.model, ("log_probs", "entropy", "is_top1"))
        if self.args.packing and not joins_rows(self.accelerator.unwrap_model(self.model).config._attn_implementation):
            self.data_collator = PackCollator(
                self.processing_class.pad_token_id,
                return_position_ids=True,
                pad_to_multiple_of=self.args.pad_to_multiple_of,
            )

    def log_sources(self, rows: Dataset) -> None:
        """Have the loss of each source logged, where the training `rows` have several."""
        sizes, labelled = row_lengths(rows)
        self.set_sources(rows, labelled)
        if not self.source_names:
            return
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        of_tokens = pa.ListArray.from_arrays(offsets, np.repeat(self.row_sources.numpy().astype(np.int16), sizes))
        sources = Dataset(pa.table({"sources": of_tokens}))
        if self.args.packing:  # as TRL has packed the ids
            shuffles = self.args.shuffle_dataset
            sources = sources.shuffle(seed=self.args.seed) if shuffles else sources
            sources = pack_dataset(sources, self.args.max_length, self.args.packing_strategy).select_columns("sources")
            sources = sources.shuffle(seed=self.args.seed) if shuffles else sources
        self.train_dataset = concatenate_datasets([self.train_dataset, sources], axis=1)
        self._signature_columns = ["input_ids", "labels", "seq_lengths", "sources"]
        self.data_collator = SourceCollator(self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("location", None)
        if self.aux_loss_enabled and "attention_mask" in inputs:
            real = (inputs["labels"] != -100).any(1)
            if real.any():  # how padding rows use the experts is in no loss either
                inputs = {name: value[real] for name, value in inputs.items()}
        sources = inputs.pop("sources", None)
        outputs = []

        def recorded(**kwargs):
            outputs.append(model(**kwargs))
            return outputs[-1]

        call = model if sources is None else recorded
        loss = super().compute_loss(call, inputs, return_outputs, num_items_in_batch)
        if sources is not None:  # the last forward pass is that with scores, whatever the loss is
            mask = outputs[-1].label_mask
            self.add_source_losses(sources[:, 1:][mask], -outputs[-1].log_probs[mask])
        return loss


class SourceCollator:
    """Batches of another collator with `sources`, those of the tokens: int64 of the shape of the labels."""

    def __init__(self, inner: Callable):
        self.inner = inner

    def __call__(self, examples):
        batch = self.inner(examples)
        rows = [torch.as_tensor(example["sources"]) for example in examples]
        if len(batch["labels"]) < len(rows):  # they are joined
            rows = [torch.cat(rows)]
        sources = torch.zeros_like(batch["labels"])
        for index, row in enumerate(rows):
            sources[index, : len(row)] = row
        return {**batch, "sources": sources}


class StreamTrainer(MixtureData, Trainer):
    """The same over rows that are encoded while training."""

    def __init__(self, mixture: RowMixture, ledger: Ledger, max_drop_ratio: float, **kwargs):
        self.set_mixture(mixture, ledger, max_drop_ratio)
        super().__init__(**kwargs)
        if len(mixture.names) > 1:
            self.name_sources(mixture.names, mixture.shares)
            self.data_collator = SourceCollator(self.data_collator)

    def get_train_dataloader(self):
        self._last_block = self._start + max(0, self.args.max_steps - self._begun_at) * step_blocks(self.args)
        return self.stream_batches(self._collate)

    def _collate(self, rows):
        columns = [{**row, "sources": np.full(len(row["input_ids"]), row["source"])} for row in rows]
        return {**self.data_collator(columns), "location": [row["location"] for row in rows]}


class ValidationLoss(NLL):
    """`nll` of the validation rows, under the names of TRL's metrics."""

    def summarise(self, records):
        metrics = super().summarise(records)
        return {"loss": metrics["loss"], "mean_token_accuracy": metrics["token_accuracy"]}

    def directions(self):
        return {"loss": False, "mean_token_accuracy": True}


def encoder_for(tokenizer: PreTrainedTokenizerBase, args: SFTArguments, name: str = "train") -> ChatEncoder:
    """Of the rows called `name`; those to evaluate on keep their texts."""
    return ChatEncoder(
        tokenizer,
        train_on=args.train_on,
        max_source_length=args.max_source_length,
        max_target_length=args.max_target_length,
        max_length=args.max_length,
        truncation_side=args.truncation_side,
        truncation=args.truncation,
        split_turns=args.split_turns,
        keep_text=name == "validation",
    )


def evaluations(context: Context, data: Data) -> dict[str, Method]:
    """The validation rows are scored, and answered too."""
    tokenizer, args = context.tokenizer, context.args
    stop_ids = encoder_for(tokenizer, args).stop_ids
    settings = context.evaluation, args, context.data_args, context.config, tokenizer
    methods = {} if data.validation is None else {VALIDATION_LOSS: ValidationLoss.of_rows(data.validation)}
    return methods | build_evaluations(*settings, prompts_of(data.validation), stop_ids)


def packing_error(context: Context) -> UserError | None:
    joined = context.args.packing or context.args.padding_free
    return packing_leaks(context.config.model_type) if joined else None


def build_trainer(context: Context, data: Data, model: PreTrainedModel, methods: Mapping[str, Method]) -> Trainer:
    args = context.args
    if not args.packing:
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.max_length = None  # every row is within the budgets already
    settings = {"model": model, "args": args, "processing_class": context.tokenizer}
    settings["eval_dataset"] = {} if methods else None
    if args.streaming:
        no_rows = Dataset.from_dict({"input_ids": [[0]], "labels": [[IGNORED]]})  # TRL looks at the first one
        ledger, allowed = data.ledgers["train"], context.data_args.max_drop_ratio
        trainer = StreamTrainer(data.train, ledger, allowed, train_dataset=no_rows, **settings)
    else:
        trainer = Trainer(train_dataset=data.train.select_columns(["input_ids", "labels"]), **settings)
        trainer.data_rows = data.train
        trainer.log_sources(data.train)
    return trainer


def stats(context: Context, data: Data) -> DataStats:
    if context.args.streaming:
        return stream_stats(context, data)
    return row_stats(data.train, data.ledgers["train"], context.args, context.model_args.attn_implementation)


STAGE = Stage(
    "sft",
    SFTArguments,
    forms=("messages",),
    encoder=encoder_for,
    read=lambda context: read_stream(context) if context.args.streaming else read_examples(context),
    data_stats=stats,
    evaluations=evaluations,
    trainer=build_trainer,
    packing_error=packing_error,
    card=CardWords("sft"),
    legend="In colour: the tokens that carry loss, which the model learns to write (--train_on {train_on}).",
)
