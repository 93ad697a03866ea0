import json
from pathlib import Path

import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.metrics.promptcblue import official
from hf_recipes.metrics.promptcblue.score import TASKS, parse, score_rows

ROOT = Path(__file__).resolve().parents[2]

HAS, HAS_NOT, UNCLEAR = "患有该症状", "没有患有该症状", "无法根据上下文确定病人是否患有该症状"
ILL, HEALTHY = "已有症状疾病或者假设未来可能发生的疾病等", "未患有症状疾病"

# For each task: target, choices, a prediction that is partly right, and its precision, recall and score.
EXTRACTION = {
    # Right: 流感; too much: 咽部 as a disease; missed: 发热.
    "CMeEE-V2": (
        "上述句子中的实体包含：\n疾病实体：流感\n临床表现实体：发热\n药物实体：",
        ["疾病", "临床表现", "药物"],
        "上述句子中的实体包含：\n疾病实体：流感，咽部\n临床表现实体：\n药物实体：",
        (1 / 2, 1 / 2, 1 / 2),
    ),
    # Right: 雾化; too much: 咳嗽 as a drug; missed: 咳嗽 as a symptom and 退烧药.
    "IMCS-V2-NER": (
        "上述句子中的实体包含：\n症状实体：咳嗽\n药物类别实体：退烧药\n医疗操作实体：雾化",
        ["症状", "药物类别", "医疗操作"],
        "上述句子中的实体包含：\n症状实体：\n药物类别实体：咳嗽\n医疗操作实体：雾化",
        (1 / 2, 1 / 3, 2 / 5),
    ),
    # Right: one of the two treatments; head and tail of the other pair are exchanged.
    "CMeIE": (
        "具有药物治疗关系的头尾实体对如下：头实体为痛风，尾实体为秋水仙碱。头实体为痛风，尾实体为别嘌醇。\n"
        "具有发病部位关系的头尾实体对如下：",
        ["药物治疗", "发病部位"],
        "具有药物治疗关系的头尾实体对如下：头实体为痛风，尾实体为秋水仙碱。头实体为别嘌醇，尾实体为痛风。\n"
        "具有发病部位关系的头尾实体对如下：",
        (1 / 2, 1 / 2, 1 / 2),
    ),
    # Right: 咳嗽; the other event lacks one of its two descriptions.
    "CHIP-CDEE": (
        "上述句子中的临床发现事件如下：\n主体词：疼痛；发生状态：；描述词：钝，持续性；解剖部位：右膝\n"
        "主体词：咳嗽；发生状态：否定；描述词：；解剖部位：",
        None,
        "上述句子中的临床发现事件如下：\n主体词：疼痛；发生状态：；描述词：钝；解剖部位：右膝\n"
        "主体词：咳嗽；发生状态：否定；描述词：；解剖部位：",
        (1 / 2, 1 / 2, 1 / 2),
    ),
    # Right: 足癣; too much: 手癣; missed: 湿疹. The benchmark leaves out 荨麻疹, which was not offered.
    "CHIP-CDN": ("足癣，湿疹", ["足癣", "手癣", "湿疹", "痤疮"], "足癣，手癣，荨麻疹", (1 / 2, 1 / 2, 1 / 2)),
    # Right: 头痛; 恶心 has the wrong status; missed: 呕吐.
    "IMCS-V2-SR": (
        f"当前对话中的症状及其阴阳性判断为：\n头痛：{HAS}\n恶心：{HAS_NOT}\n呕吐：{UNCLEAR}",
        [HAS_NOT, HAS, UNCLEAR],
        f"当前对话中的症状及其阴阳性判断为：\n头痛：{HAS}\n恶心：{HAS}",
        (1 / 2, 1 / 3, 2 / 5),
    ),
    # Right: 耳鸣; the other status is in words of the model's own.
    "CHIP-MDCFNPC": (
        f"上述对话中临床发现实体以及其阴阳性判别如下：\n耳鸣：{ILL}\n眩晕：{HEALTHY}",
        [ILL, HEALTHY],
        f"上述对话中临床发现实体以及其阴阳性判别如下：\n耳鸣：{ILL}\n眩晕：阴性",
        (1 / 2, 1 / 2, 1 / 2),
    ),
}

