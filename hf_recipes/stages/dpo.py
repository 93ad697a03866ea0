"""DPO: TRL's trainer and losses over our pairs, with means over an update."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from hf_recipes.core.errors import UserError
from hf_recipes.core.settings import PositiveInt, at, nearest, setting
from hf_recipes.data.chat.preference import PairEncoder
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.dry_run.memory import Batch
from hf_recipes.dry_run.plan import DataStats, row_lengths, rows_digest
from hf_recipes.evaluation.method import Method
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.evaluate_callback import add_callbacks, build_evaluations
from hf_recipes.run.inherited import INERT, WITH_REFERENCE
from hf_recipes.stages.base import Context, Data, Stage
from hf_recipes.trainer.preference_loss import PreferenceLoss, mean_of
from hf_recipes.trainer.preference_losses import sorted_losses
from hf_recipes.trainer.reference_log_probs import Inputs, ReferenceLogProbs
from hf_recipes.trainer.row_mean_loss import PADDING_ROW, PairCollator, side_lengths

# Losses of DPO of the difference between the sides' scores, which any divergence can make, and all of TRL's.
DIFFERENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
SORTING_LOSSES = ("aot", "aot_unpaired")
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
class DPOArguments(RunArguments, DPOConfig):
    """TRL's `DPOConfig`, with what it would refuse after loading named before."""

    unusable: ClassVar = {
        **WITH_REFERENCE,
        "padding_free": f"{INERT}TRL's DPO pads",
        "truncation_mode": f"{INERT}use --max_length",
    }
    limits: ClassVar = {"beta": at(gt=0), "label_smoothing": at(ge=0, lt=0.5), "ld_alpha": at(ge=0, le=1)}
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

    chat_template: str | None = setting("A bundled template (chatml, llama2, vicuna, …) or a jinja file.")
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


