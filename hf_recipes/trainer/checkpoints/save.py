"""Saving checkpoints: whole or not at all, also where the disk is full."""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from hf_recipes.core.errors import say
from hf_recipes.core.files import disk_problem, share_weights, write_json
from hf_recipes.models.checks.saving import check_saved
from hf_recipes.trainer.checkpoints.find import newest_whole
from hf_recipes.trainer.checkpoints.whole import BEGUN_WITH, rotate, sync, write_manifest

SAVING = ".saving"  # folder in which a checkpoint, or the model at the end, is written before it is moved


class WholeCheckpoints:
    """Part of `RunMixin`, whose `_agree` and `_heartbeat` it uses: a checkpoint is moved into place once it is whole.

    A full disk leaves the former checkpoints and the run as they are. `begun_with`, if set, is kept in each checkpoint.
    `_base_settings` are those of the base's configuration that transformers changes for the training.
    """

    begun_with: Mapping[str, Any] | None = None
    _base_settings: Mapping[str, Any]
    _temporary_dir: str | None = None
    _held_problem: str | None = None

    def _determine_best_metric(self, metrics, trial):
        """Among the steps that are saved, which alone can be loaded; one without the metric is never the best."""
        if self.args.save_strategy != "best" and not self.control.should_save:
            return False
        metrics = {self.args.metric_for_best_model: float("nan")} | metrics
        return super()._determine_best_metric(metrics, trial)

    def _get_output_dir(self, trial):
        return self._temporary_dir or super()._get_output_dir(trial)

    def _save(self, output_dir=None, state_dict=None):
        # DeepSpeed gives a copy in which tied weights are two tensors, one of them as large as the vocabulary too many.
        for name, same in getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", {}).items():
            if state_dict is not None and name in state_dict and same in state_dict:
                state_dict = {key: value for key, value in state_dict.items() if key != name}
        # training_args.bin is a pickle of all arguments, the Hub token among them; run_config.yaml says the same.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            with patch.dict(vars(self.accelerator.unwrap_model(self.model).config), self._base_settings):
                super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        folder = Path(output_dir or self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)
        if self.args.should_save:
            check_saved(self.accelerator.unwrap_model(self.model), folder, state_dict)
            share_weights(folder)

    def _save_optimizer_and_scheduler(self, output_dir):
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save = partial(self.deepspeed.save_checkpoint, save_latest=False)
        # DeepSpeed writes `latest` itself before a barrier, to which a process whose disk is full would not come.
        with patch.object(self.deepspeed, "save_checkpoint", save):
            super()._save_optimizer_and_scheduler(output_dir)
        if self.is_world_process_zero():
            Path(output_dir, "latest").write_text(f"global_step{self.deepspeed.global_steps}", encoding="utf-8")

    def _save_checkpoint(self, model, trial):
        start = time.monotonic()
        self._count_tokens()
        output_dir = Path(self.args.output_dir)
        temporary = output_dir / SAVING
        name = f"checkpoint-{self.state.global_step}"
        problem = None
        if self.args.should_save:
            shutil.rmtree(temporary, ignore_errors=True)
            problem = self._disk_problem(lambda: (temporary / name).mkdir(parents=True))
        [failed] = self._agree(problem is not None)
        if not failed:
            problem = self._write_checkpoint(model, trial, temporary / name)
            [failed] = self._agree(problem is not None)
        if failed:
            self._report_unsaved(name, problem)
        elif self.args.should_save:
            shutil.rmtree(output_dir / name, ignore_errors=True)
            os.replace(temporary / name, output_dir / name)
            sync(output_dir, files=False)
            rotate(output_dir, self.state.global_step, self.args.save_total_limit, self.state.best_model_checkpoint)
        if self.args.should_save:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._heartbeat()
        self._paused += time.monotonic() - start

    def _write_checkpoint(self, model, trial, folder: Path) -> str | None:
        """Write a whole checkpoint to `folder`, on all processes; what kept this one from it."""
        output_dir = Path(self.args.output_dir)
        self._temporary_dir = str(folder.parent)
        # transformers looks for the best checkpoint in the folder that it writes to, behind a barrier that a process
        # whose disk is full would not reach.
        best, self.state.best_global_step = self.state.best_global_step, None
        with self._writes_held():
            problem = self._disk_problem(lambda: super(WholeCheckpoints, self)._save_checkpoint(model, trial))
        self._temporary_dir, self.state.best_global_step = None, best
        if best is not None and (best == self.state.global_step or (output_dir / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{best}")
        problem = problem or self._held_problem
        [failed] = self._agree(problem is not None)
        if not failed and self.args.should_save:
            problem = self._disk_problem(lambda: self._complete(folder))
        return problem

    def _complete(self, checkpoint: Path) -> None:
        write_json(checkpoint / "trainer_state.json", dataclasses.asdict(self.state))  # upstream writes NaN
        if self.begun_with:
            write_json(checkpoint / BEGUN_WITH, self.begun_with)
        write_manifest(checkpoint, self.args.world_size)
        sync(checkpoint)

    def _disk_problem(self, write: Callable[[], None]) -> str | None:
        """`write()`, and why it did not come to its end where the disk is the reason."""
        try:
            write()
        except Exception as error:
            problem = disk_problem(error)
            if problem is None:
                raise
            return problem
        return None

    @contextmanager
    def _writes_held(self) -> Iterator[None]:
        """While this lasts, DeepSpeed and FSDP note an error of the disk in `_held_problem` and do not raise it.

        They have barriers between their files, and a process that left would keep the others waiting.
        """
        self._held_problem = None
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            yield
            return

        def held(write: Callable) -> Callable:
            def write_or_note(*args, **kwargs):
                problem = self._disk_problem(lambda: write(*args, **kwargs))
                self._held_problem = self._held_problem or problem

            return write_or_note

        owners = [(torch, "save"), (self, "_save")]
        if self.is_deepspeed_enabled:
            owners.append((self.deepspeed, "_copy_recovery_script"))
        with ExitStack() as patches:
            for owner, name in owners:
                patches.enter_context(patch.object(owner, name, held(getattr(owner, name))))
            yield

    def _report_unsaved(self, name: str, problem: str | None) -> None:
        folder = Path(self.args.output_dir)
        free = shutil.disk_usage(folder).free / 1e6
        reason = problem or "another process could not write"
        earlier = newest_whole(folder)
        kept = f"{earlier.name} is whole as before" if earlier else "There is no earlier one"
        say(f"{name} could not be written to {folder} ({reason}; {free:,.0f} MB free). {kept}; training continues")
