"""PromptCBLUE's own reading of answers and its own scores.

It computes what src/evaluation of https://github.com/michael-wzhu/PromptCBLUE does: post_generate_process.py reads an
answer to the letter, evaluators.py and text2dt_eval_func.py score it. Lines on which that script would fail are
skipped.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_recipes.metrics.promptcblue.parsers import FIELDS, SECTIONS, Answer, read_causes, read_tree

Node = Mapping[str, Any]

# What an empty answer counts as.
FIRST_LABELS = {
    "CHIP-CTC": "非上述类型",
    "KUAKE-QIC": "非上述类型",
    "IMCS-V2-DAC": "非上述类型",
    "CHIP-STS": "是的",
    "KUAKE-IR": "相关",
    "KUAKE-QTR": "完全不匹配或者没有参考价值",
    "KUAKE-QQR": "完全一致",
}
EMPTY_NODE = {"role": "D", "logical_rel": "null", "triples": []}
NO_NODE = EMPTY_NODE | {"role": ""}
NO_TEXT = "无 。"


def _values(text: str) -> list[str]:
    return [part.strip() for part in text.split("，") if part.strip()]


def _entities(text: str, choices: Sequence[str]) -> Answer:
    return [
        {"entity": entity, "type": choice}
        for choice in choices
        for line in text.split("\n")
        if line.startswith(f"{choice}实体")
        for entity in _values(line.replace(f"{choice}实体：", ""))
    ]


def _triples(text: str, choices: Sequence[str]) -> Answer:
    answer = []
    for line in text.split("\n"):
        predicate = line.split("关系的头尾实体对")[0][2:].strip()
        for pair in line.replace(f"具有{predicate}关系的头尾实体对如下：", "").split("。"):
            head, *tails = pair.split("，尾实体为")
            if tails:
                subject, tail = head.replace("头实体为", "").strip(), tails[0].replace("尾实体为", "").strip()
                answer.append({"predicate": predicate, "subject": subject, "object": tail})
    return answer


def _terms(text: str, choices: Sequence[str]) -> Answer:
    terms = dict.fromkeys(_values(text.split("\n")[-1]))
    return [{"entity": term, "type": "normalization"} for term in terms if term in choices]


def _events(text: str, choices: Sequence[str]) -> Answer:
    answer = []
    for line in text.split("\n")[1:]:
        event: dict[str, Any] = {name: [] if several else "" for name, several in FIELDS.items()}
        for part in line.split("；"):
            for name, several in FIELDS.items():
                if part.startswith(f"{name}："):
                    part = part.replace(f"{name}：", "").strip()
                    event[name] = _values(part) if several else part
        answer.append(event)
    return answer


def _statuses(other: str) -> Callable[[str, Sequence[str]], Answer]:
    def read(text: str, choices: Sequence[str]) -> Answer:
        pairs = (line.split("：") for line in text.split("\n")[1:])
        return [
            {"entity": pair[0].strip(), "attr": pair[1] if pair[1] in choices else other}
            for pair in pairs
            if len(pair) == 2
        ]

    return read


def _label(text: str, choices: Sequence[str]) -> Answer:
    return text.strip()


def _same(text: str, choices: Sequence[str]) -> Answer:
    return {"相同": "是的", "不同": "不是"}.get(text.strip(), text.strip())


def _report(text: str, choices: Sequence[str]) -> Answer:
    lines = text.strip().split("\n")[1:]
    return {
        name: line.strip().split(f"{name}：")[-1].strip()
        for name in SECTIONS
        for line in lines
        if line.startswith(f"{name}：")
    }


_READERS: dict[str, Callable[[str, Sequence[str]], Answer]] = {
    "CMeEE-V2": _entities,
    "IMCS-V2-NER": _entities,
    "CMeIE": _triples,
    "CMeIE-V2": _triples,
    "CMedCausal": lambda text, choices: read_causes(text),
    "Text2DT": lambda text, choices: read_tree(text) or [EMPTY_NODE],
    "CHIP-CDN": _terms,
    "CHIP-CDEE": _events,
    "CHIP-STS": _same,
    "CHIP-MDCFNPC": _statuses("不标注"),
    "IMCS-V2-SR": _statuses("无法根据上下文确定病人是否患有该症状"),
    "IMCS-V2-MRG": _report,
}


def read(task: str, text: str, choices: Sequence[str] = ()) -> Answer:
    """The benchmark's structure of `text`, which may be empty."""
    return _READERS.get(task, _label)(text, choices)


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def instances(answer: Sequence[Mapping[str, Any]]) -> set[str]:
    return {json.dumps(item, ensure_ascii=False, sort_keys=True) for item in answer}