EXTRACTION["CMeIE-V2"] = EXTRACTION["CMeIE"]
# Right: the cause; the condition is of another cause; missed: the kind.
EXTRACTION["CMedCausal"] = (
    "因果关系三元组如下：\n头实体：感染；尾实体：发热\n"
    "条件关系三元组如下：\n头实体：儿童；尾三元组：头实体：感染；尾实体：发热；关系：因果关系\n"
    "上下位关系三元组如下：\n头实体：感染；尾实体：肺炎",
    None,
    "因果关系三元组如下：\n头实体：感染；尾实体：发热\n"
    "条件关系三元组如下：\n头实体：儿童；尾三元组：头实体：着凉；尾实体：发热；关系：因果关系",
    (1 / 2, 1 / 3, 2 / 5),
)
TREE = (
    "根据给定的指南文本抽取的诊疗决策树如下：\n"
    "节点1：role=C；logical_rel=null；triples=[['患者', '临床表现', 'Fever']]\n"
    "节点2：role=D；logical_rel=null；triples=[['患者', '治疗药物', '甲']]\n"
    "节点3：role=D；logical_rel=null；triples=[['患者', '治疗药物', '乙']]"
)

# Targets and predictions of four rows; score, precision, recall; accuracy.
MACRO, WEIGHTED = "macro-F1", "weighted-F1"
# Class a: 2 true, 3 said, 2 hits (F1 4/5, P 2/3, R 1); b: 2 true, 1 said, 1 hit (F1 2/3, P 1, R 1/2).
SCORES = ((4 / 5 + 2 / 3) / 2, 5 / 6, 3 / 4)
CLASSES = {
    "CHIP-CTC": (["年龄", "睡眠", "锻炼"], "年龄", "睡眠", MACRO),
    "KUAKE-QIC": (["病因分析", "医疗费用", "就医建议"], "医疗费用", "非上述类型", MACRO),
    "IMCS-V2-DAC": (["给出诊断", "关于病因的询问"], "给出诊断", "非上述类型", MACRO),
    "CHIP-STS": (["是的", "不是"], "是的", "不是", WEIGHTED),
    "KUAKE-IR": (["相关", "不相关"], "相关", "不相关", WEIGHTED),
    "KUAKE-QQR": (["完全一致", "后者是前者的语义子集", "语义无直接关联"], "完全一致", "语义无直接关联", WEIGHTED),
    "KUAKE-QTR": (["部分匹配", "完全匹配"], "部分匹配", "完全匹配", WEIGHTED),
}

REPORT = (
    "上述问诊对话的诊疗报告如下：\n主诉：头晕。\n现病史：头晕两天。\n辅助检查：\n既往史：体健。\n"
    "诊断：贫血。\n建议：复查。"
)
TARGETS = (
    {name: (target, choices) for name, (target, choices, *_) in EXTRACTION.items()}
    | {name: (target, choices) for name, (choices, target, *_) in CLASSES.items()}
    | {"IMCS-V2-MRG": (REPORT, None), "MedDG": ("您头晕多久了？", None), "Text2DT": (TREE, None)}
)


def row(name, target, prediction, choices=None, **more):
    return {
        "task_dataset": name,
        "target": target,
        "prediction": prediction,
        "answer_choices": choices,
        **more,
    }


def one(*rows):
    (score,) = score_rows(rows).tasks.values()
    return score


def test_the_tasks_of_both_editions_are_here():
    assert len(TASKS) == 16 + 3 and {"CMeIE", "CMeIE-V2", "CMedCausal", "Text2DT"} < set(TASKS) == set(TARGETS)


