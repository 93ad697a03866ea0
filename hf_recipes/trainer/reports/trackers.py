"""Trackers: metrics, settings, sample answers and curves go to swanlab, wandb and tensorboard.

Everything is written to files in the run's folder unless the user chose the cloud. The calls for each tracker run on
their own thread, so that a server that is away, or a full disk, costs a line of output and never the training.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from textwrap import indent
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    rewrite_logs,
)

from hf_recipes.core.errors import say
from hf_recipes.core.files import write_json
from hf_recipes.evaluation.reports.tables import read_predictions
from hf_recipes.hub.clients import SECRET_VARIABLES
from hf_recipes.trainer.reports.progress import warn_on_write_error
from hf_recipes.trainer.reports.tracker_clients import KINDS, PATIENCE

STATE = "trackers.json"  # which runs of which trackers belong to the output folder
GRACE = 5.0  # seconds more, in which a library itself reports that its server does not answer
SAMPLES, WIDTH = 5, 1000  # answers sent after each evaluation; characters of each text


def command_line_has_token(settings: Mapping[str, Any]) -> bool:
    """Whether a token stands on the command line, which swanlab and wandb record as it is."""
    values = [settings.get("hub_token"), *(os.environ.get(name) for name in SECRET_VARIABLES)]
    return any(value and value in " ".join(sys.argv) for value in values)


def as_text(row: Mapping[str, Any]) -> str:
    texts = {name: row.get(name) for name in ("question", "reference", "prediction")}
    if row.get("reward") is not None:
        texts["reward"] = f"{row['reward']:.4f}"
    return "\n\n".join(f"{name}: {text[:WIDTH]}" for name, text in texts.items() if text is not None)


class Worker:
    """Runs the calls for one tracker in their order on a daemon thread; after the first that fails, none."""

    def __init__(self, tracker):
        self.tracker, self.failed, self._calls = tracker, False, SimpleQueue()
        threading.Thread(target=self._run, name=tracker.name, daemon=True).start()

    def put(self, what: str, call: Callable[[], Any]) -> threading.Event:
        """Have `call` run; the event is set when it, or its failing, is over."""
        done = threading.Event()
        self._calls.put((what, call, done))
        return done

    def _run(self) -> None:
        while True:
            what, call, done = self._calls.get()
            try:
                if not self.failed:
                    call()
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                self.failed = True
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                say(f"{self.tracker.name} cannot {what} and is left out from here on ({reason})")
            finally:
                done.set()


class TrackersCallback(TrainerCallback):
    """Starts the trackers of `args.report_to` with the training and sends them metrics, answers and curves.

    It stands for transformers' callbacks of the same trackers; other names in `report_to` stay with transformers.

    Args:
        settings: those of the run, without secrets (`Parser.recorded`); they become each tracker's config.
        bare: have no tracker record the command line, which has a token in it.
    """

    def __init__(self, args, settings: Mapping[str, Any], bare: bool = False):
        self.args, self.settings, self.bare = args, dict(settings), bare
        self.workers: list[Worker] = []
        self._state_path = Path(args.output_dir, STATE)
        self._writing = threading.Lock()

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        former: dict[str, dict] = {}
        if state.global_step:
            with suppress(OSError, ValueError):
                former = json.loads(self._state_path.read_text(encoding="utf-8"))
        started: dict[str, dict] = {}
        run_name = args.run_name or Path(args.output_dir).resolve().name
        for kind in KINDS:
            if kind.name in args.report_to:
                tracker = kind(args)
                worker = Worker(tracker)
                start = self._start(worker, former.get(kind.name), run_name, state, started)
                self.workers.append(worker)
                # A process that is forked while a library is being loaded can wait for it for ever.
                if args.dataloader_num_workers and not start.wait(PATIENCE + GRACE):
                    say(f"{tracker.name} has not started after {PATIENCE:.0f} seconds; the training does not wait")

    def _start(
        self, worker: Worker, former: dict | None, run_name: str, state, started: dict[str, dict]
    ) -> threading.Event:
        tracker, history = worker.tracker, []
        run_id = former["id"] if former and tracker.can_resume and former["mode"] == tracker.mode else None
        if state.global_step and not run_id and tracker.mode != "disabled":
            history = [dict(entry) for entry in state.log_history]
            why = "the run before has no id here" if tracker.can_resume else "its files cannot be opened again"
            say(f"{tracker.name} ({tracker.mode}): {why}; a new run begins with the curves up to the checkpoint")

        def start() -> None:
            new_id = tracker.start(run_name, self.settings, run_id, state.global_step, self.bare)
            with self._writing:  # another tracker starts at the same time
                started[tracker.name] = {"id": new_id, "mode": tracker.mode}
                if url := getattr(tracker, "url", None):
                    started[tracker.name]["url"] = url
                write_json(self._state_path, started)
            for entry in history:
                tracker.log(*_numbers(entry, entry.get("step", 0)))

        return worker.put("start", start)

    def _send(self, method: str, *values) -> None:
        for worker in self.workers:
            worker.put("record", lambda worker=worker: getattr(worker.tracker, method)(*values))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.workers and logs:
            self._send("log", *_numbers(logs, state.global_step))
            path = Path(args.output_dir, "samples", f"step-{state.global_step}.jsonl")
            if "loss" in logs and path.is_file():
                self._send_samples(path, state.global_step, "train/samples")

    def on_evaluate(self, args, state, control, **kwargs):
        folder = Path(args.output_dir, "predictions")
        for path in sorted(folder.rglob(f"step-{state.global_step}.jsonl")) if self.workers else ():
            key = "/".join(("eval", *path.relative_to(folder).parts[:-1], "samples"))
            self._send_samples(path, state.global_step, key)

    def _send_samples(self, path: Path, step: int, key: str) -> None:
        with warn_on_write_error(f"{key} for the trackers"):
            rows = read_predictions(path)[:SAMPLES]
            if rows and "prediction" in rows[0]:
                self._send("texts", list(map(as_text, rows)), step, key)

    def finish(self, step: int, table: str | None = None) -> None:
        """Send `curves.png` and the `table` of the metrics, and close every tracker, for each a minute at the most."""
        curves = Path(self.args.output_dir, "curves.png")
        if curves.is_file():
            self._send("image", curves, step)
        if table:
            self._send("texts", [indent(table, "    ")], step, "eval/table")  # what Markdown shows as it is
        waiting = [(worker, worker.put("finish", worker.tracker.finish)) for worker in self.workers]
        for worker, done in waiting:
            if not done.wait(PATIENCE + GRACE):
                say(f"{worker.tracker.name} has not taken everything after {PATIENCE:.0f} seconds; the rest is dropped")
        self.workers = []


def _numbers(logs: Mapping[str, Any], step: int) -> tuple[dict[str, float], int]:
    """The numbers of a log entry under the names that trackers group by (train/…, eval/…)."""
    numbers = {key: value for key, value in logs.items() if isinstance(value, int | float) and key != "step"}
    return rewrite_logs(numbers), step


def _guard(callback: TrainerCallback) -> None:
    """Have one of transformers' own trackers get no more calls after the first that fails."""
    failed = False

    def guarded(method: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal failed
            try:
                return None if failed else method(*args, **kwargs)
            except Exception as error:
                failed = True
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                say(f"{type(callback).__name__} fails and is left out from here on ({reason})")

        return call

    for name in dir(TrainerCallback):
        if name.startswith("on_"):
            setattr(callback, name, guarded(getattr(callback, name)))


@contextmanager
def kept_from_transformers(args) -> Iterator[None]:
    """While this lasts, `args.report_to` lacks the trackers of `KINDS`, whose libraries a Trainer would load."""
    names = args.report_to
    args.report_to = [name for name in names if name not in {kind.name for kind in KINDS}]
    try:
        yield
    finally:
        args.report_to = names


def add_trackers(trainer, parser) -> TrackersCallback:
    """Give `trainer` the trackers of its `report_to`."""
    for callback in trainer.callback_handler.callbacks:
        if type(callback) in INTEGRATION_TO_CALLBACK.values():
            _guard(callback)
    trackers = TrackersCallback(trainer.args, parser.recorded(), bare=command_line_has_token(parser.settings))
    trainer.add_callback(trackers)
    return trackers
