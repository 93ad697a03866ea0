"""What answers are worth: rules, functions of the user's, and trained reward models."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from conftest import conversation
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.metrics.text import rouge_pairs
from hf_recipes.rewards.reward_model import ScoringModel
from hf_recipes.rewards.settings import RewardArguments, Spec, read_spec
from hf_recipes.rewards.weighted_sum import Rewards, summarise_rewards


def prompt_of(reference=None, location="rows.jsonl:1", question="问？", **columns) -> Prompt:
    messages = conversation(question)
    return Prompt(location, np.arange(3), question, reference, None, is_chat=True, messages=messages, row=columns)


def worth(spec: str, answer: str, reference=None) -> float | None:
    [[value]] = Rewards(RewardArguments([spec]))([prompt_of(reference)], [answer])
    return value


@pytest.mark.parametrize(
    ("spec", "answer", "expected"),
    [
        ("choice", "年龄。", 1.0),
        ("choice", "性别", 0.0),
        ("length:4-8", "四个字了", 1.0),
        ("length:4-8", " 两字 ", 0.5),
        ("length:4-8", "字" * 10, 0.75),
        ("length:4-8", "字" * 100, 0.0),
        (r"format:答案：\d+", "答案：42", 1.0),
        (r"format:答案：\d+", "答案：42。", 0.0),
        ("format:<a>.*</a>", "<a>一\n二</a>", 1.0),
        ("repetition", "好好好好好", -0.5),
        ("repetition:2", "一二 三四", 0.0),
        ("repetition", "短", 0.0),
        ("chinese", "好 ab, 1", 1 / 3),
        ("chinese", "123", 0.0),
    ],
)
def test_rules(spec, answer, expected):
    assert worth(spec, answer, reference="年龄") == pytest.approx(expected)


def test_rouge_is_that_of_the_evaluation():
    answer, reference = "患者年龄在十八岁以上", "患者年龄十八岁"
    assert worth("rouge", answer, reference) == rouge_pairs([answer], [reference])[0]["rougeL"] > 0.5
    assert worth("rouge", answer) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rouge", Spec("rouge", "rouge")),
        ("chinese=0.2", Spec("chinese", "chinese", "", 0.2)),
        ("repetition:3=2", Spec("repetition", "repetition", "3", 2.0)),
        ("format:a=b", Spec("format", "format", "a=b")),
        ("format:a=1=0.5", Spec("format", "format", "a=1", 0.5)),
        ("format:答案=5=1", Spec("format", "format", "答案=5")),
        ("format=0.5:答案=5", Spec("format", "format", "答案=5", 0.5)),
        ("format=2:a:b", Spec("format", "format", "a:b", 2.0)),
        ("my=folder/own.py:short", Spec("short", "my=folder/own.py", "short")),
        ("my/own.py=2:short", Spec("short", "my/own.py", "short", 2.0)),
        ("my/own.py", Spec("own", "my/own.py", "reward")),
        ("my/own.py:short=-1", Spec("short", "my/own.py", "short", -1.0)),
    ],
)
def test_specs(text, expected):
    assert read_spec(text) == expected


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["rogue"], "did you mean rouge"),
        (["rouge=0"], "a weight other than 0"),
        (["rouge=nan"], "a weight other than 0"),
        (["length:9-3"], "for instance length:20-200"),
        (["format:答案=5"], r"is 5 the weight, or the end of the expression\? Write format=5:答案, or format=1:答案=5"),
        (["rouge=much"], "a weight other than 0"),
        (["format:("], "a regular expression that matches the whole answer"),
        (["chinese:3"], "chinese takes no setting"),
        (["rouge", "rouge=2"], "rouge: given twice"),
        (["model"], "Name it with --reward_model"),
    ],
)
def test_specs_that_cannot_be(specs, message):
    with pytest.raises(ValueError, match=message):
        RewardArguments(specs)


def test_the_sum_leaves_out_what_has_no_value():
    rewards = Rewards(RewardArguments(["rouge=2", "chinese=0.5"]))
    prompts, answers = [prompt_of("好"), prompt_of()], ["好", "好"]
    columns = rewards(prompts, answers)
    assert columns == [[pytest.approx(1, abs=1e-6), None], [1.0, 1.0]]
    totals = [rewards.total(values) for values in zip(*columns, strict=True)]
    assert totals == [pytest.approx(2.5, abs=1e-5), 0.5] and rewards.total([None, None]) is None
    records = [
        {"rewards": dict(zip(rewards.names, values, strict=True)), "reward": total}
        for values, total in zip(zip(*columns, strict=True), totals, strict=True)
    ]
    found = summarise_rewards(rewards.names, records)
    assert found == {
        k: pytest.approx(v, abs=1e-5) for k, v in {"reward": 1.5, "rewards/rouge": 1, "rewards/chinese": 1}.items()
    }


def test_rows_without_references_are_said(capsys):
    rewards = Rewards(RewardArguments(["rouge", "choice"]))
    rewards.check([prompt_of("一"), prompt_of(location="rows.jsonl:2")])
    assert "rouge is not computed for 1 rows without a reference answer (rows.jsonl:2 …)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--rewards choice: rows.jsonl:1 has no answer to compare with"):
        rewards.check([prompt_of()])


OWN = """
import math
import numpy as np
def reward(prompts, completions, reference, location, answer_choices, **rest):
    assert prompts == [[{"role": "user", "content": "问？"}]] * len(completions)
    if "坏" in completions[-1] and len(completions) == 1:
        raise KeyError("坏")
    if any("坏" in text for text in completions):
        raise RuntimeError("one of them")
    return [float(text in choices) if choices else None for text, choices in zip(completions, answer_choices)]