@pytest.mark.parametrize("name", TASKS)
def test_the_target_itself_scores_one(name):
    target, choices = TARGETS[name]
    score = one(row(name, target, target, choices))
    assert (score.score, score.lenient) == pytest.approx((1, 1), abs=1e-6)
    assert score.rows == 1 and score.unparsable == []
    assert score.metric == TASKS[name].metric


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("MedDG", "Text2DT")])
@pytest.mark.parametrize("prediction", ["", "我不太清楚，请去医院看看。"])
def test_what_has_not_the_form_is_listed_and_scores_zero(name, prediction):
    target, choices = TARGETS[name]
    right, wrong = row(name, target, target, choices), row(name, target, prediction, choices, sample_id="dev-7")
    score = one(wrong)
    assert score.lenient == 0 and score.unparsable == ["dev-7"]
    half = one(right, wrong)
    assert half.rows == 2 and half.unparsable == ["dev-7"]
    # All that was said is right and half of what is true was said: F1 2/3; a mean over texts is a half.
    assert half.lenient == pytest.approx(1 / 2 if TASKS[name].metric == "ROUGE-L" else 2 / 3, abs=1e-6)


@pytest.mark.parametrize("name", EXTRACTION)
def test_extraction_by_hand(name):
    target, choices, prediction, expected = EXTRACTION[name]
    score = one(row(name, target, prediction, choices))
    assert (score.precision, score.recall, score.score) == pytest.approx(expected)
    # A term that was not offered counts for `parse`.
    assert score.lenient == pytest.approx(2 / 5 if name == "CHIP-CDN" else expected[2])
    assert score.unparsable == [] and score.accuracy is None


@pytest.mark.parametrize("name", EXTRACTION)
def test_instances_are_counted_over_all_rows(name):
    """Micro: hits, found and true of a perfect row and a half right one are added before anything is divided."""
    target, choices, prediction, _ = EXTRACTION[name]
    true, said = (official.read(name, text, choices or ()) for text in (target, prediction))
    hits = sum(item in true for item in said)
    score = one(row(name, target, target, choices), row(name, target, prediction, choices))
    assert score.precision == pytest.approx((len(true) + hits) / (len(true) + len(said)))
    assert score.recall == pytest.approx((len(true) + hits) / (2 * len(true)))


@pytest.mark.parametrize("name", CLASSES)
def test_classes_by_hand(name):
    choices, a, b, metric = CLASSES[name]
    rows = [row(name, true, said, choices) for true, said in ((a, a), (a, a), (b, b), (b, a))]
    score = one(*rows)
    # Both classes have two rows, so that the weighted mean is the plain one.
    assert (score.score, score.precision, score.recall) == pytest.approx(SCORES)
    assert score.accuracy == 3 / 4
    # Three rows of a, all right, and one of b, said to be a: F1 6/7 and 0.
    score = one(*(row(name, true, a, choices) for true in (a, a, a, b)))
    assert score.score == pytest.approx(3 / 4 * 6 / 7 if metric == WEIGHTED else 6 / 7 / 2)


@pytest.mark.parametrize("name", CLASSES)
def test_a_text_that_is_no_class_is_one_of_its_own(name):
    choices, a, b, metric = CLASSES[name]
    rows = [row(name, true, said, choices) for true, said in ((a, a), (a, "不知道"), (b, b))]
    score = one(*rows)
    # a: 2 true, 1 hit, F1 2/3; b: 1; 不知道: 0, which no row has.
    assert score.score == pytest.approx((2 / 3 + 1 + 0) / 3 if metric == MACRO else (2 * 2 / 3 + 1) / 3)
    assert score.lenient == pytest.approx((2 / 3 + 1) / 2 if metric == MACRO else (2 * 2 / 3 + 1) / 3)
    assert score.accuracy == 2 / 3 and score.unparsable == ["row 2"]
    # Two texts are two classes, and a full stop makes a text of a class.
    score = one(*rows, row(name, b, "不清楚", choices), row(name, b, f"{b}。", choices))
    # a: 2/3; b: 3 true, 1 hit, F1 1/2; three texts.
    assert score.score == pytest.approx((2 / 3 + 1 / 2) / 5 if metric == MACRO else (2 * 2 / 3 + 3 * 1 / 2) / 5)
    # b: 3 true, 2 hits, F1 4/5.
    assert score.lenient == pytest.approx((2 / 3 + 4 / 5) / 2 if metric == MACRO else (2 * 2 / 3 + 3 * 4 / 5) / 5)


# Of each class: rows, and how many of them are answered by a text that is no class; a third of all rows.
UNREADABLE = [
    ("CHIP-CTC", [(5, 1), (10, 4)], 1, (0.546, 0.819)),
    ("KUAKE-QIC", [(5, 2), (1, 0)], 1, (0.583, 0.875)),
    ("IMCS-V2-DAC", [(6, 3), (2, 0), (1, 0)], 3, (0.444, 0.889)),
]


