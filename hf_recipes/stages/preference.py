"""DPO and KTO: TRL's trainers over our pairs and rows, losses, references and checkpoints."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOTrainer, KTOTrainer

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.arguments import DataArguments, UnpairedArguments
from hf_recipes.data.chat.preference import PairEncoder, UnpairedEncoder
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.dry_run.memory import Batch
from hf_recipes.dry_run.plan import Figures, row_lengths, rows_digest
from hf_recipes.evaluation.method import Method
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import SORTING_LOSSES, DPOArguments, KTOArguments
from hf_recipes.run.data import prepare_rows
from hf_recipes.run.evaluate_callback import add_callbacks, build_evaluations
from hf_recipes.stages.base import Context, Data, Stage
from hf_recipes.trainer.preference_losses import sorted_losses
from hf_recipes.trainer.reference_log_probs import Referred
from hf_recipes.trainer.row_mean_loss import FILLER, MIXED, PairCollator, RatedCollator, side_lengths

COMPARING_LOSSES = ("sft", *SORTING_LOSSES)
PAIR_METRICS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
PAIR_METRICS += ("logps/chosen", "logps/rejected")
ROW_METRICS = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")


class PairTrainer(Referred, DPOTrainer):
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

    def summed(self, log_probs, learned):
        if self.args.ld_alpha is None:
            return log_probs.sum(1)
        places = learned.cumsum(1)  # LD-DPO (arXiv 2409.06411): less of what the longer side has beyond the shorter
        shared = places[:, -1].view(2, -1).min(0).values.repeat(2)
        return torch.where(places <= shared[:, None], log_probs, self.args.ld_alpha * log_probs).sum(1)

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
        self._update = pairs[rows != FILLER], rows[rows != FILLER]

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
        learned = batch["completion_mask"][:, 1:]
        pairs = self._compared(self.summed(outputs.log_probs, learned), batch)
        update, index = pairs.detach(), torch.arange(len(pairs), device=pairs.device)
        if self._update is not None:
            update, numbers = self._update
            index = (numbers == batch["row"][:, None]).int().argmax(1)
        total = torch.zeros_like(pairs[:, 0])
        for name, weight in self._comparing:
            if name == "sft":
                each = -outputs.log_probs.chunk(2)[0].sum(1) / update[:, 4].mean().clamp(min=1 / len(update))
                if self.args.use_weighting:  # WPO (arXiv 2406.11827), equation 2
                    aligned = ((outputs.log_probs.detach() - outputs.log_sum_sq_probs) * learned).sum(1)
                    each = each * (aligned / learned.sum(1).clamp(min=1)).exp().view(2, -1).prod(0)
            else:
                how = (self.args.beta, self.args.label_smoothing)
                each = sorted_losses(name, pairs[:, :4], update[:, :4], index, *how)
            total = total + weight * each
        return total


class RatedTrainer(Referred, KTOTrainer):
    """TRL's `KTOTrainer` on single answers that are already ids and labels.

    The loss of an update is the mean over all its rows. Its KL divergence, from which the loss takes what an answer is
    worth, is estimated over all rows of the update too, and that of an evaluation over all its rows; TRL's is of each
    batch by itself.
    """

    columns = ("input_ids", "labels", "prompt_length", f"{MIXED}input_ids", f"{MIXED}labels", f"{MIXED}prompt_length")
    columns += ("label", "ref_logps", f"ref_{MIXED}logps")
    _divergence: torch.Tensor | None = None  # of the update, or of the evaluation

    def compute_ref_log_probs(self, model, inputs):
        mixed = self.reference_log_probs(inputs, MIXED, model) if self.calculate_KL else None
        return self.reference_log_probs(inputs, model=model), mixed

    def look_ahead(self, batches):
        if not self.calculate_KL:
            return
        parts = []
        for inputs in map(self._prepare_inputs, batches):
            values = self._mismatched(inputs)[inputs["row"] != FILLER]
            parts.append(torch.stack([values.sum(), values.new_tensor(len(values))]))
        total, count = self.accelerator.reduce(sum(parts), "sum")
        self._divergence = (total / count.clamp(min=1)).clamp(min=0)

    @torch.no_grad()
    def _mismatched(self, inputs) -> torch.Tensor:
        """Log-probability of another row's answer less that of the reference, (B,)."""
        known = inputs.get(f"ref_{MIXED}logps")
        reference = self.reference_log_probs(inputs, MIXED) if known is None else known
        return self.log_probs(self.model, inputs, MIXED) - reference

    def _compute_kl_logps(self, model, batch):
        return self._divergence  # of which TRL takes the reference's mean, that is 0 in `compute_loss`

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch, rows = self.real_rows(inputs)
        if "ref_logps" not in batch:
            batch["ref_logps"] = self.reference_log_probs(batch)
        batch[f"ref_{MIXED}logps"] = torch.zeros_like(batch["ref_logps"])
        loss, means = self.upstream_loss(model, batch)
        good = int(batch["label"][: len(rows)].sum())
        counts = {name: good if name.endswith("chosen") else len(rows) - good for name in ROW_METRICS}
        self.note_means(means, counts | ({"kl": len(rows)} if self.calculate_KL else {}))
        return self.finish_loss(loss.expand(len(rows)), num_items_in_batch)

    def noted(self, mode):
        return _with_margin(super().noted(mode))