def few(completions, **rest):
    return [1.0]
def one(completions, **rest):
    return 1.0
def by_answer(completions, **rest):
    return dict.fromkeys(range(len(completions)), 0.5)
def text(completions, **rest):
    return ["1"] * len(completions)
def vector(completions, **rest):
    return np.ones((len(completions), 2))
def missing(completions, **rest):
    return np.array([np.nan] * len(completions), dtype=np.float32)
def together(completions, **rest):
    assert len(completions) == 1
    return [1.0]
def one_by_one(completions, **rest):
    for text in completions:
        yield {"甲": 1.0}[text]
def infinite(completions, **rest):
    return [math.inf] * len(completions)
"""


def test_functions_of_the_users_own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN, encoding="utf-8")
    prompts = [prompt_of(location="rows.jsonl:1", answer_choices=["甲", "乙"]), prompt_of(location="rows.jsonl:2")]
    rewards = Rewards(RewardArguments([f"{path}"]))
    rewards.check(prompts)
    assert rewards.names == ["own"] and rewards(prompts, ["甲", "甲"]) == [[1.0, None]]
    with pytest.raises(
        UserError, match=r"--rewards own: failed on rows.jsonl:2 \(KeyError: '坏'\); the answer was '坏的'"
    ):
        rewards(prompts, ["甲", "坏的"])
    with pytest.raises(UserError, match="few: 1 values for 2 answers"):
        Rewards(RewardArguments([f"{path}:few"]))(prompts, ["甲", "甲"])
    with pytest.raises(UserError, match=r"infinite: failed on rows.jsonl:1 \(it gave inf"):
        Rewards(RewardArguments([f"{path}:infinite"]))(prompts, ["甲", "甲"])
    for name, message in (
        ("one", r"--rewards one: 1.0 for 2 answers; give a list"),
        ("by_answer", r"--rewards by_answer: \{0: 0.5, 1: 0.5\} for 2 answers; give a list"),
        ("text", r"text: failed on rows.jsonl:1 \(it gave '1', which is not a finite number\)"),
        ("vector", r"vector: failed on rows.jsonl:1 \(it gave array"),
        ("missing", r"missing: failed on rows.jsonl:1 \(it gave np.float32\(nan\), which is not a finite number\)"),
        ("together", r"together: failed on rows.jsonl:1 \(AssertionError: , with 2 answers at once\)"),
    ):
        with pytest.raises(UserError, match=message):
            Rewards(RewardArguments([f"{path}:{name}"]))(prompts, ["甲", "甲"])
    one_by_one = Rewards(RewardArguments([f"{path}:one_by_one"]))
    assert one_by_one(prompts, ["甲", "甲"]) == [[1.0, 1.0]]
    with pytest.raises(UserError, match=r"one_by_one: failed on rows.jsonl:2 \(KeyError: '乙'\)"):
        one_by_one(prompts, ["甲", "乙"])
    with pytest.raises(UserError, match="no function other in it"):
        Rewards(RewardArguments([f"{path}:other"]))
    with pytest.raises(UserError, match="no such file"):
        Rewards(RewardArguments([f"{tmp_path}/none.py"]))
    path.write_text("x = 1\ny = 1 / 0\n")
    with pytest.raises(UserError, match=r"own.py:2: ZeroDivisionError"):
        Rewards(RewardArguments([f"{path}"]))
    path.write_text("x = 1\ndef (\n")
    with pytest.raises(UserError, match=r"own.py:2: SyntaxError"):
        Rewards(RewardArguments([f"{path}"]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("np.array([0.5, 2], dtype=np.float32)", [0.5, 2.0]),
        ("[np.float16(0.5), np.int64(2)]", [0.5, 2.0]),
        ("[np.True_, False]", [1.0, 0.0]),
        ("np.array([[1], [2]])", [1.0, 2.0]),
        ("torch.tensor([0.5, 2.0], dtype=torch.bfloat16, requires_grad=True)", [0.5, 2.0]),
        ("[torch.tensor(1), None]", [1.0, None]),
        ("torch.tensor([True, False])", [1.0, 0.0]),
        ("(Fraction(1, 2), Decimal('2'))", [0.5, 2.0]),
        ("np.array([None, 1.0], dtype=object)", [None, 1.0]),
        ("(value for value in [1, 2])", [1.0, 2.0]),
    ],
)
def test_numbers_of_any_kind_are_floats(tmp_path, given, expected):
    head = "import numpy as np, torch\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
    (tmp_path / "own.py").write_text(f"{head}def reward(completions, **rest):\n    return {given}\n")
    [values] = Rewards(RewardArguments([f"{tmp_path}/own.py"]))([prompt_of(), prompt_of()], ["甲", "乙"])
    assert values == expected and {type(value) for value in values} <= {float, type(None)}


def test_a_reward_model_scores_the_conversation_in_its_own_words(judge):
    from transformers import AutoModelForSequenceClassification

    scorer = ScoringModel(str(judge))
    prompts = [prompt_of(question="今天天气怎么样？"), prompt_of(question="请问？")]
    answers = ["天气很好，我们去公园散步吧！", " "]
    found = scorer(prompts, answers)
    tokenizer = AutoTokenizer.from_pretrained(judge)
    model = AutoModelForSequenceClassification.from_pretrained(judge).eval()
    talk = [*prompts[0].messages, {"role": "assistant", "content": answers[0]}]
    [row] = ChatEncoder(tokenizer).encode([talk])
    ending_at_once = "<|im_start|>user\n请问？<|im_end|>\n<|im_start|>assistant\n<|im_end|>"
    for ids, score in zip((row.input_ids, tokenizer(ending_at_once)["input_ids"]), found, strict=True):
        with torch.no_grad():
            expected = model(torch.as_tensor(ids)[None].long()).logits.item()
        assert score == pytest.approx(expected, abs=0.05)  # the weights are in bfloat16 where the processor has it
    assert not scorer.model.training and not any(p.requires_grad for p in scorer.model.parameters())


def test_reward_models_that_cannot_be_used(judge, model_dir, tmp_path):
    with pytest.raises(UserError, match=r"not a reward model; scripts/reward\.py trains one"):
        ScoringModel(model_dir)
    with pytest.raises(UserError, match="is no adapter, and has no other base"):
        ScoringModel(str(judge), base=model_dir)
    with pytest.raises(UserError, match="no such folder"):
        ScoringModel(str(tmp_path / "none"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "/gone/base", "r": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"/gone/base: .*; name the base of this adapter with --reward_base"):
        ScoringModel(str(adapter))


def test_a_reward_model_with_another_vocabulary_is_named(judge, tmp_path):
    import shutil

    folder = tmp_path / "judge"
    shutil.copytree(judge, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["新词一", "新词二"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"the tokenizer has 546 tokens and the reward model was trained with 544"):
        ScoringModel(str(folder))([prompt_of()], ["好"])
