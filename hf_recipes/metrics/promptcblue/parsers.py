"""Generated text → the structures of PromptCBLUE's answers.

`hf_recipes.metrics.promptcblue.score` describes the tasks and their sources.
"""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.data.schemas.columns import read_choices
from hf_recipes.metrics.text import normalize_answer, without_thoughts

Answer = list[dict[str, Any]] | dict[str, str] | str

OTHER = "非上述类型"
FIELDS = {"主体词": False, "发生状态": False, "描述词": True, "解剖部位": True}  # whether it may have several values
SECTIONS = ("主诉", "现病史", "辅助检查", "既往史", "诊断", "建议")

_TYPE = re.compile(r"(?<![^\s：:。；;])([^\s，,：:。；;]+)实体[：:]")
_RELATION = re.compile(r"具有([^\n：:]{1,30}?)关系的头尾实体对如下[：:]")
_PAIR = re.compile(r"头实体为(.+?)[，,]\s*尾实体为(.+?)[。.；;]?\s*(?=头实体为|$)", re.MULTILINE)
_FIELD = re.compile(rf"(?<![^\s：:。；;])({'|'.join(FIELDS)})\s*[：:]")
_STATUS = re.compile(r"(.+)[：:]\s*([^：:]+?)[。；;]?$")
_SECTION = re.compile(rf"(?:^|\s)({'|'.join(SECTIONS)})\s*[：:]")
# A half-width comma between letters or digits belongs to a name: 1,25-二羟维生素D3.
_HALF_COMMA = re.compile(r"(?<![A-Za-z0-9]),|,(?![A-Za-z0-9])")


def _sections(pattern: re.Pattern, text: str) -> Iterator[tuple[str, str]]:
    """Each heading that matches `pattern`, with the text up to the next one."""
    matches = list(pattern.finditer(text))
    return (
        (match[1].strip(), text[match.end() : following.start() if following else None].strip(" \t"))
        for match, following in zip_longest(matches, matches[1:])
    )


def _first_line(text: str) -> str:
    return text.partition("\n")[0].strip().rstrip("。；;").rstrip()


def _items(text: str) -> list[str]:
    """A list separated by full-width commas, or by half-width ones where it has no others."""
    parts = text.split("，") if "，" in text else _HALF_COMMA.split(text)
    return [part.strip() for part in parts if part.strip()]


def _known(text: str, labels: Sequence[str]) -> str | None:
    """The label that equals `text` after `normalize_answer`."""
    key = normalize_answer(text)
    return next((label for label in labels if normalize_answer(label) == key), None)


def _entities(text: str, labels: Sequence[str]) -> Answer | None:
    sections = list(_sections(_TYPE, text))
    answer = [
        {"entity": entity, "type": _known(kind, labels) or kind}
        for kind, value in sections
        for entity in _items(_first_line(value))
    ]
    return answer if sections else None


def _triples(text: str, labels: Sequence[str]) -> Answer | None:
    sections = list(_sections(_RELATION, text))
    answer = [
        {"predicate": _known(name, labels) or name, "subject": head.strip(), "object": tail.strip()}
        for name, value in sections
        for head, tail in _PAIR.findall(value.strip())
    ]
    broken = not answer and any(value.strip() for _, value in sections)
    return answer if sections and not broken else None


def _events(text: str, labels: Sequence[str]) -> Answer | None:
    answer: list[dict[str, Any]] = []
    for name, value in _sections(_FIELD, text):
        if name == "主体词":
            answer.append({key: [] if several else "" for key, several in FIELDS.items()})
        if answer:
            answer[-1][name] = _items(_first_line(value)) if FIELDS[name] else _first_line(value)
    return answer or None


def read_causes(text: str) -> list[dict[str, Any]]:
    """Triples line by line under the heading of their relation; an object of 条件关系 is a triple itself."""
    answer: list[dict[str, Any]] = []
    predicate = None
    headings = {"因果关系三元组如下": "因果关系", "条件关系三元组": "条件关系", "上下位关系": "上下位关系"}
    for line in map(str.strip, text.split("\n")):
        heading = next((words for words in headings if words in line), None)
        if heading:
            predicate = headings[heading]
            continue
        if "给定的文本没有指定关系的三元组" in line:
            break
        try:
            subject = line.split("头实体：")[1].split("；尾实体：")[0]
            if predicate == "条件关系":
                inner = line.split("；尾三元组：")[1]
                tail: Any = {
                    "predicate": inner.split("；关系：")[1],
                    "subject": inner.split("头实体：")[1].split("；尾实体：")[0],
                    "object": inner.split("；尾实体：")[1].split("；关系：")[0],
                }
                if tail["predicate"] != "因果关系":
                    continue
            else:
                tail = line.split("；尾实体：")[1]
        except IndexError:
            continue
        answer.append({"predicate": predicate, "subject": subject, "object": tail})
    return answer


