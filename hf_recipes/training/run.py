"""A run of any stage: its settings, its model, its folder, the training itself, and the report."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_recipes.arguments import DataArguments, ModelArguments, RunArguments
from hf_recipes.data.ledger import LEDGER, Ledger, write_ledgers
from hf_recipes.errors import UserError, say
from hf_recipes.evaluation import report
from hf_recipes.evaluation.methods import Method
from hf_recipes.evaluation.suite import EvaluationArguments
from hf_recipes.models.loading import load_config, load_tokenizer
from hf_recipes.parsing import Parser
from hf_recipes.processes import leave_process_group
from hf_recipes.training.evaluation import evaluated_with, largest_passes
from hf_recipes.training.faults import Stopped, is_of_disk
from hf_recipes.training.folder import check_agreement, check_output_dir, enter_output_dir, on_main_process
from hf_recipes.training.memory import PeakMemory, describe
from hf_recipes.training.model import build_model, check_settings
from hf_recipes.training.model_card import model_card
from hf_recipes.training.plan import Figures, make_plan
from hf_recipes.training.public import NAMES, hub_names
from hf_recipes.training.publishing import Publisher
from hf_recipes.training.reference import build_reference
from hf_recipes.training.trackers import add_trackers

GO_ON = "go on with --resume_from_checkpoint true"


class Run:
    """What every stage does alike; a script calls the methods in their order, with the stage's own steps between them.

    Raises:
        UserError: from each method, what in the settings, the data or the model cannot be.

    Args:
        arguments: the stage's dataclass.
        data, model: of the data and the model, where they are not those of `DataArguments` and `ModelArguments`.
    """

    def __init__(self, arguments: type[RunArguments], data: type = DataArguments, model: type = ModelArguments):
        self.parser = Parser([model, data, arguments, EvaluationArguments])
        self.model_args, self.data, self.args, self.evaluation = self.parser.parse()
        check_settings(self.model_args, self.args)
        starts_from = self.model_args.model_name_or_path, self.model_args.peft_path
        on_main_process(self.args, check_output_dir, self.args, *starts_from)
        self.source = {"trust_remote_code": self.args.trust_remote_code, "cache_dir": self.data.cache_dir}

    def open_model(self, read_config: Callable | None = None, **tokenizer: bool) -> None:
        """Read `config`, `tokenizer` and `added_tokens`, but no weight.

        Args:
            read_config: from the model's arguments and the tokenizer, where it is not `load_config`.
            tokenizer: for `load_tokenizer`.
        """
        model_args = self.model_args
        self.config = None if read_config else load_config(model_args, **self.source)
        template = getattr(self.args, "chat_template", None)
        how = {**tokenizer, "revision": model_args.model_revision, **self.source}
        self.tokenizer, self.added_tokens = load_tokenizer(model_args.tokenizer_source, template, **how)
        if read_config:
            self.config = read_config(model_args, self.tokenizer, **self.source)

    @property
    def evaluates(self) -> bool:
        """Whether there are files to evaluate on beside the validation rows."""
        return bool(self.evaluation.eval_files)

    def plan(self, figures: Figures, validation=None, methods: Mapping[str, Method] | None = None, **how: Any) -> bool:
        """Say what the run is going to do; whether it shall (a dry run shall not).

        Args:
            validation, methods: the rows whose loss is evaluated, and what else is.
            how: for `make_plan`.
        """
        self._figures = figures
        how["passes"] = largest_passes(self.args, validation, methods)
        plan = make_plan(
            self.model_args, self.args, self.config, self.tokenizer, self.added_tokens, figures=figures, **how
        )
        plan.show(whole=self.args.dry_run)
        self._memory = PeakMemory(plan.memory and plan.memory.peak)
        return not self.args.dry_run

    def build_model(self, **how: Any) -> PreTrainedModel:
        """The model with its adapter; `how` is for `build_model`."""
        cache_dir = self.data.cache_dir
        return build_model(self.model_args, self.args, self.tokenizer, self.added_tokens, cache_dir=cache_dir, **how)

    def build_reference(self, **how: Any) -> PreTrainedModel | None:
        """The frozen twin of a model without an adapter, else None; `how` is for `build_reference`."""
        return build_reference(self.model_args, self.args, self.tokenizer, cache_dir=self.data.cache_dir, **how)

    @property
    def goes_on(self) -> bool:
        """Whether the model's adapter was trained before."""
        return self.model_args.peft_path is not None

    @property
    def keeps_start(self) -> bool:
        """Whether the trained weights are kept as they were at the start too; see `reference`."""
        before = getattr(self.args, "precompute_ref_log_probs", False)
        return self.goes_on or not (self.model_args.use_lora or before)

    def enter(self, evaluates: bool) -> None:
        """Take the folder, and find the checkpoint to go on from; `evaluates` tells whether there is anything to."""
        self._checkpoint = on_main_process(self.args, enter_output_dir, self.args)
        found = self._figures
        check_agreement(self.args, self.parser, **{found.what: found.rows, "tokens": found.tokens})
        self.args.eval_on_start = self.args.eval_on_start and self._checkpoint is None and evaluates

    def train(self, trainer, ledgers: dict[str, Ledger]) -> None:
        """Train, evaluate, and leave the whole folder: weights, settings, ledger, metrics, curves, model card."""
        _train_and_finish(trainer, self.parser, ledgers, self._checkpoint, self._memory)


