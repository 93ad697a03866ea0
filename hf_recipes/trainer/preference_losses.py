"""The losses of DPO and KTO for each pair and each row, as TRL's trainers define them.

TRL takes the mean over a batch on the way, from which neither the mean over an update nor that over an evaluation set
can be had where batches differ in size.
"""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from hf_recipes.run.arguments import DPOArguments, KTOArguments


class _Rows:
    """A dataclass of (N,) tensors."""

    def __getitem__(self, chosen: torch.Tensor):
        return type(self)(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def detach(self):
        return type(self)(*(getattr(self, field.name).detach() for field in fields(self)))

    def stacked(self) -> torch.Tensor:
        """float (N, K), from which `unstacked` makes the same."""
        return torch.stack([getattr(self, field.name).float() for field in fields(self)], 1)

    @classmethod
    def unstacked(cls, values: torch.Tensor):
        return cls(*values.unbind(1))


@dataclass
class Pairs(_Rows):
    """Of N pairs, each (N,): log-probabilities of the answers in nats, of the policy and of the reference; the numbers
    of their tokens; and what the losses are multiplied with."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    weight: torch.Tensor

    def rewards(self, beta: float) -> dict[str, torch.Tensor]:
        """By TRL's names, each (N,): the implicit rewards beta log(policy / reference) and how they compare."""
        chosen, rejected = beta * (self.chosen - self.ref_chosen), beta * (self.rejected - self.ref_rejected)
        found = {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
        found["rewards/accuracies"] = (chosen > rejected).float()
        return found | {"logps/chosen": self.chosen, "logps/rejected": self.rejected}


def pair_losses(
    pairs: Pairs, args: "DPOArguments", update: Pairs | None = None, index: torch.Tensor | None = None
) -> torch.Tensor:
    """The weighted sum of `args.loss_type` for each pair, (N,).

    Those that sort (aot, aot_unpaired) or count tokens over pairs (sft) do so over the pairs of the whole `update`, so
    that its mean is the same in however many batches it comes; all others are of each pair by itself.

    Args:
        update: (M,), without gradients; by default the pairs are all.
        index: of each of the pairs in `update`, int64 (N,).
    """
    if update is None:
        update, index = pairs.detach(), torch.arange(len(pairs), device=pairs.chosen.device)
    weights = args.loss_weights or [1.0] * len(args.loss_type)
    losses = (_pair_loss(name, pairs, args, update, index) for name in args.loss_type)
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) * pairs.weight


def _pair_loss(name: str, pairs: Pairs, args: "DPOArguments", update: Pairs, index: torch.Tensor) -> torch.Tensor:
    beta, smoothing = args.beta, args.label_smoothing
    chosen, rejected = pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected
    better, worse = _divergence(chosen, args), _divergence(rejected, args)
    ahead = beta * (better - worse)
    each_token = better / pairs.chosen_tokens.clamp(min=1) - worse / pairs.rejected_tokens.clamp(min=1)
    match name:
        case "sigmoid":  # arXiv 2305.18290
            return -logsigmoid(ahead)
        case "sigmoid_norm":
            return -logsigmoid(beta * each_token)
        case "hinge":
            return (1 - ahead).relu()
        case "ipo":  # arXiv 2310.12036, equation 17
            return (each_token - 1 / (2 * beta)) ** 2
        case "exo_pair":  # arXiv 2402.00856, equation 16
            right = ahead.sigmoid() * (logsigmoid(ahead) - math.log1p(-smoothing))
            return right + (-ahead).sigmoid() * (logsigmoid(-ahead) - math.log(smoothing))
        case "robust":  # arXiv 2403.00409
            kept = -(1 - smoothing) * logsigmoid(ahead)
            return (kept + smoothing * logsigmoid(-ahead)) / (1 - 2 * smoothing)
        case "discopop":  # arXiv 2406.08414, equation 5
            share = (ahead / args.discopop_tau).sigmoid()
            return -logsigmoid(ahead) * (1 - share) + (-ahead).exp() * share
        case "sft":
            return -pairs.chosen / update.chosen_tokens.float().mean().clamp(min=1 / len(update))
        case "nca_pair":  # arXiv 2402.05369
            down = logsigmoid(-beta * chosen) + logsigmoid(-beta * rejected)
            return -logsigmoid(beta * chosen) - 0.5 * down
        case "bco_pair":  # arXiv 2404.04656
            return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected)
        case "sppo_hard":  # arXiv 2405.00675
            return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
        case "apo_zero":  # arXiv 2408.06266, equations 7 and 8
            return 1 - (beta * chosen).sigmoid() + (beta * rejected).sigmoid()
        case "apo_down":
            return (beta * chosen).sigmoid() + 1 - (beta * (chosen - rejected)).sigmoid()
        case "aot":  # arXiv 2406.05882
            whole = update.chosen - update.rejected
            reference = _at_rank(update.ref_chosen - update.ref_rejected, whole)[index]
            return _smoothed(beta * (pairs.chosen - pairs.rejected - reference), smoothing)
        case "aot_unpaired":
            all_chosen, all_rejected = update.chosen - update.ref_chosen, update.rejected - update.ref_rejected
            of_chosen = _smoothed(beta * (chosen - _at_rank(all_rejected, all_chosen)[index]), smoothing)
            of_rejected = _smoothed(beta * (_at_rank(all_chosen, all_rejected)[index] - rejected), smoothing)
            # Over the update both have the same mean: the second is there for its gradient.
            return of_chosen + of_rejected - of_rejected.detach()


