"""DPO: TRL's trainer and losses over our pairs, with means over an update."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOTrainer

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.arguments import DataArguments
from hf_recipes.data.chat.preference import PairEncoder
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.dry_run.data_stats import DataStats, row_lengths, rows_digest
from hf_recipes.dry_run.simulate import Batch
from hf_recipes.evaluation.method import Method
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import SORTING_LOSSES, DPOArguments, KTOArguments
from hf_recipes.run.data import prepare_rows
from hf_recipes.run.evaluate_callback import add_callbacks, build_evaluations
from hf_recipes.stages.base import Context, Data, Stage
from hf_recipes.trainer.preference_losses import sorted_losses
from hf_recipes.trainer.reference_log_probs import ReferenceLogProbs
from hf_recipes.trainer.row_mean_loss import PADDING_ROW, PairCollator, side_lengths

COMPARING_LOSSES = ("sft", *SORTING_LOSSES)


PAIR_METRICS = (
    *(f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")),
    "logps/chosen",
    "logps/rejected",
)


class PairTrainer(ReferenceLogProbs, DPOTrainer):
    """TRL's `DPOTrainer` on pairs that are already ids and labels of both sides.

    The loss of an update is the mean over all its pairs, and so are the rewards that are logged with it; those of an
    evaluation are over all its pairs. Losses that sort pairs (aot, aot_unpaired) or are a mean over tokens (sft)
    compare all pairs of the update; where those sort and it has several batches, this takes a second forward pass.
    """

    columns = tuple(f"{side}_{name}" for side in SIDES for name in ("ids", "labels"))
    columns += ("ref_chosen_logps", "ref_rejected_logps")
    # Where losses compare the pairs of an update: its pairs as `_compared` has them, and their `row`.
    _update: tuple[torch.Tensor, torch.Tensor] | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        losses = list(zip(self.loss_types, self.loss_weights, strict=True))
        self._comparing = [(name, weight) for name, weight in losses if name in COMPARING_LOSSES]
        self._sorts = any(name in SORTING_LOSSES for name, _ in self._comparing)
        self.loss_types = [name for name, _ in losses if name not in COMPARING_LOSSES]
        self.loss_weights = [weight for name, weight in losses if name not in COMPARING_LOSSES]

    def summed(self, log_probs, labelled):
        if self.args.ld_alpha is None:
            return log_probs.sum(1)
        locations = labelled.cumsum(1)  # LD-DPO (arXiv 2409.06411): less of what the longer side has beyond the shorter
        shared = locations[:, -1].view(2, -1).min(0).values.repeat(2)
        return torch.where(locations <= shared[:, None], log_probs, self.args.ld_alpha * log_probs).sum(1)

    def compute_ref_log_probs(self, model, inputs):
        return self.reference_log_probs(inputs, model=model).chunk(2)

    def _with_reference(self, inputs):
        if "ref_chosen_logps" in inputs:
            return inputs
        chosen, rejected = self.reference_log_probs(inputs).chunk(2)
        return {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def get_batch_samples(self, *args):
        self._update = None
        return super().get_batch_samples(*args)

    def look_ahead(self, batches):
        alone = isinstance(batches, list) and len(batches) * self.args.world_size == 1
        if not self._comparing or alone:
            return
        pairs, rows = [], []
        for inputs in map(self._prepare_inputs, batches):
            if self._sorts:
                inputs = self._with_reference(inputs)
                policy = self.log_probs(self.model, inputs)
            else:  # tokens are all that count
                policy = torch.zeros(2 * len(inputs["row"]), device=self.args.device)
                inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = policy.chunk(2)
            pairs.append(self._compared(policy, inputs))
            rows.append(inputs["row"])
        pairs, rows = (self.accelerator.gather(torch.cat(parts)) for parts in (pairs, rows))
        self._update = pairs[rows != PADDING_ROW], rows[rows != PADDING_ROW]

    def _compared(self, policy: torch.Tensor, inputs) -> torch.Tensor:
        """What losses that compare know of each pair, (B, 5): as of `sorted_losses`, and tokens of the chosen side."""
        tokens = inputs["completion_mask"][:, 1:].sum(1).chunk(2)[0].float()
        return torch.stack([*policy.chunk(2), inputs["ref_chosen_logps"], inputs["ref_rejected_logps"], tokens], 1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch, rows = self.real_rows(inputs)
        batch = self._with_reference(batch)
        outputs = []

        def recorded(**kwargs):
            outputs.append(model(**kwargs))
            return outputs[0]

        loss, means = self.upstream_loss(recorded, batch)
        self.note_means(means, dict.fromkeys(PAIR_METRICS, len(rows)))
        losses = loss + self._comparing_losses(outputs[0], batch)
        return self.finish_loss(losses[: len(rows)], num_items_in_batch)

    def _comparing_losses(self, outputs, batch) -> torch.Tensor:
        """The weighted sum of the losses that compare pairs, of each pair, (B,)."""
        labelled = batch["completion_mask"][:, 1:]
        pairs = self._compared(self.summed(outputs.log_probs, labelled), batch)
        update, index = pairs.detach(), torch.arange(len(pairs), device=pairs.device)
        if self._update is not None:
            update, numbers = self._update
            index = (numbers == batch["row"][:, None]).int().argmax(1)
        total = torch.zeros_like(pairs[:, 0])
        for name, weight in self._comparing:
            if name == "sft":
                each = -outputs.log_probs.chunk(2)[0].sum(1) / update[:, 4].mean().clamp(min=1 / len(update))
                if self.args.use_weighting:  # WPO (arXiv 2406.11827), equation 2
                    aligned = ((outputs.log_probs.detach() - outputs.log_sum_sq_probs) * labelled).sum(1)
                    each = each * (aligned / labelled.sum(1).clamp(min=1)).exp().view(2, -1).prod(0)
            else:
                how = (self.args.beta, self.args.label_smoothing)
                each = sorted_losses(name, pairs[:, :4], update[:, :4], index, *how)
            total = total + weight * each
        return total


Prepared = tuple[Dataset, Dataset | None, dict[str, Ledger]]


def prepare_pairs(
    data: DataArguments, args: DPOArguments, tokenizer: PreTrainedTokenizerBase, evaluates: bool = False
) -> Prepared:
    """Pairs as `chosen_ids`, `chosen_labels`, `rejected_ids`, `rejected_labels` and `place`; see `prepare_rows`."""
    encoder = PairEncoder(tokenizer, args.max_length, keep_labels=True)
    return prepare_rows(data, args, lambda name: encoder, form="preference", evaluates=evaluates)


def other_evaluations(
    evaluation: EvaluationArguments,
    args: DPOArguments | KTOArguments,
    data: DataArguments,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Method]:
    """What is evaluated beside the validation rows, by name.

    Raises:
        UserError: as `build_evaluations`, or methods without a file.
    """
    if evaluation.eval_methods and not evaluation.eval_files:
        raise UserError("--eval_methods without --eval_files name=path: of validation rows there is only the loss")
    return build_evaluations(evaluation, args, data, config, tokenizer, None, [])


def pair_figures(train: Dataset, args: DPOArguments) -> DataStats:
    """The figures of tokenized pairs."""
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


def _pair_rows(rows: Dataset) -> Dataset:
    return rows.remove_columns(["status", "location"]).add_column("row", list(range(len(rows))))


def build_pair_trainer(
    model: PreTrainedModel,
    args: DPOArguments,
    train: Dataset,
    validation: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    methods: Mapping[str, Method] | None = None,
    *,
    reference: PreTrainedModel | None = None,
    continues_adapter: bool = False,
) -> PairTrainer:
    """DPO's trainer with its callbacks; `methods` are used at each evaluation, after the loss of the validation rows.

    Args:
        reference: that of a model without an adapter; see `build_reference`.
        goes_on: the model's adapter was trained before.

    Raises:
        UserError: an adapter or a setting that the model cannot have.
    """
    args.max_length = None  # every pair is within the budget already
    rows = _pair_rows(train)
    trainer = PairTrainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=rows.add_column(args.length_column_name, side_lengths(train).max(0).tolist()),
        eval_dataset=_pair_rows(validation) if validation is not None else {} if methods else None,
        processing_class=tokenizer,
        data_collator=PairCollator(tokenizer.pad_token_id, args.pad_to_multiple_of),
        continues_adapter=continues_adapter,
    )
    trainer.data_rows = train
    add_callbacks(trainer, methods)
    return trainer


def stage_with_reference(
    name: str, arguments: type, prepare: Callable, figures: Callable, build: Callable, **more: Any
) -> Stage:
    """A `Stage` that learns against a reference, from functions that take what they need of a `Context`."""

    def read(context: Context) -> Data:
        evaluates = context.evaluates_files
        return Data(*prepare(context.data_args, context.args, context.tokenizer, evaluates=evaluates))

    def evaluations(context: Context, data: Data) -> dict[str, Method]:
        settings = context.evaluation, context.args, context.data_args, context.config, context.tokenizer
        return other_evaluations(*settings)

    def trainer(context: Context, data: Data, model: PreTrainedModel, methods: Mapping[str, Method], reference=None):
        rows = data.train, data.validation
        held = {"reference": reference, "continues_adapter": context.continues_adapter}
        return build(model, context.args, *rows, context.tokenizer, methods, **held)

    return Stage(
        name,
        arguments,
        read=read,
        figures=lambda context, data: figures(data.train, context.args),
        evaluations=evaluations,
        trainer=trainer,
        **more,
    )


STAGE = stage_with_reference(
    "dpo",
    DPOArguments,
    prepare_pairs,
    pair_figures,
    build_pair_trainer,
    forms=("preference",),
    encoder=lambda tokenizer, args, name: PairEncoder(tokenizer, args.max_length, keep_labels=True),
    card=CardWords("dpo", ("pairs", "对数据")),
    legend="In colour: the answers, of which the chosen one is made likelier than the rejected one.",
)
