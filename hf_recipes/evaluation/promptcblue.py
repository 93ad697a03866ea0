"""PromptCBLUE's 16 medical tasks: generated text to structured answers, and the benchmark's scores.

Forms, metrics and format of submission are those of the benchmark's first edition: its paper
(https://arxiv.org/abs/2310.14151) and its repository (https://github.com/michael-wzhu/PromptCBLUE: README.md on the
metrics, src/data on the forms, src/evaluation for the scores).

| task | form of an answer | metric |
|---|---|---|
| CMeEE-V2, IMCS-V2-NER | a line ``疾病实体：甲，乙`` for each type | micro-F1 of (entity, type) |
| CMeIE | ``具有X关系的头尾实体对如下：头实体为甲，尾实体为乙。`` | micro-F1 of (predicate, subject, object) |
| CHIP-CDEE | a line ``主体词：甲；发生状态：；描述词：乙，丙；解剖部位：`` for each event | micro-F1 of all four fields |
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_recipes.errors import UserError
from hf_recipes.evaluation.metrics import normalize_answer, rouge, without_thoughts
from hf_recipes.parsing import nearest

Answer = list[dict[str, Any]] | dict[str, str] | str

OTHER = "非上述类型"
FIELDS = {"主体词": False, "发生状态": False, "描述词": True, "解剖部位": True}  # true: may have several values
SECTIONS = ("主诉", "现病史", "辅助检查", "既往史", "诊断", "建议")
NOTHING = "无。"  # what the benchmark reads where a section of a report is empty

_TYPE = re.compile(r"(?:^|[\s。；;])([^\s，,：:；;。]+)实体[：:]")
_RELATION = re.compile(r"具有([^\n：:]+?)关系的头尾实体对如下[：:]")
_PAIR = re.compile(r"头实体为(.+?)[，,]\s*尾实体为(.+?)[。；;]?\s*(?=头实体为|$)", re.DOTALL)
_FIELD = re.compile(rf"(?:^|[；;\s])\s*({'|'.join(FIELDS)})\s*[：:]")
_STATUS = re.compile(r"(.+)[：:]\s*([^：:]+?)[。；;]?$")
_SECTION = re.compile(rf"(?:^|\s)({'|'.join(SECTIONS)})\s*[：:]")
_CHINESE = "\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_CHINESE}]|[^\W_{_CHINESE}]+|[^\w\s]|_")
# A half-width comma between letters or digits belongs to a name: 1,25-二羟维生素D3.
_HALF_COMMA = re.compile(r"(?<![A-Za-z0-9]),|,(?![A-Za-z0-9])")


def _pieces(pattern: re.Pattern, text: str) -> Iterator[tuple[str, str]]:
    """Each heading that `pattern` finds, with the text up to the next one."""
    found = list(pattern.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return ((match[1].strip(), text[match.end() : end].strip(" \t")) for match, end in zip(found, ends, strict=True))


def _first_line(text: str) -> str:
    return text.partition("\n")[0].strip().rstrip("。；;").rstrip()


def _items(text: str) -> list[str]:
    """A list, parted by full-width commas, or by half-width ones where it has no others."""
    parts = text.split("，") if "，" in text else _HALF_COMMA.split(text)
    return [part.strip() for part in parts if part.strip()]


def _known(text: str, labels: Sequence[str]) -> str | None:
    """The label that `text` is but for the width of characters and the punctuation around it."""
    key = normalize_answer(text)
    return next((label for label in labels if normalize_answer(label) == key), None)


def _entities(text: str, labels: Sequence[str]) -> Answer | None:
    found = list(_pieces(_TYPE, text))
    answer = [
        {"entity": entity, "type": _known(kind, labels) or kind}
        for kind, value in found
        for entity in _items(_first_line(value))
    ]
    return answer if found else None


def _triples(text: str, labels: Sequence[str]) -> Answer | None:
    found = list(_pieces(_RELATION, text))
    answer = [
        {"predicate": _known(name, labels) or name, "subject": head.strip(), "object": tail.strip()}
        for name, value in found
        for head, tail in _PAIR.findall(value.strip())
    ]
    broken = not answer and any(value.strip() for _, value in found)
    return answer if found and not broken else None


def _events(text: str, labels: Sequence[str]) -> Answer | None:
    answer: list[dict[str, Any]] = []
    for name, value in _pieces(_FIELD, text):
        if name == "主体词":
            answer.append({key: [] if several else "" for key, several in FIELDS.items()})
        if answer:
            answer[-1][name] = _items(_first_line(value)) if FIELDS[name] else _first_line(value)
    return answer or None


def _terms(text: str, labels: Sequence[str]) -> Answer | None:
    parts, answer = _items(_first_line(text.rpartition("\n")[2])), []
    hit = not labels
    while parts:
        # A term may have commas of its own: the longest run of parts that is a choice is one term.
        runs = (("，".join(parts[:size]), size) for size in range(len(parts), 0, -1))
        choice, size = next(((c, size) for run, size in runs if (c := _known(run, labels))), (None, 1))
        answer.append({"entity": choice or parts[0], "type": "normalization"})
        hit = hit or choice is not None
        del parts[:size]
    return answer if answer and hit else None


def _statuses(text: str, labels: Sequence[str]) -> Answer | None:
    found = [match.groups() for line in re.split(r"[\n；;]", text) if (match := _STATUS.match(line.strip()))]
    if not any(_known(status, labels) for _, status in found):
        return None
    return [{"entity": name.strip(), "attr": _known(status, labels) or status.strip()} for name, status in found]


def _label(text: str, labels: Sequence[str]) -> Answer | None:
    return _known(text, labels)


def _same(text: str, labels: Sequence[str]) -> Answer | None:
    # Some prompts offer 相同 and 不同, which the benchmark takes as 是的 and 不是.
    label = _known(text, ("是的", "不是", "相同", "不同"))
    return {"相同": "是的", "不同": "不是"}.get(label, label)


def _report(text: str, labels: Sequence[str]) -> Answer | None:
    return {name: value.strip() for name, value in _pieces(_SECTION, text)} or None


def _reply(text: str, labels: Sequence[str]) -> Answer | None:
    return text or None


@dataclass(frozen=True)
class Task:
    """How one task is read and scored.

    Args:
        parse: text without its lead-in, and labels, to the benchmark's structure; None where it has another form.
        metric: name of the score.
        lead: the line that answers begin with; alone, it says that there is nothing to find.
        nothing: the benchmark's words for "there is nothing to find".
        labels: classes, or statuses, where the row has no choices of its own.
        other: whether `OTHER` is an answer too.
    """

    parse: Callable[[str, Sequence[str]], Answer | None]
    metric: str
    lead: str = ""
    nothing: str = ""
    labels: tuple[str, ...] = ()
    other: bool = False


_NER = Task(_entities, "micro-F1", lead="上述句子中的实体包含", nothing="上述句子没有指定类型实体")

TASKS = {
    "CMeEE-V2": _NER,
    "CMeIE": Task(_triples, "micro-F1", nothing="没有指定类型的三元组"),
    "CHIP-CDEE": Task(_events, "micro-F1", lead="上述句子中的临床发现事件如下"),
    "CHIP-CDN": Task(_terms, "micro-F1", nothing="没有对应的标准化实体"),
    "CHIP-CTC": Task(
        _label,
        "macro-F1",
        other=True,
        labels=tuple(
            "疾病 症状(患者感受) 体征(医生检测） 怀孕相关 肿瘤进展 疾病分期 过敏耐受 器官组织状态 预期寿命 口腔相关 药物 "
            "治疗或手术 设备 护理 诊断 实验室检查 风险评估 受体状态 年龄 特殊病人特征 读写能力 性别 教育情况 居住情况 "
            "种族 知情同意 参与其它试验 研究者决定 能力 伦理审查 依存性 成瘾行为 睡眠 锻炼 饮食 酒精使用 性取向 吸烟状况 "
            "献血 病例来源 残疾群体 健康群体 数据可及性 含有多个类别".split()
        ),
    ),
    "CHIP-STS": Task(_same, "weighted-F1"),
    "KUAKE-QIC": Task(
        _label,
        "macro-F1",
        other=True,
        labels=tuple(
            "病情诊断 病因分析 治疗方案 就医建议 指标解读 疾病描述 后果表述 注意事项 功效作用 医疗费用".split()
        ),
    ),
    "KUAKE-QTR": Task(
        _label, "weighted-F1", labels=("完全不匹配或者没有参考价值", "很少匹配有一些参考价值", "部分匹配", "完全匹配")
    ),
    "KUAKE-QQR": Task(
        _label,
        "weighted-F1",
        labels=("完全一致", "后者是前者的语义子集", "后者是前者的语义父集", "语义无直接关联"),
    ),
    "KUAKE-IR": Task(_label, "weighted-F1", labels=("相关", "不相关")),
    "IMCS-V2-NER": _NER,
    "IMCS-V2-DAC": Task(
        _label,
        "macro-F1",
        other=True,
        labels=(
            *(f"关于{what}的{how}" for what in ("症状", "病因", "个人基本信息") for how in ("询问", "回答")),
            *("关于已有检查和治疗的提问", "关于已有检查和治疗的回答"),
            *(f"关于{what}的{how}" for what in ("用药建议", "就医建议", "注意事项") for how in ("提问", "解答")),
            "给出诊断",
        ),
    ),
    "IMCS-V2-SR": Task(
        _statuses,
        "micro-F1",
        lead="当前对话中的症状及其阴阳性判断为",
        labels=("没有患有该症状", "患有该症状", "无法根据上下文确定病人是否患有该症状"),
    ),
    "IMCS-V2-MRG": Task(_report, "ROUGE-L", lead="上述问诊对话的诊疗报告如下"),
    "MedDG": Task(_reply, "ROUGE-L"),
    "CHIP-MDCFNPC": Task(
        _statuses,
        "micro-F1",
        lead="上述对话中临床发现实体以及其阴阳性判别如下",
        labels=(
            "已有症状疾病或者假设未来可能发生的疾病等",
            "未患有症状疾病",
            "没有回答、不知道、回答不明确或者模棱两可不好推断",
            "无实际意义的不标注或者和病人当前的状态独立不标注",
        ),
    ),
}


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


def _task(name: str, place: str) -> Task:
    if name not in TASKS:
        hint = nearest(str(name), TASKS)
        raise UserError(f"{place}: task_dataset {name!r} is no PromptCBLUE task{hint}; known are {', '.join(TASKS)}")
    return TASKS[name]


def parse(task_dataset: str, text: str, *, choices: Sequence[str] | None = None) -> Answer | None:
    """The structure that `text` says, as the benchmark's results.json has it; None where it lacks the task's form.

    Width of separators and labels, white space and thoughts before the answer do not matter; what is outside the
    `choices` (types, terms, statuses) is kept, and so scored as wrong, except that a class has to be one of them.

    Raises:
        UserError: the task is unknown.
    """
    task = _task(task_dataset, "parse")
    text = "\n".join(line.strip() for line in without_thoughts(text).strip().splitlines())
    text = re.sub(r"(?<=[，,])\n+", "", text)  # a list that goes on in the next line
    finds = task.metric == "micro-F1"
    if finds and task.nothing and normalize_answer(text) == task.nothing:
        return []
    if task.lead and text.startswith(task.lead):
        text = text.removeprefix(task.lead).lstrip("：: \t\n")
        if finds and not text:
            return []
    labels = tuple(choices or task.labels)
    return task.parse(text, (*labels, OTHER) if task.other else labels)


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
    names = (set(said) | set(true)) - {None}
    shares = {name: true[name] / len(references) if weighted else 1 / len(names) for name in names}

    def mean(score: Callable[[str], float]) -> float:
        return sum(share * score(name) for name, share in shares.items())

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
    _task(name, place)
    if not isinstance(text, str):
        raise UserError(f"{place} ({name}): {key!r} has to be a text, found {type(text).__name__}")
    return parse(name, text, choices=row.get("answer_choices"))


def score_rows(rows: Sequence[Mapping[str, Any]]) -> PromptCBLUEResult:
    """The benchmark's scores of rows with `task_dataset`, `target`, `prediction`, perhaps `answer_choices`, `sample_id`.

    A prediction without the task's form finds nothing, is in no class, or has a ROUGE of 0.

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
        if answer is None:
            empty = {"micro-F1": [], _report: {}}
            answer = empty.get(TASKS[name].metric, empty.get(TASKS[name].parse))
            answer = without_thoughts(row["prediction"]).strip() if answer is None else answer
        results[name].append({"sample_id": row["sample_id"], "answer": answer})
    return results
