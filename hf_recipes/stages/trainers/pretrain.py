"""The Trainer of pretraining, over mixtures of documents."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch.utils.data import DataLoader

from hf_recipes.core.errors import say
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.pretraining.mixture import Mixture
from hf_recipes.dry_run.checks import balances_experts
from hf_recipes.models.checks.packing import joins_rows
from hf_recipes.models.inference.forward import takes
from hf_recipes.run.optimization import decay_settings
from hf_recipes.trainer.base import RunMixin
from hf_recipes.trainer.failures.signals import leave_signals_to_the_run
from hf_recipes.trainer.losses.expert_balance import ExpertBalance
from hf_recipes.trainer.losses.source_losses import source_table
from hf_recipes.trainer.mixture_data import MixtureData, TimedBatches, step_blocks
from hf_recipes.trainer.reports.throughput import flops_per_token, peak_flops

if TYPE_CHECKING:
    from hf_recipes.stages.pretrain import PretrainArguments


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Blocks as a batch: (B, T) int64 `input_ids`, `position_ids`, `labels`; (B,) `source`, `tokens`, `documents`."""
    batch: dict[str, Any] = {
        name: torch.from_numpy(np.stack([row[name] for row in rows]))
        for name in ("input_ids", "position_ids", "labels")
    }
    for name in ("source", "tokens", "documents"):
        batch[name] = torch.tensor([row[name] for row in rows])
    return {**batch, "location": [row["location"] for row in rows]}


class _ProcessBatches:
    """The batch sampler of this process: `Mixture.batches_of` of these arguments."""

    def __init__(self, mixture: Mixture, *arguments: int):
        self.mixture, self.arguments = mixture, arguments

    def __iter__(self) -> Iterator[list[int]]:
        return self.mixture.batches_of(*self.arguments)