def _with_margin(found: dict[str, float]) -> dict[str, float]:
    good, bad = (found.get(f"rewards/{side}") for side in SIDES)
    return found if good is None or bad is None else found | {"rewards/margins": good - bad}


Prepared = tuple[Dataset, Dataset | None, dict[str, Ledger]]


def prepare_pairs(
    data: DataArguments, args: DPOArguments, tokenizer: PreTrainedTokenizerBase, evaluates: bool = False
) -> Prepared:
    """Pairs as `chosen_ids`, `chosen_labels`, `rejected_ids`, `rejected_labels` and `place`; see `prepare_rows`."""
    encoder = PairEncoder(tokenizer, args.max_length, keep_labels=True)
    return prepare_rows(data, args, lambda name: encoder, form="preference", evaluates=evaluates)


def prepare_rated(
    data: DataArguments, args: KTOArguments, tokenizer: PreTrainedTokenizerBase, evaluates: bool = False
) -> Prepared:
    """Single answers as `input_ids`, `labels`, `prompt_length`, `label` and `place`; see `prepare_rows`.

    Raises:
        UserError: as `prepare_rows`, or training rows of which all are good or none is.
    """
    encoder = UnpairedEncoder(tokenizer, args.max_length)
    train, validation, ledgers = prepare_rows(data, args, lambda name: encoder, form="unpaired", evaluates=evaluates)
    good = sum(train["label"])
    say(f"{good:,} good answers and {len(train) - good:,} bad ones")
    if note := weigh_labels(good, len(train) - good, args):
        say(note)
    return train, validation, ledgers


def weigh_labels(good: int, bad: int, args: KTOArguments) -> str | None:
    """What would make as many good and bad answers weigh the same; None where they do.

    Raises:
        UserError: there is none of one kind.
    """
    if not good or not bad:
        which = "bad" if good else "good"
        raise UserError(
            f"none of the {good + bad:,} answers is a {which} one; see --label_column and --label_threshold"
        )
    balance = args.desirable_weight * good / max(args.undesirable_weight * bad, 1e-9)
    if 1 <= balance <= 4 / 3:  # arXiv 2402.01306, equation 8
        return None
    fair = f"--undesirable_weight {args.desirable_weight * good / bad:.2g}"
    if good < bad:
        fair = f"--desirable_weight {args.undesirable_weight * bad / good:.2g}"
    return f"note: the good ones weigh {balance:.2g} times as much as the bad ones; {fair} makes them equal"


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


def pair_figures(train: Dataset, args: DPOArguments) -> Figures:
    """The figures of tokenized pairs."""
    lengths = side_lengths(train)
    learned = sum(int(row_lengths(train, f"{side}_labels")[1].sum()) for side in SIDES)
    size = min(args.per_device_train_batch_size, len(train))
    largest = train.select(np.argsort(lengths.max(0), kind="stable")[-size:])
    longest = int(lengths.max())
    positions = sum(int(row_lengths(largest, f"{side}_labels")[1].sum()) for side in SIDES)
    batch = Batch(2 * size, longest, positions, fused_head=not args.use_cpu)
    flags = {"what": "pairs", "lengthen": "--max_length"}
    digest = rows_digest(train, *(f"{side}_{name}" for side in SIDES for name in ("ids", "labels")))
    return Figures(len(train), int(lengths.sum()), learned, longest, batch, digest, **flags)


