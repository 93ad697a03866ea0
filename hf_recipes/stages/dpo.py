"""DPO: a better and a worse answer to each prompt, against a reference."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.arguments.limits import PositiveInt, at
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.preference import PairEncoder
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.dry_run.data_stats import DataStats, row_lengths, rows_digest
from hf_recipes.dry_run.simulate import Batch
from hf_recipes.evaluation.method import Method
from hf_recipes.models.templates.options import TemplateArguments
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.evaluate_callback import build_evaluations
from hf_recipes.run.inherited import INERT, WITH_REFERENCE
from hf_recipes.stages.base import Context, Data, Stage
from hf_recipes.stages.trainers.dpo import SORTING_LOSSES, PairTrainer
from hf_recipes.trainer.losses.collators import PairCollator, side_lengths
from hf_recipes.trainer.losses.reference_log_probs import PreferenceLoss

# Losses of DPO of the difference between the sides' scores, which any divergence can make, and all of TRL's.
DIFFERENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
PAIR_LOSSES = (*DIFFERENCE_LOSSES, "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", *SORTING_LOSSES)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
SMOOTHED_LOSSES = ("exo_pair", "robust", *SORTING_LOSSES)
PRECOMPUTES = {"precompute_ref_batch_size": ("--precompute_ref_log_probs", lambda args: args.precompute_ref_log_probs)}
REFERENCE_METRICS = {
    **dict.fromkeys(("rewards/chosen", "rewards/margins", "logps/chosen"), True),
    **dict.fromkeys(("loss", "rewards/rejected", "logps/rejected"), False),
}


def check_loss_types(args: RunArguments, losses: tuple[str, ...]) -> None:
    args.check_fields()
    for name in [args.loss_type] if isinstance(args.loss_type, str) else args.loss_type:
        if name not in losses:
            raise ValueError(f"--loss_type {name}: no such loss{nearest(name, losses)}; there are {', '.join(losses)}")


@dataclass
class DPOArguments(TemplateArguments, RunArguments, DPOConfig):
    """TRL's `DPOConfig`, with what it would refuse after loading named before."""

    adapter_learning_rate: ClassVar = 1e-5
    unusable: ClassVar = {
        **WITH_REFERENCE,
        "padding_free": f"{INERT}TRL's DPO pads",
        "truncation_mode": f"{INERT}use --max_length",
    }
    limits: ClassVar = {
        "beta": at(gt=0),
        "label_smoothing": at(ge=0, lt=0.5),
        "ld_alpha": at(ge=0, le=1),
        "precompute_ref_batch_size": at(ge=1),
    }
    needs: ClassVar = {
        **PRECOMPUTES,
        "discopop_tau": ("--loss_type discopop", lambda args: "discopop" in args.loss_type),
        "f_alpha_divergence_coef": (
            "--f_divergence_type alpha_divergence",
            lambda args: args.f_divergence_type == "alpha_divergence",
        ),
        "label_smoothing": (
            f"a --loss_type that has it ({', '.join(SMOOTHED_LOSSES)})",
            lambda args: any(name in args.loss_type for name in SMOOTHED_LOSSES),
        ),
    }

    learning_rate: float = setting("The highest learning rate; with an adapter 1e-5 by default.", 1e-6)
    max_length: PositiveInt | None = setting(
        "Tokens of a side; pairs with a longer one are left out, which is counted.", 1024
    )

    def __post_init__(self):
        check_loss_types(self, PAIR_LOSSES)
        self.loss_type = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"--loss_weights: {len(self.loss_weights)} of them for {len(self.loss_type)} --loss_type")
        if self.f_divergence_type not in DIVERGENCES:
            known = nearest(self.f_divergence_type, DIVERGENCES)
            raise ValueError(f"--f_divergence_type {self.f_divergence_type}: no such divergence{known}")
        others = [name for name in self.loss_type if name not in DIFFERENCE_LOSSES]
        if others and self.f_divergence_type != "reverse_kl":
            raise ValueError(
                f"--f_divergence_type {self.f_divergence_type} goes with {', '.join(DIFFERENCE_LOSSES)}, not with "
                f"--loss_type {others[0]}"
            )
        if self.use_weighting and (sorts := [name for name in self.loss_type if name in SORTING_LOSSES]):
            raise ValueError(f"--use_weighting does not go with --loss_type {sorts[0]}, which sorts the pairs")
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("--loss_type exo_pair needs --label_smoothing above 0; its paper (2402.00856) takes 1e-3")
        super().__post_init__()


