"""What can go wrong in the middle of a run: a signal, a hang, too little memory; and which rows are to blame."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import torch

from hf_recipes.trainer.sharding import Sharding

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments


class Stopped(Exception):
    """Raised between two batches of an evaluation after a signal."""


class StopSignal:
    """Turns SIGTERM (Slurm, a cloud's reclaim) and the first Ctrl-C into a request; a second Ctrl-C ends at once.

    Use as a context manager; `name` is the signal's name once it came.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._former: dict[int, object] = {}

    def _record(self, number: int, frame: object) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print(f"{self.name}: saving a checkpoint at the end of this step", flush=True)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


def leave_signals_to_the_run(*worker: object) -> None:
    """In a process that loads data, ignore signals to the whole group (Slurm's, Ctrl-C): the run handles them."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class Watchdog:
    """Ends this process when `heartbeat` was not called for `seconds`.

    Ranks that wait in different collectives wait for ever (gloo's own timeout does not fire then) and would hold the
    machines. Used as a context manager, and only where several processes train.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last, self._done = seconds, time.monotonic(), threading.Event()

    def heartbeat(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.heartbeat()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() - self._last > self._seconds:
                rank = os.environ.get("RANK", "0")
                print(
                    f"error (rank {rank}): no batch ended for {self._seconds:g} s (--ddp_timeout): another process "
                    "died or waits for something else; where this one stands:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                with contextlib.suppress(OSError):
                    sys.stderr.flush()
                os._exit(1)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def out_of_memory(doing: str, args: "TrainingArguments", quantized: bool, adapter: bool) -> str:
    """The sentence for a run that ran out of memory while `doing` something: which flags to turn, from where."""
    turn = []
    if "evaluation" in doing:
        turn.append(f"--per_device_eval_batch_size below {args.per_device_eval_batch_size}")
    elif args.per_device_train_batch_size > 1:
        size, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
        turn.append(
            f"--per_device_train_batch_size {size // 2} --gradient_accumulation_steps {steps * 2} (the same update)"
        )
    if getattr(args, "max_length", None) or getattr(args, "max_source_length", None):
        turn.append("a smaller --max_length (or --max_source_length)")
    if "evaluation" not in doing and not args.gradient_checkpointing:
        turn.append("--gradient_checkpointing True")
    if adapter and not quantized:
        turn.append("--load_in_4bit")
    if Sharding.of(args).stage < 3:
        turn.append("--deepspeed configs/deepspeed/zero3_offload.json" if not quantized else "a larger device")
    return f"out of memory in {doing}; try, in this order: {'; '.join(turn)}"


def sequences(inputs: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """The token ids of each row of a batch, without padding; a packed row is split where its positions restart."""
    ids = inputs["input_ids"]
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    rows = []
    for index, row in enumerate(ids):
        if mask is not None:
            rows.append(row[mask[index].bool()].tolist())
        elif positions is not None:
            starts = (positions[index] == 0).nonzero().flatten().tolist()
            rows += [row[a:b].tolist() for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]
        else:
            rows.append(row.tolist())
    return rows


def row_locations(rows: "Dataset", wanted: Iterable[Sequence[int]]) -> list[str]:
    """The locations (file:line) of the `rows` whose `input_ids` are among `wanted`, in the order of the data."""
    columns = rows.select_columns(["input_ids", "location"]).with_format("arrow")[:]
    lengths = pc.list_value_length(columns["input_ids"])
    matches: set[int] = set()
    for ids in wanted:
        for index in pc.indices_nonzero(pc.equal(lengths, len(ids))).to_pylist():
            if columns["input_ids"][index].as_py() == list(ids):
                matches.add(index)
    return [columns["location"][index].as_py() for index in sorted(matches)]