@pytest.mark.parametrize(("name", "classes", "texts", "scores"), UNREADABLE)
def test_a_third_that_cannot_be_read_counts_as_the_benchmark_counts_it(name, classes, texts, scores):
    """`texts` different ones, each a class of F1 0 in the official mean, and of none in the lenient one."""
    choices, a, b, _ = CLASSES[name]
    rows = []
    for label, (count, unreadable) in zip((a, b, choices[-1]), classes, strict=False):
        said = [f"说不清{number % texts}" for number in range(unreadable)] + [label] * (count - unreadable)
        rows += [row(name, label, text, [*choices, b]) for text in said]
    score = one(*rows)
    assert len(score.unparsable) == len(rows) / 3
    assert (score.score, score.lenient) == pytest.approx(scores, abs=5e-4)


def test_an_empty_answer_is_the_first_class():
    for name, first in official.FIRST_LABELS.items():
        score = one(row(name, first, " "))
        assert (score.score, score.lenient, score.unparsable) == (1, 0, ["row 1"]), name


@pytest.mark.parametrize(
    ("name", "target", "prediction", "choices"),
    [
        ("CMeEE-V2", "疾病实体：流感", "疾病实体:流感", ["疾病"]),
        ("CHIP-CDN", "足癣", "足癣。", ["足癣"]),
        ("CHIP-CDEE", "上述：\n主体词：咳嗽", "主体词：咳嗽", None),
        ("IMCS-V2-SR", f"如下：\n头痛：{HAS}", f"头痛：{HAS}", [HAS]),
        (
            "CMedCausal",
            "因果关系三元组如下：\n头实体：甲；尾实体：乙",
            "因果关系三元组如下:\n头实体:甲;尾实体:乙",
            None,
        ),
    ],
)
def test_the_benchmark_reads_to_the_letter(name, target, prediction, choices):
    score = one(row(name, target, prediction, choices))
    assert (score.score, score.lenient, score.unparsable) == (0, 1, [])


def test_the_benchmarks_structures():
    assert official.read("CHIP-MDCFNPC", "如下：\n头痛：有\n咳：嗽：有\n 发热 ：无", ["无"]) == [
        {"entity": "头痛", "attr": "不标注"},
        {"entity": "发热", "attr": "无"},
    ]
    assert official.read("CMeIE-V2", "具有病因关系的头尾实体对如下：头实体为甲，尾实体为乙。头实体为丙") == [
        {"predicate": "病因", "subject": "甲", "object": "乙"}
    ]
    assert official.read("CHIP-CDEE", "如下：\n主体词：甲；描述词：乙， 丙；其他：丁\n") == [
        {"主体词": "甲", "发生状态": "", "描述词": ["乙", "丙"], "解剖部位": []},
        {"主体词": "", "发生状态": "", "描述词": [], "解剖部位": []},
    ]
    condition = "条件关系三元组如下：\n头实体：甲；尾三元组：头实体：乙；尾实体：丙；关系：因果关系\n头实体：没有尾"
    [triple] = official.read("CMedCausal", condition)
    assert triple["predicate"] == "条件关系"
    assert triple["object"] == {"predicate": "因果关系", "subject": "乙", "object": "丙"}
    broken = (
        "：role=C；logical_rel=and；triples=[['a', 'b', 'c'], ['a', 'b']]\n：role=D；triples=__import__('os')\n说明"
    )
    assert official.read("Text2DT", broken) == [
        {"role": "C", "logical_rel": "and", "triples": [("a", "b", "c")]},
        {"role": "D；triples=__import__('os')", "logical_rel": "null", "triples": []},
    ]
    assert official.read("Text2DT", "没有") == [official.EMPTY_NODE]


