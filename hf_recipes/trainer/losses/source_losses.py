"""The loss (or reward) of each source of a mixture, in the log and in the metrics of the training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_recipes.core.errors import say


class SourceLosses:
    """Part of `RunMixin`, for rows of several sources: `loss_NAME` and `items_NAME` are logged with each loss.

    Items are what a loss is the mean over: tokens that carry loss, or rows. A stage that maximises rewards logs those
    of its answers instead, after its `source_prefix`. The metrics are made of the log, which checkpoints hold, so that
    they are those of the whole run where it was resumed.
    """

    source_prefix = "loss_"
    source_names: Sequence[str] = ()
    row_sources: torch.Tensor  # int64 (N,), of each row
    _source_items: np.ndarray  # (S,), of the training rows

    def set_sources(self, rows: Dataset, items: np.ndarray | None = None) -> None:
        """Log losses by source, where the `rows` to train on have several.

        Args:
            items: of each row, (N,); by default one.
        """
        names: dict[str, int] = {}
        of_row = np.array([names.setdefault(name, len(names)) for name in rows["source"][:]])
        if len(names) > 1:
            self.row_sources = torch.as_tensor(of_row)
            self.name_sources(list(names), np.bincount(of_row, items))

    def name_sources(self, names: Sequence[str], items: np.ndarray) -> None:
        """Log losses by these sources, which have so many of the items, (S,)."""
        self.source_names, self._source_items = names, items
        self._source_sums = torch.zeros(len(names), 2, device=self.args.device)

    @torch.no_grad()
    def add_source_losses(self, sources: torch.Tensor, losses: torch.Tensor) -> None:
        """Add the loss of each item, (N,), those that are finite, to that of its source, int64 (N,)."""
        losses = losses.detach().float()
        kept = losses.isfinite()
        values = torch.stack([losses, torch.ones_like(losses)], 1)[kept]
        self._source_sums.index_add_(0, sources.to(losses.device)[kept], values)

    def add_row_losses(self, rows: torch.Tensor, losses: torch.Tensor) -> None:
        """The same of rows, by their indices in the training rows."""
        if self.source_names:
            self.add_source_losses(self.row_sources.to(rows.device)[rows], losses)

    def log(self, logs, start_time=None):
        if "loss" in logs and self.source_names:
            sums = self.accelerator.reduce(self._source_sums, "sum").tolist()
            self._source_sums.zero_()
            for name, (loss, count) in zip(self.source_names, sums, strict=True):
                if count:
                    logs |= {f"{self.source_prefix}{name}": loss / count, f"items_{name}": int(count)}
        super().log(logs, start_time)

    def training_metrics(self) -> dict[str, Any]:
        """By source: its share of the training rows' items and of those trained on, these, and their loss or reward."""
        if not self.source_names:
            return {}
        target, history = self._source_items / self._source_items.sum(), self.state.log_history
        seen = {name: [entry for entry in history if f"items_{name}" in entry] for name in self.source_names}
        items = {name: sum(entry[f"items_{name}"] for entry in entries) for name, entries in seen.items()}
        sources, measure = {}, self.source_prefix[:-1]
        for share, (name, entries) in zip(target, seen.items(), strict=True):
            loss = math.fsum(entry[f"{self.source_prefix}{name}"] * entry[f"items_{name}"] for entry in entries)
            sources[name] = {
                "target": float(share),
                "realised": items[name] / max(1, sum(items.values())),
                "items": items[name],
                measure: loss / items[name] if items[name] else None,
            }
        say(source_table(sources, {"items": "{:,}".format}, measure))
        return {"sources": sources}


def source_table(sources: Mapping[str, Mapping[str, Any]], columns: Mapping[str, Any], measure: str = "loss") -> str:
    """The metrics of sources: shares, these columns, each with how its values are written, and `measure`."""
    rows = [("source", "target", "realised", *columns, measure)]
    for name, source in sources.items():
        shares = (f"{source['target']:.1%}", f"{source['realised']:.1%}")
        value = "–" if source[measure] is None else f"{source[measure]:.4f}"
        rows.append((name, *shares, *(text(source[key]) for key, text in columns.items()), value))
    widths = [max(len(cell) for cell in column) + 2 for column in zip(*rows, strict=True)]
    return "\n".join("".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
