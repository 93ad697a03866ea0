"""The skeleton that all stages share: output folder, checkpoints that are whole or absent, resuming, and the report."""

import json
import os
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers.trainer_utils import rotate_checkpoints

from hf_recipes.data.ledger import Ledger, write_ledgers
from hf_recipes.errors import UserError, say
from hf_recipes.evaluation import report
from hf_recipes.parsing import Parser
from hf_recipes.training.callbacks import prediction_path
from hf_recipes.training.checkpoints import sync
from hf_recipes.training.memory import PeakMemory, describe
from hf_recipes.training.trackers import STATE as TRACKERS
from hf_recipes.training.trackers import add_trackers

STAGING = ".saving"
RESULTS = (
    "run_config.yaml",
    "data_ledger.json",
    "metrics.json",
    "curves.png",
    "predictions",
    "tensorboard",
    TRACKERS,
    STAGING,
)


def check_output_dir(output_dir: str, *, overwrite: bool, resumes: bool) -> None:
    """Refuse a folder that holds something unless a flag said what to do with it; nothing is changed yet.

    Raises:
        UserError: the folder is not empty, or is a file.
    """
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path}: this is a file")
    if path.is_dir() and any(path.iterdir()) and not overwrite and not resumes:
        raise UserError(
            f"--output_dir {path}: the folder is not empty; go on with --resume_from_checkpoint true, start over with "
            "--overwrite_output_dir, or choose another folder"
        )


def prepare_output_dir(output_dir: str, *, overwrite: bool) -> None:
    """Create the folder; with `overwrite`, delete a former run's checkpoints and results, and nothing else.

    Raises:
        UserError: the folder cannot be created.
    """
    path = Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {path}: cannot be created ({error.strerror})") from None
    if overwrite:
        checkpoints = [p for p in path.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
        for target in (*(path / name for name in RESULTS), *checkpoints):
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)


def supervised_losses(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Cross-entropy of the labelled tokens, with logits made only where a label is.

    Args:
        inputs: `input_ids`, `labels` (B, T), unshifted, and what else the model takes.

    Returns:
        Three (B,) tensors: summed loss in nats, number of labelled tokens, and how many had the highest logit.
    """
    # Where no row of the batch has a label, the head's output (vocabulary × hidden per token) would go unused.
    positions = (inputs["labels"][:, 1:] != -100).any(0).nonzero().flatten()
    if positions.numel() == 0:
        positions = positions.new_zeros(1)
    return losses_at(positions, model, inputs)


def losses_at(positions: torch.Tensor, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple:
    """`supervised_losses` where `positions` (N,) are those before which some row has a label."""
    rest = {key: value for key, value in inputs.items() if key != "labels"}
    targets = inputs["labels"][:, 1:]
    logits = model(**rest, logits_to_keep=positions, use_cache=False).logits
    if logits.shape[1] != len(positions):  # a model that takes no logits_to_keep
        logits = logits[:, positions]
    targets = targets[:, positions]
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
    labelled = targets != -100
    # Comparing with the maximum takes a quarter of the time of argmax on a CPU, in bfloat16 a seventeenth.
    scores = logits.detach()
    hits = (scores.amax(-1) == scores.gather(-1, targets.clamp(min=0)[..., None])[..., 0]) & labelled
    return losses.view_as(targets).sum(1), labelled.sum(1), hits.sum(1)


class RunMixin:
    """What our trainers add to transformers' and TRL's: put it before them in the bases.

    Checkpoints appear whole or not at all. `tokens_per_second` (all devices; padding not counted; without the time
    of evaluations and saves) is logged with each loss, and the tokens seen are part of the checkpoint.
    """

    _staging: str | None = None
    model_card: str | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._new_tokens = self._unlogged_tokens = 0
        # When the running interval of the log began, and how much of it went into evaluations and saves.
        self._clock, self._paused, self._logged_step = time.monotonic(), 0.0, 0

    def train(self, *args, **kwargs):
        self._clock = time.monotonic()
        return super().train(*args, **kwargs)

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine that the user did not ask for."""

    def create_model_card(self, *args, **kwargs) -> None:
        """TRL's callers expect this; ours is written once, by `finish`."""

    def training_step(self, model, inputs, *args, **kwargs):
        mask = inputs.get("attention_mask")
        self._new_tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        return super().training_step(model, inputs, *args, **kwargs)

    def _count_tokens(self) -> None:
        """Add the tokens of all processes since the last call to the state."""
        count = torch.tensor(self._new_tokens, device=self.args.device)
        count = int(self.accelerator.reduce(count, "sum"))
        self.state.num_input_tokens_seen += count
        self._unlogged_tokens += count
        self._new_tokens = 0

    def log(self, logs, start_time=None):
        if "loss" in logs:
            self._count_tokens()
            now, step = time.monotonic(), self.state.global_step
            seconds = max(1e-9, now - self._clock - self._paused)
            logs["tokens_per_second"] = round(self._unlogged_tokens / seconds, 1)
            logs["num_tokens"] = self.state.num_input_tokens_seen
            logs["seconds_left"] = round(seconds / max(1, step - self._logged_step) * (self.state.max_steps - step))
            self._clock, self._paused, self._unlogged_tokens, self._logged_step = now, 0.0, 0, step
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs):
        start = time.monotonic()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._paused += time.monotonic() - start

    def _get_output_dir(self, trial):
        return self._staging or super()._get_output_dir(trial)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        # A pickle of all arguments, the Hub token among them; run_config.yaml says the same without it.
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    def _save_checkpoint(self, model, trial):
        start = time.monotonic()
        self._count_tokens()
        output_dir = Path(self.args.output_dir)
        staging = output_dir / STAGING
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == str(staging / name):
            self.state.best_model_checkpoint = str(output_dir / name)
        if self.args.should_save:
            self.state.save_to_json(str(staging / name / "trainer_state.json"))
            sync(staging / name)
            shutil.rmtree(output_dir / name, ignore_errors=True)
            os.replace(staging / name, output_dir / name)
            shutil.rmtree(staging, ignore_errors=True)
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(output_dir), self.args.save_total_limit, best, use_mtime=False)
        self.accelerator.wait_for_everyone()
        self._paused += time.monotonic() - start


