"""Reward modelling: TRL's `RewardTrainer` over our pairs and checkpoints, with means over an update."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from hf_recipes.core.arguments.limits import PositiveFloat, PositiveInt, at
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.preference import PairEncoder
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.dry_run.data_stats import DataStats, rows_digest
from hf_recipes.dry_run.simulate import Batch
from hf_recipes.evaluation.method import Method
from hf_recipes.evaluation.methods.preference_accuracy import PairAccuracy
from hf_recipes.models.reward_head import load_reward_model
from hf_recipes.models.templates.options import TemplateArguments
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.evaluate_callback import build_evaluations
from hf_recipes.run.inherited import INERT, NO_SHIFTED_LABELS, NO_TOKEN_MEAN
from hf_recipes.stages.base import Context, Data, Stage
from hf_recipes.trainer.losses.collators import PADDING_ROW, PairCollator, side_lengths
from hf_recipes.trainer.losses.row_mean_loss import RowMeanLoss


@dataclass
class RewardArguments(TemplateArguments, RunArguments, RewardConfig):
    """TRL's `RewardConfig` with the head's first weights, and scores kept for looking at the data."""

    adapter_learning_rate: ClassVar = 1e-4
    limits: ClassVar = {"center_rewards_coefficient": at(ge=0)}
    unusable: ClassVar = {
        "average_tokens_across_devices": NO_TOKEN_MEAN,
        "eval_temperature": f"{INERT}a reward model writes nothing",
        "label_smoothing_factor": NO_SHIFTED_LABELS,
        **dict.fromkeys(("max_new_tokens", "max_thinking_tokens"), f"{INERT}a reward model writes nothing"),
    }

    learning_rate: float = setting("The highest learning rate; with an adapter 1e-4 by default.", 1e-5)
    max_length: PositiveInt | None = setting(
        "Tokens of a side; pairs with a longer one are left out, which is counted.", 1024
    )
    initializer_range: PositiveFloat = setting("Standard deviation of a new score head's first weights.", 0.01)
    save_scores: bool = setting("Score the training pairs too at each evaluation: predictions/train.", False)

    def __post_init__(self):
        self.check_fields()
        super().__post_init__()


class PairByPair:
    """On a CPU the forward and backward passes of an update's pairs, one after another.

    A pair's loss depends on no other, so the gradients are those of the whole batch, at the memory of one pair: 8 pairs
    of 512 tokens in one pass hold the activations of 16 rows of every layer, 13 GB with 135M weights.
    """

    def training_step(self, model, inputs, num_items_in_batch=None):
        pairs = [inputs] if not goes_pair_by_pair(self.args) else list(split_pairs(inputs))
        losses = []
        for number, pair in enumerate(pairs, 1):
            with self.accelerator.no_sync(model) if number < len(pairs) else contextlib.nullcontext():
                losses.append(super().training_step(model, pair, num_items_in_batch))
        return torch.stack(losses).sum()


def goes_pair_by_pair(args: RewardConfig) -> bool:
    return args.use_cpu and args.deepspeed_plugin is None  # which accelerate's configuration brings too


def split_pairs(inputs: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """The pairs of a `PairCollator`'s batch, each without padding that neither side needs."""
    count = len(inputs["row"])
    for pair in range(count):
        length = int(inputs["attention_mask"][pair::count].sum(1).max())
        sides = {name: inputs[name][pair::count, :length] for name in ("input_ids", "attention_mask")}
        yield {**sides, "row": inputs["row"][pair : pair + 1]}


