"""The trainer of DPO: TRL's losses over our pairs, with means over an update."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from trl import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from hf_recipes.data.schemas.registry import SIDES
from hf_recipes.trainer.losses.collators import PADDING_ROW
from hf_recipes.trainer.losses.reference_log_probs import Inputs, ReferenceLogProbs, mean_of

SORTING_LOSSES = ("aot", "aot_unpaired")
COMPARING_LOSSES = ("sft", *SORTING_LOSSES)
# Of `_compared`: what a loss that compares the pairs of an update needs of each.
COMPARED = ("logps/chosen", "logps/rejected", "ref_logps/chosen", "ref_logps/rejected", "chosen_tokens", "chosen_loss")
PAIR_METRICS = (
    *(f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")),
    "logps/chosen",
    "logps/rejected",
)


class PairTrainer(ReferenceLogProbs, DPOTrainer):
    """TRL's `DPOTrainer` on pairs that are already ids and labels of both sides.

    The loss of an update is the mean over all its pairs, and so are the rewards that are logged with it; those of an
    evaluation are over all its pairs. Losses that sort pairs (aot, aot_unpaired) or are a mean over tokens (sft)
    compare all pairs of the update; where those sort and it has several batches, this takes a second forward pass.
    """

    columns = tuple(f"{side}_{name}" for side in SIDES for name in ("ids", "labels"))
    columns += ("ref_chosen_logps", "ref_rejected_logps")
    # Where losses compare the pairs of an update: its pairs as `_compared` has them, and their `row`.
    _update: tuple[torch.Tensor, torch.Tensor] | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        losses = list(zip(self.loss_types, self.loss_weights, strict=True))
        self._comparing = [(name, weight) for name, weight in losses if name in COMPARING_LOSSES]
        self._sorts = any(name in SORTING_LOSSES for name, _ in self._comparing)
        self.loss_types = [name for name, _ in losses if name not in COMPARING_LOSSES]
        self.loss_weights = [weight for name, weight in losses if name not in COMPARING_LOSSES]

    def sum_tokens(self, log_probs, labelled):
        if self.args.ld_alpha is None:
            return log_probs.sum(1)
        counts = labelled.cumsum(1)  # LD-DPO (arXiv 2409.06411): less of what the longer side has beyond the shorter
        shared = counts[:, -1].view(2, -1).min(0).values.repeat(2)
        return torch.where(counts <= shared[:, None], log_probs, self.args.ld_alpha * log_probs).sum(1)

    def compute_ref_log_probs(self, model, inputs):
        return self.reference_log_probs(inputs, model=model).chunk(2)

    def _with_reference(self, inputs):
        if "ref_chosen_logps" in inputs:
            return inputs
        chosen, rejected = self.reference_log_probs(inputs).chunk(2)
        return {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def get_batch_samples(self, *args):
        self._update = None
        return super().get_batch_samples(*args)

    def look_ahead(self, batches):
        if not self._comparing or len(batches) * self.args.world_size == 1:
            return
        pairs, rows = [], []
        for inputs in map(self._prepare_inputs, batches):
            if self._sorts:
                inputs = self._with_reference(inputs)
                policy = self.log_probs(self.model, inputs)
            else:  # tokens are all that count
                policy = torch.zeros(2 * len(inputs["row"]), device=self.args.device)
                inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = policy.chunk(2)
            pairs.append(self._compared(policy, policy.chunk(2)[0], inputs))
            rows.append(inputs["row"])
        pairs, rows = (self.accelerator.gather(torch.cat(each)) for each in (pairs, rows))
        self._update = pairs[rows != PADDING_ROW], rows[rows != PADDING_ROW]

    def _compared(self, policy: torch.Tensor, chosen_loss: torch.Tensor, inputs) -> torch.Tensor:
        """What a loss that compares pairs needs of each, (B, 6): see `COMPARED`."""
        tokens = inputs["completion_mask"][:, 1:].sum(1).chunk(2)[0].float()
        references = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        return torch.stack([*policy.chunk(2), *references, tokens, chosen_loss], 1)

    def _compared_outputs(self, outputs, batch) -> torch.Tensor:
        """`_compared` of a batch that went through the policy; the loss on the chosen answer is in nats."""
        labelled = batch["completion_mask"][:, 1:]
        chosen_loss = -outputs.log_probs.chunk(2)[0].sum(1)
        if self.args.use_weighting:  # WPO (arXiv 2406.11827), equation 2
            aligned = ((outputs.log_probs.detach() - outputs.log_sum_sq_probs) * labelled).sum(1)
            chosen_loss = chosen_loss * (aligned / labelled.sum(1).clamp(min=1)).exp().view(2, -1).prod(0)
        return self._compared(self.sum_tokens(outputs.log_probs, labelled), chosen_loss, batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch, rows = self.real_rows(inputs)
        batch = self._with_reference(batch)
        outputs = []

        def recorded(**kwargs):
            outputs.append(model(**kwargs))
            return outputs[0]

        loss, metrics = self._upstream_loss(recorded, batch)
        for name in PAIR_METRICS:
            self.add_to_log(**{name: torch.full((len(rows),), metrics[name], device=self.args.device)})
        compared = 0.0
        if self._comparing:
            pairs = self._compared_outputs(outputs[0], batch)
            update, index = pairs.detach(), torch.arange(len(pairs), device=pairs.device)
            if self._update is not None:
                update, numbers = self._update
                index = (numbers == batch["row"][:, None]).int().argmax(1)
            compared = self._comparing_losses(pairs, update, index)
            loss = loss + compared
        if self.source_names and len(rows):
            with torch.no_grad():
                each = torch.stack([alone for alone, _ in self._pair_losses(outputs[0], batch)])
            self.add_row_losses(rows, each + compared)
        return self.mean_over_update(loss.expand(len(batch["row"]))[: len(rows)], num_items_in_batch)

    def _upstream_loss(self, model: Callable, batch: Inputs) -> tuple[torch.Tensor | float, dict[str, float]]:
        """TRL's loss of a batch that has the reference's log-probabilities, and the metrics that it would log."""
        accelerator, gather = self.accelerator, self.accelerator.gather
        # TRL gathers its metrics, for which all processes need as many rows; `logged_means` adds up those of each.
        accelerator.gather = accelerator.gather_for_metrics = lambda values: values
        try:
            loss = self._compute_loss(model, {name: value for name, value in batch.items() if name != "row"}, False)
        finally:
            accelerator.gather = accelerator.gather_for_metrics = gather
        metrics = self._metrics["train" if self.model.training else "eval"]
        last = {name: values[-1] for name, values in metrics.items()}
        metrics.clear()
        return loss, last

    def _comparing_losses(self, pairs: torch.Tensor, update: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the losses that compare pairs, (B,), of `pairs` at `index` of all pairs of the `update`.

        All pairs are as of `COMPARED`.
        """
        total = torch.zeros_like(pairs[:, 0])
        for name, weight in self._comparing:
            if name == "sft":
                losses = pairs[:, 5] / update[:, 4].mean().clamp(min=1 / len(update))
            else:
                settings = self.args.beta, self.args.label_smoothing
                losses = sorted_losses(name, pairs[:, :4], update[:, :4], index, *settings)
            total = total + weight * losses
        return total

    def evaluate_rows(self, inputs):
        """TRL's figures of each pair by itself, without the balance of experts, and what its comparing losses need."""
        inputs = self._with_reference(inputs)
        outputs = self.score_tokens(self.model, inputs)
        compared = self._compared_outputs(outputs, inputs).tolist()
        records = []
        for values, (loss, metrics) in zip(compared, self._pair_losses(outputs, inputs), strict=True):
            record = {"loss": float(loss)} | {name: metrics[name] for name in PAIR_METRICS}
            records.append(record | dict(zip(COMPARED, values, strict=True)))
        return records

    def _pair_losses(self, outputs, batch: Inputs) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        """`_upstream_loss` of each pair of a batch by itself, without the balance of experts."""
        count = len(batch["row"])
        for index in range(count):
            # The chosen and the rejected side of one pair.
            tokens = {name: value[index::count] for name, value in outputs.items() if value.dim() == 2}
            pair = {name: value[index::count] for name, value in batch.items()}
            scored = FusedCausalLMOutput(**tokens, aux_loss=outputs.log_probs.new_zeros(()))
            loss, metrics = self._upstream_loss(lambda scored=scored, **kwargs: scored, pair)
            yield torch.as_tensor(loss, device=self.args.device), metrics

    def summarise(self, records):
        metrics = {name: mean_of(records, name) for name in ("loss", *PAIR_METRICS)}
        if self._comparing:
            pairs = torch.tensor([[record[name] for name in COMPARED] for record in records], dtype=torch.float64)
            metrics["loss"] += self._comparing_losses(pairs, pairs, torch.arange(len(pairs))).mean().item()
        return metrics


def sorted_losses(
    name: str, pairs: torch.Tensor, update: torch.Tensor, index: torch.Tensor, beta: float, smoothing: float
) -> torch.Tensor:
    """The loss `name` (aot or aot_unpaired, arXiv 2406.05882) of each of the pairs, (N,), sorted over an update.

    TRL's trainer sorts the pairs of each batch by themselves.

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
    return -(1 - smoothing) * F.logsigmoid(ahead) - smoothing * F.logsigmoid(-ahead)
