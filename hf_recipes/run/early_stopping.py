"""Early stopping: a run ends once a metric has not improved in so many evaluations."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import SaveStrategy

from hf_recipes.core.errors import say
from hf_recipes.evaluation.reports.tables import as_text, evaluations

if TYPE_CHECKING:
    from hf_recipes.run.arguments import RunArguments


def since_best(
    log_history: Sequence[Mapping], metric: str, greater_is_better: bool, threshold: float
) -> tuple[int, int | None, float | None]:
    """How many evaluations the metric has not improved in, and the step and the value of the last improvement.

    An improvement is by more than `threshold` on the one before; a missing value is none.

    Example:
        Losses of 2.0, 1.95, 1.89, 1.8 at steps 1 to 4 with a threshold of 0.1: 1, 3, 1.89.
    """
    count, best_step, best = 0, None, None
    for step, metrics in evaluations(log_history).items():
        value = metrics.get(metric)
        gain = None if value is None or best is None else value - best if greater_is_better else best - value
        if value is not None and (gain is None or gain > threshold):
            count, best_step, best = 0, step, value
        else:
            count += 1
    return count, best_step, best


def stopped_early(args: "RunArguments", state: TrainerState) -> dict[str, Any] | None:
    """What ends the run before its last step, for metrics.json; None while nothing does."""
    if not args.early_stopping_patience or state.global_step >= state.max_steps:
        return None
    metric = args.metric_for_best_model.removeprefix("eval_")
    settings = metric, args.greater_is_better, args.early_stopping_threshold
    count, best_step, best = since_best(state.log_history, *settings)
    if count < args.early_stopping_patience:
        return None
    step = {"step": state.global_step, "of": state.max_steps}
    return {**step, "metric": metric, "evaluations": count, "best": best, "best_step": best_step}


class EarlyStopping(TrainerCallback):
    """Counts in the log, which a checkpoint holds: a resumed run ends where an uninterrupted one does.

    transformers' callback compares with the best of the steps that are saved. Put this one after `Evaluations`.
    """

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_evaluate  # if the run ends here, its log has every step

    on_epoch_end = on_step_end

    def on_evaluate(self, args, state, control, **kwargs):
        if not (stop := stopped_early(args, state)):
            return
        control.should_training_stop = True
        control.should_save |= args.save_strategy in (SaveStrategy.STEPS, SaveStrategy.EPOCH)
        metric, threshold = stop["metric"], args.early_stopping_threshold
        by = f" by more than {threshold:g}" if threshold else ""
        on = "" if stop["best"] is None else f" on {as_text(metric, stop['best'])} of step {stop['best_step']}"
        say(
            f"stopped early after step {stop['step']} of {stop['of']}: {metric} has not improved{by}{on} in "
            f"{stop['evaluations']} evaluation{'s' * (stop['evaluations'] > 1)} (--early_stopping_patience)"
        )

    def on_train_begin(self, args, state, control, **kwargs):
        if state.log_history:  # resumed
            self.on_evaluate(args, state, control)
            control.should_save = False
