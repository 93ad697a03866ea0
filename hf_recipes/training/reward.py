"""Reward modelling: TRL's `RewardTrainer` over our pairs, losses and checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardTrainer

from hf_recipes.arguments import DataArguments, RewardArguments
from hf_recipes.data.ledger import Ledger
from hf_recipes.data.pairs import PairEncoder
from hf_recipes.data.schemas import SIDES
from hf_recipes.errors import UserError
from hf_recipes.evaluation.methods import Method
from hf_recipes.evaluation.preference import PairAccuracy
from hf_recipes.evaluation.suite import EvaluationArguments
from hf_recipes.training.estimate import Batch
from hf_recipes.training.evaluation import add_callbacks, build_evaluations
from hf_recipes.training.plan import Figures
from hf_recipes.training.rows import prepare_rows
from hf_recipes.training.trainer import RunMixin

FILLER = -1  # the `row` of a pair that is in no loss


class PairCollator:
    """Pads pairs on the right.

    Returns:
        `input_ids`, `attention_mask` int64 (2B, T), the chosen sides first; `row` int64 (B,).
    """

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int | None = None):
        self.pad_token_id, self.multiple = pad_token_id, pad_to_multiple_of or 1

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [example[f"{side}_ids"] for side in SIDES for example in examples]
        length = -(-max(map(len, rows)) // self.multiple) * self.multiple
        ids = torch.full((len(rows), length), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask, "row": torch.tensor([example["row"] for example in examples])}


class Trainer(RunMixin, RewardTrainer):
    """TRL's trainer on pairs that are already `chosen_ids` and `rejected_ids`, with the number of their `row`.

    The loss of an update is the mean of -log sigmoid(chosen - rejected) over all its pairs, however they are spread
    over batches and processes, and with `center_rewards_coefficient` c, of c (chosen + rejected)² beside it. Logged
    with it, over the pairs since the last log: `accuracy`, `difference_mean` and `score_mean`.
    """

    loss_is_scaled_for_ga = True  # by the number of the update's pairs, in compute_loss

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._recent = torch.zeros(4, device=self.args.device)  # pairs, right ones, differences, scores

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["chosen_ids", "rejected_ids", "row"]

    def filler_row(self, row):
        return {**row, "chosen_ids": row["chosen_ids"][:2], "rejected_ids": row["rejected_ids"][:2], "row": FILLER}

    def tokens_in(self, inputs):
        real = (inputs["row"] != FILLER).repeat(2)
        return int(inputs["attention_mask"][real].sum())

    def places_in(self, batches):
        rows = {row for inputs in batches for row in inputs["row"].tolist()} - {FILLER}
        return [self.data_rows[row]["place"] for row in sorted(rows)] if self.data_rows is not None else []

    def _get_num_items_in_batch(self, batch_samples, device):
        pairs = sum((batch["row"] != FILLER).sum() for batch in batch_samples).to(device)
        return self.accelerator.gather(pairs).sum() if self.args.world_size > 1 else pairs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        real = inputs["row"] != FILLER
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        chosen, rejected = outputs.logits[:, 0].float().chunk(2)
        losses = -F.logsigmoid(chosen - rejected)
        if self.args.center_rewards_coefficient:
            losses = losses + self.args.center_rewards_coefficient * (chosen + rejected) ** 2
        with torch.no_grad():
            ahead = chosen - rejected
            wins = (ahead > 0).float() + 0.5 * (ahead == 0)
            found = torch.stack([torch.ones_like(ahead), wins, ahead, (chosen + rejected) / 2])[:, real].sum(1)
            self._recent += found.nan_to_num(0, 0, 0)
        loss = torch.where(real, losses, 0.0).sum()
        loss = loss / (real.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        # num_items_in_batch counts every process's pairs, and DDP averages the gradients.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            pairs, wins, difference, score = self.accelerator.reduce(self._recent, "sum").tolist()
            self._recent.zero_()
            if pairs:
                logs["accuracy"] = wins / pairs
                logs |= {"difference_mean": difference / pairs, "score_mean": score / pairs}
        super().log(logs, start_time)


def prepare_data(
    data: DataArguments, args: RewardArguments, tokenizer: PreTrainedTokenizerBase, evaluates: bool = False
) -> tuple[Dataset, Dataset | None, dict[str, Ledger]]:
    """Pairs as `chosen_ids`, `rejected_ids` and `place`; see `prepare_rows`."""
    encoder = PairEncoder(tokenizer, args.max_length)
    return prepare_rows(data, args, lambda name: encoder, form="preference", evaluates=evaluates)


def pair_evaluations(
    evaluation: EvaluationArguments,
    args: RewardArguments,
    data: DataArguments,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset | None,
) -> dict[str, Method]:
    """The pairs that are scored at each evaluation, by name: that of the validation rows is empty.

    Raises:
        UserError: as `build_evaluations`, or a file that has no pairs.
    """
    for name in evaluation.eval_methods or ():
        if name != PairAccuracy.name:
            raise UserError(f"--eval_methods {name} is of a model that writes; a reward model has {PairAccuracy.name}")
    methods = {} if validation is None else {"": PairAccuracy.of_rows(validation)}
    if evaluation.eval_files:
        methods |= build_evaluations(evaluation, args, data, config, tokenizer, None, [])
    for name, method in methods.items():
        if method.name != PairAccuracy.name:
            raise UserError(f"--eval_files {name}: {method.name} is of a model that writes, not of one that scores")
    if args.save_scores:
        if "train" in methods:
            raise UserError("--save_scores: train is the name of its pairs; give the one in --eval_files another")
        methods["train"] = PairAccuracy.of_rows(train)
    return methods


def pair_lengths(rows: Dataset) -> np.ndarray:
    """Tokens of each side, (2, N): the chosen ones first."""
    table = rows.select_columns([f"{side}_ids" for side in SIDES]).with_format("arrow")[:]
    return np.stack([pc.list_value_length(column).to_numpy() for column in table.columns])


def pair_figures(train: Dataset, args: RewardArguments) -> Figures:
    """The figures of tokenized pairs."""
    lengths = pair_lengths(train)
    size = min(args.per_device_train_batch_size, len(train))
    longest = int(lengths.max())
    batch = Batch(2 * size, longest, positions=1, scores=True)
    flags = {"what": "pairs", "lengthen": "--max_length"}
    return Figures(len(train), int(lengths.sum()), None, longest, batch, **flags)


def build_trainer(
    model: PreTrainedModel,
    args: RewardArguments,
    train: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    methods: Mapping[str, Method] | None = None,
) -> Trainer:
    """The trainer with its callbacks; `methods` are used at each evaluation."""
    args.max_length = None  # every pair is within the budget already
    rows = train.select_columns([f"{side}_ids" for side in SIDES]).add_column("row", list(range(len(train))))
    rows = rows.add_column(args.length_column_name, pair_lengths(train).max(0).tolist())  # for group_by_length
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset={} if methods else None,
        processing_class=tokenizer,
        data_collator=PairCollator(tokenizer.pad_token_id, args.pad_to_multiple_of),
    )
    trainer.data_rows = train
    add_callbacks(trainer, methods)
    return trainer