def test_trees_by_hand():
    # A node with a triple stands for 2 + 1 edits: 9 of the target's tree, and as many of the prediction's.
    assert one(row("Text2DT", TREE, TREE.replace("甲", "丙"))).score == pytest.approx(1 - 2 / 18)
    assert one(row("Text2DT", TREE, TREE.replace("Fever", "FEVER"))).score == 1
    assert one(row("Text2DT", TREE, TREE.replace("：", ": ").replace("；", "; "))).lenient == 1
    # The root alone, as a decision: its role, and the role and the triple of each child.
    lines = TREE.split("\n")
    alone = lines[1].replace("role=C", "role=D")
    assert one(row("Text2DT", TREE, alone)).score == pytest.approx(1 - 5 / 12)
    # A condition with one child is no tree: below its root nothing is compared, and the child counts for the most.
    assert one(row("Text2DT", TREE, "\n".join(lines[:3]))).score == pytest.approx(1 - 4 / 15)
    # Two levels against one: the root's right child is a condition with two more below.
    deep = [*lines[:3], lines[1], lines[2], lines[3]]
    # Roles differ once (C for D), its triple is another (2), and two nodes more have a role and a triple each.
    score = one(row("Text2DT", TREE, "\n".join(deep)))
    assert score.score == pytest.approx(1 - (1 + 2 + 4) / (5 * 3 - 2 + 9))


def test_a_class_is_one_of_the_choices_whatever_its_width():
    choices = ["年龄", "体征(医生检测）"]
    assert parse("CHIP-CTC", "体征（医生检测)。\n", choices=choices) == "体征(医生检测）"
    assert parse("CHIP-CTC", "<think>是年龄吗？</think>年龄", choices="年龄，性别") == "年龄"
    assert parse("CHIP-CTC", "非上述类型", choices=choices) == "非上述类型"
    assert parse("CHIP-CTC", "睡眠", choices=choices) is None
    assert parse("CHIP-CTC", "睡眠") == "睡眠"
    assert parse("CHIP-CTC", "年龄，睡眠", choices=choices) is None
    assert parse("KUAKE-IR", "非上述类型", choices=["相关", "不相关"]) is None
    assert parse("CHIP-STS", "相同", choices=["相同", "不同"]) == parse("CHIP-STS", "是的") == "是的"


def test_reports_are_compared_section_by_section():
    # 头晕。 against 头痛。: 2 of 3 characters in order; an empty section reads 无。 and matches the empty one.
    prediction = REPORT.replace("主诉：头晕。", "主诉：头痛。")
    assert one(row("IMCS-V2-MRG", REPORT, prediction)).score == pytest.approx((5 + 2 / 3) / 6, abs=1e-6)
    # A missing section is an empty one: 复查。 against 无。 has 1 of 3 and 1 of 2 characters, F1 2/5.
    prediction = REPORT.partition("\n建议")[0]
    assert one(row("IMCS-V2-MRG", REPORT, prediction)).score == pytest.approx((5 + 2 / 5) / 6, abs=1e-6)
    # 4 sections of 1 and 2 of 0 of one row, nothing of another: the mean is over the twelve sections.
    lines = REPORT.replace("贫血。", "甲").replace("复查。", "乙").splitlines()
    target = "\n".join(lines)
    prediction = "\n".join(lines[:5]) + "\n诊断：丙\n建议：丁"
    score = one(row("IMCS-V2-MRG", target, prediction), row("IMCS-V2-MRG", target, "主诉不明"))
    assert score.lenient == pytest.approx(4 / 12, abs=1e-6) and score.unparsable == ["row 2"]


def test_replies_are_compared_by_characters():
    # 多喝温水 against 多喝水: three characters in order; precision 3/4, recall 1.
    assert one(row("MedDG", "多喝水", "多喝温水")).score == pytest.approx(6 / 7, abs=1e-6)
    # A word of letters or digits is one token: two of three.
    assert one(row("MedDG", "查 CRP 吧", "查wbc吧")).score == pytest.approx(2 / 3, abs=1e-6)
    score = one(row("MedDG", "多喝水", "多喝水"), row("MedDG", "多喝水", " "))
    assert score.lenient == score.score == pytest.approx(1 / 2, abs=1e-6) and score.unparsable == ["row 2"]


