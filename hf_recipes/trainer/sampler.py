"""The order of the rows: the same at any number of processes, none twice and none lost."""

from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler

from hf_recipes.trainer.failures.signals import leave_signals_to_the_run


class WholeEpochSampler(Sampler[int]):
    """The rows of `inner`, filled up so that each of `processes` gets as many batches of `batch_size`.

    accelerate gives whole batches to the processes in turn and, at the end of an epoch, pads the last of them with rows
    from its beginning, which would be seen twice. Here the last rows are spread over the processes, and their batches
    are padded with `padding_row`, the index of a row without labels, which is in no loss.

    The order of a random `inner` depends on `seed` and the epoch alone, and is the same in all processes.

    Example:
        Ten rows, two processes, batches of four: process 0 gets 0 1 2 3 and 8 · · ·, process 1 gets 4 5 6 7 and
        9 · · ·, where · is the padding row.
    """

    def __init__(self, inner: Sampler[int], processes: int, batch_size: int, padding_row: int, seed: int):
        self.inner, self.processes, self.batch_size, self.padding_row = inner, processes, batch_size, padding_row
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        each = self.processes * self.batch_size if self.processes > 1 else 1
        return -(-len(self.inner) // each) * each

    def __iter__(self) -> Iterator[int]:
        if hasattr(self.inner, "generator"):
            self.inner.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = list(self.inner)
        whole = len(self) if len(self) == len(rows) else len(self) - self.processes * self.batch_size
        yield from rows[:whole]
        for process in range(self.processes if whole < len(rows) else 0):
            last = rows[whole + process :: self.processes]
            yield from last + [self.padding_row] * (self.batch_size - len(last))


class WholeEpochs:
    """Part of `RunMixin`: the rows of an epoch in the order of a `WholeEpochSampler`, also of a resumed run."""

    _order: Sampler | None = None

    def padding_row(self, row: dict) -> dict:
        """A row of the training set's columns that is in no loss: it evens out the processes' last batches."""
        ids = row["input_ids"][:2]
        values = {"input_ids": ids, "labels": [-100] * len(ids), "seq_lengths": [len(ids)]}
        return {key: values[key] if key in values else value[:1] for key, value in row.items()}

    def in_order(self, dataset: Dataset, batch_size: int) -> tuple[Dataset, Sampler]:
        """The rows that a sampler may name, and the sampler, which has a `set_epoch`."""
        count, processes = len(dataset), self.accelerator.num_processes
        inner = self._get_train_sampler(dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        order = WholeEpochSampler(inner, processes, batch_size, count, seed)
        if processes > 1:
            padding_row = Dataset.from_list([self.padding_row(dataset[0])], features=dataset.features)
            dataset = concatenate_datasets([dataset, padding_row])
        return dataset, order

    def _get_dataloader(self, dataset, description, batch_size, sampler_fn=None, is_training=False, **kwargs):
        if is_training and isinstance(dataset, Dataset):
            dataset, self._order = self.in_order(dataset, batch_size)

            def sampler_fn(_):
                return self._order

        loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, **kwargs)
        seed = loader.worker_init_fn

        def begin(worker: int) -> None:
            leave_signals_to_the_run()
            if seed is not None:
                seed(worker)

        loader.worker_init_fn = begin
        return loader

    def _run_epoch(self, *args, **kwargs):
        # Resumed from the last step, or where the run was to end early: transformers would add one.
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if self._order is not None:  # accelerate's set_epoch does not reach it through the batches skipped on resuming
            self._order.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)


class GroupSampler(Sampler[int]):
    """The order of the prompts: each `group` times in a row, and each batch of `prompts` of them `repeats` times.

    It depends on `seed` and the epoch alone. The last batch of an epoch is filled up with prompts from its beginning.

    Example:
        Three prompts, `group` 2, `prompts` 2, one repeat: 2 2 0 0, then 1 1 2 2.
    """

    def __init__(self, count: int, *, group: int, prompts: int, repeats: int, seed: int, shuffle: bool = True):
        self.count, self.group, self.prompts, self.repeats = count, group, prompts, repeats
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // self.prompts) * self.prompts * self.group * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self.count)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        order = np.resize(order, -(-self.count // self.prompts) * self.prompts).reshape(-1, self.prompts)
        for batch in order:
            for _ in range(self.repeats):
                yield from np.repeat(batch, self.group).tolist()
