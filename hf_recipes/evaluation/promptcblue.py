"""PromptCBLUE's 16 medical tasks: generated text to structured answers, and the benchmark's scores.

Forms, metrics and format of submission are those of the benchmark's first edition: its paper
(https://arxiv.org/abs/2310.14151) and its repository (https://github.com/michael-wzhu/PromptCBLUE: README.md on the
metrics, src/data on the forms, src/evaluation for the scores).

| task | form of an answer | metric |
|---|---|---|
| CMeEE-V2, IMCS-V2-NER | a line ``疾病实体：甲，乙`` for each type | micro-F1 of (entity, type) |
| CMeIE | ``具有X关系的头尾实体对如下：头实体为甲，尾实体为乙。`` | micro-F1 of (predicate, subject, object) |
| CHIP-CDEE | a line ``主体词：甲；发生状态：；描述词：乙，丙；解剖部位：`` an event | micro-F1 of all four fields |
| CHIP-CDN | the standard terms among the choices, ``甲，乙`` | micro-F1 of terms |
| CHIP-MDCFNPC, IMCS-V2-SR | a line ``甲：患有该症状`` for each finding or symptom | micro-F1 of (entity, status) |
| CHIP-CTC, KUAKE-QIC, IMCS-V2-DAC | one of the choices, or ``非上述类型`` | macro-F1 |
| CHIP-STS, KUAKE-IR, KUAKE-QQR, KUAKE-QTR | one of the choices | weighted-F1 |
| IMCS-V2-MRG | six sections, ``主诉：…`` to ``建议：…`` | ROUGE-L of characters, mean over sections |
| MedDG | the doctor's next words | ROUGE-L of characters |

The README names the metric of the four tasks on pairs of texts "micro-F1", which is their accuracy; the script that
made the published tables takes the mean of the classes' F1 weighted by their frequency. The score here is the
script's, under its right name, and the accuracy stands beside it.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_recipes.errors import UserError
from hf_recipes.evaluation.metrics import rouge, without_thoughts
from hf_recipes.evaluation.promptcblue_forms import TASKS, Answer, find_task, parse

__all__ = ["TASKS", "PromptCBLUEResult", "TaskScore", "parse", "score_rows", "submission"]

NOTHING = "无。"  # what the benchmark reads where a section of a report is empty

_CHINESE = "\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_CHINESE}]|[^\W_{_CHINESE}]+|[^\w\s]|_")


@dataclass
class TaskScore:
    """The score of one task, all numbers in [0, 1].

    `precision` and `recall` are averaged as the F1 is (None for ROUGE-L), `accuracy` is the share of rows with the
    right class (None for what is no classification). `unparsable` names the predictions without the task's form.
    """

    metric: str
    score: float
    rows: int
    precision: float | None = None
    recall: float | None = None
    accuracy: float | None = None
    unparsable: list[str] = field(default_factory=list)


@dataclass
class PromptCBLUEResult:
    """Scores by task in the order of `TASKS`, and their mean over the tasks present."""

    tasks: dict[str, TaskScore]
    average: float


def _instances(answer: Sequence[Mapping[str, Any]]) -> set[tuple]:
    return {tuple(tuple(value) if isinstance(value, list) else value for value in item.values()) for item in answer}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _micro(predictions: Sequence[Answer | None], references: Sequence[Answer]) -> dict[str, float]:
    """Instances counted over all rows; nothing to find and nothing found is 1."""
    sets = [(_instances(p or []), _instances(r)) for p, r in zip(predictions, references, strict=True)]
    hits, said, true = (sum(counts) for counts in zip(*((len(p & r), len(p), len(r)) for p, r in sets), strict=True))
    if not said and not true and None not in predictions:
        return {"score": 1.0, "precision": 1.0, "recall": 1.0}
    return {"score": _ratio(2 * hits, said + true), "precision": _ratio(hits, said), "recall": _ratio(hits, true)}


def _classes(predictions: Sequence[Answer | None], references: Sequence[Answer], weighted: bool) -> dict[str, float]:
    """Over the classes of references and predictions, each as one or by its share of the references.

    The benchmark's script also averages over each wrong text as a class of its own; here it is a miss and no more.
    """
    said, true = Counter(predictions), Counter(references)
    hits = Counter(r for p, r in zip(predictions, references, strict=True) if p == r)
    weights = {name: true[name] if weighted else 1 for name in (set(said) | set(true)) - {None}}

    def mean(score: Callable[[str], float]) -> float:
        return sum(weight * score(name) for name, weight in weights.items()) / sum(weights.values())

    return {
        "score": mean(lambda name: _ratio(2 * hits[name], said[name] + true[name])),
        "precision": mean(lambda name: _ratio(hits[name], said[name])),
        "recall": mean(lambda name: _ratio(hits[name], true[name])),
        "accuracy": hits.total() / len(references),
    }


def _rouge_l(predictions: Sequence[Answer | None], references: Sequence[Answer]) -> dict[str, float]:
    """Mean over replies, or over the sections of all references; an empty section reads `NOTHING`."""
    pairs = []
    for prediction, reference in zip(predictions, references, strict=True):
        if isinstance(reference, str):
            pairs.append((prediction or "", reference))
        elif prediction is None:
            pairs += [("", text or NOTHING) for text in reference.values()]
        else:
            pairs += [(prediction.get(name) or NOTHING, text or NOTHING) for name, text in reference.items()]
    said, true = ([" ".join(_TOKEN.findall(text.lower())) for text in texts] for texts in zip(*pairs, strict=True))
    return {"score": rouge(said, true)["rougeL"]}


def _place(row: Mapping[str, Any], index: int) -> str:
    return str(row.get("sample_id") or f"row {index + 1}")


def _read(row: Mapping[str, Any], key: str, place: str) -> Answer | None:
    name, text = row.get("task_dataset"), row.get(key)
    find_task(name, place)
    if not isinstance(text, str):
        raise UserError(f"{place} ({name}): {key!r} has to be a text, found {type(text).__name__}")
    return parse(name, text, choices=row.get("answer_choices"))


def score_rows(rows: Sequence[Mapping[str, Any]]) -> PromptCBLUEResult:
    """The benchmark's scores of `rows`.

    A row has `task_dataset`, `target` and `prediction`, and may have `answer_choices` and `sample_id`. A prediction
    without the task's form finds nothing, is in no class, or has a ROUGE of 0.

    Raises:
        UserError: there is no row, a task is unknown, a text is missing, or a target lacks its task's form.
    """
    read: dict[str, list[tuple[str, Answer | None, Answer]]] = {}
    for index, row in enumerate(rows):
        place = _place(row, index)
        reference = _read(row, "target", place)
        name = row["task_dataset"]
        if reference is None:
            raise UserError(f"{place} ({name}): the target does not have the task's form; correct or remove the row")
        read.setdefault(name, []).append((place, _read(row, "prediction", place), reference))
    if not read:
        raise UserError("PromptCBLUE: there are no rows to score")
    scores = {}
    for name in (name for name in TASKS if name in read):
        places, predictions, references = zip(*read[name], strict=True)
        metric = TASKS[name].metric
        if metric == "micro-F1":
            found = _micro(predictions, references)
        elif metric == "ROUGE-L":
            found = _rouge_l(predictions, references)
        else:
            found = _classes(predictions, references, weighted=metric == "weighted-F1")
        lost = [place for place, answer in zip(places, predictions, strict=True) if answer is None]
        scores[name] = TaskScore(metric, rows=len(places), unparsable=lost, **found)
    return PromptCBLUEResult(scores, sum(score.score for score in scores.values()) / len(scores))


def submission(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What the benchmark's results.json holds: for each task, in the order of `rows`, `sample_id` and `answer`.

    Rows have `task_dataset`, `sample_id` and `prediction`. A prediction without the task's form is an empty list or
    report, and where a class or a reply is asked for the text as it is.

    Raises:
        UserError: a task is unknown, or a row has no `sample_id` or no prediction.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in TASKS}
    for index, row in enumerate(rows):
        place = _place(row, index)
        answer = _read(row, "prediction", place)
        name = row["task_dataset"]
        if row.get("sample_id") is None:
            raise UserError(f"{place} ({name}): a submission needs the sample_id of every row")
        if answer is None and TASKS[name].metric == "micro-F1":
            answer = []
        elif answer is None:
            answer = {} if name == "IMCS-V2-MRG" else without_thoughts(row["prediction"]).strip()
        results[name].append({"sample_id": row["sample_id"], "answer": answer})
    return results
