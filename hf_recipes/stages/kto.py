"""KTO: TRL's trainer over single answers that are good or bad, with the KL estimated over an update."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import KTOConfig, KTOTrainer

from hf_recipes.core.arguments.limits import PositiveInt, at
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.data.arguments import UnpairedArguments
from hf_recipes.data.chat.preference import UnpairedEncoder
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.dry_run.data_stats import DataStats, row_lengths, rows_digest
from hf_recipes.dry_run.simulate import Batch
from hf_recipes.evaluation.method import Method
from hf_recipes.models.templates.options import TemplateArguments
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.inherited import WITH_REFERENCE
from hf_recipes.stages.base import Context, Data, Stage, read_examples
from hf_recipes.stages.dpo import PRECOMPUTES, REFERENCE_METRICS, check_loss_types, reference_evaluations
from hf_recipes.trainer.losses.collators import KL_PREFIX, PADDING_ROW, UnpairedCollator
from hf_recipes.trainer.losses.reference_log_probs import ReferenceLogProbs, mean_of

UNPAIRED_LOSSES = ("kto", "apo_zero_unpaired")


@dataclass
class KTOArguments(TemplateArguments, RunArguments, KTOConfig):
    """TRL's `KTOConfig`, with what it would refuse after loading named before."""

    adapter_learning_rate: ClassVar = 1e-5
    unusable: ClassVar = WITH_REFERENCE
    needs: ClassVar = PRECOMPUTES
    limits: ClassVar = {
        "precompute_ref_batch_size": at(ge=1),
        "beta": at(gt=0),
        "desirable_weight": at(ge=0),
        "undesirable_weight": at(ge=0),
    }

    learning_rate: float = setting("The highest learning rate; with an adapter 1e-5 by default.", 1e-6)
    max_length: PositiveInt | None = setting("Tokens of a row; longer ones are left out, which is counted.", 1024)

    def __post_init__(self):
        check_loss_types(self, UNPAIRED_LOSSES)
        if self.loss_type != "apo_zero_unpaired":
            if self.per_device_train_batch_size == 1:
                raise ValueError(
                    f"--per_device_train_batch_size 1: the loss {self.loss_type} estimates the KL divergence over the "
                    "batch; take at least 2, or --loss_type apo_zero_unpaired, which needs none"
                )
            if self.train_sampling_strategy != "sequential":
                raise ValueError(
                    f"--train_sampling_strategy {self.train_sampling_strategy}: --loss_type {self.loss_type} needs "
                    "sequential; the rows are shuffled once, by --seed"
                )
        super().__post_init__()


