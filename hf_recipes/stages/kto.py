"""KTO: TRL's trainer over our rated answers, with the KL estimated over an update."""

from collections.abc import Mapping

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import KTOTrainer

from hf_recipes.core.errors import UserError, say
from hf_recipes.data.arguments import DataArguments, UnpairedArguments
from hf_recipes.data.chat.preference import UnpairedEncoder
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.dry_run.data_stats import DataStats, row_lengths, rows_digest
from hf_recipes.dry_run.simulate import Batch
from hf_recipes.evaluation.method import Method
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import KTOArguments
from hf_recipes.run.data import prepare_rows
from hf_recipes.run.evaluate_callback import add_callbacks
from hf_recipes.stages.dpo import Prepared, stage_with_reference
from hf_recipes.trainer.reference_log_probs import ReferenceLogProbs
from hf_recipes.trainer.row_mean_loss import KL_PREFIX, PADDING_ROW, UnpairedCollator

ROW_METRICS = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")


class RatedTrainer(ReferenceLogProbs, KTOTrainer):
    """TRL's `KTOTrainer` on single answers that are already ids and labels.

    The loss of an update is the mean over all its rows. Its KL divergence, from which the loss takes what an answer is
    worth, is estimated over all rows of the update too, and that of an evaluation over all its rows; TRL's is of each
    batch by itself.
    """

    columns = (
        "input_ids",
        "labels",
        "prompt_length",
        f"{KL_PREFIX}input_ids",
        f"{KL_PREFIX}labels",
        f"{KL_PREFIX}prompt_length",
    )
    columns += ("label", "ref_logps", f"ref_{KL_PREFIX}logps")
    _divergence: torch.Tensor | None = None  # of the update, or of the evaluation

    def compute_ref_log_probs(self, model, inputs):
        mixed = self.reference_log_probs(inputs, KL_PREFIX, model) if self.calculate_KL else None
        return self.reference_log_probs(inputs, model=model), mixed

    def look_ahead(self, batches):
        if not self.calculate_KL:
            return
        parts = []
        for inputs in map(self._prepare_inputs, batches):
            values = self._mismatched(inputs)[inputs["row"] != PADDING_ROW]
            parts.append(torch.stack([values.sum(), values.new_tensor(len(values))]))
        total, count = self.accelerator.reduce(sum(parts), "sum")
        self._divergence = (total / count.clamp(min=1)).clamp(min=0)

    @torch.no_grad()
    def _mismatched(self, inputs) -> torch.Tensor:
        """Log-probability of another row's answer less that of the reference, (B,)."""
        known = inputs.get(f"ref_{KL_PREFIX}logps")
        reference = self.reference_log_probs(inputs, KL_PREFIX) if known is None else known
        return self.log_probs(self.model, inputs, KL_PREFIX) - reference

    def _compute_kl_logps(self, model, batch):
        return self._divergence  # of which TRL takes the reference's mean, that is 0 in `compute_loss`

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch, rows = self.real_rows(inputs)
        if "ref_logps" not in batch:
            batch["ref_logps"] = self.reference_log_probs(batch)
        batch[f"ref_{KL_PREFIX}logps"] = torch.zeros_like(batch["ref_logps"])
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


def rated_figures(train: Dataset, args: KTOArguments) -> DataStats:
    """The figures of tokenized single answers."""
    lengths, labelled = row_lengths(train)
    size = min(args.per_device_train_batch_size, len(train))
    longest = int(lengths.max())
    positions = int(labelled[np.argsort(lengths, kind="stable")[-size:]].sum())
    batch = Batch(size, longest, positions, fused_head=not args.use_cpu)
    digest = rows_digest(train, "input_ids", "labels", "prompt_length", "label")
    return DataStats(
        len(train), int(lengths.sum()), int(labelled.sum()), longest, batch, digest, lengthen="--max_length"
    )


def _rated_rows(rows: Dataset, order: np.ndarray, mixes: bool, length: str) -> Dataset:
    """As `_pair_rows`, in this order, and where it `mixes`, each with the row before it, whose answer its prompt gets.

    So the answers of a batch are, but for one, those that its prompts get, whatever the number of processes.
    """
    found = [rows.select(order).select_columns(["input_ids", "labels", "prompt_length", "label"])]
    if mixes:
        before = rows.select(np.roll(order, 1)).select_columns(["input_ids", "labels", "prompt_length"])
        found.append(before.rename_columns({name: KL_PREFIX + name for name in before.column_names}))
    numbered = concatenate_datasets(found, axis=1).add_column("row", order.tolist())
    return numbered.add_column(length, row_lengths(numbered)[0].tolist())


def build_rated_trainer(
    model: PreTrainedModel,
    args: KTOArguments,
    train: Dataset,
    validation: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    methods: Mapping[str, Method] | None = None,
    *,
    reference: PreTrainedModel | None = None,
    continues_adapter: bool = False,
) -> RatedTrainer:
    """KTO's trainer, as `build_pair_trainer`; the training rows are shuffled once."""
    collator = UnpairedCollator(tokenizer.pad_token_id, args.pad_to_multiple_of, args.max_length)
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
        continues_adapter=continues_adapter,
    )
    trainer.data_rows = train
    add_callbacks(trainer, methods)
    return trainer


STAGE = stage_with_reference(
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
