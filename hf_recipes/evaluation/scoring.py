"""Forward passes that score given tokens: what training and the methods of evaluation share.

Rows of a batch are padded on the right. In a causal model no token sees a later one, so padding changes nothing, and
neither an attention mask nor position ids are needed; this is so for recurrent layers too, which padding on the left
would disturb.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from hf_recipes.evaluation.methods import Compute

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache


def supervised_losses(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Cross-entropy of the labelled tokens, with logits made only where a label is.

    Args:
        inputs: `input_ids`, `labels` (B, T), unshifted, and what else the model takes.

    Returns:
        Three (B,) tensors: summed loss in nats, number of labelled tokens, and how many of those had the highest logit.
        A token that shares the highest logit with others counts as a hit, where argmax would take the first of them; in
        bfloat16, whose values are coarse, such ties lift the accuracy a little above that of greedy decoding.
    """
    # Where no row of the batch has a label, the head's output (vocabulary × hidden per token) would go unused.
    positions = (inputs["labels"][:, 1:] != -100).any(0).nonzero().flatten()
    if positions.numel() == 0:
        positions = positions.new_zeros(1)
    return losses_at(positions, model, inputs)


def losses_at(positions: torch.Tensor, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple:
    """`supervised_losses` where `positions` (N,) are those before which some row has a label."""
    rest = {key: value for key, value in inputs.items() if key != "labels"}
    targets = inputs["labels"][:, 1:]
    logits = model(**rest, logits_to_keep=positions, use_cache=False).logits
    if logits.shape[1] != len(positions):  # a model that takes no logits_to_keep
        logits = logits[:, positions]
    targets = targets[:, positions]
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
    labelled = targets != -100
    # Comparing with the maximum takes a quarter of the time of argmax on a CPU, in bfloat16 a seventeenth.
    scores = logits.detach()
    hits = (scores.amax(-1) == scores.gather(-1, targets.clamp(min=0)[..., None])[..., 0]) & labelled
    return losses.view_as(targets).sum(1), labelled.sum(1), hits.sum(1)


@contextmanager
def evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """`model` in evaluation mode and without gradients; each module's mode and the random state are restored."""
    modes = [(module, module.training) for module in model.modules()]
    device = model.device
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def batches(keys: Sequence[Any], size: int, how: Compute) -> Iterator[list[int]]:
    """The indices of `keys` in the order of the keys, `size` a batch, so that as many keys make as many batches."""
    order = sorted(range(len(keys)), key=keys.__getitem__)
    for start in range(0, len(order), size):
        how.before_batch()
        yield order[start : start + size]


def padded(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> torch.Tensor:
    """`rows` of any lengths as int64 (B, T), filled up with `value` on the right."""
    tensors = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value).to(device)


def row_losses(
    model: "PreTrainedModel", rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[float, int, int]]:
    """`supervised_losses` of one batch of rows, each its ids and its unshifted labels, as numbers for each row."""
    ids, labels = zip(*rows, strict=True)
    inputs = {"input_ids": padded(ids, 0, model.device), "labels": padded(labels, -100, model.device)}
    found = supervised_losses(model, inputs)
    return list(zip(*(part.tolist() for part in found), strict=True))


def takes(model: "PreTrainedModel", name: str) -> bool:
    """Whether the model's own forward, beneath an adapter, has a parameter of this name."""
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    return name in inspect.signature(type(own).forward).parameters


def last_logits(model: "PreTrainedModel", rows: Sequence[Sequence[int]], cache: "Cache | None" = None) -> torch.Tensor:
    """The logits after each of `rows`, float32 (B, V), with `cache` (of as many rows, and spent by this) before them.

    Logits are made only at positions where some row ends.
    """
    ids = padded(rows, 0, model.device)
    ends = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    positions, own = ends.unique(return_inverse=True)
    kept = {"logits_to_keep": positions} if takes(model, "logits_to_keep") else {}
    if cache is not None:
        kept["past_key_values"] = cache
    logits = model(input_ids=ids, use_cache=cache is not None, **kept).logits
    if "logits_to_keep" not in kept:
        logits = logits[:, positions]
    return logits[torch.arange(len(ids), device=logits.device), own].float()


def prefix_cache(model: "PreTrainedModel", ids: Sequence[int]) -> "Cache | None":
    """The keys and values of `ids`, of one row; None where a model's state is more than that (recurrent layers)."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    kept = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    output = model(input_ids=padded([ids], 0, model.device), use_cache=True, **kept)
    cache = getattr(output, "past_key_values", None)
    # Of layers with recurrent states beside, only keys and values are expanded (Falcon-H1 on transformers 5.23).
    if type(cache) is DynamicCache and {type(layer) for layer in cache.layers} <= {
        DynamicLayer,
        DynamicSlidingWindowLayer,
    }:
        return cache
    return None


def expanded(cache: "Cache", rows: int) -> "Cache":
    """A copy of a cache of one row for `rows` rows."""
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(rows)
    return cache