class Trainer(RowMeanLoss, PairByPair, RewardTrainer):
    """TRL's trainer on pairs that are already `chosen_ids` and `rejected_ids`, with the number of their `row`.

    The loss of an update is the mean of -log sigmoid(chosen - rejected) over all its pairs, however they are spread
    over batches and processes, plus c (chosen + rejected)² where `center_rewards_coefficient` is c. Logged with it,
    over the pairs since the last log: `accuracy`, `difference_mean` and `score_mean`.
    """

    columns = ("chosen_ids", "rejected_ids")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        real = inputs["row"] != PADDING_ROW
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        chosen, rejected = outputs.logits[:, 0].float().chunk(2)
        chosen, rejected = chosen[real], rejected[real]
        losses = -F.logsigmoid(chosen - rejected)
        if self.args.center_rewards_coefficient:
            losses = losses + self.args.center_rewards_coefficient * (chosen + rejected) ** 2
        self.add_row_losses(inputs["row"][real], losses)
        difference = chosen - rejected
        wins = (difference > 0).float() + 0.5 * (difference == 0)
        self.add_to_log(accuracy=wins, difference_mean=difference, score_mean=(chosen + rejected) / 2)
        loss = self.mean_over_update(losses, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def encoder(tokenizer: PreTrainedTokenizerBase, args: RewardArguments, name: str) -> PairEncoder:
    return PairEncoder(tokenizer, args.max_length, keep_labels=True)  # which an inspection shows


def pair_evaluations(context: Context, data: Data) -> dict[str, Method]:
    """The pairs that are scored at each evaluation."""
    evaluation, args = context.evaluation, context.args
    for name in evaluation.eval_methods or ():
        if name != PairAccuracy.name:
            raise UserError(f"--eval_methods {name} is of a model that writes; a reward model has {PairAccuracy.name}")
    if evaluation.specs:
        raise UserError(
            "--rewards and --reward_model score what is written, and a reward model writes nothing; leave them out"
        )
    methods = {} if data.validation is None else {"": PairAccuracy.of_rows(data.validation)}
    if evaluation.eval_files or evaluation.few_shot_file or evaluation.nll_prefix_token:
        methods |= build_evaluations(evaluation, args, context.data_args, context.config, context.tokenizer, None, [])
    for name, method in methods.items():
        if method.name != PairAccuracy.name:
            raise UserError(f"--eval_files {name}: {method.name} is of a model that writes, not of one that scores")
    if args.save_scores:
        if "train" in methods:
            raise UserError("--save_scores: train is the name of its pairs; give the one in --eval_files another")
        methods["train"] = PairAccuracy.of_rows(data.train)
    return methods


def pair_stats(context: Context, data: Data) -> DataStats:
    """The sizes of tokenized pairs."""
    train = data.train
    lengths = side_lengths(train)
    size = min(context.args.per_device_train_batch_size, len(train))
    longest = int(lengths.max())
    pairs = 1 if goes_pair_by_pair(context.args) else size
    batch = Batch(2 * pairs, longest, positions=1, scores=True, accumulates=pairs < size)
    flags = {"what": "pairs", "lengthen": "--max_length"}
    digest = rows_digest(train, *(f"{side}_ids" for side in SIDES))
    return DataStats(len(train), int(lengths.sum()), None, longest, batch, digest, **flags)


def build_trainer(context: Context, data: Data, model: PreTrainedModel, methods: Mapping[str, Method]) -> Trainer:
    args, train, pad = context.args, data.train, context.tokenizer.pad_token_id
    args.max_length = None  # every pair is within the budget already
    rows = train.select_columns([f"{side}_ids" for side in SIDES]).add_column("row", list(range(len(train))))
    rows = rows.add_column(args.length_column_name, side_lengths(train).max(0).tolist())  # for group_by_length
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset={} if methods else None,
        processing_class=context.tokenizer,
        data_collator=PairCollator(pad, args.pad_to_multiple_of),
    )
    trainer.data_rows = train
    trainer.set_sources(train)
    return trainer


STAGE = Stage(
    "reward",
    RewardArguments,
    forms=("preference",),
    tokenizer={"or_plain": True},
    encoder=encoder,
    data_stats=pair_stats,
    evaluations=pair_evaluations,
    load_model=lambda context: partial(
        load_reward_model,
        config=context.config,
        tokenizer=context.tokenizer,
        initializer_range=context.args.initializer_range,
    ),
    task_type="SEQ_CLS",
    trainer=build_trainer,
    card=CardWords("reward-model", ("pairs", "对数据"), "scores"),
    legend="In colour: the answers that are compared; each side's score is read at its end.",
)
