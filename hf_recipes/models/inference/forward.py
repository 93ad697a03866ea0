"""Forward passes that score given tokens, for training and for evaluation.

Rows of a batch are padded on the right. In a causal model no token sees a later one, so this padding changes nothing,
and needs neither an attention mask nor position ids. Padding on the left would disturb recurrent layers.
"""

import copy
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import starmap
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

from hf_recipes.models.inference.batch_options import BatchOptions, ForwardPass

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache


PIECE = 2**24  # logits held at a time where no gradient is needed: 64 MiB in float32
TOKENS = 2**13  # in a forward pass without gradients; more need more memory and are hardly faster


def supervised_losses(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Cross-entropy of the labelled tokens, with logits computed only where a label is.

    Without gradients the rows go through the model in groups of at most `TOKENS` tokens, and at most `PIECE` logits are
    computed at a time, so that the memory does not grow with the batch.

    Args:
        inputs: `input_ids`, `labels` (B, T), unshifted, and what else of (B, T) the model takes.

    Returns:
        Three (B,) tensors: summed loss in nats, number of labelled tokens, and how many of those had the highest logit.
        A token that shares the highest logit with others counts as one of these, where argmax would take the first of
        them: in bfloat16, whose values are coarse, such ties lift the accuracy a little above greedy decoding's.
    """
    rows, length = inputs["input_ids"].shape
    groups = [slice(0, rows)] if torch.is_grad_enabled() else row_groups(rows, length)
    results = []
    for group in groups:
        rows_of_group = {name: value[group] for name, value in inputs.items()}
        positions = (_targets(rows_of_group["labels"]) != -100).flatten().nonzero().flatten()
        if positions.numel() == 0:  # the head must be in the graph on all processes that train together
            positions = positions.new_zeros(1)
        results.append(losses_at(positions, model, rows_of_group))
    return tuple(map(torch.cat, zip(*results, strict=True)))


def row_groups(rows: int, length: int) -> list[slice]:
    """Slices of a batch of `rows` × `length`, each of at most `TOKENS` tokens but at least one row; a single one where
    weights are sharded over processes, which must run equally many forward passes."""
    size = rows if _sharded() else max(1, TOKENS // length)
    return [slice(start, start + size) for start in range(0, rows, size)]


def scored_pass(rows: int, length: int) -> ForwardPass:
    """The largest forward pass by which a batch is scored."""
    return ForwardPass(min(rows, max(1, TOKENS // length)), length)


def losses_at(positions: torch.Tensor, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple:
    """`supervised_losses` at `positions` (N,), indices into the B · T tokens whose next token has a label."""
    rest = {key: value for key, value in inputs.items() if key != "labels"}
    targets = _targets(inputs["labels"])
    chosen = targets.flatten()[positions]

    def score(part: slice, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wanted, scores = chosen[part], logits.detach()
        losses = F.cross_entropy(logits.float(), wanted, reduction="none", ignore_index=-100)
        # Comparing with the maximum takes a quarter of the time of argmax on a CPU, in bfloat16 a seventeenth.
        hits = scores.amax(-1) == scores.gather(-1, wanted.clamp(min=0)[:, None])[:, 0]
        return losses, hits & (wanted != -100)

    scored = starmap(score, logits_at(positions, model, {**rest, "use_cache": False}))
    losses, hits = map(torch.cat, zip(*scored, strict=True))
    tokens, shape = targets.numel(), targets.shape
    summed = losses.new_zeros(tokens).index_copy(0, positions, losses).view(shape).sum(1)
    correct = positions.new_zeros(tokens).index_copy(0, positions, hits.long()).view(shape).sum(1)
    return summed, (targets != -100).sum(1), correct


def _targets(labels: torch.Tensor) -> torch.Tensor:
    """The label of the token after each, (B, T)."""
    return F.pad(labels[:, 1:], (0, 1), value=-100)


def logits_at(
    positions: torch.Tensor,
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    forward: Callable[..., Any] | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The logits at `positions` (N,), indices into the B · T tokens of `inputs`, computed by the model's own forward.

    A hook removes the other positions' hidden states between the model's body and its head, so that scaling,
    softcapping and an adapter on the head stay in effect. Without gradients the logits come in several tensors, (n, V)
    each, with their slice of `positions`; for the later ones the forward runs again with the first output of the body.

    Args:
        forward: what to call instead of `model`.
    """
    inner = unwrapped(model)
    body = getattr(inner, "base_model", inner)
    size = len(positions)
    if not torch.is_grad_enabled():
        size = max(1, PIECE // inner.config.get_text_config().vocab_size)
    count = -(-len(positions) // size)
    if not isinstance(positions, FakeTensor):  # an estimate, which one process makes
        count = _largest_count(count)
    output, hidden, part = None, None, slice(0, size)

    def select(module, args, result):
        nonlocal output, hidden
        if getattr(result, "last_hidden_state", None) is None:
            return
        if hidden is None:
            output, hidden = result, result.last_hidden_state.flatten(0, 1).index_select(0, positions)
        result["last_hidden_state"] = hidden[part][None]

    body_forward = body.__dict__.get("forward")
    hook = body.register_forward_hook(select)
    try:
        for start in range(0, count * size, size):
            part = slice(start, start + size)
            logits = (forward or model)(**inputs).logits
            if hidden is None:  # a model without a separate body gives all logits at once
                yield slice(None), logits.flatten(0, 1)[positions]
                return
            yield part, logits[0]
            del logits
            body.forward = lambda *args, **kwargs: output
    finally:
        hook.remove()
        body.__dict__.pop("forward", None)
        if body_forward is not None:
            body.forward = body_forward


def _sharded() -> bool:
    """Whether weights are sharded over processes (ZeRO's stage 3, FSDP)."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return is_deepspeed_zero3_enabled() or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")


def _largest_count(count: int) -> int:
    """The largest `count` of all processes where they must run equally many forward passes."""
    if torch.is_grad_enabled() or not _sharded():
        return count
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    largest = torch.tensor(count, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


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


def batches(keys: Sequence[Any], size: int, options: BatchOptions) -> Iterator[list[int]]:
    """Batches of `size` indices of `keys`, in the order of the keys."""
    order = sorted(range(len(keys)), key=keys.__getitem__)
    for start in range(0, len(order), size):
        options.before_batch()
        yield order[start : start + size]


def padded(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> torch.Tensor:
    """`rows` of any lengths as int64 (B, T), padded with `value` on the right."""
    tensors = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value).to(device)


def row_losses(
    model: "PreTrainedModel", rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[float, int, int]]:
    """`supervised_losses` of one batch of rows of (ids, unshifted labels): three numbers for each row."""
    ids, labels = zip(*rows, strict=True)
    inputs = {"input_ids": padded(ids, 0, model.device), "labels": padded(labels, -100, model.device)}
    return list(zip(*(result.tolist() for result in supervised_losses(model, inputs)), strict=True))


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model without the wrappers of DDP or DeepSpeed, torch.compile and PEFT."""
    for name in ("module", "_orig_mod"):
        while isinstance(inner := getattr(model, name, None), torch.nn.Module):
            model = inner
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def takes(model: torch.nn.Module, name: str) -> bool:
    """Whether the model's forward has a parameter of this name."""
    return name in inspect.signature(type(unwrapped(model)).forward).parameters


def last_logits(model: "PreTrainedModel", rows: Sequence[Sequence[int]], cache: "Cache | None" = None) -> torch.Tensor:
    """The logits after each of `rows`, float32 (B, V); `cache` is what precedes them, and cannot be used again."""
    ids = padded(rows, 0, model.device)
    ends = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    inputs = {"input_ids": ids, "use_cache": cache is not None}
    if cache is not None:
        inputs["past_key_values"] = cache
    positions = ends + ids.shape[1] * torch.arange(len(rows), device=model.device)
    return torch.cat([logits for _, logits in logits_at(positions, model, inputs)]).float()


def prefix_cache(model: "PreTrainedModel", ids: Sequence[int]) -> "Cache | None":
    """Keys and values of one row of `ids`; None where a model's state is more than these (recurrent layers)."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    kept = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    output = model(input_ids=padded([ids], 0, model.device), use_cache=True, **kept)
    cache = getattr(output, "past_key_values", None)
    # Of layers that have recurrent states too, only keys and values are expanded (Falcon-H1 on transformers 5.23).
    kinds = {DynamicLayer, DynamicSlidingWindowLayer}
    return cache if type(cache) is DynamicCache and {type(layer) for layer in cache.layers} <= kinds else None


def expanded(cache: "Cache", rows: int) -> "Cache":
    """A copy of a cache of one row, repeated for `rows` rows."""
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(rows)
    return cache