def micro(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Over instances of all rows; 0 where none is right, or where there is none."""
    pairs = list(zip(map(instances, predictions), map(instances, references), strict=True))
    hits = sum(len(prediction & reference) for prediction, reference in pairs)
    predicted, expected = (sum(map(len, side)) for side in zip(*pairs, strict=True))
    score = ratio(2 * hits, predicted + expected)
    return {"score": score, "precision": ratio(hits, predicted), "recall": ratio(hits, expected)}


def classes(
    predictions: Sequence[str | None], references: Sequence[str], weighted: bool, labels: set[str | None] | None = None
) -> dict[str, float]:
    """Means over `labels`, of equal weight or `weighted` by their share of the references.

    By default, as scikit-learn's classification_report does, over all predictions and references: a wrong text that is
    no class is a class of its own with an F1 of 0, which lowers the mean.
    """
    predicted, expected = Counter(predictions), Counter(references)
    hits = Counter(true for ours, true in zip(predictions, references, strict=True) if ours == true)
    weights = {name: expected[name] if weighted else 1 for name in labels or {*predicted, *expected}}

    def mean(score: Callable[[str | None], float]) -> float:
        return ratio(sum(weight * score(name) for name, weight in weights.items()), sum(weights.values()))

    return {
        "score": mean(lambda name: ratio(2 * hits[name], predicted[name] + expected[name])),
        "precision": mean(lambda name: ratio(hits[name], predicted[name])),
        "recall": mean(lambda name: ratio(hits[name], expected[name])),
        "accuracy": hits.total() / len(references),
    }


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-L of rouge-chinese over BERT's words: Chinese characters, punctuation, words between spaces."""
    from rouge_chinese import Rouge
    from tokenizers import normalizers, pre_tokenizers

    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()

    def words(text: str) -> str:
        parts = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        return " ".join(word for word, _ in parts) or NO_TEXT

    scores = Rouge(metrics=["rouge-l"]).get_scores(*(list(map(words, texts)) for texts in (predictions, references)))
    return {"score": sum(score["rouge-l"]["f"] for score in scores) / len(scores)}


def sections(predictions: Sequence[Mapping[str, str]], references: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """`rouge_l` over the sections that the references have."""
    pairs = [
        (ours.get(name, ""), text)
        for ours, true in zip(predictions, references, strict=True)
        for name, text in true.items()
    ]
    return rouge_l(*zip(*pairs, strict=True)) if pairs else {"score": 0.0}


def trees(predictions: Sequence[Sequence[Node]], references: Sequence[Sequence[Node]]) -> dict[str, float]:
    """1 less the edits from the trees of the predictions to those of the references, over the largest possible number.

    A differing role, a differing logical relation and each triple that only one of two nodes has cost one edit each;
    case is ignored. The largest number is two for each node with triples, and one for each triple.
    """
    edits = most = 0
    for ours, true in zip(map(_lowered, predictions), map(_lowered, references), strict=True):
        edits += _edits(ours, true, _children(ours), _children(true))
        for nodes in (ours, true):
            most += 2 * sum(bool(node["triples"]) for node in nodes)
            most += len({triple for node in nodes for triple in node["triples"]})
    return {"score": 1 - edits / most if most else float(not edits)}


def _lowered(nodes: Sequence[Node]) -> list[Node]:
    return [
        {**node, "triples": [tuple(part.lower() for part in triple) for triple in node["triples"]]} for node in nodes
    ]


def _children(nodes: Sequence[Node]) -> dict[int, tuple[int, int]]:
    """Left and right child of each condition (role C) in a sequence in preorder; a decision (D) has none."""
    children: dict[int, tuple[int, int]] = {}
    # A complete subtree is replaced by one D.
    open_nodes = [(position, node["role"]) for position, node in enumerate(nodes)]
    while open_nodes[0][1] != "D":
        for start, (position, role) in enumerate(open_nodes):
            leaves = []
            for end in range(start + 1, len(open_nodes)):
                if role != "C" or open_nodes[end][1] == "C":
                    break
                if open_nodes[end][1] == "D":
                    leaves.append(end)
                if len(leaves) == 2:
                    break
            if len(leaves) == 2:
                children[position] = open_nodes[leaves[0]][0], open_nodes[leaves[1]][0]
                open_nodes[start : leaves[1] + 1] = [(position, "D")]
                break
        else:  # no tree
            break
    return children


def _edits(
    ours: Sequence[Node], true: Sequence[Node], our_children: Mapping[int, tuple], true_children: Mapping[int, tuple]
) -> int:
    edits, pairs = 0, [(0, 0)]
    while pairs:
        one, other = pairs.pop()
        edits += _distance(ours[one], true[other])
        if one in our_children and other in true_children:
            pairs += zip(our_children[one], true_children[other], strict=True)
            continue
        # At least one of the two has no children.
        for nodes, children, position in ((ours, our_children, one), (true, true_children, other)):
            below = list(children.get(position, ()))
            while below:
                position = below.pop()
                edits += _distance(nodes[position], NO_NODE)
                below += children.get(position, ())
    return edits


def _distance(one: Node, other: Node) -> int:
    differ = sum(one[key] != other[key] for key in ("role", "logical_rel"))
    return differ + len(set(one["triples"]) ^ set(other["triples"]))
