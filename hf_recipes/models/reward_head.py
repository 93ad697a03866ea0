"""Reward models: a causal language model with a head that gives a conversation one score."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_recipes.core.errors import UserError
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.loading import load_model

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig

HEAD = "score"


class ScoreHead(torch.nn.Linear):
    """Linear, in float32 for inputs of any dtype and under any autocast.

    bfloat16 has eight bits: between two scores of about 10, differences below 0.06 would be lost.
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

    The end of a conversation is found by the pad token: the model's, or the tokenizer's where it has none.

    Args:
        initializer_range: standard deviation of a new head's weights, from torch's global generator. It is small so
            that at first all scores are about equal, and the loss is log 2.
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
    """Make the head a `ScoreHead`, in float32 because it is trained, initialized at random where a range is given."""
    head = getattr(model, HEAD, None)
    if type(head) is not torch.nn.Linear:
        if initializer_range is None:
            return  # another family's head, as it was trained
        raise UserError(f"{model.config.model_type} has no linear {HEAD!r} head, which reward models need here")
    head.__class__ = ScoreHead
    if initializer_range is not None:
        gathered = contextlib.nullcontext()
        if hasattr(head.weight, "ds_id"):
            import deepspeed

            gathered = deepspeed.zero.GatheredParameters([head.weight], modifier_rank=0)
        with gathered:
            torch.nn.init.normal_(head.weight, std=initializer_range)
    if not is_deepspeed_zero3_enabled():  # which gathers weights of one dtype only, and keeps copies in float32 itself
        head.float()


def scores_conversations(model: PreTrainedModel) -> bool:
    """Whether `model` scores conversations; False where it predicts tokens."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not type(inner).__name__.endswith("ForSequenceClassification"):
        return False
    if inner.config.num_labels != 1:
        raise UserError(f"the classifier has {inner.config.num_labels} labels; a reward model has one (num_labels: 1)")
    if inner.config.get_text_config().pad_token_id is None:
        raise UserError("the reward model's config.json names no pad_token_id, by which it finds the end of a text")
    return True


def rewards(model: PreTrainedModel, rows: Sequence["np.ndarray"]) -> list[float]:
    """The reward model's score of each of `rows` of token ids."""
    from hf_recipes.models.inference.forward import row_groups

    groups = row_groups(len(rows), max(map(len, rows)))
    return [score for group in groups for score in _rewards(model, rows[group])]


def _rewards(model: PreTrainedModel, rows: Sequence["np.ndarray"]) -> list[float]:
    from hf_recipes.models.inference import forward

    ids = forward.padded(rows, model.config.get_text_config().pad_token_id, model.device)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
    uncached = {"use_cache": False} if forward.takes(model, "use_cache") else {}
    return model(input_ids=ids, attention_mask=mask, **uncached).logits[:, 0].float().tolist()
