"""Evaluation in the course of training: the same methods as afterwards, on validation rows and named files."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import write_jsonl
from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.evaluation.compare import few_shot_settings
from hf_recipes.evaluation.method import Method, Outcome, Record, first_not_finite, run_method, versions
from hf_recipes.evaluation.methods.generation import GenerationMethod
from hf_recipes.evaluation.registry import EvaluationArguments, build_methods, check_scored
from hf_recipes.evaluation.reports.tables import read_predictions
from hf_recipes.evaluation.run_record import rows_of
from hf_recipes.models.inference.batch_options import BatchOptions
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.rewards.weighted_sum import Rewards
from hf_recipes.run.early_stopping import EarlyStopping
from hf_recipes.trainer.reports.progress import (
    CurvesCallback,
    LogFile,
    RunProgress,
    prediction_path,
    warn_on_write_error,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_recipes.data.arguments import SourceArguments
    from hf_recipes.run.arguments import RunArguments


VALIDATION_LOSS = "validation/loss"  # name of the method that scores the validation rows where another answers them


def prompts_of(rows: "Dataset | None") -> list[Prompt] | None:
    """The prompts of tokenized rows, with their texts (see `ChatEncoder`)."""
    if rows is None:
        return None
    return [
        Prompt(
            row["location"],
            row["input_ids"][: row["prompt_length"]],
            row["question"],
            row["reference"],
            row["meta"],
            is_chat=True,
            messages=row["messages"][:-1],
        )
        for row in rows
        if row["following"] == 0
    ]


def build_evaluations(
    evaluation: EvaluationArguments,
    args: "RunArguments",
    data: "SourceArguments",
    config: "PretrainedConfig",
    tokenizer: "PreTrainedTokenizerBase",
    validation: Sequence[Prompt] | None,
    stop_ids: Sequence[int],
    rewards: Rewards | None = None,
) -> dict[str, Method]:
    """The methods of a run by name: that of the validation rows, which are answered, is empty.

    `rewards` are those of `evaluation`, where the run has made them already.
    """
    names = evaluation.eval_methods
    max_new_tokens = args.max_new_tokens or getattr(args, "max_target_length", None) or 256
    decoding = Decoding(max_new_tokens, max_thinking_tokens=args.max_thinking_tokens)
    if args.eval_temperature:
        decoding = replace(decoding, do_sample=True, temperature=args.eval_temperature)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if names and validation is None and not evaluation.eval_files:
        raise UserError("--eval_methods without rows to evaluate on: give --eval_files name=path or --validation_file")
    if makes_rewards := rewards is None and bool(evaluation.specs):
        rewards = Rewards(evaluation, args.trust_remote_code, data.cache_dir)
    methods: dict[str, Method] = {}
    scores = [name for name in names if name in GenerationMethod.forms["messages"]] if names else None
    if validation is not None and scores != []:
        if rewards:
            rewards.check(validation)
        methods[""] = GenerationMethod(validation, tokenizer, decoding, stop_ids, scores=scores, rewards=rewards)
    with args.main_process_first(local=True, desc="evaluation data"):
        context = {"max_length": limit, "max_drop_ratio": data.max_drop_ratio, "cache_dir": data.cache_dir}
        context |= {"rows": rows_of(args, data), "may_lack": True, "pair_flag": "--max_length"}
        methods |= build_methods(
            evaluation,
            tokenizer,
            decoding=decoding,
            served=scores or () if methods else (),
            rewards=rewards,
            **context,
        )
    if makes_rewards:
        check_scored(rewards, methods.values())
    return methods


def metric_name(name: str, key: str) -> str:
    """A metric as it is logged, after "eval_": with the name of its method, unless that is of the validation rows."""
    return key if name in ("", VALIDATION_LOSS) else f"{name}_{key}"


def choose_best_by(args: "RunArguments", greater_is_better: bool | None, methods: Mapping[str, Method]) -> None:
    """Set `args.metric_for_best_model` to a metric that the run's evaluations give, and which way it is better.

    Args:
        greater_is_better: as the user gave it; transformers fills `args` by the metric's name alone.
    """
    name = args.metric_for_best_model
    if name is None:
        return
    known = {
        metric_name(prefix, key): larger
        for prefix, method in methods.items()
        for key, larger in method.directions().items()
    }
    if not known or args.eval_strategy == "no":
        missing = "--eval_steps" if known else "--validation_file or --eval_files"
        patience = args.early_stopping_patience
        flag = f"--early_stopping_patience {patience}" if patience else f"--metric_for_best_model {name}"
        raise UserError(f"{flag}: nothing is evaluated in the training; give {missing}")
    names = (name.removeprefix("eval_"), name)
    losses = [key for key in known if key.endswith("_loss")]
    if names[0] == "loss" and "loss" not in known and len(losses) == 1:  # of the only file
        names = (losses[0],)
    key = next((key for key in names if key in known or key.partition("/")[0] in known), None)
    if key is None:
        listed = ", ".join(sorted(known))
        raise UserError(
            f"--metric_for_best_model {name}: no evaluation of this run gives it{nearest(names[0], known)}; there are "
            f"{listed}"
        )
    larger = known.get(key, known.get(key.partition("/")[0]))
    if larger is None and greater_is_better is None:
        raise UserError(f"--metric_for_best_model {name}: say with --greater_is_better which is better, more or less")
    if larger is not None and greater_is_better not in (None, larger):
        better = "larger" if larger else "smaller"
        raise UserError(f"--greater_is_better {greater_is_better}: {key} is better the {better} it is; leave it out")
    args.metric_for_best_model = f"eval_{key}"
    args.greater_is_better = greater_is_better if larger is None else larger


def evaluated_with(trainer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for the same metrics, in addition to the run's settings."""
    methods = next((c.methods for c in trainer.callback_handler.callbacks if isinstance(c, Evaluations)), {})
    return {
        "versions": versions(),
        "chat_template": trainer.processing_class.chat_template,
        "few_shot": few_shot_settings(settings.get("few_shot_file"), settings.get("few_shot", 0)),
        "decoding": next((asdict(m.decoding) for m in methods.values() if hasattr(m, "decoding")), None),
    }