class UnpairedTrainer(ReferenceLogProbs, KTOTrainer):
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
    _divergence = torch.zeros(())  # of the update, in nats

    def compute_ref_log_probs(self, model, inputs):
        mismatched = self.reference_log_probs(inputs, KL_PREFIX, model) if self.calculate_KL else None
        return self.reference_log_probs(inputs, model=model), mismatched

    def look_ahead(self, batches):
        if not self.calculate_KL:
            return
        sums = []
        for inputs in map(self._prepare_inputs, batches):
            values = self._mismatched(inputs)[inputs["row"] != PADDING_ROW]
            sums.append(torch.stack([values.sum(), values.new_tensor(len(values))]))
        total, count = self.accelerator.reduce(sum(sums), "sum")
        self._divergence = (total / count.clamp(min=1)).clamp(min=0)

    @torch.no_grad()
    def _mismatched(self, inputs) -> torch.Tensor:
        """Log-probability of another row's answer less that of the reference, (B,)."""
        known = inputs.get(f"ref_{KL_PREFIX}logps")
        reference = self.reference_log_probs(inputs, KL_PREFIX) if known is None else known
        return self.log_probs(self.model, inputs, KL_PREFIX) - reference

    def _reference(self, inputs) -> torch.Tensor:
        return inputs["ref_logps"] if "ref_logps" in inputs else self.reference_log_probs(inputs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch, rows = self.real_rows(inputs)
        reference = self._reference(batch)
        routers = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = self.score_tokens(model, batch, **routers)
        log_probs = outputs.log_probs.sum(1)[: len(rows)]
        ahead, good = log_probs - reference[: len(rows)], batch["label"][: len(rows)]
        losses = unpaired_losses(ahead, good, self._divergence, self.args)
        self.add_row_losses(rows, losses)
        self.add_to_log(**values_by_side(ahead, log_probs, good, self.args.beta))
        if self.calculate_KL:
            self.add_to_log(kl=self._divergence.expand(len(rows)))
        if self.aux_loss_enabled:
            losses = losses + self.router_aux_loss_coef * outputs.aux_loss
        return self.mean_over_update(losses, num_items_in_batch)

    def logged_means(self):
        return _with_margin(super().logged_means())

    def evaluate_rows(self, inputs):
        """Of each answer: its log-probability and that of a mismatched one, under the policy and the reference."""
        figures = {"ref_logps": self._reference(inputs), "logps": self.log_probs(self.model, inputs)}
        if self.calculate_KL:
            figures["mismatched"] = self._mismatched(inputs)
        columns = {"label": inputs["label"].tolist()} | {name: value.tolist() for name, value in figures.items()}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def summarise(self, records):
        columns = ([record[name] for record in records] for name in ("logps", "ref_logps"))
        log_probs, reference = (torch.tensor(values, dtype=torch.float64) for values in columns)
        ahead, good = log_probs - reference, torch.tensor([record["label"] for record in records])
        metrics = {"kl": max(0.0, mean_of(records, "mismatched"))} if self.calculate_KL else {}
        metrics["loss"] = unpaired_losses(ahead, good, metrics.get("kl", 0.0), self.args).mean().item()
        by_side = values_by_side(ahead, log_probs, good, self.args.beta)
        return _with_margin(metrics | {name: values.mean().item() for name, values in by_side.items() if len(values)})


def unpaired_losses(
    ahead: torch.Tensor, good: torch.Tensor, divergence: torch.Tensor | float, args: KTOArguments
) -> torch.Tensor:
    """The loss of each answer, (N,): KTO's (arXiv 2402.01306, equation 7), or without a divergence APO-zero's.

    Args:
        ahead: log-probability under the policy less that under the reference, in nats, (N,).
        good: bool (N,).
        divergence: KL divergence of the policy from the reference, in nats.
    """
    sign = torch.where(good, 1.0, -1.0)
    weight = torch.where(good, args.desirable_weight, args.undesirable_weight)
    return weight * torch.sigmoid(-args.beta * sign * (ahead - divergence))


def values_by_side(
    ahead: torch.Tensor, log_probs: torch.Tensor, good: torch.Tensor, beta: float
) -> dict[str, torch.Tensor]:
    """What TRL logs the means of, of the good answers and of the bad ones."""
    sides = dict(zip(SIDES, (good, ~good), strict=True))
    rewards = {f"rewards/{side}": beta * ahead[chosen] for side, chosen in sides.items()}
    return rewards | {f"logps/{side}": log_probs[chosen] for side, chosen in sides.items()}


def _with_margin(metrics: dict[str, float]) -> dict[str, float]:
    good, bad = (metrics.get(f"rewards/{side}") for side in SIDES)
    return metrics if good is None or bad is None else metrics | {"rewards/margins": good - bad}


def unpaired_encoder(tokenizer: PreTrainedTokenizerBase, args: KTOArguments, name: str) -> UnpairedEncoder:
    return UnpairedEncoder(tokenizer, args.max_length)


def read(context: Context) -> Data:
    """Single answers as `input_ids`, `labels`, `prompt_length`, `label` and `location`; some good and some bad."""
    data = read_examples(context)
    good = sum(data.train["label"])
    say(f"{good:,} good answers and {len(data.train) - good:,} bad ones")
    if note := weigh_labels(good, len(data.train) - good, context.args):
        say(note)
    return data


def weigh_labels(good: int, bad: int, args: KTOArguments) -> str | None:
    """What would make as many good and bad answers weigh the same; None where they do."""
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


def evaluations(context: Context, data: Data) -> dict[str, Method]:
    metrics = {**REFERENCE_METRICS, "kl": False}
    return reference_evaluations(context, data.validation, lambda rows: row_lengths(rows)[0][None], metrics)


def unpaired_stats(context: Context, data: Data) -> DataStats:
    """The sizes of tokenized single answers."""
    args, train = context.args, data.train
    lengths, labelled = row_lengths(train)
    size = min(args.per_device_train_batch_size, len(train))
    longest = int(lengths.max())
    positions = int(labelled[np.argsort(lengths, kind="stable")[-size:]].sum())
    batch = Batch(size, longest, positions, fused_head=not args.use_cpu)
    digest = rows_digest(train, "input_ids", "labels", "prompt_length", "label")
    tokens = int(lengths.sum()), int(labelled.sum())
    return DataStats(len(train), *tokens, longest, batch, digest, lengthen="--max_length")


def unpaired_rows(rows: Dataset, order: np.ndarray, mixes: bool, length_column: str) -> Dataset:
    """The rows in this order, and where it `mixes`, each with the row before it, whose answer its prompt gets.

    So the answers of a batch are, but for one, those that its prompts get, whatever the number of processes.
    """
    tables = [rows.select(order).select_columns(["input_ids", "labels", "prompt_length", "label"])]
    if mixes:
        before = rows.select(np.roll(order, 1)).select_columns(["input_ids", "labels", "prompt_length"])
        tables.append(before.rename_columns({name: KL_PREFIX + name for name in before.column_names}))
    numbered = concatenate_datasets(tables, axis=1).add_column("row", order.tolist())
    return numbered.add_column(length_column, row_lengths(numbered)[0].tolist())


def build_trainer(
    context: Context,
    data: Data,
    model: PreTrainedModel,
    methods: Mapping[str, Method],
    reference: PreTrainedModel | None = None,
) -> UnpairedTrainer:
    """KTO's trainer; the training rows are shuffled once."""
    args, validation = context.args, data.validation
    collator = UnpairedCollator(context.tokenizer.pad_token_id, args.pad_to_multiple_of, args.max_length)
    args.max_length = None  # every row is within the budget already
    kwargs = {"mixes": args.loss_type != "apo_zero_unpaired", "length_column": args.length_column_name}
    seed = args.seed if args.data_seed is None else args.data_seed
    order = np.random.default_rng(seed).permutation(len(data.train))
    if validation:
        validation = unpaired_rows(validation, np.arange(len(validation)), **kwargs)
    trainer = UnpairedTrainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=unpaired_rows(data.train, order, **kwargs),
        eval_dataset=validation or ({} if methods else None),
        processing_class=context.tokenizer,
        data_collator=collator,
        continues_adapter=context.continues_adapter,
    )
    trainer.data_rows = data.train
    trainer.set_sources(data.train)
    if validation:
        methods[""].trainer = trainer
    return trainer


STAGE = Stage(
    "kto",
    KTOArguments,
    forms=("unpaired",),
    data=UnpairedArguments,
    encoder=unpaired_encoder,
    read=read,
    data_stats=unpaired_stats,
    evaluations=evaluations,
    trainer=build_trainer,
    card=CardWords("kto", ("rated answers", "条带评价的回答")),
    legend="In colour: the answer, which is made likelier where it is good, and less likely where it is bad.",
)
