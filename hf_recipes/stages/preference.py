"""DPO and KTO: TRL's trainers over our pairs and rows, losses, references and checkpoints."""

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOTrainer, KTOTrainer

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.arguments import DataArguments
from hf_recipes.data.chat.preference import PairEncoder
from hf_recipes.data.chat.unpaired import UnpairedEncoder
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.dry_run.memory import Batch
from hf_recipes.dry_run.plan import Figures, row_lengths, rows_digest
from hf_recipes.evaluation.method import Method
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.run.arguments import SORTING_LOSSES, DPOArguments, KTOArguments
from hf_recipes.run.data import prepare_rows
from hf_recipes.run.evaluate_callback import add_callbacks, build_evaluations
from hf_recipes.trainer.preference_losses import Pairs, Rated, pair_losses, rated_losses
from hf_recipes.trainer.reference_log_probs import Referred
from hf_recipes.trainer.row_mean_loss import FILLER, MIXED, PairCollator, RatedCollator, side_lengths


class PairTrainer(Referred, DPOTrainer):
    """TRL's `DPOTrainer` on pairs that are already ids and labels of both sides.

    The loss of an update is the mean over all its pairs, and so are the rewards that are logged with it; those of an
    evaluation are over all its pairs. Losses that compare pairs with each other (see `pair_losses`) do so over the
    update; where those sort and it has several batches, this takes a second forward pass.
    """

    rows = Pairs
    _update: tuple[Pairs, torch.Tensor] | None = None  # all its pairs and their `row`, where a loss compares them
    columns = tuple(f"{side}_{name}" for side in SIDES for name in ("ids", "labels"))
    columns += ("ref_chosen_logps", "ref_rejected_logps")

    def summed(self, log_probs, learned):
        if self.args.ld_alpha is None:
            return log_probs.sum(1)
        places = learned.cumsum(1)  # LD-DPO (arXiv 2409.06411): less of what the longer side has beyond the shorter
        shared = places[:, -1].view(2, -1).min(0).values.repeat(2)
        return torch.where(places <= shared[:, None], log_probs, self.args.ld_alpha * log_probs).sum(1)

    def compute_ref_log_probs(self, model, inputs):
        return self.reference_log_probs(inputs, model=model).chunk(2)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        compares = {"sft", *SORTING_LOSSES} & set(self.args.loss_type)
        several = len(batches) * self.args.world_size > 1
        self._update = self._pairs_of_update(batches) if compares and several else None
        return batches, count

    @torch.no_grad()
    def _pairs_of_update(self, batches) -> tuple[Pairs, torch.Tensor]:
        """The pairs of `batches` of all processes; without losses that sort, nothing but their tokens is filled in."""
        self.model.eval()  # training_step sets it back
        numbers, values = [], []
        for inputs in map(self._prepare_inputs, batches):
            if set(SORTING_LOSSES) & set(self.args.loss_type):
                with self.compute_loss_context_manager():
                    pairs = self._pairs(self.model, inputs)[0].stacked()
            else:
                tokens = inputs["completion_mask"][:, 1:].sum(1).float().view(2, -1)
                pairs = torch.zeros(tokens.shape[1], len(fields(Pairs)), device=tokens.device)
                pairs[:, 4:6] = tokens.T
            numbers.append(inputs["row"])
            values.append(pairs)
        numbers, values = (self.accelerator.gather(torch.cat(parts)) for parts in (numbers, values))
        return Pairs.unstacked(values[numbers != FILLER]), numbers[numbers != FILLER]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pairs, outputs = self._pairs(model, inputs)
        return self.finish_loss(pairs, inputs, outputs, num_items_in_batch)

    def _pairs(self, model, inputs):
        """The pairs of a batch, and what TRL's head told of them."""
        if self.precompute_ref_logps:
            reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference = self.reference_log_probs(inputs).chunk(2)
        policy, outputs = self.policy_log_probs(model, inputs)
        tokens = inputs["completion_mask"][:, 1:].sum(1)
        weight = torch.ones_like(policy)
        if self.args.use_weighting:  # WPO (arXiv 2406.11827), equation 2
            learned = inputs["completion_mask"][:, 1:]
            aligned = ((outputs.log_probs - outputs.log_sum_sq_probs) * learned).sum(1).detach()
            weight = (aligned / tokens.clamp(min=1)).exp()
        return Pairs(*policy.chunk(2), *reference, *tokens.chunk(2), weight.view(2, -1).prod(0)), outputs

    def losses(self, rows, numbers=None):
        if numbers is None or self._update is None or not self.model.training:
            return pair_losses(rows, self.args)
        update, all_numbers = self._update
        return pair_losses(rows, self.args, update, (all_numbers == numbers[:, None]).int().argmax(1))


class RatedTrainer(Referred, KTOTrainer):
    """TRL's `KTOTrainer` on single answers that are already ids and labels.

    The loss of an update is the mean over all its rows. Its KL divergence, from which the loss takes what an answer is
    worth, is estimated over all rows of the update too, and that of an evaluation over all its rows; TRL's is of each
    batch by itself.
    """

    rows = Rated
    columns = ("input_ids", "labels", "prompt_length", f"{MIXED}input_ids", f"{MIXED}labels", f"{MIXED}prompt_length")
    columns += ("label", "ref_logps", f"ref_{MIXED}logps")
    _divergence: torch.Tensor | float = 0.0  # of the update

    def compute_ref_log_probs(self, model, inputs):
        mixed = self.reference_log_probs(inputs, MIXED, model) if self.calculate_KL else None
        return self.reference_log_probs(inputs, model=model), mixed

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.calculate_KL and batches:
            self.model.eval()  # training_step sets it back
            with self.compute_loss_context_manager():
                found = [self._mismatched(batch)[batch["row"] != FILLER].sum() for batch in batches]
            total = self.accelerator.reduce(torch.stack(found).sum(), "sum")
            self._divergence = (total / count).clamp(min=0)
        return batches, count

    def _mismatched(self, inputs) -> torch.Tensor:
        """Log-probability of another row's answer less that of the reference, (B,)."""
        inputs = self._prepare_inputs(inputs)
        known = inputs.get(f"ref_{MIXED}logps")
        reference = self.reference_log_probs(inputs, MIXED) if known is None else known
        with torch.no_grad():
            return self.log_probs(self.model, inputs, MIXED)[0] - reference

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        reference = inputs["ref_logps"] if self.precompute_ref_logps else self.reference_log_probs(inputs)
        evaluated = self.calculate_KL and not self.model.training
        mismatched = self._mismatched(inputs) if evaluated else torch.zeros_like(reference)
        policy, outputs = self.policy_log_probs(model, inputs)
        rated = Rated(policy, reference, inputs["label"], mismatched)
        return self.finish_loss(rated, inputs, outputs, num_items_in_batch)

    def losses(self, rows, numbers=None):
        return rated_losses(rows, self._divergence if self.model.training else rows.divergence(), self.args)

    def also_noted(self, rows):
        return {"kl": self._divergence.expand(len(rows))} if self.calculate_KL else {}

    def noted(self):
        return _with_margin(super().noted())

    def summarise(self, rows):
        kl = {"kl": rows.divergence().item()} if self.calculate_KL else {}
        return _with_margin(super().summarise(rows)) | kl


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
