"""Pushing a run to a hub while it trains and at its end, by a callback that never fails the run."""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

from transformers import TrainerCallback

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import remove_abandoned
from hf_recipes.hub import clients as hub
from hf_recipes.hub.upload import ensure_repository, upload
from hf_recipes.publishing.collect_files import UPLOAD, Address, upload_folder

PATIENCE = 120.0  # seconds that a stopped run waits for the push of its last checkpoint
# Files of an earlier push that would be loaded in place of, or together with, those of this one.
REPLACED = (
    r"(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    r"adapter_config\.json|(generation_)?config\.json|additional_chat_templates/.*",
)


def push_command(folder: str | os.PathLike, repo: str, target: str, *, private: bool, revision: str | None) -> str:
    """The command that pushes the folder later."""
    parts = ["python", "scripts/push.py", "--folder", str(folder), "--hub_model_id", repo]
    parts += ["--target", target] if target != "hf" else []
    parts += ["--private", "false"] if not private else []
    parts += ["--revision", revision] if revision else []
    return shlex.join(parts)


class Publisher(TrainerCallback):
    """Pushes a run to a hub at its end and, with another `hub_strategy` than ``end``, after each save.

    A thread pushes while the run trains. A save during another's push is skipped, or with `hub_always_push` queued.
    ``checkpoint`` and ``all_checkpoints`` push the optimizer's state too, so that the run can be resumed elsewhere. An
    error is logged in one line with the command that pushes later. Only the main process does anything.
    """

    def __init__(self, args):
        self.run, self.repo, self.target = Path(args.output_dir), args.hub_model_id, args.hub_target
        self.address = Address(self.repo, self.target)
        self.private, self.revision = args.hub_private_repo is not False, args.hub_revision
        self.strategy, self.always = str(getattr(args.hub_strategy, "value", args.hub_strategy)), args.hub_always_push
        self._url: str | None = None
        self._jobs: SimpleQueue[tuple[Callable[[], object], Path, Event]] = SimpleQueue()
        self._done = Event()  # set when the last job has ended
        self._done.set()
        self._step = 0  # the last that was not skipped
        self._given_up = False

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            remove_abandoned(self.run / UPLOAD)
            # A daemon: a run that is interrupted does not wait for it.
            Thread(target=self._run_jobs, name="push", daemon=True).start()
            self._enqueue(self._ensure_repository, self.run)

    def on_save(self, args, state, control, **kwargs):
        step = state.global_step
        checkpoint = self._checkpoint(step)
        if not state.is_world_process_zero or self.strategy == "end" or not checkpoint.is_dir():
            return
        if self._done.is_set() or self.always:
            self._push_step(step)
        else:
            say(f"step {step} is not pushed: an earlier push is still running")

    def push_last(self, step: int) -> None:
        """Push a stopped run's last checkpoint, or wait for its push, for at most `PATIENCE`.

        To be called when the other processes need nothing more of this one.
        """
        checkpoint = self._checkpoint(step)
        if self.strategy == "end" or not checkpoint.is_dir():
            return
        if step != self._step:
            self._push_step(step)
        if not self._done.is_set():
            say(f"pushing {checkpoint.name}, for at most {PATIENCE:g} seconds")
        if not self._done.wait(PATIENCE):
            self._given_up = True
            say(f"{checkpoint.name} is not pushed after {PATIENCE:g} seconds. Push later: {self._command(checkpoint)}")

    def finish(self) -> None:
        """Push the finished run; to be called when the other processes need nothing more of this one."""
        self._done.wait()
        say(f"pushing to {hub.NAMES[self.target]}")
        with self._reported(self.run), upload_folder(self.run, self.address) as folder:
            say(f"pushed: {self._upload(folder, 'End of training')}")

    def _checkpoint(self, step: int) -> Path:
        return self.run / f"checkpoint-{step}"

    def _push_step(self, step: int) -> None:
        """Copy a checkpoint, which training may delete, to an upload folder, which the thread pushes."""
        checkpoint, self._step = self._checkpoint(step), step
        state_as = {"checkpoint": "last-checkpoint", "all_checkpoints": checkpoint.name}.get(self.strategy)
        with self._reported(checkpoint), ExitStack() as stack:
            folder = stack.enter_context(upload_folder(checkpoint, self.address, state_as=state_as))
            until_pushed = stack.pop_all()

            def push() -> None:
                with until_pushed:
                    say(f"step {step} pushed: {self._upload(folder, f'Step {step}')}")

            self._enqueue(push, checkpoint)

    def _ensure_repository(self) -> str:
        self._url = self._url or ensure_repository(self.repo, self.target, private=self.private)
        return self._url

    def _upload(self, folder: Path, message: str) -> str:
        url = self._ensure_repository()
        upload(folder, self.repo, self.target, replaces=REPLACED, revision=self.revision, message=message)
        return url

    def _enqueue(self, job: Callable[[], object], folder: Path) -> None:
        self._done = Event()
        self._jobs.put((job, folder, self._done))

    def _run_jobs(self) -> None:
        while True:
            job, folder, done = self._jobs.get()
            if self._given_up:
                return
            with self._reported(folder):
                job()
            done.set()

    def _command(self, folder: Path) -> str:
        return push_command(folder, self.repo, self.target, private=self.private, revision=self.revision)

    @contextmanager
    def _reported(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # no failure of a hub may end the run
            reason = str(error) if isinstance(error, UserError) else hub.explain(error, self.repo, self.target)
            if not self._given_up:
                say(f"not pushed, the run is not affected ({reason}). Push later: {self._command(folder)}")
