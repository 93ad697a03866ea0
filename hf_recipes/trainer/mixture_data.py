"""A trainer's rows from a mixture of sources: exact resume at any step, also of streams."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import write_json
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.pretraining.mixture import Mixture

if TYPE_CHECKING:
    from transformers import TrainingArguments

DATA_STATE = "data_state.json"
CHECKED = 1000  # rows of a stream after which --max_drop_ratio holds


class TimedBatches:
    """Batches, and the seconds spent waiting for them. Without a length, so that a run is one epoch to the Trainer."""

    def __init__(self, batches):
        self.batches, self.waited = batches, 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterator = iter(self.batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class _Epochs(TrainerCallback):
    """Sets `state.epoch` to the passes over the data, where the Trainer has the share of the steps."""

    def __init__(self, trainer: "MixtureData"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        mixture, done = self.trainer.mixture, self.trainer.blocks_done
        if mixture.blocks:
            state.epoch = done / mixture.blocks
        else:
            state.epoch = float(mixture.shares @ mixture.epochs(done))


def step_blocks(args: "TrainingArguments") -> int:
    """Blocks in an optimizer step."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def exchange_of(args: "TrainingArguments"):
    """A function that broadcasts a value of one process; over gloo, whatever the gradients are reduced by."""
    if args.world_size == 1:
        return None
    import torch.distributed as dist

    group = dist.new_group(backend="gloo")

    def exchange(value: Any, owner: int) -> Any:
        values = [value]
        dist.broadcast_object_list(values, src=owner, group=group)
        return values[0]

    return exchange


class MixtureData:
    """Put it before `RunMixin` in the bases, and call `set_mixture` before their `__init__`."""

    def set_mixture(self, mixture: Mixture, ledger: Ledger, max_drop_ratio: float) -> None:
        self.mixture, self.ledger, self.max_drop_ratio = mixture, ledger, max_drop_ratio
        self._start = self._begun_at = self._last_block = 0  # blocks and steps before this start; blocks of the run
        self._batches: TimedBatches | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.args.ignore_data_skip = True  # the mixture begins where the checkpoint says
        self.add_callback(_Epochs(self))

    @property
    def blocks_done(self) -> int:
        """Blocks of the run that were trained on; the last step may have room for more."""
        done = self._start + (self.state.global_step - self.first_step) * step_blocks(self.args)
        return min(done, self._last_block)

    def train(self, resume_from_checkpoint=None, **kwargs):
        if resume_from_checkpoint:
            self._resume_data(Path(resume_from_checkpoint))
        self.before_training()
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            for source in self.mixture.sources:
                source.close()

    def _resume_data(self, checkpoint: Path) -> None:
        """Continue with the blocks after those of `checkpoint`."""
        try:
            saved = json.loads((checkpoint / DATA_STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(
                f"{checkpoint}: {DATA_STATE} is missing or damaged, so the data cannot be resumed"
            ) from None
        settings = json.loads(json.dumps(self.mixture.settings()))
        for name, value in saved["settings"].items():
            if settings.get(name) != value:
                raise UserError(
                    f"{checkpoint} was written with other data ({name} was {value}, and is {settings.get(name)}): its "
                    "blocks cannot be resumed; give the same (a streamed file that was written or touched is another), "
                    "or start anew from its weights with --model_name_or_path"
                )
        if saved["processes"] != self.args.world_size:
            say(
                f"{saved['processes']} processes wrote {checkpoint.name}, and there are {self.args.world_size}: every "
                "document is still seen once, but sums are in another order, so weights will not be equal bit for bit"
            )
        self.restore_data(saved)

    def before_training(self) -> None:
        """Called once the position in the data is known."""

    def restore_data(self, saved: Mapping[str, Any]) -> None:
        """Take up what `data_state` was when the checkpoint was written."""
        self._start, self._begun_at = saved["blocks"], saved["step"]
        if saved["ledger"]:
            former = Ledger.from_dict(saved["ledger"])
            self.ledger.sources, self.ledger.reasons = former.sources, former.reasons
        self.mixture.start_at(saved["streams"])

    def stream_batches(self, collate: Callable) -> TimedBatches:
        """The batches of this process from the streams, from `_start` to `_last_block`."""
        args, step = self.args, step_blocks(self.args)
        process = (args.per_device_train_batch_size, args.process_index, args.world_size, step)
        self._batches = TimedBatches(map(collate, self.mixture.stream(self._start, self._last_block, *process)))
        return self._batches

    def locations_of(self, batches):
        return [location for inputs in batches for location in inputs["location"]]

    def log(self, logs, start_time=None):
        if "loss" in logs and self.ledger.totals["read"] >= CHECKED:
            self.ledger.check(self.max_drop_ratio)
        super().log(logs, start_time)

    def data_state(self) -> dict[str, Any]:
        """What a checkpoint holds of the position in the data."""
        return {
            "step": self.state.global_step,
            "blocks": self.blocks_done,
            "processes": self.args.world_size,
            "settings": self.mixture.settings(),
            "streams": self.mixture.state(),
            "ledger": self.ledger.to_dict() if self.mixture.streams else None,
        }

    def _complete(self, checkpoint):
        write_json(checkpoint / DATA_STATE, self.data_state(), indent=None)
        super()._complete(checkpoint)
