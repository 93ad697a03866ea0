"""Reward models: a causal language model with a head that gives a conversation one score."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_recipes.core.errors import UserError
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.loading import load_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEAD = "score"


class ScoreHead(torch.nn.Linear):
    """Linear, in float32 whatever comes in and under any autocast.

    bfloat16 has eight bits: of two scores about 10, differences below 0.06 would be lost.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight.float(), None if self.bias is None else self.bias.float())


def is_new(config: "PretrainedConfig") -> bool:
    """Whether the files of this configuration hold no reward model yet."""
    return not any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def load_reward_model(
    arguments: ModelArguments,
    *,
    config: "PretrainedConfig",
    tokenizer: PreTrainedTokenizerBase,
    initializer_range: float = 0.01,
    **kwargs: Any,
) -> PreTrainedModel:
    """The reward model in `arguments`, or a causal language model with a new head.

    The pad token, by which the end of a conversation is found, is the model's own, or the tokenizer's.

    Args:
        config: the model's.
        initializer_range: standard deviation of a new head's weights, which torch's global generator draws. Small, so
            that all scores begin about equal, and the loss at log 2.

    Raises:
        UserError: as `load_model`; a classifier with several labels, or a family without a `score` head.
    """
    new = is_new(config)
    if not new and config.num_labels != 1:
        raise UserError(
            f"{arguments.model_name_or_path}: a classifier with {config.num_labels} labels; a reward model has one "
            "(num_labels: 1)"
        )
    may_lack = [f"{HEAD}.weight"] if new else []
    model = load_model(arguments, is_reward=True, may_lack=may_lack, **kwargs)
    text = model.config.get_text_config()
    if new or text.pad_token_id is None:
        text.pad_token_id = tokenizer.pad_token_id
    prepare_head(model, initializer_range if new else None)
    return model


def prepare_head(model: PreTrainedModel, initializer_range: float | None) -> None:
    """Make the head a `ScoreHead`, in float32 because it is trained, and draw its weights where a range is given.

    Raises:
        UserError: weights are to be drawn, and the model has no `score` head.
    """
    head = getattr(model, HEAD, None)
    if type(head) is not torch.nn.Linear:
        if initializer_range is None:
            return  # another family's, as it was trained
        raise UserError(f"{model.config.model_type} has no linear {HEAD!r} head, which reward models need here")
    head.__class__ = ScoreHead
    if initializer_range is not None:
        _draw(head.weight, initializer_range)
    if not is_deepspeed_zero3_enabled():  # which gathers weights of one dtype only, and keeps its own in float32
        head.float()


def _draw(weight: torch.nn.Parameter, initializer_range: float) -> None:
    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            torch.nn.init.normal_(weight, std=initializer_range)
    else:
        torch.nn.init.normal_(weight, std=initializer_range)


def _is_reward_model(model: "PreTrainedModel") -> bool:
    """Whether `model` scores conversations; False where it predicts tokens."""
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not type(own).__name__.endswith("ForSequenceClassification"):
        return False
    if own.config.num_labels != 1:
        raise UserError(f"the classifier has {own.config.num_labels} labels; a reward model has one (num_labels: 1)")
    if own.config.get_text_config().pad_token_id is None:
        raise UserError("the reward model's config.json names no pad_token_id, by which it finds the end of a text")
    return True


def rewards(model: "PreTrainedModel", rows: Sequence["np.ndarray"]) -> list[float]:
    """The reward model's score of each of `rows` of token ids."""
    from hf_recipes.models.inference.forward import row_groups

    groups = row_groups(len(rows), max(map(len, rows)))
    return [score for group in groups for score in _rewards(model, rows[group])]


def _rewards(model: "PreTrainedModel", rows: Sequence["np.ndarray"]) -> list[float]:
    import torch

    from hf_recipes.models.inference import forward

    ids = forward.padded(rows, model.config.get_text_config().pad_token_id, model.device)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
    uncached = {"use_cache": False} if forward.takes(model, "use_cache") else {}
    return model(input_ids=ids, attention_mask=mask, **uncached).logits[:, 0].float().tolist()