class PretrainTrainer(MixtureData, RunMixin, transformers.Trainer):
    """transformers' Trainer over a `Mixture`: exact resume at any step, the loss of each source, and throughput.

    The loss is the mean over all labelled tokens of a step, of all processes. Logged with it are the loss of each
    source since the last log (`loss_NAME`), tokens per second of each device, billions of tokens seen, the share of
    the time that training waited for data, and the share of the device's measured peak where there is one. The loss
    that balances a mixture's experts (`aux_loss`), a mean over batches, is added with its weight.
    """

    def __init__(self, mixture: Mixture, ledger: Ledger, *, args: "PretrainArguments", max_drop_ratio=1.0, **kwargs):
        self.set_mixture(mixture, ledger, max_drop_ratio)
        self._by_epochs = args.max_steps <= 0
        if self._by_epochs:
            args.max_steps = self._steps_left(args)
        super().__init__(args=args, train_dataset=mixture, **kwargs)
        self.model_accepts_loss_kwargs = True  # compute_loss divides by num_items_in_batch for every architecture
        self._loss_shifts_labels = True
        size = len(mixture.sources)
        # Of each source: loss, labelled tokens, tokens, documents. Since the last log, and in all.
        self._recent = torch.zeros(size, 4, device=self.args.device)
        self._totals = np.zeros((size, 4))
        self._train_seconds = self._waited = 0.0
        model = self.accelerator.unwrap_model(self.model)
        self._takes_positions = takes(model, "position_ids")
        self._flattens = joins_rows(model.config._attn_implementation)
        self._aux_weight = 0.0
        if balances_experts(args, model.config):
            given, text = args.router_aux_loss_coef, model.config.get_text_config()
            self._aux_weight = text.router_aux_loss_coef if given is None else given
        self._balance = ExpertBalance(model) if self._aux_weight else None
        self._aux_losses: list[torch.Tensor] = []
        self._flops, self._peak = flops_per_token(model, mixture.blocking.size), peak_flops(self.args.device)

    def _steps_left(self, args: "PretrainArguments") -> int:
        left = round(args.num_train_epochs * self.mixture.blocks) - self._start
        return max(0, -(-left // step_blocks(args)))

    # Data

    def before_training(self):
        if self._by_epochs:
            self.args.max_steps = self._begun_at + self._steps_left(self.args)

    def data_state(self):
        return {**super().data_state(), "totals": self._totals.tolist()}

    def restore_data(self, saved):
        super().restore_data(saved)
        self._totals = np.array(saved["totals"])

    def get_train_dataloader(self):
        args = self.args
        self._last_block = self._start + max(0, args.max_steps - self._begun_at) * step_blocks(args)
        if self._by_epochs:
            self._last_block = round(args.num_train_epochs * self.mixture.blocks)
        blocks = (self._start, self._last_block)
        process = (args.per_device_train_batch_size, args.process_index, args.world_size, step_blocks(args))
        if self.mixture.streams:
            return self.stream_batches(collate)
        loader = DataLoader(
            self.mixture,
            batch_sampler=_ProcessBatches(self.mixture, *blocks, *process),
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            collate_fn=collate,
            worker_init_fn=leave_signals_to_the_run,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            # So that an iterator that begins takes no number from the run's random state.
            generator=torch.Generator().manual_seed(args.seed),
        )
        self._batches = TimedBatches(loader)
        return self._batches

    def tokens_in(self, inputs):
        return int(inputs["tokens"].sum())

    # Steps

    def create_scheduler(self, num_training_steps, optimizer=None):
        decay = decay_settings(self.args, num_training_steps)
        self.args.lr_scheduler_kwargs = {**decay, **(self.args.lr_scheduler_kwargs or {})}
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids, positions, labels = inputs["input_ids"], inputs["position_ids"], inputs["labels"]
        targets = F.pad(labels[:, 1:], (0, 1), value=-100)
        if self._flattens:  # flash attention separates the rows of one long row by their positions
            ids, positions = ids.flatten()[None], positions.flatten()[None]
        rest = {"position_ids": positions} if self._takes_positions else {}
        if self._aux_weight:
            rest["output_router_logits"] = True
        outputs = model(input_ids=ids, use_cache=False, **rest)
        losses = F.cross_entropy(
            outputs.logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100
        ).view_as(targets)
        sums, counts = losses.sum(1), (targets != -100).sum(1)
        with torch.no_grad():
            row = torch.stack([sums.detach(), counts, inputs["tokens"], inputs["documents"]], 1).to(self._recent.dtype)
            row[~sums.isfinite(), :2] = 0
            self._recent.index_add_(0, inputs["source"], row)
        loss = sums.sum() / (counts.sum() if num_items_in_batch is None else num_items_in_batch)
        # num_items_in_batch counts every process's tokens, and DDP averages the gradients.
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        if self._balance:
            aux_loss = self._balance()
            self._aux_losses.append(aux_loss.detach())
            loss = loss + self._aux_weight * aux_loss / self.current_gradient_accumulation_steps
        return loss

    # Log

    def log(self, logs, start_time=None):
        if "loss" in logs:
            seconds = time.monotonic() - self._clock - self._paused
            recent = self.accelerator.reduce(self._recent, "sum").double().cpu().numpy()
            self._recent.zero_()
            self._totals += recent
            for name, (loss, count, *_) in zip(self.mixture.names, recent, strict=True):
                if count and len(self.mixture.names) > 1:
                    logs[f"loss_{name}"] = loss / count
            if self._aux_losses:
                aux_loss = torch.stack(self._aux_losses).mean()
                logs["aux_loss"] = self.accelerator.reduce(aux_loss, "mean").item()
                self._aux_losses.clear()
            self._train_seconds += seconds
            self._waited, before = self._batches.waited, self._waited
            logs["data_wait"] = round((self._waited - before) / max(1e-9, seconds), 4)
        super().log(logs, start_time)

    def rates(self, tokens_per_second):
        each = tokens_per_second / self.args.world_size
        rates = {
            "tokens_per_second_per_device": round(each, 1),
            "billion_tokens": self.state.num_input_tokens_seen / 1e9,
        }
        if self._peak:
            rates["share_of_peak_flops"] = round(each * self._flops / self._peak, 4)
        return rates

    def training_metrics(self):
        """By source: target and realised share, epochs and loss; and the share of the time spent waiting for data."""
        names, totals = self.mixture.names, self._totals
        target = self.mixture.shares
        realised = totals[:, 2] / max(1, totals[:, 2].sum())
        epochs = self.mixture.epochs(self.blocks_done)
        sources = {
            name: {
                "target": float(target[index]),
                "realised": float(realised[index]),
                "tokens": int(totals[index, 2]),
                "documents": int(totals[index, 3]),
                "epochs": float(epochs[index]),
                "left_out": source.skipped_tokens(float(epochs[index])),
                "loss": float(totals[index, 0] / totals[index, 1]) if totals[index, 1] else None,
            }
            for index, (name, source) in enumerate(zip(names, self.mixture.sources, strict=True))
        }
        columns = {"tokens": "{:,}".format, "epochs": "{:.2f}".format}
        if any(source["left_out"] for source in sources.values()):
            columns["left_out"] = "{:,}".format
        say(source_table(sources, columns))
        return {"sources": sources, "data_wait": self._waited / max(1e-9, self._train_seconds)}