COMPARING_LOSSES = ("sft", *SORTING_LOSSES)
# Of `_compared`: what a loss that compares the pairs of an update needs of each.
COMPARED = ("logps/chosen", "logps/rejected", "ref_logps/chosen", "ref_logps/rejected", "chosen_tokens", "chosen_loss")
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

    def sum_tokens(self, log_probs, labelled):
        if self.args.ld_alpha is None:
            return log_probs.sum(1)
        counts = labelled.cumsum(1)  # LD-DPO (arXiv 2409.06411): less of what the longer side has beyond the shorter
        shared = counts[:, -1].view(2, -1).min(0).values.repeat(2)
        return torch.where(counts <= shared[:, None], log_probs, self.args.ld_alpha * log_probs).sum(1)

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
        if not self._comparing or len(batches) * self.args.world_size == 1:
            return
        pairs, rows = [], []
        for inputs in map(self._prepare_inputs, batches):
            if self._sorts:
                inputs = self._with_reference(inputs)
                policy = self.log_probs(self.model, inputs)
            else:  # tokens are all that count
                policy = torch.zeros(2 * len(inputs["row"]), device=self.args.device)
                inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = policy.chunk(2)
            pairs.append(self._compared(policy, policy.chunk(2)[0], inputs))
            rows.append(inputs["row"])
        pairs, rows = (self.accelerator.gather(torch.cat(each)) for each in (pairs, rows))
        self._update = pairs[rows != PADDING_ROW], rows[rows != PADDING_ROW]

    def _compared(self, policy: torch.Tensor, chosen_loss: torch.Tensor, inputs) -> torch.Tensor:
        """What a loss that compares pairs needs of each, (B, 6): see `COMPARED`."""
        tokens = inputs["completion_mask"][:, 1:].sum(1).chunk(2)[0].float()
        references = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        return torch.stack([*policy.chunk(2), *references, tokens, chosen_loss], 1)

    def _compared_outputs(self, outputs, batch) -> torch.Tensor:
        """`_compared` of a batch that went through the policy; the loss on the chosen answer is in nats."""
        labelled = batch["completion_mask"][:, 1:]
        chosen_loss = -outputs.log_probs.chunk(2)[0].sum(1)
        if self.args.use_weighting:  # WPO (arXiv 2406.11827), equation 2
            aligned = ((outputs.log_probs.detach() - outputs.log_sum_sq_probs) * labelled).sum(1)
            chosen_loss = chosen_loss * (aligned / labelled.sum(1).clamp(min=1)).exp().view(2, -1).prod(0)
        return self._compared(self.sum_tokens(outputs.log_probs, labelled), chosen_loss, batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch, rows = self.real_rows(inputs)
        batch = self._with_reference(batch)
        outputs = []

        def recorded(**kwargs):
            outputs.append(model(**kwargs))
            return outputs[0]

        loss, metrics = self._upstream_loss(recorded, batch)
        for name in PAIR_METRICS:
            self.note(**{name: torch.full((len(rows),), metrics[name], device=self.args.device)})
        if self._comparing:
            pairs = self._compared_outputs(outputs[0], batch)
            update, index = pairs.detach(), torch.arange(len(pairs), device=pairs.device)
            if self._update is not None:
                update, numbers = self._update
                index = (numbers == batch["row"][:, None]).int().argmax(1)
            loss = loss + self._comparing_losses(pairs, update, index)
        return self.mean_over_update(loss.expand(len(batch["row"]))[: len(rows)], num_items_in_batch)

    def _upstream_loss(self, model: Callable, batch: Inputs) -> tuple[torch.Tensor | float, dict[str, float]]:
        """TRL's loss of a batch that has the reference's log-probabilities, and the metrics that it would log."""
        accelerator = self.accelerator
        # TRL gathers its metrics, for which all processes need as many rows; `noted` adds up those of each.
        accelerator.gather = accelerator.gather_for_metrics = lambda values: values
        try:
            loss = self._compute_loss(model, {name: value for name, value in batch.items() if name != "row"}, False)
        finally:
            del accelerator.gather, accelerator.gather_for_metrics
        metrics = self._metrics["train" if self.model.training else "eval"]
        found = {name: values[-1] for name, values in metrics.items()}
        metrics.clear()
        return loss, found

    def _comparing_losses(self, pairs: torch.Tensor, update: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the losses that compare pairs, (B,), of `pairs` at `index` of all pairs of the `update`.

        All pairs are as of `COMPARED`.
        """
        total = torch.zeros_like(pairs[:, 0])
        for name, weight in self._comparing:
            if name == "sft":
                losses = pairs[:, 5] / update[:, 4].mean().clamp(min=1 / len(update))
            else:
                settings = self.args.beta, self.args.label_smoothing
                losses = sorted_losses(name, pairs[:, :4], update[:, :4], index, *settings)
            total = total + weight * losses
        return total

    def evaluate_rows(self, inputs):
        """TRL's figures of each pair by itself, without the balance of experts, and what its comparing losses need."""
        inputs = self._with_reference(inputs)
        outputs, count = self.score_tokens(self.model, inputs), len(inputs["row"])
        compared = self._compared_outputs(outputs, inputs).tolist()
        records = []
        for index in range(count):
            # The chosen and the rejected side of one pair.
            tokens = {name: value[index::count] for name, value in outputs.items() if value.dim() == 2}
            pair = {name: value[index::count] for name, value in inputs.items()}
            scored = FusedCausalLMOutput(**tokens, aux_loss=0.0)
            loss, metrics = self._upstream_loss(lambda scored=scored, **kwargs: scored, pair)
            record = {"loss": float(loss)} | {name: metrics[name] for name in PAIR_METRICS}
            records.append(record | dict(zip(COMPARED, compared[index], strict=True)))
        return records

    def summarise(self, records):
        metrics = {name: mean_of(records, name) for name in ("loss", *PAIR_METRICS)}
        if self._comparing:
            pairs = torch.tensor([[record[name] for name in COMPARED] for record in records], dtype=torch.float64)
            metrics["loss"] += self._comparing_losses(pairs, pairs, torch.arange(len(pairs))).mean().item()
        return metrics


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


def pair_figures(context: Context, data: Data) -> DataStats:
    """The figures of tokenized pairs."""
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
    rows = rows.remove_columns(["status", "location"]).add_column("row", list(range(len(rows))))
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
    if validation:
        methods[""].trainer = trainer
    add_callbacks(trainer, methods)
    return trainer


STAGE = Stage(
    "dpo",
    DPOArguments,
    forms=("preference",),
    encoder=pair_encoder,
    figures=pair_figures,
    evaluations=evaluations,
    trainer=build_trainer,
    card=CardWords("dpo", ("pairs", "对数据")),
    legend="In colour: the answers, of which the chosen one is made likelier than the rejected one.",
)
