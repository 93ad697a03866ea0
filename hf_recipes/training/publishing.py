"""A run's result on its way to a hub: which files go, and a callback that pushes without ever failing the run."""

import json
import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

import yaml
from transformers import TrainerCallback

from hf_recipes import hub
from hf_recipes.data.ledger import LEDGER
from hf_recipes.errors import UserError, say
from hf_recipes.processes import remove_abandoned
from hf_recipes.training.checkpoints import MANIFEST, write_manifest
from hf_recipes.training.model_card import NAMES, model_card, public_ledger, public_settings, public_values

T = TypeVar("T")
STAGING = ".publishing-"  # then the machine, the process and something of its own
PATIENCE = 120.0  # seconds that a stopped run gives to the push of its last checkpoint
SETTINGS = "run_config.yaml"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json", "generation_config.json")
TOKENIZER = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("*.tiktoken", "*.jinja", "additional_chat_templates/*.jinja", "*.py"),
    *("processor_config.json", "preprocessor_config.json"),
)
# In the repository, what an earlier push may have left that would be loaded in place of this one's or beside it.
REPLACED = (
    r"(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    r"adapter_config\.json|(generation_)?config\.json|additional_chat_templates/.*",
)
RESULTS_OF_CHECKPOINT = (SETTINGS, LEDGER, "curves.png")
RESULTS = ("README.md", *RESULTS_OF_CHECKPOINT, "metrics.json")
CONFIGURATIONS = ("adapter_config.json", "config.json", "generation_config.json", "tokenizer_config.json")
NEVER = ("training_args.bin", "README.md")  # of a checkpoint: a pickle of settings, and PEFT's own card
_TENSORS = {".safetensors", ".pt", ".pth", ".bin", ".png"}  # not searched for tokens


@contextmanager
def staged(folder: Path, repo: str, *, state_as: str | None = None) -> Iterator[Path]:
    """A folder beside the run's files with what is to be published and nothing else.

    Weights, tokenizer, model card, settings, ledger, metrics and curves; never predictions, logs or pickles. Paths in
    settings and configurations become names. Large files are linked, not copied.

    Args:
        folder: a run's, or that of one of its checkpoints: then the card is written for it.
        state_as: put all of the checkpoint, optimizer included, in a subfolder of this name as well.

    Raises:
        UserError: no weights, a damaged file, a full disk, or a token in a file.
    """
    parent = folder.resolve().parent
    is_checkpoint = (folder / "trainer_state.json").is_file() and (parent / SETTINGS).is_file()
    run = parent if is_checkpoint else folder
    if not any(folder.glob("*.safetensors")):
        newest = max(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, default=None)
        hint = f"; a checkpoint can be published too: --folder {newest}" if newest else ""
        raise UserError(f"{folder}: no weights (*.safetensors) in it, so no run's result to publish{hint}")
    place = run if os.access(run, os.W_OK) else Path(tempfile.gettempdir())
    remove_abandoned(place, STAGING)  # what a killed process left
    with ExitStack() as stack:
        try:
            prefix = f"{STAGING}{socket.gethostname()}-{os.getpid()}-"
            target = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=place)))
            _fill(target, folder, run, repo, state_as)
        except OSError as error:
            raise UserError(f"{error.filename or place}: {error.strerror}, so nothing is published") from None
        yield target


def _fill(target: Path, folder: Path, run: Path, repo: str, state_as: str | None) -> None:
    names = _read(run / NAMES, lambda text: dict(json.loads(text))) if (run / NAMES).is_file() else {}
    values = _in_json(partial(public_values, names=names))
    rewrites: dict[str, Callable[[str], str]] = {
        SETTINGS: partial(public_settings, names=names),
        LEDGER: _in_json(partial(public_ledger, names=names)),
        "README.md": lambda text: text.replace('"FOLDER"', json.dumps(repo)),
        **dict.fromkeys((*CONFIGURATIONS, "trainer_state.json"), values),
    }

    def stage(path: Path, name: Path | str) -> None:
        _stage(path, target / name, rewrites.get(path.name))

    for pattern in (*WEIGHTS, *TOKENIZER):
        for path in folder.glob(pattern):
            stage(path, path.relative_to(folder))
    if (run / SETTINGS).is_file():  # else README.md is not ours
        for path in (run / name for name in (RESULTS if run == folder else RESULTS_OF_CHECKPOINT)):
            if path.is_file():
                stage(path, path.name)
    if run != folder:
        settings, ledgers = _read(run / SETTINGS, yaml.safe_load), _read(run / LEDGER, json.loads)
        history, step = _read(folder / "trainer_state.json", _history)
        card = rewrites["README.md"](model_card(folder, settings, names, ledgers, history, step))
        (target / "README.md").write_text(card, encoding="utf-8")
    if state_as:
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in NEVER:
                stage(path, Path(state_as, path.relative_to(folder)))
        manifest = target / state_as / MANIFEST
        if manifest.is_file():  # some files have another size now
            world_size = _read(folder / MANIFEST, lambda text: json.loads(text)["world_size"])
            manifest.unlink()
            write_manifest(target / state_as, world_size)
    secrets = [secret.encode() for secret in hub.secrets()]
    for path in target.rglob("*"):
        if path.is_file() and path.suffix not in _TENSORS and any(secret in path.read_bytes() for secret in secrets):
            raise UserError(f"{run / path.relative_to(target)}: a token or key stands in it; take it out to publish")


def _stage(path: Path, target: Path, rewrite: Callable[[str], str] | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if rewrite:
        target.write_text(_read(path, rewrite), encoding="utf-8")
        return
    try:
        os.link(path, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(path, target)


def _in_json(change: Callable[[dict], dict]) -> Callable[[str], str]:
    return lambda text: json.dumps(change(json.loads(text)), ensure_ascii=False, indent=2) + "\n"


def _history(text: str) -> tuple[list[dict], int]:
    state = json.loads(text)
    return state["log_history"], state["global_step"]


def _read(path: Path, parse: Callable[[str], T]) -> T:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged, so nothing is published ({type(error).__name__}: {reason})") from None


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
            remove_abandoned(self.run, STAGING)
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
        with self._reported(self.run), staged(self.run, self.repo) as folder:
            say(f"pushed: {self._upload(folder, 'End of training')}")

    def _checkpoint(self, step: int) -> Path:
        return self.run / f"checkpoint-{step}"

    def _push_step(self, step: int) -> None:
        """Stage a checkpoint, which training may delete, and hand the rest on to the thread."""
        checkpoint, self._step = self._checkpoint(step), step
        state_as = {"checkpoint": "last-checkpoint", "all_checkpoints": checkpoint.name}.get(self.strategy)
        with self._reported(checkpoint), ExitStack() as stack:
            folder = stack.enter_context(staged(checkpoint, self.repo, state_as=state_as))
            staging = stack.pop_all()

            def push() -> None:
                with staging:
                    say(f"step {step} pushed: {self._upload(folder, f'Step {step}')}")

            self._hand_on(push, checkpoint)

    def _ensure(self) -> str:
        self._url = self._url or hub.ensure_repository(self.repo, self.target, private=self.private)
        return self._url

    def _upload(self, folder: Path, message: str) -> str:
        url = self._ensure()
        hub.upload(folder, self.repo, self.target, replaces=REPLACED, revision=self.revision, message=message)
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