def _causes(text: str, labels: Sequence[str]) -> Answer | None:
    text = text.replace(":", "：").replace(";", "；").replace("；\n", "\n")
    answer = read_causes(text)
    return answer if answer or "关系" in text else None


def read_tree(text: str) -> list[dict[str, Any]]:
    """The nodes of a decision tree in preorder, a line each."""
    nodes = []
    for line in text.split("\n"):
        role, relation, triples = (line.split(mark) for mark in ("：role=", "；logical_rel=", "；triples="))
        if "根据给定的指南文本抽取的诊疗决策树" in line or len(role) < 2:
            continue
        nodes.append(
            {
                "role": role[1].split("；logical_rel=")[0],
                "logical_rel": relation[1].split("；triples=")[0] if len(relation) > 1 else "null",
                "triples": _read_triples(triples[1]) if len(triples) > 1 else [],
            }
        )
    return nodes


def _read_triples(text: str) -> list[tuple[str, str, str]]:
    """Triples of a Python list; its other items are skipped."""
    try:
        values = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    triples = values if isinstance(values, list) else []
    return [
        tuple(triple)
        for triple in triples
        if isinstance(triple, list | tuple) and len(triple) == 3 and all(isinstance(part, str) for part in triple)
    ]


def _tree(text: str, labels: Sequence[str]) -> Answer | None:
    parts = [line.partition("triples=") for line in re.sub(r"\s*=\s*", "=", text).split("\n")]
    wide = [head.replace(":", "：").replace(";", "；").replace(" ", "") + mark + rest for head, mark, rest in parts]
    return read_tree("\n".join(wide)) or None


def _terms(text: str, labels: Sequence[str]) -> Answer | None:
    parts, answer = _items(_first_line(text.rpartition("\n")[2])), []
    hit = not labels
    longest = 1 + max((len(re.findall("[，,]", label)) for label in labels), default=0)
    while parts:
        # A term may contain commas: the longest run of parts that is a choice is one term.
        runs = (("，".join(parts[:size]), size) for size in range(min(longest, len(parts)), 0, -1))
        choice, size = next(((c, size) for run, size in runs if (c := _known(run, labels))), (None, 1))
        answer.append({"entity": choice or parts[0], "type": "normalization"})
        hit = hit or choice is not None
        del parts[:size]
    return answer if answer and hit else None


def _statuses(text: str, labels: Sequence[str]) -> Answer | None:
    statuses = [match.groups() for line in re.split(r"[\n；;]", text) if (match := _STATUS.match(line.strip()))]
    if not any(_known(status, labels) for _, status in statuses):
        return None
    return [{"entity": name.strip(), "attr": _known(status, labels) or status.strip()} for name, status in statuses]


def _same(text: str, labels: Sequence[str]) -> Answer | None:
    # Some prompts offer 相同 and 不同, which the benchmark takes as 是的 and 不是.
    label = _known(text, ("是的", "不是", "相同", "不同"))
    return {"相同": "是的", "不同": "不是"}.get(label, label)


def _report(text: str, labels: Sequence[str]) -> Answer | None:
    return {name: value.strip() for name, value in _sections(_SECTION, text)} or None


def _reply(text: str, labels: Sequence[str]) -> Answer | None:
    return text or None


@dataclass(frozen=True)
class Task:
    """How one task is read and scored.

    Attributes:
        parse: from text without its prefix, and labels, to the benchmark's structure; None for text of another form.
        metric: name of the score.
        prefix: the line that answers begin with; alone, it is an empty answer.
        empty: the benchmark's sentence for an empty answer.
        labels: classes or statuses, separated by spaces, of rows without choices.
        other: whether `OTHER` is an answer too.
    """

    parse: Callable[[str, Sequence[str]], Answer | None]
    metric: str
    prefix: str = ""
    empty: str = ""
    labels: str = ""
    other: bool = False