def train_and_finish(
    trainer, parser: Parser, ledgers: dict[str, Ledger], checkpoint: str | None, memory: PeakMemory
) -> None:
    """Train, evaluate, and leave the whole folder: weights, settings, ledger, metrics, curves, model card."""
    output_dir = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        write_ledgers(output_dir / "data_ledger.json", **ledgers)
        parser.save_settings(output_dir / "run_config.yaml")
    trackers = add_trackers(trainer, parser)
    memory.start()
    result = trainer.train(resume_from_checkpoint=checkpoint)
    taken = memory.read()
    state = trainer.state
    minutes, seconds = divmod(round(result.metrics["train_runtime"]), 60)
    say(
        f"trained to step {state.global_step} in {minutes}:{seconds:02d}, mean training loss {result.training_loss:.4f}"
    )
    if line := describe(taken):
        say(line)
    if trainer.eval_dataset is not None and (
        state.global_step not in report.evaluations(state.log_history) or trainer.args.load_best_model_at_end
    ):
        trainer.evaluate()
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    report.draw_curves(state.log_history, output_dir / "curves.png")
    trackers.finish(state.global_step)
    by_step = report.evaluations(state.log_history)
    before, after = by_step.get(0) if state.global_step else None, by_step.get(state.global_step)
    train = {key.removeprefix("train_"): value for key, value in result.metrics.items()}
    train["tokens"] = state.num_input_tokens_seen
    metrics = {"steps": state.global_step, "train": train, "memory": taken, "before": before, "after": after}
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    (output_dir / "README.md").write_text(_model_card(trainer, parser, ledgers, before, after), encoding="utf-8")
    _print_report(output_dir, state.global_step, before, after)


def _print_report(output_dir: Path, step: int, before: dict | None, after: dict | None) -> None:
    if after:
        say(f"\n{report.comparison(before, after)}\n")
        last, first = prediction_path(output_dir, step), prediction_path(output_dir, 0)
        if os.path.isfile(last):
            old = report.read_predictions(first) if before and os.path.isfile(first) else None
            say(report.samples(old, report.read_predictions(last)))
    weights = "adapter" if (output_dir / "adapter_config.json").is_file() else "model"
    say(f"In {output_dir}:")
    for name, what in (
        (".", f"the {weights} and the tokenizer"),
        ("run_config.yaml", "the settings; --config with this file repeats the run"),
        ("data_ledger.json", "what became of every row"),
        ("metrics.json", "all figures"),
        ("curves.png", "loss and scores over the steps"),
        ("predictions", "every answer of every evaluation"),
        ("README.md", "the model card"),
        ("swanlog", "swanlab's runs; `swanlab watch` with this folder shows them"),
        ("wandb", "wandb's runs; `wandb sync` uploads one"),
        ("tensorboard", "event files; `tensorboard --logdir` with this folder shows them"),
    ):
        if (output_dir / name).exists():
            say(f"  {name.ljust(17)} {what}")


def _model_card(trainer, parser: Parser, ledgers: dict[str, Ledger], before: dict | None, after: dict | None) -> str:
    settings, base = parser.settings, parser.settings["model_name_or_path"]
    is_adapter = (Path(trainer.args.output_dir) / "adapter_config.json").is_file()
    header = ["---", "library_name: " + ("peft" if is_adapter else "transformers"), "language: zh"]
    header += [f"base_model: {base}"] if not os.path.isdir(base) else []
    header += ["pipeline_tag: text-generation", "tags: [hf_recipes, " + ("lora" if is_adapter else "sft") + "]", "---"]
    rows = {name: ledger.totals["kept"] for name, ledger in ledgers.items()}
    load = (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")\n'
        if is_adapter
        else "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
    )
    lines = [
        *header,
        f"\n# {Path(trainer.args.output_dir).resolve().name}\n",
        f"{'LoRA adapter of' if is_adapter else 'Fine-tuned from'} `{base}`, trained with hf_recipes: "
        f"{trainer.state.global_step} steps on {rows.get('train', 0):,} rows of "
        f"{', '.join(map(str, settings['train_file']))}.\n",
        "```python",
        load + 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        "```\n",
    ]
    if after:
        held_out = rows.get("validation")
        lines += [f"On {held_out:,} held-out rows:\n" if held_out else "Evaluation:\n"]
        lines += ["```", report.comparison(before, after), "```\n"]
    lines.append("`run_config.yaml` has every setting, `data_ledger.json` what became of every row.")
    return "\n".join(lines) + "\n"
