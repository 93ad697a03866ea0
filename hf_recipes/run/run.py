"""A run of any stage: its settings, its model, its folder, the training itself, and the report."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from hf_recipes.core.distributed import leave_process_group
from hf_recipes.core.errors import say
from hf_recipes.core.files import write_json, writing
from hf_recipes.core.folders import OutputFolder, held
from hf_recipes.core.ledger import LEDGER, Ledger, write_ledgers
from hf_recipes.core.settings import Parser, at_end
from hf_recipes.data.arguments import DataArguments
from hf_recipes.dry_run.peak_memory import PeakMemory
from hf_recipes.dry_run.plan import Figures, make_plan
from hf_recipes.evaluation.method import Method
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.models.loading import load_config
from hf_recipes.models.tokenizer import load_tokenizer
from hf_recipes.publishing.model_card import model_card
from hf_recipes.publishing.push_callback import Publisher
from hf_recipes.publishing.redact import NAMES, hub_names
from hf_recipes.run.arguments import ModelArguments, RunArguments
from hf_recipes.run.evaluate_callback import choose_best_by, evaluated_with, largest_passes
from hf_recipes.run.finish import _best, finish
from hf_recipes.run.model import balances_experts, build_model, build_reference, check_settings
from hf_recipes.run.output_dir import (
    CARD,
    ENDING,
    METRICS,
    SETTINGS,
    check_agreement,
    check_output_dir,
    check_sources,
    enter_output_dir,
    is_restart,
    on_main_process,
    open_folder,
)
from hf_recipes.run.resume import begun_with, compare_data, compare_settings, read_begun_with
from hf_recipes.trainer.checkpoints import find_checkpoint
from hf_recipes.trainer.failures import Stopped
from hf_recipes.trainer.trackers import add_trackers

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
        self._checkpoint = on_main_process(self.args, self._open_folder)
        self.source = {"trust_remote_code": self.args.trust_remote_code, "cache_dir": self.data.cache_dir}

    def _open_folder(self) -> str | None:
        """Hold the run's folder until the script ends; the checkpoint to go on from."""
        args, model_args = self.args, self.model_args
        self._folder = open_folder(args)
        check_sources(self._folder.path, model_args.model_name_or_path, model_args.peft_path)
        if not args.dry_run:
            at_end.enter_context(held(args.output_dir, ENDING if is_restart(self._folder) else 0))
            self._folder = open_folder(args)  # as whoever held it before has left it
        check_output_dir(self._folder, args, model_args.use_lora)
        checkpoint = find_checkpoint(
            args.output_dir,
            args.resume_from_checkpoint or ("true" if is_restart(self._folder) else None),
            world_size=args.world_size,
            inexact=args.inexact_resume,
            trust=args.trust_checkpoint,
        )
        self._begun_with = begun_with(self.parser, args)
        self._former = read_begun_with(checkpoint) if checkpoint else None
        if self._former:
            compare_settings(checkpoint, self._former, self._begun_with, args)
        return checkpoint

    def _compare_data(self, steps: int) -> None:
        found = self._figures
        data = {"what": found.what, "rows": found.rows, "tokens": found.tokens, "digest": found.digest}
        self._begun_with |= {"data": data, "steps": steps}
        if self._former:
            compare_data(self._checkpoint, self._former, self._begun_with, self.args)

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

    def plan(
        self,
        figures: Figures,
        methods: Mapping[str, Method],
        validation: Dataset | None = None,
        **how: Any,
    ) -> bool:
        """Say what the run is going to do; whether it shall (a dry run shall not).

        Args:
            methods: of its evaluations.
            validation: the rows that the trainer itself evaluates.
            how: for `make_plan`.
        """
        trainers_own = {} if validation is None else self.args.validation_metrics
        choose_best_by(self.args, self.parser.settings["greater_is_better"], methods, trainers_own)
        experts = balances_experts(self.args, self.config)
        self._figures = figures
        how["passes"] = largest_passes(self.args, validation, methods)
        plan = make_plan(
            self.model_args, self.args, self.config, self.tokenizer, self.added_tokens, figures=figures, **how
        )
        on_main_process(self.args, self._compare_data, plan.steps)
        batches = plan.accumulation * plan.processes
        if experts and batches > 1:
            plan.notes.append(
                "the use of a mixture's experts (--router_aux_loss_coef) is measured in each batch by itself: an "
                f"update of {batches} batches weighs it otherwise than one batch of all its rows"
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
        """Begin to write to the folder; `evaluates` tells whether there is anything to evaluate on."""
        on_main_process(self.args, self._enter_folder)
        found = self._figures
        check_agreement(self.args, self.parser, **{found.what: found.rows, "tokens": found.tokens})
        self.args.eval_on_start = self.args.eval_on_start and self._checkpoint is None and evaluates

    def _enter_folder(self) -> None:
        enter_output_dir(self._folder, self.args)
        at_end.callback(_settle, self._folder)

    def train(self, trainer, ledgers: dict[str, Ledger]) -> None:
        """Train, evaluate, and leave the whole folder: weights, settings, ledger, metrics, curves, model card."""
        folder = None
        if trainer.is_world_process_zero():
            folder, trainer.begun_with = self._folder, self._begun_with
        _train_and_finish(trainer, self.parser, ledgers, self._checkpoint, self._memory, folder)


def _settle(folder: OutputFolder) -> None:
    with suppress(OSError):  # the disk is full, and that was said; the claims stay
        folder.settle()


def _train_and_finish(
    trainer,
    parser: Parser,
    ledgers: dict[str, Ledger],
    checkpoint: str | None,
    memory: PeakMemory,
    folder: OutputFolder | None,
) -> None:
    output_dir = Path(trainer.args.output_dir)
    names = hub_names(parser.settings)
    on_main_process(trainer.args, _write_first, output_dir, parser, ledgers, names)

    def card(folder: Path) -> str:
        counts = {name: ledger.to_dict() for name, ledger in ledgers.items()}
        history, best = trainer.state.log_history, _best(trainer)
        step = best["step"] if best else trainer.state.global_step
        return model_card(folder, parser.settings, names, counts, history, step, best)

    publisher = Publisher(trainer.args) if trainer.args.push_to_hub else None
    if publisher:
        trainer.add_callback(publisher)
    trackers = add_trackers(trainer, parser)
    settings = evaluated_with(trainer, parser.settings)
    with trainer.attended():
        memory.start()
        result = trainer.train(resume_from_checkpoint=checkpoint)
        if not trainer.stopped_by:
            with suppress(Stopped):
                seconds = result.metrics["train_runtime"]
                finish(trainer, folder, card, ledgers, seconds, memory, trackers, settings)
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


def _write_first(output_dir: Path, parser: Parser, ledgers: dict[str, Ledger], names: dict) -> None:
    """What tells of a run before it has trained."""
    with writing(f"--output_dir {output_dir}"):
        write_ledgers(output_dir / LEDGER, **ledgers)
        parser.save_settings(output_dir / SETTINGS)
        write_json(output_dir / NAMES, names)
        for name in (METRICS, CARD):  # of a run that goes on: they speak of its former end
            (output_dir / name).unlink(missing_ok=True)
