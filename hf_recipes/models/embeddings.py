"""Rows of the input and output embeddings for new tokens."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from hf_recipes.core.errors import say

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Initialization = Literal["mean", "weighted", "random"]


def fit_embeddings(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", descriptions: Mapping[str, str] | None = None
) -> None:
    """Grow the embeddings where the tokenizer has more tokens than they have rows.

    New rows are random, around the mean of all, but for those of tokens with a description: these are the mean of the
    rows of its tokens.
    """
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer))
        say(f"embeddings grown from {rows:,} to {len(tokenizer):,} rows")
    parts = {
        tokenizer.convert_tokens_to_ids(token): tokenizer(text, add_special_tokens=False)["input_ids"]
        for token, text in (descriptions or {}).items()
        if text
    }
    initialize_rows(model, parts)


def initialize_rows(
    model: "PreTrainedModel", parts: Mapping[int, Sequence[int]], how: Initialization = "mean", seed: int = 0
) -> None:
    """Set the row of each id to the mean of the rows of its `parts`, which are ids, in both embeddings.

    Args:
        parts: a row without any becomes the mean of all old rows, which are those below the lowest id of `parts`.
        how: "weighted": parts count by position, in the input embeddings 1, 2, …, k, as the last ones have seen most,
            in the output embeddings k, …, 2, 1, as the first is what has to be predicted; "random": each row is sampled
            from a normal distribution with the mean and variance of the old rows in each dimension.
    """
    import torch
    from peft.utils.integrations import gather_params_ctx

    if not parts:
        return
    old = min(parts)
    generator = torch.Generator().manual_seed(seed)
    done = set()
    for module, falls in ((model.get_input_embeddings(), False), (model.get_output_embeddings(), True)):
        weight = getattr(module, "weight", None)
        if weight is None or id(weight) in done:  # tied
            continue
        done.add(id(weight))
        for values in (weight, getattr(module, "bias", None)):
            if values is not None:
                with gather_params_ctx([values], modifier_rank=0):  # where ZeRO's stage 3 shards them
                    _set_rows(values, parts, how, old, falls, generator)


def _set_rows(
    values: "torch.Tensor",
    parts: Mapping[int, Sequence[int]],
    how: Initialization,
    old: int,
    falls: bool,
    generator: "torch.Generator",
) -> None:
    import torch

    before = values.detach()[:old].float()
    mean, spread = before.mean(0), before.std(0)
    with torch.no_grad():
        for row, ids in parts.items():
            if how == "random":
                new = mean + spread * torch.randn(mean.shape, generator=generator).to(mean)
            elif not ids:
                new = mean
            else:
                weights = torch.arange(1.0, len(ids) + 1) if how == "weighted" else torch.ones(len(ids))
                weights = (weights.flip(0) if falls else weights) / weights.sum()
                new = torch.tensordot(weights.to(before), before[list(ids)], dims=1)
            values[row] = new.to(values)
