"""A run's result on its way to a hub: which files go, and a callback that pushes without ever failing the run."""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from transformers import TrainerCallback

from hf_recipes import hub
from hf_recipes.errors import UserError, say
from hf_recipes.training.checkpoints import MANIFEST, write_manifest
from hf_recipes.training.model_card import public_ledger, public_settings, public_values

STAGING = ".publishing-"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json", "generation_config.json")
TOKENIZER = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("*.tiktoken", "*.jinja", "processor_config.json", "preprocessor_config.json"),
    *("configuration_*.py", "modeling_*.py", "tokenization_*.py"),
)
RESULTS = ("README.md", "run_config.yaml", "data_ledger.json", "metrics.json", "curves.png")
CONFIGURATIONS = ("adapter_config.json", "config.json", "generation_config.json", "tokenizer_config.json")
NEVER = ("training_args.bin", "README.md")  # of a checkpoint: a pickle of settings, and PEFT's own card
_TEXT = {".json", ".yaml", ".md", ".jinja", ".py", ".txt"}


@contextmanager
def staged(
    run: Path, repo: str, *, weights: Path | None = None, card: str | None = None, state_as: str | None = None
) -> Iterator[Path]:
    """A folder beside the run's files with what is to be published and nothing else.

    Weights, tokenizer, model card, settings, ledger, metrics and curves; never predictions, logs or pickles. Paths in
    settings and configurations become names. Large files are linked, not copied.

    Args:
        weights: the folder that the weights and tokenizer are taken from, a checkpoint, if not the run's.
        card: the model card's text, if not the run's README.md.
        state_as: put all of `weights`, optimizer included, in a subfolder of this name as well.

    Raises:
        UserError: no weights, or a token in a file.
    """
    weights = weights or run
    if not any(weights.glob("*.safetensors")):
        raise UserError(f"{weights}: no weights (*.safetensors) in it, so no run's result to publish")
    place = run if os.access(run, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=STAGING, dir=place) as name:
        target = Path(name)
        for pattern in (*WEIGHTS, *TOKENIZER):
            for path in weights.glob(pattern):
                _stage(path, target / path.name)
        if (run / "run_config.yaml").is_file():  # else README.md is not ours
            for path in (run / name for name in RESULTS):
                if path.is_file():
                    _stage(path, target / path.name)
            if card is not None:
                (target / "README.md").write_text(card, encoding="utf-8")
            readme = target / "README.md"
            if readme.is_file():
                text = readme.read_text(encoding="utf-8").replace('"FOLDER"', json.dumps(repo))
                readme.write_text(text, encoding="utf-8")
        if state_as:
            for path in weights.rglob("*"):
                if path.is_file() and path.name not in NEVER:
                    _stage(path, target / state_as / path.relative_to(weights))
            manifest = target / state_as / MANIFEST
            if manifest.is_file():  # some files have another size now
                world_size = json.loads(manifest.read_text(encoding="utf-8"))["world_size"]
                manifest.unlink()
                write_manifest(target / state_as, world_size)
        secrets = hub.secrets()
        for path in target.rglob("*"):
            if path.suffix in _TEXT and any(secret in path.read_text(encoding="utf-8") for secret in secrets):
                raise UserError(f"{run / path.relative_to(target)}: the token stands in it; take it out to publish")
        yield target


def _stage(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    rewrite: Callable[[str], str] | None = None
    if path.name == "run_config.yaml":
        rewrite = public_settings
    elif path.name == "data_ledger.json":
        rewrite = _in_json(public_ledger)
    elif path.name in (*CONFIGURATIONS, "trainer_state.json"):
        rewrite = _in_json(public_values)
    if rewrite:
        target.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")
    elif path.name == "README.md":
        shutil.copyfile(path, target)
    else:
        try:
            os.link(path, target)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(path, target)


def _in_json(change: Callable[[dict], dict]) -> Callable[[str], str]:
    return lambda text: json.dumps(change(json.loads(text)), ensure_ascii=False, indent=2) + "\n"


def push_command(run: str | os.PathLike, repo: str, target: str, *, private: bool, revision: str | None) -> str:
    """What pushes the folder later."""
    parts = ["python", "scripts/push.py", "--folder", str(run), "--hub_model_id", repo]
    parts += ["--target", target] if target != "hf" else []
    parts += ["--private", "false"] if not private else []
    parts += ["--revision", revision] if revision else []
    return shlex.join(parts)


class Publisher(TrainerCallback):
    """Pushes a run to a hub at its end and, with another `hub_strategy` than ``end``, after each save.

    Saves are pushed by a thread while training goes on; one that comes while another is on its way is left out, unless
    `hub_always_push`. ``checkpoint`` and ``all_checkpoints`` push the optimizer's state too, so that the run can go on
    elsewhere. Whatever goes wrong is one line with the command that pushes later; only the main process does anything.

    Args:
        card: the model card of a folder with weights, at this moment.
    """

    def __init__(self, args, card: Callable[[Path], str]):
        self.run, self.repo, self.target = Path(args.output_dir), args.hub_model_id, args.hub_target
        self.private, self.revision = args.hub_private_repo is not False, args.hub_revision
        self.strategy, self.always = str(getattr(args.hub_strategy, "value", args.hub_strategy)), args.hub_always_push
        self.card = card
        self._thread: Thread | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            for rest in self.run.glob(f"{STAGING}*"):
                shutil.rmtree(rest, ignore_errors=True)
            self._in_background(self._ensure)

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or self.strategy == "end":
            return
        if self._thread is not None and self._thread.is_alive() and not self.always:
            say(f"step {state.global_step} is not pushed: an earlier push is still on its way")
            return
        self._wait()
        step = state.global_step
        checkpoint = self.run / f"checkpoint-{step}"
        state_as = {"checkpoint": "last-checkpoint", "all_checkpoints": checkpoint.name}.get(self.strategy)
        self._in_background(
            lambda folder: say(f"step {step} pushed: {self._upload(folder, f'Step {step}')}"),
            lambda: staged(self.run, self.repo, weights=checkpoint, card=self.card(checkpoint), state_as=state_as),
        )

    def finish(self) -> None:
        """Push the finished run; to be called when the other processes need nothing more of this one."""
        self._wait()
        say(f"pushing to {hub.NAMES[self.target]}")
        with self._reported(), staged(self.run, self.repo) as folder:
            say(f"pushed: {self._upload(folder, 'End of training')}")

    def _ensure(self) -> str:
        return hub.ensure_repository(self.repo, self.target, private=self.private)

    def _upload(self, folder: Path, message: str) -> str:
        url = self._ensure()
        hub.upload(folder, self.repo, self.target, revision=self.revision, message=message)
        return url

    def _in_background(self, work: Callable, staging: Callable | None = None) -> None:
        """Run `work` in a thread, on a staged folder if there is one: it is filled before training goes on."""
        with self._reported():
            manager = staging() if staging else None
            arguments = (manager.__enter__(),) if manager else ()

            def run() -> None:
                with self._reported():
                    try:
                        work(*arguments)
                    finally:
                        if manager:
                            manager.__exit__(None, None, None)

            # A daemon: a run that is interrupted does not wait for it.
            self._thread = Thread(target=run, name="push", daemon=True)
            self._thread.start()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # nothing of a hub is worth a run
            reason = str(error) if isinstance(error, UserError) else hub.explain(error, self.repo, self.target)
            later = push_command(self.run, self.repo, self.target, private=self.private, revision=self.revision)
            say(f"not pushed, the run is not affected ({reason}). Push later: {later}")
