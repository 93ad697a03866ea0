"""ORPO: a model that answers, and prefers the better of two answers, without a reference (arXiv 2403.07691)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
import transformers
from transformers import PreTrainedModel

from hf_recipes.core.arguments.limits import PositiveFloat, PositiveInt
from hf_recipes.core.arguments.settings import setting
from hf_recipes.data.chat.encoder import IGNORED
from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.dry_run.data_stats import DataStats
from hf_recipes.evaluation.method import Method
from hf_recipes.evaluation.methods.preference_accuracy import PairAccuracy
from hf_recipes.models.inference.forward import supervised_losses
from hf_recipes.models.templates.options import TemplateArguments
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.evaluate_callback import build_evaluations
from hf_recipes.run.inherited import NO_SHIFTED_LABELS, NO_TOKEN_MEAN
from hf_recipes.stages import dpo
from hf_recipes.stages.base import Context, Data, Stage
from hf_recipes.trainer.losses.collators import PADDING_ROW, PairCollator
from hf_recipes.trainer.losses.row_mean_loss import RowMeanLoss


@dataclass
class ORPOArguments(TemplateArguments, RunArguments, transformers.TrainingArguments):
    """transformers' `TrainingArguments` with the weight of the preference."""

    adapter_learning_rate: ClassVar = 8e-5
    calls_head: ClassVar = True
    has_reference: ClassVar = False
    unusable: ClassVar = {
        "average_tokens_across_devices": NO_TOKEN_MEAN,
        "label_smoothing_factor": NO_SHIFTED_LABELS,
    }

    max_length: PositiveInt | None = setting(
        "Tokens of a side; pairs with a longer one are left out, which is counted.", 1024
    )
    pad_to_multiple_of: PositiveInt | None = setting("Pad the sides to a multiple of so many tokens.")
    beta: PositiveFloat = setting("Weight of the odds ratio beside the loss on the chosen answer.", 0.1)
    learning_rate: float = setting("The highest learning rate; with an adapter 8e-5 by default.", 8e-6)
    logging_steps: float = setting("Log every so many steps.", 10)

    def __post_init__(self):
        self.check_fields()
        super().__post_init__()


def odds_ratio_losses(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """Each pair's loss in nats, from the mean log-probability of the tokens of its sides, all (N,).

    -log p(chosen) - beta · log sigmoid(log odds(chosen) - log odds(rejected)), where odds(p) = p / (1 - p).
    """

    def log_odds(log_prob: torch.Tensor) -> torch.Tensor:
        log_prob = log_prob.clamp(max=-torch.finfo(log_prob.dtype).eps)  # of a certain answer the odds are infinite
        return log_prob - torch.log(-torch.expm1(log_prob))

    return -chosen - beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))


class Trainer(RowMeanLoss, transformers.Trainer):
    """transformers' Trainer on pairs that are ids and labels of both sides; the loss is `odds_ratio_losses`' mean.

    Logged with it, over the pairs since the last log: `rewards/accuracies`, how often the chosen side is the likelier
    one by token, and the mean log-probabilities of the tokens, `logps/chosen` and `logps/rejected`.
    """

    columns = ("chosen_ids", "chosen_labels", "rejected_ids", "rejected_labels")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        batch = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}
        losses, tokens, _ = supervised_losses(model, batch)
        log_probs = (-losses / tokens.clamp(min=1)).view(2, -1)
        real = inputs["row"] != PADDING_ROW
        chosen, rejected = log_probs[:, real]
        self.add_to_log(
            **{"rewards/accuracies": (chosen > rejected).float(), "logps/chosen": chosen, "logps/rejected": rejected}
        )
        losses = odds_ratio_losses(chosen, rejected, self.args.beta)
        self.add_row_losses(inputs["row"][real], losses)
        return self.mean_over_update(losses, num_items_in_batch)


class ValidationLoss(PairAccuracy):
    """How often the chosen side is the likelier one, and the mean of `odds_ratio_losses`."""

    beta: float

    def summarise(self, records):
        sides = ([record[side] / record[f"{side}_tokens"] for record in records] for side in SIDES)
        chosen, rejected = (torch.tensor(log_probs, dtype=torch.float64) for log_probs in sides)
        return super().summarise(records) | {"loss": odds_ratio_losses(chosen, rejected, self.beta).mean().item()}


def evaluations(context: Context, data: Data) -> dict[str, Method]:
    methods = {}
    if data.validation is not None:
        methods[""] = ValidationLoss.of_rows(data.validation)
        methods[""].beta = context.args.beta
    settings = context.evaluation, context.args, context.data_args, context.config, context.tokenizer
    return methods | build_evaluations(*settings, None, [])


def pair_stats(context: Context, data: Data) -> DataStats:
    of_pairs = dpo.pair_stats(context, data)
    return replace(of_pairs, batch=replace(of_pairs.batch, fused_head=False))


def build_trainer(context: Context, data: Data, model: PreTrainedModel, methods: Mapping[str, Method]) -> Trainer:
    args, train = context.args, data.train
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=dpo.pair_rows(train, args.length_column_name),
        eval_dataset={} if methods else None,
        processing_class=context.tokenizer,
        data_collator=PairCollator(context.tokenizer.pad_token_id, args.pad_to_multiple_of),
    )
    trainer.data_rows = train
    trainer.set_sources(train)
    return trainer


STAGE = Stage(
    "orpo",
    ORPOArguments,
    forms=("preference",),
    encoder=dpo.pair_encoder,
    data_stats=pair_stats,
    evaluations=evaluations,
    trainer=build_trainer,
    card=CardWords("orpo", ("pairs", "对数据")),
    legend=dpo.STAGE.legend,
)