_CRITERIA = """
疾病 症状(患者感受) 体征(医生检测） 怀孕相关 肿瘤进展 疾病分期 过敏耐受 器官组织状态 预期寿命 口腔相关 药物
治疗或手术 设备 护理 诊断 实验室检查 风险评估 受体状态 年龄 特殊病人特征 读写能力 性别 教育情况 居住情况 种族
知情同意 参与其它试验 研究者决定 能力 伦理审查 依存性 成瘾行为 睡眠 锻炼 饮食 酒精使用 性取向 吸烟状况 献血
病例来源 残疾群体 健康群体 数据可及性 含有多个类别
"""
_INTENTS = "病情诊断 病因分析 治疗方案 就医建议 指标解读 疾病描述 后果表述 注意事项 功效作用 医疗费用"
_ACTS = """
关于症状的询问 关于症状的回答 关于病因的询问 关于病因的回答 关于个人基本信息的询问 关于个人基本信息的回答
关于已有检查和治疗的提问 关于已有检查和治疗的回答 关于用药建议的提问 关于用药建议的解答
关于就医建议的提问 关于就医建议的解答 关于注意事项的提问 关于注意事项的解答 给出诊断
"""
_RELEVANCE = "完全不匹配或者没有参考价值 很少匹配有一些参考价值 部分匹配 完全匹配"
_QUERIES = "完全一致 后者是前者的语义子集 后者是前者的语义父集 语义无直接关联"
_SYMPTOMS = "没有患有该症状 患有该症状 无法根据上下文确定病人是否患有该症状"
_FINDINGS = """
已有症状疾病或者假设未来可能发生的疾病等 未患有症状疾病 没有回答、不知道、回答不明确或者模棱两可不好推断
无实际意义的不标注或者和病人当前的状态独立不标注
"""
_SPO = Task(_triples, "micro-F1", empty="没有指定类型的三元组")
_NER = Task(_entities, "micro-F1", prefix="上述句子中的实体包含", empty="上述句子没有指定类型实体")

TASKS = {
    "CMeEE-V2": _NER,
    "CMeIE": _SPO,
    "CMeIE-V2": _SPO,
    "CHIP-CDEE": Task(_events, "micro-F1", prefix="上述句子中的临床发现事件如下"),
    "CHIP-CDN": Task(_terms, "micro-F1", empty="没有对应的标准化实体"),
    "CHIP-CTC": Task(_known, "macro-F1", labels=_CRITERIA, other=True),
    "CHIP-STS": Task(_same, "weighted-F1"),
    "KUAKE-QIC": Task(_known, "macro-F1", labels=_INTENTS, other=True),
    "KUAKE-QTR": Task(_known, "weighted-F1", labels=_RELEVANCE),
    "KUAKE-QQR": Task(_known, "weighted-F1", labels=_QUERIES),
    "KUAKE-IR": Task(_known, "weighted-F1", labels="相关 不相关"),
    "IMCS-V2-NER": _NER,
    "IMCS-V2-DAC": Task(_known, "macro-F1", labels=_ACTS, other=True),
    "IMCS-V2-SR": Task(_statuses, "micro-F1", prefix="当前对话中的症状及其阴阳性判断为", labels=_SYMPTOMS),
    "IMCS-V2-MRG": Task(_report, "ROUGE-L", prefix="上述问诊对话的诊疗报告如下"),
    "MedDG": Task(_reply, "ROUGE-L"),
    "CHIP-MDCFNPC": Task(_statuses, "micro-F1", prefix="上述对话中临床发现实体以及其阴阳性判别如下", labels=_FINDINGS),
    "CMedCausal": Task(_causes, "micro-F1", empty="给定的文本没有指定关系的三元组"),
    "Text2DT": Task(_tree, "edit ratio"),
}


def find_task(name: str, location: str) -> Task:
    """The task of that name; the `UserError` where there is none begins with `location`."""
    if name not in TASKS:
        raise UserError(f"{location}: task_dataset {name!r} is no PromptCBLUE task; known are {', '.join(TASKS)}")
    return TASKS[name]


def parse(task_dataset: str, text: str, *, choices: Sequence[str] | str | None = None) -> Answer | None:
    """The structure of `text`, as the benchmark's results.json has it; None where the text lacks the task's form.

    Width of separators and labels, white space, and thoughts before the answer do not matter. Types, terms and statuses
    outside of the `choices` are kept, and so scored as wrong; a class has to be one of them. Choices may be a list, or
    one text (`read_choices`).
    """
    task = find_task(task_dataset, "PromptCBLUE")
    text = "\n".join(line.strip() for line in without_thoughts(text).strip().splitlines())
    text = re.sub(r"(?<=[，,])\n+", "", text)  # a list that continues in the next line
    may_be_empty = task.metric == "micro-F1"
    if may_be_empty and task.empty and normalize_answer(text) == task.empty:
        return []
    if task.prefix and text.startswith(task.prefix):
        text = text.removeprefix(task.prefix).lstrip("：: \t\n")
        if may_be_empty and not text:
            return []
    labels = tuple(read_choices(choices)) or tuple(task.labels.split())
    return task.parse(text, (*labels, OTHER) if task.other else labels)