class Evaluations(TrainerCallback):
    """Runs the evaluation methods at each evaluation.

    Their metrics join those of transformers (so that `metric_for_best_model` can name them, as eval_rougeL …), the log
    and the trackers; the records go to ``predictions/step-N.jsonl`` for the validation rows and to
    ``predictions/NAME/step-N.jsonl`` for a named file. With those of pairs stands ``differences.png``, a histogram of
    the run's first evaluation and the last. Over several processes each row counts once.

    A metric that has no finite value is reported, is NaN in the log and null in files, and never makes a step the best.

    Args:
        methods: by name; that of the validation rows is empty.
    """

    def __init__(self, trainer, methods: Mapping[str, Method]):
        self.trainer, self.methods = trainer, methods

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        size = args.per_device_eval_batch_size
        sharded = is_deepspeed_zero3_enabled() or self.trainer.is_fsdp_enabled
        compute = BatchOptions(size, self.trainer.check_stop, synced=sharded)
        model = self.trainer.accelerator.unwrap_model(model)
        scores = {}
        for name, method in self.methods.items():
            self.trainer.begin_work(f"an evaluation batch of {size} {name or 'rows'}")
            records, summary = run_method(method, model, compute, args.process_index, args.world_size)
            named = {f"eval_{metric_name(name, key)}": value for key, value in summary.items()}
            if missing := [key for key, value in named.items() if not math.isfinite(value)]:
                location = first_not_finite(records)
                why = f" (the logits of {location} are NaN or infinite)" if location else ""
                say(f"step {state.global_step}: no finite value of {', '.join(missing)}{why}; it counts as missing")
            scores |= named | dict.fromkeys(missing, math.nan)
            if state.is_world_process_zero and name != VALIDATION_LOSS:
                path = Path(prediction_path(args.output_dir, state.global_step, name))
                with warn_on_write_error(str(path)):
                    os.makedirs(path.parent, exist_ok=True)
                    write_jsonl(path, records)
                if not missing:
                    draw_change(method, path, records)
        if (chosen := args.metric_for_best_model) and chosen not in scores:  # rewards of which no answer has one
            say(f"step {state.global_step}: no value of {chosen}; it counts as missing")
            scores[chosen] = math.nan
        if metrics is not None:
            metrics.update(scores)
        self.trainer.log(dict(scores))


def draw_change(method: Method, path: Path, records: Sequence[Record]) -> None:
    """The method's picture, if it has one, of the run's first evaluation and of the records that are at `path`."""
    if not (name := method.change_picture):
        return
    with warn_on_write_error(f"{name}.png"):
        steps = sorted(path.parent.glob("step-*.jsonl"), key=lambda step: int(step.stem.split("-")[1]))
        outcomes = {steps[0].stem: read_predictions(steps[0])} if steps else {}
        outcomes[path.stem] = records
        method.draw(
            path.parent,
            name,
            {step.replace("-", " "): Outcome({name: rows}, {}) for step, rows in outcomes.items()},
        )


def add_callbacks(trainer, methods: Mapping[str, Method] | None) -> None:
    """Our progress and curves in place of transformers' progress, and the evaluation `methods`."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogFile())
    trainer.add_callback(CurvesCallback())
    trainer.add_callback(RunProgress())
    if methods:
        trainer.add_callback(Evaluations(trainer, methods))
        if trainer.args.early_stopping_patience:
            trainer.add_callback(EarlyStopping())
