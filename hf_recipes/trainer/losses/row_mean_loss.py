"""A loss averaged over the rows of an update, however they are spread over batches and processes."""

import torch

from hf_recipes.trainer.base import RunMixin
from hf_recipes.trainer.losses.collators import PADDING_ROW


class RowMeanLoss(RunMixin):
    """`RunMixin` for batches of rows, or of pairs of rows, whose indices in `data_rows` are their `row`.

    The loss of an update is the mean over its real rows, and what `add_to_log` was given is logged as the mean over
    those since the last log, however they are spread over batches and processes.
    """

    loss_is_scaled_for_ga = True  # by the number of the update's rows, in `mean_over_update`
    columns: tuple[str, ...]  # of the training rows, in addition to `row`

    def __init__(self, *args, **kwargs):
        self._sums: dict[str, torch.Tensor] = {}  # sum and count by name
        super().__init__(*args, **kwargs)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [*self.columns, "row"]

    def padding_row(self, row):
        cut = {key: value[:2] if isinstance(value, list) else value for key, value in row.items()}
        return cut | {"row": PADDING_ROW}

    def tokens_in(self, inputs):
        mask, row = inputs["attention_mask"], inputs["row"]
        return int(mask[(row != PADDING_ROW).repeat(len(mask) // len(row))].sum())

    def locations_of(self, batches):
        rows = {row for inputs in batches for row in inputs["row"].tolist()} - {PADDING_ROW}
        return [self.data_rows[row]["location"] for row in sorted(rows)] if self.data_rows is not None else []

    def _get_num_items_in_batch(self, batch_samples, device):
        rows = sum((batch["row"] != PADDING_ROW).sum() for batch in batch_samples).to(device)
        return self.accelerator.gather(rows).sum() if self.args.world_size > 1 else rows

    def mean_over_update(self, losses: torch.Tensor, num_items_in_batch: torch.Tensor | None) -> torch.Tensor:
        """This batch's share of the mean, given the losses of its real rows."""
        count = max(1, len(losses)) if num_items_in_batch is None else num_items_in_batch
        # num_items_in_batch counts every process's rows, and DDP averages the gradients.
        return losses.sum() / count * self.accelerator.num_processes

    @torch.no_grad()
    def add_to_log(self, **values: torch.Tensor) -> None:
        """Add values of real rows, those that are finite, to the next log; the names have to be the same each time."""
        for name, value in values.items():
            value = value[value.isfinite()].float()
            self._sums[name] = self._sums.get(name, 0) + torch.stack([value.sum(), value.new_tensor(len(value))])

    def logged_means(self) -> dict[str, float]:
        """The means of the added values of all processes, which are then forgotten."""
        sums, self._sums = self._sums, {}
        if not sums:
            return {}
        names = sorted(sums)
        totals = self.accelerator.reduce(torch.stack([sums[name] for name in names]), "sum").tolist()
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= self.logged_means()
        super().log(logs, start_time)