def pair_encoder(tokenizer: PreTrainedTokenizerBase, args: DPOArguments, name: str) -> PairEncoder:
    return PairEncoder(tokenizer, args.max_length, keep_labels=True)


def reference_evaluations(context: Context, rows: Dataset | None, lengths: Callable, metrics: Mapping) -> dict:
    """The loss of the validation rows, whose sides have these `lengths`, and the methods on --eval_files."""
    evaluation = context.evaluation
    if evaluation.eval_methods and not evaluation.eval_files:
        raise UserError("--eval_methods without --eval_files name=path: of validation rows there is only the loss")
    methods = {} if rows is None else {"": PreferenceLoss(rows, lengths(rows), metrics)}
    settings = evaluation, context.args, context.data_args, context.config, context.tokenizer
    return methods | build_evaluations(*settings, None, [])


def evaluations(context: Context, data: Data) -> dict[str, Method]:
    metrics = {**REFERENCE_METRICS, "rewards/accuracies": True}
    return reference_evaluations(context, data.validation, side_lengths, metrics)


def pair_stats(context: Context, data: Data) -> DataStats:
    """The sizes of tokenized pairs."""
    args, train = context.args, data.train
    lengths = side_lengths(train)
    labelled = sum(int(row_lengths(train, f"{side}_labels")[1].sum()) for side in SIDES)
    size = min(args.per_device_train_batch_size, len(train))
    largest = train.select(np.argsort(lengths.max(0), kind="stable")[-size:])
    longest = int(lengths.max())
    positions = sum(int(row_lengths(largest, f"{side}_labels")[1].sum()) for side in SIDES)
    batch = Batch(2 * size, longest, positions, fused_head=not args.use_cpu)
    flags = {"what": "pairs", "lengthen": "--max_length"}
    digest = rows_digest(train, *(f"{side}_{name}" for side in SIDES for name in ("ids", "labels")))
    return DataStats(len(train), int(lengths.sum()), labelled, longest, batch, digest, **flags)


def pair_rows(rows: Dataset, length_column: str) -> Dataset:
    """Pairs with their `row` and the length of their longer side, by which `group_by_length` sorts them."""
    rows = rows.remove_columns(["status", "location", "source"]).add_column("row", list(range(len(rows))))
    return rows.add_column(length_column, side_lengths(rows).max(0).tolist())


def build_trainer(
    context: Context,
    data: Data,
    model: PreTrainedModel,
    methods: Mapping[str, Method],
    reference: PreTrainedModel | None = None,
) -> PairTrainer:
    args = context.args
    args.max_length = None  # every pair is within the budget already
    train, validation = (rows and pair_rows(rows, args.length_column_name) for rows in (data.train, data.validation))
    trainer = PairTrainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=train,
        eval_dataset=validation or ({} if methods else None),
        processing_class=context.tokenizer,
        data_collator=PairCollator(context.tokenizer.pad_token_id, args.pad_to_multiple_of),
        continues_adapter=context.continues_adapter,
    )
    trainer.data_rows = data.train
    trainer.set_sources(data.train)
    if validation:
        methods[""].trainer = trainer
    return trainer


STAGE = Stage(
    "dpo",
    DPOArguments,
    forms=("preference",),
    encoder=pair_encoder,
    data_stats=pair_stats,
    evaluations=evaluations,
    trainer=build_trainer,
    card=CardWords("dpo", ("pairs", "对数据")),
    legend="In colour: the answers, of which the chosen one is made likelier than the rejected one.",
)
