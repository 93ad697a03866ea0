"""The metrics as modules of `evaluate`, found without the Hub: ``load("rouge")`` instead of ``evaluate.load("rouge")``.

metric = evaluate.combine([load("rouge"), load("exact_match")])
metric.add_batch(predictions=["今天天气很好"], references=["今天天气不错"])
metric.compute()
"""

import difflib
from collections.abc import Callable

import evaluate
from datasets import Features, Value
from datasets import List as ListOf

from hf_recipes.core.errors import UserError
from hf_recipes.metrics import text as metrics

TEXT = Value("string")


class TextMetric(evaluate.Metric):
    """A function of texts (`score`) as a module; `key` names its value where that is a number.

    What is added stays in memory, so that processes share no file; only with `num_process` above 1, where one process
    computes what all have added, are there files, told apart by `experiment_id`.
    """

    columns = {"predictions": TEXT, "references": TEXT}  # noqa: RUF012
    key: str
    score: Callable[..., float | dict[str, float]]

    def __init__(self, config_name: str | None = None, **kwargs):
        super().__init__(config_name, **{"keep_in_memory": kwargs.get("num_process", 1) == 1} | kwargs)

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__, inputs_description="", citation="", features=Features(self.columns)
        )

    def _compute(self, choices=None, **columns):
        # A combination hands the choices to all that it combines.
        found = self.score(**columns)
        return found if isinstance(found, dict) else {self.key: found}


class Rouge(TextMetric):
    """`rouge1`, `rouge2` and `rougeL` of `metrics.rouge`."""

    score = staticmethod(metrics.rouge)


class Bleu(TextMetric):
    """`bleu4` of `metrics.bleu4`."""

    key, score = "bleu4", staticmethod(metrics.bleu4)


class Chrf(TextMetric):
    """`chrf` of `metrics.chrf`."""

    key, score = "chrf", staticmethod(metrics.chrf)


class ExactMatch(TextMetric):
    """`exact_match` of `metrics.exact_match`."""

    key, score = "exact_match", staticmethod(metrics.exact_match)


class Distinct(TextMetric):
    """`distinct1` and `distinct2` of `metrics.distinct`; takes predictions only."""

    columns = {"predictions": TEXT}  # noqa: RUF012
    score = staticmethod(metrics.distinct)


class LengthRatio(TextMetric):
    """`length_ratio` of `metrics.length_ratio`."""

    key, score = "length_ratio", staticmethod(metrics.length_ratio)


class MacroF1(TextMetric):
    """`macro_f1` of `metrics.macro_f1`."""

    key, score = "macro_f1", staticmethod(metrics.macro_f1)


class ChoiceAccuracy(TextMetric):
    """`accuracy` of `metrics.choice_accuracy`, which takes `choices` (a list of texts or None a row).

    It is left out where no row has choices.
    """

    columns = TextMetric.columns | {"choices": ListOf(TEXT)}

    def _compute(self, **columns):
        found = metrics.choice_accuracy(**columns)
        return {"accuracy": found[0]} if found else {}


MODULES = {
    "rouge": Rouge,
    "bleu": Bleu,
    "chrf": Chrf,
    "exact_match": ExactMatch,
    "distinct": Distinct,
    "length_ratio": LengthRatio,
    "macro_f1": MacroF1,
    "choice_accuracy": ChoiceAccuracy,
}


def load(name: str, **kwargs) -> TextMetric:
    """The module of a short name.

    Args:
        name: a key of `MODULES`.
        kwargs: what `evaluate.Metric` takes: `experiment_id`, `num_process`, `process_id`, `cache_dir` …

    Raises:
        UserError: there is no such metric.
    """
    if name not in MODULES:
        near = difflib.get_close_matches(name, MODULES, n=1)
        hint = f"did you mean {near[0]!r}" if near else f"choose from {', '.join(MODULES)}"
        raise UserError(f"there is no metric {name!r}; {hint}")
    return MODULES[name](**kwargs)