def test_order_and_duplicates_do_not_count():
    for name in ("CMeEE-V2", "IMCS-V2-NER", "CHIP-CDEE", "IMCS-V2-SR", "CHIP-MDCFNPC"):
        target, choices, *_ = EXTRACTION[name]
        lead, *lines = target.split("\n")
        assert one(row(name, target, "\n".join([lead, *lines[::-1], *lines]), choices)).score == 1
    for name, said in (("CMeEE-V2", "疾病实体：甲，乙，甲"), ("CHIP-CDN", "甲，乙，甲")):
        score = one(row(name, said.replace("甲，乙，甲", "乙，甲"), said, ["甲", "乙", "疾病"]))
        assert (score.precision, score.recall, score.score) == (1, 1, 1)
    # A wrong one said twice is one mistake.
    assert one(row("CHIP-CDN", "甲", "甲，乙，乙", ["甲", "乙"])).precision == 1 / 2
    wrong_type = "上述句子中的实体包含：\n疾病实体：发热\n临床表现实体：流感"
    assert one(row("CMeEE-V2", *EXTRACTION["CMeEE-V2"][:1], wrong_type, ["疾病", "临床表现"])).score == 0


@pytest.mark.parametrize(
    "text",
    [
        "上述句子中的实体包含:\n疾病实体:流感, 鼻炎\n药物实体:布洛芬",
        "上述句子中的实体包含：\r\n\r\n  疾病实体： 流感， 鼻炎 \r\n药物实体：布洛芬。",
        "上述句子中的实体包含：疾病实体：流感，鼻炎；药物实体：布洛芬",
        "疾病实体：流感，\n鼻炎\n药物实体：布洛芬\n以上就是全部内容。",
        "<think>先看疾病实体：无</think>\n疾病实体：流感，鼻炎 药物实体：布洛芬",
    ],
)
def test_width_and_line_breaks_do_not_matter_to_entities(text):
    expected = [("流感", "疾病"), ("鼻炎", "疾病"), ("布洛芬", "药物")]
    answer = parse("CMeEE-V2", text, choices=["疾病", "药物"])
    assert [tuple(item.values()) for item in answer] == expected


def test_width_and_line_breaks_do_not_matter_to_the_other_forms():
    triple = {"predicate": "相关（症状）", "subject": "痛风", "object": "尿酸＞420. 5"}
    for text in (
        "具有相关（症状）关系的头尾实体对如下：头实体为痛风，尾实体为尿酸＞420. 5。",
        "具有相关(症状)关系的头尾实体对如下:\n头实体为痛风, 尾实体为尿酸＞420. 5",
    ):
        assert parse("CMeIE", text, choices=["相关（症状）"]) == [triple]
    event = {"主体词": "pH：7.2", "发生状态": "不确定", "描述词": ["轻", "偶发"], "解剖部位": []}
    for text in (
        "上述句子中的临床发现事件如下：\n主体词：pH：7.2；发生状态：不确定；描述词：轻，偶发；解剖部位：",
        "主体词: pH：7.2; 发生状态: 不确定;\n描述词: 轻, 偶发; 解剖部位:\n",
    ):
        assert parse("CHIP-CDEE", text) == [event]
    for text in (
        f"发热：{HAS}；咳：嗽：{HAS_NOT}。",
        f"当前对话中的症状及其阴阳性判断为:\n发热: {HAS}\n咳：嗽: {HAS_NOT}",
    ):
        assert parse("IMCS-V2-SR", text) == [{"entity": "发热", "attr": HAS}, {"entity": "咳：嗽", "attr": HAS_NOT}]
    report = {"主诉": "腹痛", "现病史": "腹痛一天。\n伴腹泻", "诊断": ""}
    assert parse("IMCS-V2-MRG", "主诉: 腹痛\n现病史：腹痛一天。\n伴腹泻\n诊断：") == report


