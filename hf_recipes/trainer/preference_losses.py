"""The losses of DPO that sort pairs, over those of an update; TRL's trainer sorts those of each batch by themselves."""

import torch
from torch.nn.functional import logsigmoid


def sorted_losses(
    name: str, pairs: torch.Tensor, update: torch.Tensor, index: torch.Tensor, beta: float, smoothing: float
) -> torch.Tensor:
    """The loss `name` (aot or aot_unpaired, arXiv 2406.05882) of each of the pairs, (N,).

    Args:
        pairs: log-probabilities in nats of the chosen and the rejected answer under the policy, and under the
            reference, (N, 4).
        update: those of all pairs that are sorted, without gradients, (M, 4).
        index: of each of the pairs in `update`, int64 (N,).
    """
    chosen, rejected, ref_chosen, ref_rejected = pairs.unbind(1)
    all_chosen, all_rejected, all_ref_chosen, all_ref_rejected = update.unbind(1)
    if name == "aot":
        reference = _at_rank(all_ref_chosen - all_ref_rejected, all_chosen - all_rejected)[index]
        return _smoothed(beta * (chosen - rejected - reference), smoothing)
    better, worse = chosen - ref_chosen, rejected - ref_rejected
    all_better, all_worse = all_chosen - all_ref_chosen, all_rejected - all_ref_rejected
    of_chosen = _smoothed(beta * (better - _at_rank(all_worse, all_better)[index]), smoothing)
    of_rejected = _smoothed(beta * (_at_rank(all_better, all_worse)[index] - worse), smoothing)
    # Over the update both have the same mean: the second is there for its gradient.
    return of_chosen + of_rejected - of_rejected.detach()


def _at_rank(values: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """For each of `keys` the one of `values` that stands where it does when both are sorted; (M,)."""
    return values.sort().values[keys.argsort().argsort()]


def _smoothed(ahead: torch.Tensor, smoothing: float) -> torch.Tensor:
    return -(1 - smoothing) * logsigmoid(ahead) - smoothing * logsigmoid(-ahead)