def _at_rank(values: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """For each of `keys` the one of `values` that stands where it does when both are sorted; (M,)."""
    return values.sort().values[keys.argsort().argsort()]


def _smoothed(ahead: torch.Tensor, smoothing: float) -> torch.Tensor:
    return -(1 - smoothing) * logsigmoid(ahead) - smoothing * logsigmoid(-ahead)


def _divergence(ratios: torch.Tensor, args: "DPOArguments") -> torch.Tensor:
    """The derivative of the divergence at policy / reference, given its logarithm (arXiv 2309.16240)."""
    match args.f_divergence_type:
        case "forward_kl":
            return 1 - (-ratios).exp()
        case "js_divergence":
            return math.log(2) + logsigmoid(ratios)
        case "alpha_divergence" if abs(args.f_alpha_divergence_coef - 1) >= 1e-6:
            power = args.f_alpha_divergence_coef - 1
            return ((power * ratios).clamp(max=80).exp() - 1) / power
    return ratios


@dataclass
class Rated(_Rows):
    """Of N rows, each (N,): log-probabilities of the answer in nats, of the policy and of the reference; 1 where it is
    a good one and 0 where not; and the policy's log-probability of another row's answer less the reference's."""

    policy: torch.Tensor
    reference: torch.Tensor
    is_good: torch.Tensor
    mismatched: torch.Tensor

    def divergence(self) -> torch.Tensor:
        """The estimate of the KL divergence over these rows, in nats; not below 0."""
        return self.mismatched.mean().clamp(min=0)

    def rewards(self, beta: float) -> dict[str, torch.Tensor]:
        """By TRL's names: implicit rewards and log-probabilities of the good rows and of the others."""
        good, found = self.is_good > 0, beta * (self.policy - self.reference)
        return {
            "rewards/chosen": found[good],
            "rewards/rejected": found[~good],
            "logps/chosen": self.policy[good],
            "logps/rejected": self.policy[~good],
        }


def rated_losses(rated: Rated, divergence: torch.Tensor | float, args: "KTOArguments") -> torch.Tensor:
    """KTO's loss for each row (arXiv 2402.01306, equation 7), or that of APO-zero, which has no divergence; (N,)."""
    ahead = args.beta * (rated.policy - rated.reference - (divergence if args.loss_type == "kto" else 0.0))
    good = args.desirable_weight * (1 - ahead.sigmoid())
    return torch.where(rated.is_good > 0, good, args.undesirable_weight * ahead.sigmoid())
