"""A run's result on its way to a hub: a callback that pushes without ever failing the run."""

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
from hf_recipes.hub import upload as uploading
from hf_recipes.publishing.collect_files import STAGING, Address, staged

PATIENCE = 120.0  # seconds that a stopped run gives to the push of its last checkpoint
# In the repository, what an earlier push may have left that would be loaded in place of this one's or beside it.
REPLACED = (
    r"(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    r"adapter_config\.json|(generation_)?config\.json|additional_chat_templates/.*",
)


def push_command(folder: str | os.PathLike, repo: str, target: str, *, private: bool, revision: str | None) -> str:
    """What pushes the folder later."""
    parts = ["python", "scripts/push.py", "--folder", str(folder), "--hub_model_id", repo]
    parts += ["--target", target] if target != "hf" else []
    parts += ["--private", "false"] if not private else []
    parts += ["--revision", revision] if revision else []
    return shlex.join(parts)


class Publisher(TrainerCallback):
    """Pushes a run to a hub at its end and, with another `hub_strategy` than ``end``, after each save.

    Saves are pushed by a thread while training goes on; one that comes while another is on its way is left out, or with
    `hub_always_push` waits its turn. ``checkpoint`` and ``all_checkpoints`` push the optimizer's state too, so that the
    run can go on elsewhere. Whatever goes wrong is one line with the command that pushes later; only the main process
    does anything.
    """

    def __init__(self, args):
        self.run, self.repo, self.target = Path(args.output_dir), args.hub_model_id, args.hub_target
        self.address = Address(self.repo, self.target)
        self.private, self.revision = args.hub_private_repo is not False, args.hub_revision
        self.strategy, self.always = str(getattr(args.hub_strategy, "value", args.hub_strategy)), args.hub_always_push
        self._url: str | None = None
        self._jobs: SimpleQueue[tuple[Callable[[], object], Path, Event]] = SimpleQueue()
        self._over = Event()  # that of the last job
        self._over.set()
        self._step = 0  # the last that was not left out
        self._given_up = False

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            remove_abandoned(self.run / STAGING)
            # A daemon: a run that is interrupted does not wait for it.
            Thread(target=self._work, name="push", daemon=True).start()
            self._hand_on(self._ensure, self.run)

    def on_save(self, args, state, control, **kwargs):
        step = state.global_step
        checkpoint = self._checkpoint(step)
        if not state.is_world_process_zero or self.strategy == "end" or not checkpoint.is_dir():
            return
        if self._over.is_set() or self.always:
            self._push_step(step)
        else:
            say(f"step {step} is not pushed: an earlier push is still on its way")

    def push_last(self, step: int) -> None:
        """Have the push of a stopped run's last checkpoint end, within `PATIENCE`.

        To be called when the other processes need nothing more of this one.
        """
        checkpoint = self._checkpoint(step)
        if self.strategy == "end" or not checkpoint.is_dir():
            return
        if step != self._step:
            self._push_step(step)
        if not self._over.is_set():
            say(f"pushing {checkpoint.name}, for {PATIENCE:g} seconds at the most")
        if not self._over.wait(PATIENCE):
            self._given_up = True
            say(f"{checkpoint.name} is not pushed after {PATIENCE:g} seconds. Push later: {self._command(checkpoint)}")

    def finish(self) -> None:
        """Push the finished run; to be called when the other processes need nothing more of this one."""
        self._over.wait()
        say(f"pushing to {hub.NAMES[self.target]}")
        with self._reported(self.run), staged(self.run, self.address) as folder:
            say(f"pushed: {self._upload(folder, 'End of training')}")

    def _checkpoint(self, step: int) -> Path:
        return self.run / f"checkpoint-{step}"

    def _push_step(self, step: int) -> None:
        """Stage a checkpoint, which training may delete, and hand the rest on to the thread."""
        checkpoint, self._step = self._checkpoint(step), step
        state_as = {"checkpoint": "last-checkpoint", "all_checkpoints": checkpoint.name}.get(self.strategy)
        with self._reported(checkpoint), ExitStack() as stack:
            folder = stack.enter_context(staged(checkpoint, self.address, state_as=state_as))
            staging = stack.pop_all()

            def push() -> None:
                with staging:
                    say(f"step {step} pushed: {self._upload(folder, f'Step {step}')}")

            self._hand_on(push, checkpoint)

    def _ensure(self) -> str:
        self._url = self._url or uploading.ensure_repository(self.repo, self.target, private=self.private)
        return self._url

    def _upload(self, folder: Path, message: str) -> str:
        url = self._ensure()
        uploading.upload(folder, self.repo, self.target, replaces=REPLACED, revision=self.revision, message=message)
        return url

    def _hand_on(self, job: Callable[[], object], folder: Path) -> None:
        self._over = Event()
        self._jobs.put((job, folder, self._over))

    def _work(self) -> None:
        while True:
            job, folder, over = self._jobs.get()
            if self._given_up:
                return
            with self._reported(folder):
                job()
            over.set()

    def _command(self, folder: Path) -> str:
        return push_command(folder, self.repo, self.target, private=self.private, revision=self.revision)

    @contextmanager
    def _reported(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # nothing of a hub is worth a run
            reason = str(error) if isinstance(error, UserError) else hub.explain(error, self.repo, self.target)
            if not self._given_up:
                say(f"not pushed, the run is not affected ({reason}). Push later: {self._command(folder)}")
