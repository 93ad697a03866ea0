"""The metrics as modules of `evaluate`, found without the Hub: ``load("rouge")`` instead of ``evaluate.load("rouge")``.

metric = evaluate.combine([load("rouge"), load("exact_match")])
metric.add_batch(predictions=["今天天气很好"], references=["今天天气不错"])
metric.compute()
"""

from collections.abc import Callable

import evaluate
from datasets import Features, Value
from datasets import List as ListOf

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.errors import UserError
from hf_recipes.metrics import text as metrics

TEXT = Value("string")
PAIRS = {"predictions": TEXT, "references": TEXT}


class TextMetric(evaluate.Metric):
    """A function of texts as a module.

    What is added stays in memory, so that processes share no file. Only with `num_process` above 1, where one process
    computes what all have added, are there files; `experiment_id` tells those of two experiments apart.
    """

    columns: dict[str, Value | ListOf]
    score: Callable[..., float | dict[str, float]]

    def __init__(self, config_name: str | None = None, **kwargs):
        super().__init__(config_name, **{"keep_in_memory": kwargs.get("num_process", 1) == 1} | kwargs)

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__, inputs_description="", citation="", features=Features(self.columns)
        )

    def _compute(self, **columns):
        # A combination hands the choices to all that it combines.
        scores = self.score(**{name: columns[name] for name in self.columns})
        return scores if isinstance(scores, dict) else {type(self).__name__: scores}


def _module(score: Callable, columns: dict[str, Value | ListOf] = PAIRS) -> type[TextMetric]:
    """A class for one function, whose name `evaluate` gives to files, and a single value gets as its key."""
    attributes = {"__doc__": score.__doc__, "score": staticmethod(score), "columns": columns}
    return type(score.__name__, (TextMetric,), attributes)


def accuracy(**columns) -> dict[str, float]:
    """`metrics.choice_accuracy`; `choices` are a list of texts or None for each row. Nothing where no row counts."""
    accuracy = metrics.choice_accuracy(**columns)
    return {"accuracy": accuracy[0]} if accuracy else {}


MODULES = {
    "rouge": _module(metrics.rouge),
    "bleu": _module(metrics.bleu4),
    "chrf": _module(metrics.chrf),
    "exact_match": _module(metrics.exact_match),
    "distinct": _module(metrics.distinct, {"predictions": TEXT}),
    "length_ratio": _module(metrics.length_ratio),
    "macro_f1": _module(metrics.macro_f1),
    "choice_accuracy": _module(accuracy, {**PAIRS, "choices": ListOf(TEXT)}),
}


def load(name: str, **kwargs) -> TextMetric:
    """The module of a short name.

    Args:
        name: a key of `MODULES`.
        kwargs: what `evaluate.Metric` takes: `experiment_id`, `num_process`, `process_id`, `cache_dir` …
    """
    if name not in MODULES:
        hint = nearest(name, MODULES)
        raise UserError(f"there is no metric {name!r}{hint or '; choose from ' + ', '.join(MODULES)}")
    return MODULES[name](**kwargs)