def _train_and_finish(
    trainer, parser: Parser, ledgers: dict[str, Ledger], checkpoint: str | None, memory: PeakMemory
) -> None:
    output_dir = Path(trainer.args.output_dir)
    names = hub_names(parser.settings)
    if trainer.is_world_process_zero():
        write_ledgers(output_dir / LEDGER, **ledgers)
        parser.save_settings(output_dir / "run_config.yaml")
        (output_dir / NAMES).write_text(json.dumps(names), encoding="utf-8")
        for name in ("metrics.json", "README.md"):  # of a run that goes on: they speak of its former end
            (output_dir / name).unlink(missing_ok=True)

    def card(folder: Path) -> str:
        state = trainer.state
        counts = {name: ledger.to_dict() for name, ledger in ledgers.items()}
        return model_card(folder, parser.settings, names, counts, state.log_history, state.global_step)

    publisher = Publisher(trainer.args) if trainer.args.push_to_hub else None
    if publisher:
        trainer.add_callback(publisher)
    trackers = add_trackers(trainer, parser)
    with trainer.attended():
        memory.start()
        result = trainer.train(resume_from_checkpoint=checkpoint)
        if not trainer.stopped_by:
            settings = evaluated_with(trainer, parser.settings)
            train = _trained(trainer, result.metrics["train_runtime"])
            with suppress(Stopped):
                _finish_or_say(trainer, card, ledgers, train, memory, trackers, settings)
    if trainer.stopped_by:
        again = "" if checkpoint else " (leave out --overwrite_output_dir)" * trainer.args.overwrite_output_dir
        place = f"after step {trainer.state.global_step} of {trainer.state.max_steps}"
        say(
            f"stopped by {trainer.stopped_by} {place}; go on with the same command and --resume_from_checkpoint "
            f"true{again}"
        )
        if publisher and trainer.is_world_process_zero():
            leave_process_group()
            publisher.push_last(trainer.state.global_step)
        return
    if publisher and trainer.is_world_process_zero():
        leave_process_group()  # a long upload must not let the other processes' barrier run out of time
        publisher.finish()


