"""Early stopping: on any metric, whichever steps are saved, and resumed to the same end."""

import json
from math import nan
from types import SimpleNamespace

import pytest

from conftest import same, weights, write_pairs
from hf_recipes.core.errors import UserError
from hf_recipes.run.early_stopping import since_best, stopped_early
from hf_recipes.run.evaluate_callback import choose_best_by
from hf_recipes.stages.sft import SFTArguments

LOSSES = [2.0, 1.95, 1.89, 1.8]


@pytest.mark.parametrize(
    ("values", "greater", "threshold", "expected"),
    [
        (LOSSES, False, 0.0, (0, 4, 1.8)),
        (LOSSES, False, 0.1, (1, 3, 1.89)),
        (LOSSES, False, 0.5, (3, 1, 2.0)),
        (LOSSES, True, 0.0, (3, 1, 2.0)),
        ([nan, None, 0.5, 0.5, nan], True, 0.0, (2, 3, 0.5)),
        ([nan, None], False, 0.0, (2, None, None)),
        ([], False, 0.0, (0, None, None)),
    ],
)
def test_evaluations_since_the_best(values, greater, threshold, expected):
    log = [{"step": step, "eval_f1": value, "eval_loss": 1.0} for step, value in enumerate(values, 1)]
    log.insert(1, {"step": 1, "loss": 3.0})
    assert since_best(log, "f1", greater, threshold) == expected


def test_only_what_comes_before_the_last_step_is_early():
    log = [{"step": step, "eval_loss": loss} for step, loss in ((0, 1.0), (2, 0.5), (4, 0.75), (6, 0.5))]
    args = SimpleNamespace(
        early_stopping_patience=2,
        early_stopping_threshold=0.0,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    state = SimpleNamespace(global_step=6, max_steps=7, log_history=log)
    stop = {"step": 6, "of": 7, "metric": "loss", "evaluations": 2, "best": 0.5, "best_step": 2}
    assert stopped_early(args, state) == stop
    assert stopped_early(args, SimpleNamespace(global_step=6, max_steps=6, log_history=log)) is None
    assert stopped_early(SimpleNamespace(**{**vars(args), "early_stopping_patience": 3}), state) is None


def arguments(tmp_path, **values):
    return SFTArguments(output_dir=str(tmp_path), report_to="none", **values)


def methods_with(*metrics):
    return {"": SimpleNamespace(directions=lambda: dict.fromkeys(metrics, False))}


def test_the_metric_is_the_loss_by_default(tmp_path):
    for names, expected in ((("loss", "rougeL"), "eval_loss"), (("dev_loss", "dev_rougeL"), "eval_dev_loss")):
        args = arguments(tmp_path, eval_steps=1, early_stopping_patience=2)
        choose_best_by(args, None, methods_with(*names))
        assert (args.metric_for_best_model, args.greater_is_better) == (expected, False)
    args = arguments(tmp_path, eval_steps=1, early_stopping_patience=2)
    with pytest.raises(UserError, match=r"loss: no evaluation of this run gives it.*; there are a_loss, b_loss"):
        choose_best_by(args, None, methods_with("a_loss", "b_loss"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"early_stopping_patience": 0, "eval_steps": 1}, "--early_stopping_patience 0: expected at least 1"),
        ({"early_stopping_threshold": 0.1}, "--early_stopping_threshold has no effect without --early_stopping_patien"),
        (
            {"early_stopping_patience": 1, "early_stopping_threshold": -0.1},
            "--early_stopping_threshold -0.1: expected at least 0",
        ),
    ],
)
def test_settings_that_cannot_be(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **values)


@pytest.fixture(scope="module")
def settings(model_dir, tmp_path_factory):
    data = write_pairs(tmp_path_factory.mktemp("data"))
    return f"""--model_name_or_path {model_dir} --train_file {data}/train.json --validation_file {data}/dev.json
    --report_to none --logging_steps 4 --bf16 False --max_steps 12 --learning_rate 0.3 --lr_scheduler_type constant
    --per_device_train_batch_size 8 --max_source_length 64 --max_target_length 16 --eval_methods accuracy
    --max_new_tokens 1""".split()


def test_without_evaluations_it_is_refused_before_anything_is_loaded(sft, settings, tmp_path):
    code, _, err = sft(*settings, "--output_dir", tmp_path / "run", "--dry_run", "--early_stopping_patience", 2)
    assert code == 1
    assert "--early_stopping_patience 2: nothing is evaluated in the training; give --eval_steps" in err


KILL = """
import os
from hf_recipes.trainer.base import RunMixin
step = RunMixin.training_step
def killed(self, *args, **kwargs):
    if self.state.global_step == 5:
        os._exit(9)
    return step(self, *args, **kwargs)
RunMixin.training_step = killed
"""


def ended(output) -> dict:
    return json.loads((output / "metrics.json").read_text())


def test_a_killed_run_ends_early_where_the_whole_one_does(forks, settings, tmp_path):
    """No answer of one token is right: after step 2 the accuracy improves no more."""
    argv = [*settings, "--eval_steps", 2, "--save_steps", 4, "--early_stopping_patience", 2]
    argv += ["--metric_for_best_model", "accuracy", "--load_best_model_at_end", "True"]
    whole = forks.run(*argv, "--output_dir", tmp_path / "whole")
    assert whole.code == 0, whole.err
    line = (
        "stopped early after step 6 of 12: accuracy has not improved on 0.0 % of step 2 in 2 evaluations "
        "(--early_stopping_patience)"
    )
    assert line in whole.out.splitlines()
    assert "kept: the weights of step 4 of 6, the best by accuracy (0.0 %)" in whole.out
    metrics = ended(tmp_path / "whole")
    stop = {"step": 6, "of": 12, "metric": "accuracy", "evaluations": 2, "best": 0.0, "best_step": 2}
    assert metrics["train"]["stopped_early"] == stop and metrics["train"]["steps"] == 6
    assert metrics["steps"] == 4 and metrics["after"]["accuracy"] == 0 and metrics["train"]["loss"] is not None
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "whole" / "checkpoint-4"))

    assert forks.run(*argv, "--output_dir", tmp_path / "run", before=KILL).code == 9
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-4"}
    for first in (4, 6):  # and once more from its end
        again = forks.run(*argv, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "true")
        assert again.code == 0 and line in again.out.splitlines(), again.err
        train = ended(tmp_path / "run")["train"]
        assert train == {**metrics["train"], "from_step": first, "seconds": train["seconds"]}
        assert same(weights(tmp_path / "whole" / "checkpoint-6"), weights(tmp_path / "run" / "checkpoint-6"))
    more = ["--early_stopping_patience", 3, "--resume_from_checkpoint", "true"]
    longer = forks.run(*argv, *more, "--output_dir", tmp_path / "run")
    assert longer.code == 0 and ended(tmp_path / "run")["train"]["stopped_early"]["step"] == 8, longer.err