def test_names_keep_their_own_commas():
    vitamin = parse("CMeEE-V2", "药物实体：1,25-二羟维生素D3,钙片", choices=["药物"])
    assert [item["entity"] for item in vitamin] == ["1,25-二羟维生素D3", "钙片"]
    choices = ["肾结石，左侧", "肾结石", "左侧"]
    for text in ("肾结石，左侧，肾结石", "肾结石,左侧，肾结石。", "肾结石,左侧,肾结石"):
        terms = parse("CHIP-CDN", text, choices=choices)
        assert [item["entity"] for item in terms] == ["肾结石，左侧", "肾结石"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CMeEE-V2", "上述句子没有指定类型实体"),
        ("IMCS-V2-NER", "上述句子中的实体包含：\n症状实体：\n药物实体："),
        ("CMeIE", "没有指定类型的三元组"),
        ("CMeIE", "具有病因关系的头尾实体对如下：\n具有预防关系的头尾实体对如下："),
        ("CHIP-CDN", "没有对应的标准化实体。"),
        ("CHIP-CDEE", "上述句子中的临床发现事件如下："),
        ("IMCS-V2-SR", "当前对话中的症状及其阴阳性判断为："),
        ("CHIP-MDCFNPC", "上述对话中临床发现实体以及其阴阳性判别如下："),
    ],
)
def test_nothing_to_find_is_an_empty_answer(name, text):
    assert parse(name, text) == []
    score = one(row(name, text, text))
    assert (score.score, score.lenient, score.unparsable) == (0, 1, [])
    assert one(row(name, text, "好的")).lenient == 0
    # What is found where there is nothing is wrong.
    target, choices = TARGETS[name]
    assert one(row(name, text, target, choices)).lenient == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CMeEE-V2", "上述句子中的实体包含：\n流感，鼻炎"),
        ("CMeIE", "具有病因关系的头尾实体对如下：痛风，高尿酸"),
        ("CHIP-CDEE", "上述句子中的临床发现事件如下：\n发生状态：否定"),
        ("CHIP-CDN", "应该选第一个"),
        ("IMCS-V2-SR", "医生：请多休息"),
        ("IMCS-V2-MRG", "上述问诊对话的诊疗报告如下："),
    ],
)
def test_other_forms_are_not_guessed_at(name, text):
    assert parse(name, text, choices=TARGETS[name][1]) is None


@pytest.mark.parametrize("name", EXTRACTION)
def test_an_answer_that_repeats_itself_is_read_like_any_other(name):
    target, choices = TARGETS[name]
    assert one(row(name, target, "\n".join([target] * 200), choices)).lenient == 1


@pytest.mark.parametrize(("name", "text"), [("CMeIE", "具有"), ("CMeEE-V2", "实体 "), ("CHIP-CDN", "甲，")])
def test_a_loop_without_end_is_read_in_linear_time(name, text):
    assert parse(name, text * 20_000, choices=["乙", "丙，丁"]) is None


def test_the_average_is_over_the_tasks_present():
    rows = [
        row("KUAKE-IR", "相关", "相关"),
        row("CHIP-CDN", "足癣，湿疹", "足癣，手癣，荨麻疹", ["足癣", "手癣", "湿疹"]),
        row("KUAKE-IR", "不相关", "不相关"),
    ]
    result = score_rows(rows)
    assert list(result.tasks) == ["CHIP-CDN", "KUAKE-IR"]
    assert [score.rows for score in result.tasks.values()] == [1, 2]
    assert (result.average, result.lenient_average) == pytest.approx(((1 / 2 + 1) / 2, (2 / 5 + 1) / 2))


def test_errors_name_the_row():
    with pytest.raises(UserError, match=r"row 2: task_dataset 'KUAKE-I' .*known are CMeEE-V2, .*CHIP-MDCFNPC"):
        score_rows([row("KUAKE-IR", "相关", "相关"), row("KUAKE-I", "相关", "相关")])
    with pytest.raises(UserError, match=r"dev-3 \(CMeEE-V2\): the target does not have the task's form"):
        score_rows([row("CMeEE-V2", "流感", "上述句子没有指定类型实体", sample_id="dev-3")])
    with pytest.raises(UserError, match=r"dev-4 \(KUAKE-IR\): 'prediction' has to be a text, not NoneType"):
        score_rows([row("KUAKE-IR", "相关", None, sample_id="dev-4")])
    with pytest.raises(UserError, match="no rows"):
        score_rows([])


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_our_own_samples_score_one():
    rows = [r | {"prediction": r["target"]} for r in read(ROOT / "datasets" / "promptcblue" / "dev.json")]
    score = score_rows(rows).tasks["CHIP-CTC"]
    assert (score.score, score.accuracy, score.rows) == (1, 1, 100)
