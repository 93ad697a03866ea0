"""Supervised fine-tuning: TRL's `SFTTrainer` over our tokens, losses and checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hf_recipes.core.errors import UserError
from hf_recipes.core.settings import at, setting
from hf_recipes.data.chat.encoder import ChatEncoder, SplitTurns, Truncation, total_length
from hf_recipes.dry_run.data_stats import row_stats
from hf_recipes.evaluation.method import Method
from hf_recipes.evaluation.methods.perplexity import NLL
from hf_recipes.models.checks.packing import joins_rows, packing_leaks
from hf_recipes.models.templates.options import TemplateArguments
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.evaluate_callback import VALIDATION_LOSS, add_callbacks, build_evaluations, prompts_of
from hf_recipes.stages.base import Context, Data, Stage
from hf_recipes.trainer.base import RunMixin
from hf_recipes.trainer.losses.cpu_lm_head import add_cpu_lm_head

TOKEN_LOSSES = ("nll", "dft")
TRAINED = at(ge=1, text="at least 1; with {} there is no token to learn from")


@dataclass
class SFTArguments(TemplateArguments, RunArguments, SFTConfig):
    """TRL's `SFTConfig` with token budgets and the choices that it leaves to the user's hardware made by default."""

    needs: ClassVar = {
        "label_smoothing_factor": ("--loss_type nll", lambda args: args.loss_type == "nll"),
        **dict.fromkeys(("packing_strategy", "shuffle_dataset"), ("--packing", lambda args: args.packing)),
    }

    train_on: Literal["all", "last"] = setting("Assistant turns that carry loss.", "all")
    split_turns: SplitTurns = setting(
        "When turns become examples of their own: where one cannot serve several (auto), always, or never, and rows "
        "that need it are dropped.",
        "auto",
    )
    max_source_length: Annotated[int | None, TRAINED] = setting("Tokens of the prompt at the most.")
    max_target_length: Annotated[int | None, TRAINED] = setting("Tokens of the answer at the most.")
    max_length: Annotated[int | None, TRAINED] = setting(
        "Tokens in all; by default both budgets together (1024 for one not given) or 1024."
    )
    truncation_side: Literal["left", "right"] = setting("Side on which an over-long question is cut.", "left")
    truncation: Truncation = setting(
        "What happens to an answer over its budget: cut, and the model learns to stop there; or drop, and its row is "
        "left out, which is counted.",
        "cut",
    )

    def __post_init__(self):
        self.check_fields()
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
    """TRL's trainer on rows that are already `input_ids` and `labels`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.aux_loss_enabled:  # TRL's `compute_loss` asks for them itself; generation fails with them
            self.model.config.get_text_config().output_router_logits = False
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
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data.train.select_columns(["input_ids", "labels"]),
        eval_dataset={} if methods else None,
        processing_class=context.tokenizer,
    )
    trainer.data_rows = data.train
    add_callbacks(trainer, methods)
    return trainer


STAGE = Stage(
    "sft",
    SFTArguments,
    forms=("messages",),
    encoder=encoder_for,
    data_stats=lambda context, data: row_stats(
        data.train, data.ledgers["train"], context.args, context.model_args.attn_implementation
    ),
    evaluations=evaluations,
    trainer=build_trainer,
    packing_error=packing_error,
    card=CardWords("sft"),
    legend="In colour: the tokens that carry loss, which the model learns to write (--train_on {train_on}).",
)