def rated_figures(train: Dataset, args: KTOArguments) -> Figures:
    """The figures of tokenized single answers."""
    lengths, learned = row_lengths(train)
    size = min(args.per_device_train_batch_size, len(train))
    longest = int(lengths.max())
    positions = int(learned[np.argsort(lengths, kind="stable")[-size:]].sum())
    batch = Batch(size, longest, positions, fused_head=not args.use_cpu)
    digest = rows_digest(train, "input_ids", "labels", "prompt_length", "label")
    return Figures(len(train), int(lengths.sum()), int(learned.sum()), longest, batch, digest, lengthen="--max_length")


def _pair_rows(rows: Dataset) -> Dataset:
    return rows.remove_columns(["fate", "place"]).add_column("row", list(range(len(rows))))


def _rated_rows(rows: Dataset, order: np.ndarray, mixes: bool, length: str) -> Dataset:
    """As `_pair_rows`, in this order, and where it `mixes`, each with the row before it, whose answer its prompt gets.

    So the answers of a batch are, but for one, those that its prompts get, whatever the number of processes.
    """
    found = [rows.select(order).select_columns(["input_ids", "labels", "prompt_length", "label"])]
    if mixes:
        before = rows.select(np.roll(order, 1)).select_columns(["input_ids", "labels", "prompt_length"])
        found.append(before.rename_columns({name: MIXED + name for name in before.column_names}))
    numbered = concatenate_datasets(found, axis=1).add_column("row", order.tolist())
    return numbered.add_column(length, row_lengths(numbered)[0].tolist())


def build_pair_trainer(
    model: PreTrainedModel,
    args: DPOArguments,
    train: Dataset,
    validation: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    methods: Mapping[str, Method] | None = None,
    *,
    reference: PreTrainedModel | None = None,
    goes_on: bool = False,
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
        goes_on=goes_on,
    )
    trainer.data_rows = train
    add_callbacks(trainer, methods)
    return trainer


def build_rated_trainer(
    model: PreTrainedModel,
    args: KTOArguments,
    train: Dataset,
    validation: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    methods: Mapping[str, Method] | None = None,
    *,
    reference: PreTrainedModel | None = None,
    goes_on: bool = False,
) -> RatedTrainer:
    """KTO's trainer, as `build_pair_trainer`; the training rows are shuffled once."""
    collator = RatedCollator(tokenizer.pad_token_id, args.pad_to_multiple_of, args.max_length)
    args.max_length = None
    how = {"mixes": args.loss_type != "apo_zero_unpaired", "length": args.length_column_name}
    seed = args.seed if args.data_seed is None else args.data_seed
    order = np.random.default_rng(seed).permutation(len(train))
    held_out = None if validation is None else _rated_rows(validation, np.arange(len(validation)), **how)
    trainer = RatedTrainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=_rated_rows(train, order, **how),
        eval_dataset=held_out if held_out is not None else {} if methods else None,
        processing_class=tokenizer,
        data_collator=collator,
        goes_on=goes_on,
    )
    trainer.data_rows = train
    add_callbacks(trainer, methods)
    return trainer


def _stage(name: str, arguments: type, prepare: Callable, figures: Callable, build: Callable, **more: Any) -> Stage:
    """A `Stage` that learns against a reference, from functions that take what they need of a `Context`."""

    def read(context: Context) -> Data:
        evaluates = context.evaluates_files
        return Data(*prepare(context.data_args, context.args, context.tokenizer, evaluates=evaluates))

    def evaluations(context: Context, data: Data) -> dict[str, Method]:
        settings = context.evaluation, context.args, context.data_args, context.config, context.tokenizer
        return other_evaluations(*settings)

    def trainer(context: Context, data: Data, model: PreTrainedModel, methods: Mapping[str, Method], reference=None):
        rows = data.train, data.validation
        held = {"reference": reference, "goes_on": context.continues_adapter}
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


DPO = _stage(
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
KTO = _stage(
    "kto",
    KTOArguments,
    prepare_rated,
    rated_figures,
    build_rated_trainer,
    forms=("unpaired",),
    data=UnpairedArguments,
    encoder=lambda tokenizer, args, name: UnpairedEncoder(tokenizer, args.max_length),
    card=CardWords("kto", ("rated answers", "条带评价的回答")),
    legend="In colour: the answer, which is made likelier where it is good, and less likely where it is bad.",
)
