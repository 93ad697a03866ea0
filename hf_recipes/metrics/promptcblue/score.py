"""Scores of PromptCBLUE's medical tasks.

Forms of answers and metrics are those of the benchmark: its paper (https://arxiv.org/abs/2310.14151) and its
repository (https://github.com/michael-wzhu/PromptCBLUE: README.md on the metrics, src/data on the forms,
src/evaluation for reading and scoring). The first edition has 16 tasks, the second 18: CMeIE-V2 for CMeIE and two
more.

| task | form of an answer | metric |
|---|---|---|
| CMeEE-V2, IMCS-V2-NER | a line ``疾病实体：甲，乙`` for each type | micro-F1 of (entity, type) |
| CMeIE, CMeIE-V2 | ``具有X关系的头尾实体对如下：头实体为甲，尾实体为乙。`` | micro-F1 of (predicate, subject, object) |
| CHIP-CDEE | a line ``主体词：甲；发生状态：；描述词：乙，丙；解剖部位：`` an event | micro-F1 of all four fields |
| CHIP-CDN | the standard terms among the choices, ``甲，乙`` | micro-F1 of terms |
| CHIP-MDCFNPC, IMCS-V2-SR | a line ``甲：患有该症状`` for each finding or symptom | micro-F1 of (entity, status) |
| CHIP-CTC, KUAKE-QIC, IMCS-V2-DAC | one of the choices, or ``非上述类型`` | macro-F1 |
| CHIP-STS, KUAKE-IR, KUAKE-QQR, KUAKE-QTR | one of the choices | weighted-F1 |
| IMCS-V2-MRG | six sections, ``主诉：…`` to ``建议：…`` | ROUGE-L of characters, mean over sections |
| MedDG | the doctor's next words | ROUGE-L of characters |
| CMedCausal | ``头实体：甲；尾实体：乙`` below ``因果关系三元组如下：`` | micro-F1 of (predicate, subject, object) |
| Text2DT | a line ``…：role=C；logical_rel=null；triples=[…]`` a node | 1 less edits over the largest number |

The README names the metric of the four tasks on pairs of texts "micro-F1", which is their accuracy; the script that
made the published tables takes the mean of the classes' F1 weighted by their frequency. The score here is the
script's, under its right name, and `TaskScore` has the accuracy too.

`TaskScore.score` equals the score of the benchmark's scripts (hf_recipes.metrics.promptcblue.official), which read an
answer to the letter and take a wrong text for a class of its own. `TaskScore.lenient` reads it as `parse` does, with
punctuation of any width, and counts a text that is no answer as one miss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.data.schemas.columns import read_choices
from hf_recipes.metrics.promptcblue import official
from hf_recipes.metrics.promptcblue.parsers import TASKS, Answer, find_task, parse
from hf_recipes.metrics.text import without_thoughts

__all__ = ["TASKS", "PromptCBLUEResult", "TaskScore", "parse", "score_rows"]


@dataclass
class TaskScore:
    """The score of one task, all numbers in [0, 1].

    `precision` and `recall` are averaged as the benchmark's F1 is (None for tasks without), `accuracy` is the share of
    rows with the right class (None for tasks without classes). `unparsable` are the locations of the predictions that
    lack the task's form.
    """

    metric: str
    score: float
    lenient: float
    rows: int
    precision: float | None = None
    recall: float | None = None
    accuracy: float | None = None
    unparsable: list[str] = field(default_factory=list)


@dataclass
class PromptCBLUEResult:
    """Scores by task in the order of `TASKS`, and their means over the tasks present."""

    tasks: dict[str, TaskScore]
    average: float
    lenient_average: float


def _official(name: str, predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    first = official.FIRST_LABELS.get(name)
    if first is not None:
        predictions = [prediction or first for prediction in predictions]
    return _score(name, predictions, references)


def _lenient(name: str, predictions: Sequence[Answer | None], references: Sequence[Answer]) -> float:
    """An empty answer to an empty target scores 1; a prediction without the task's form counts as empty."""
    metric = TASKS[name].metric
    if name in official.FIRST_LABELS:
        labels = {*predictions, *references} - {None}
        return official.classes(predictions, references, metric == "weighted-F1", labels)["score"]
    if metric == "ROUGE-L":
        texts = [len(reference) if isinstance(reference, dict) else 1 for reference in references]
        readable = [index for index, answer in enumerate(predictions) if answer is not None]
        if not readable:
            return 0.0
        share = official.ratio(sum(texts[index] for index in readable), sum(texts))
        pairs = ([answers[index] for index in readable] for answers in (predictions, references))
        return share * _score(name, *pairs)["score"]
    if not any(predictions) and not any(references) and None not in predictions:
        return 1.0
    empty = [official.EMPTY_NODE] if name == "Text2DT" else []
    return _score(name, [empty if answer is None else answer for answer in predictions], references)["score"]


def _score(name: str, predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    metric = TASKS[name].metric
    if metric == "micro-F1":
        return official.micro(predictions, references)
    if metric == "edit ratio":
        return official.trees(predictions, references)
    if metric == "ROUGE-L":
        return (official.sections if name == "IMCS-V2-MRG" else official.rouge_l)(predictions, references)
    return official.classes(predictions, references, metric == "weighted-F1")


def _read(row: Mapping[str, Any], key: str, location: str) -> tuple[Answer, Answer | None]:
    """The text of a row without its thoughts, as the benchmark reads it, and as `parse` does."""
    name, text = row.get("task_dataset"), row.get(key)
    find_task(name, location)
    if not isinstance(text, str):
        raise UserError(f"{location} ({name}): {key!r} has to be a text, not {type(text).__name__}")
    choices = row.get("answer_choices")
    return official.read(name, without_thoughts(text), read_choices(choices)), parse(name, text, choices=choices)


def score_rows(rows: Sequence[Mapping[str, Any]]) -> PromptCBLUEResult:
    """The benchmark's scores of `rows`, and the lenient ones.

    A row has `task_dataset`, `target` and `prediction`, and may have `answer_choices` and `sample_id`. A row with an
    unknown task, without one of the texts, or whose target lacks the form of its task, is a UserError.
    """
    read: dict[str, list[tuple[str, tuple[Answer, Answer | None], tuple[Answer, Answer | None]]]] = {}
    for index, row in enumerate(rows):
        location = str(row.get("sample_id") or f"row {index + 1}")
        reference = _read(row, "target", location)
        name = row["task_dataset"]
        if reference[1] is None:
            raise UserError(f"{location} ({name}): the target does not have the task's form; correct or remove the row")
        read.setdefault(name, []).append((location, _read(row, "prediction", location), reference))
    if not read:
        raise UserError("PromptCBLUE: there are no rows to score")
    scores = {}
    for name in (name for name in TASKS if name in read):
        locations, predictions, references = zip(*read[name], strict=True)
        (strict, loose), (strict_true, loose_true) = (zip(*both, strict=True) for both in (predictions, references))
        scores[name] = TaskScore(
            TASKS[name].metric,
            lenient=_lenient(name, loose, loose_true),
            rows=len(locations),
            unparsable=[location for location, answer in zip(locations, loose, strict=True) if answer is None],
            **_official(name, strict, strict_true),
        )
    means = (sum(getattr(task, key) for task in scores.values()) / len(scores) for key in ("score", "lenient"))
    return PromptCBLUEResult(scores, *means)