def _trained(trainer, seconds: float) -> dict:
    """Say how the training went; its figures for metrics.json."""
    state, first, loss = trainer.state, trainer.first_step, report.mean_loss(trainer.state.log_history)
    mean = "" if loss is None else f", mean training loss {loss:.4f}"
    rewards = [entry["reward"] for entry in state.log_history if entry.get("reward") is not None]
    if rewards:  # the loss is about 0 throughout
        mean = f", mean reward {rewards[0]:.4f} at first and {rewards[-1]:.4f} at last"
    if state.global_step > first:
        minutes, rest = divmod(round(seconds), 60)
        since = f" from step {first}" if first else ""
        say(f"trained{since} to step {state.global_step} in {minutes}:{rest:02d}{mean}")
    else:
        say(f"all {state.global_step} steps were trained before{mean}")
    figures = {"loss": loss, "tokens": state.num_input_tokens_seen, "epoch": state.epoch}
    return {**figures, "from_step": first, "seconds": round(seconds, 1), **trainer.figures()}


def _finish_or_say(trainer, *results) -> None:
    try:
        _finish(trainer, *results)
    except Exception as error:
        if not is_of_disk(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{trainer.args.output_dir}: the results could not be written ({reason}); the checkpoints are whole. Make "
            "room, then --resume_from_checkpoint true writes the rest without training again"
        ) from None


def _finish(
    trainer,
    card: Callable[[Path], str],
    ledgers: dict[str, Ledger],
    train: dict,
    memory: PeakMemory,
    trackers,
    settings: dict,
) -> None:
    output_dir, state = Path(trainer.args.output_dir), trainer.state
    if trainer.eval_dataset is not None and (
        state.global_step not in report.evaluations(state.log_history) or trainer.args.load_best_model_at_end
    ):
        trainer.evaluate()
    taken = memory.read()  # the last evaluation counts
    if line := describe(taken):
        say(line)
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    write_ledgers(output_dir / LEDGER, **ledgers)  # of a stream, known only now
    report.draw_curves(state.log_history, output_dir / "curves.png")
    by_step = report.evaluations(state.log_history)
    before, after = by_step.get(0) if state.global_step else None, by_step.get(state.global_step)
    trackers.finish(state.global_step, report.comparison(before, after) if after else None)
    metrics = {"steps": state.global_step, "train": train, "memory": taken, "before": before, "after": after}
    metrics["settings"] = settings
    (output_dir / "README.md").write_text(card(output_dir), encoding="utf-8")
    partial = output_dir / "metrics.json.partial"
    partial.write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    os.replace(partial, output_dir / "metrics.json")  # the last, for whoever waits for the run's end
    _print_report(output_dir, state.global_step, before, after)


def _print_report(output_dir: Path, step: int, before: dict | None, after: dict | None) -> None:
    if after:
        say(f"\n{report.comparison(before, after)}\n")
        for last in sorted((output_dir / "predictions").rglob(f"step-{step}.jsonl")):
            answers, first = report.read_predictions(last), last.with_name("step-0.jsonl")
            if answers and "prediction" in answers[0]:
                say(report.samples(report.read_predictions(first) if before and first.is_file() else None, answers))
                break
    weights = "adapter" if (output_dir / "adapter_config.json").is_file() else "model"
    say(f"In {output_dir}:")
    for name, what in (
        (".", f"the {weights} and the tokenizer"),
        ("run_config.yaml", "the settings; --config with this file repeats the run"),
        (LEDGER, "what became of every row"),
        ("metrics.json", "all figures"),
        ("curves.png", "loss and scores over the steps"),
        ("predictions", "every answer or score of every evaluation; of pairs also a histogram"),
        ("samples", "the newest answers at each log, with what they are worth"),
        ("README.md", "the model card"),
        ("swanlog", "swanlab's runs; `swanlab watch` with this folder shows them"),
        ("wandb", "wandb's runs; `wandb sync` uploads one"),
        ("tensorboard", "event files; `tensorboard --logdir` with this folder shows them"),
    ):
        if (output_dir / name).exists():
            say(f"  {name.ljust(17)} {what}")
