import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3ForSequenceClassification

from conftest import conversation, tiny_model, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.examples import load_examples
from hf_recipes.evaluation.methods.preference_accuracy import PairAccuracy, differences
from hf_recipes.evaluation.reports.plots import draw_histogram
from hf_recipes.models.inference.batch_options import BatchOptions

TALK = conversation("请问这条标准属于哪一类？", "年龄", "为什么？")
ROWS = [
    {"prompt": "你好", "chosen": "今天天气很好，我们去公园散步吧！", "rejected": "年龄"},
    {"prompt": "性别不限？", "chosen": "性别", "rejected": "The quick brown fox"},
    {"chosen": [*TALK, *conversation("", "因为十八岁")[1:]], "rejected": [*TALK, *conversation("", "a", "b", "c")[1:]]},
]


def pairs(folder, rows=ROWS, name="pairs.jsonl"):
    return load_examples([str(write_jsonl(folder / name, rows))], form="preference")


def single(folder, tokenizer, **settings):
    """The plain rows and the one of several turns have columns of unlike kinds, so they are two files."""
    plain = write_jsonl(folder / "a.jsonl", ROWS[:2])
    turns = write_jsonl(folder / "b.jsonl", ROWS[2:])
    return PairAccuracy(load_examples([str(plain), str(turns)], form="preference"), tokenizer, **settings)


def sides():
    """(prompt, answer) messages of each side of each of `ROWS`."""
    found = []
    for row in ROWS[:2]:
        for side in ("chosen", "rejected"):
            found.append((conversation(row["prompt"]), [{"role": "assistant", "content": row[side]}]))
    return found + [(TALK, ROWS[2][side][3:]) for side in ("chosen", "rejected")]


def reward_model(tokenizer, labels=1):
    torch.manual_seed(3)
    config = tiny_model(len(tokenizer)).config
    config.num_labels = labels
    return Qwen3ForSequenceClassification(config)


@pytest.mark.parametrize("size", [1, 4, 6])
def test_rewards_are_those_of_each_side_alone(tokenizer, tmp_path, size):
    model = reward_model(tokenizer)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], lora_dropout=0.5)).train()
    method = single(tmp_path, tokenizer)
    state = torch.get_rng_state()
    records = method.compute(model, range(3), BatchOptions(batch_size=size))
    assert model.training and torch.equal(torch.get_rng_state(), state)
    model.eval()
    expected = []
    for prompt, answer in sides():
        ids = tokenizer.apply_chat_template(prompt + answer, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            expected.append(model(ids).logits.item())
    assert [r[side] for r in records for side in ("chosen", "rejected")] == pytest.approx(expected, abs=1e-5)
    assert [record["location"].rpartition("/")[2] for record in records] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]
    texts = [[record[key] for key in ("question", "chosen_text", "rejected_text")] for record in records]
    assert texts[0] == list(ROWS[0].values()) and texts[2][:2] == [TALK[-1]["content"], "因为十八岁"]
    assert "accuracy_per_token" not in method.summarise(records)


def test_log_probability_of_the_answer_alone(tokenizer, tmp_path):
    """Token by token: the assistant's turns after the prompt, their end tokens included, and nothing else."""
    model = tiny_model(len(tokenizer)).eval()
    expected = []
    for prompt, answer in sides():
        ids = tokenizer.apply_chat_template(prompt, return_dict=False)
        total = count = 0
        for message in answer:
            head = tokenizer(f"<|im_start|>{message['role']}\n")["input_ids"]
            body = tokenizer(f"{message['content']}<|im_end|>")["input_ids"]
            ids = ids + head
            for token in body:
                if message["role"] == "assistant":
                    with torch.no_grad():
                        total += model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
                    count += 1
                ids = [*ids, token]
            ids = ids + tokenizer("\n")["input_ids"]
        expected.append((total, count))
    order = [4, 5, 0, 1, 2, 3]
    method = single(tmp_path, tokenizer)
    for size in (1, 4, 6):
        records = method.compute(model, [2, 0, 1], BatchOptions(batch_size=size))
        found = [(r[side], r[f"{side}_tokens"]) for r in records for side in ("chosen", "rejected")]
        assert [count for _, count in found] == [expected[i][1] for i in order]
        assert [total for total, _ in found] == pytest.approx([expected[i][0] for i in order], abs=1e-4)


def test_both_sides_are_in_one_batch(tokenizer, tmp_path):
    model, shapes = reward_model(tokenizer), []
    model.register_forward_pre_hook(lambda _, args, kwargs: shapes.append(len(kwargs["input_ids"])), with_kwargs=True)
    calls = []
    how = BatchOptions(batch_size=5, before_batch=lambda: calls.append(1))
    single(tmp_path, tokenizer).compute(model, range(3), how)
    assert shapes == [4, 2] and len(calls) == 2


def test_summary_by_hand(tokenizer, tmp_path):
    method = PairAccuracy(pairs(tmp_path, ROWS[:2]), tokenizer)
    records = [
        {"source": source, "chosen": chosen, "rejected": rejected, "chosen_tokens": a, "rejected_tokens": b}
        for source, chosen, rejected, a, b in [
            ("甲", -8.0, -4.0, 8, 2),  # the better answer is four times as long: wrong by sum, right per token
            ("甲", -2.0, -2.0, 1, 1),
            ("乙", -1.0, -3.0, 1, 1),
        ]
    ]
    assert differences(records) == [-4.0, 0.0, 2.0] and differences(records, per_token=True) == [1.0, 0.0, 2.0]
    summary = method.summarise(records)
    assert summary["accuracy"] == 0.5 and summary["accuracy_per_token"] == pytest.approx(2.5 / 3)
    assert (summary["accuracy/甲"], summary["accuracy/乙"]) == (0.25, 1.0)
    assert summary["difference_mean"] == pytest.approx(-2 / 3)
    assert summary["difference_std"] == pytest.approx(np.std([-4, 0, 2], ddof=1))
    assert (summary["difference_q50"], summary["difference_q05"]) == pytest.approx((0, -3.6))
    assert (summary["pairs"], summary["ties"], summary["difference_per_token_mean"]) == (3, 1, 1.0)


def test_pairs_that_do_not_fit(tokenizer, tmp_path):
    rows = [*ROWS[:2], {"prompt": "甲", "chosen": "乙", "rejected": "乙"}]
    one, two = PairAccuracy(pairs(tmp_path, ROWS[:2]), tokenizer)._pairs
    limit = min(one.length, two.length)
    method = PairAccuracy(pairs(tmp_path, rows), tokenizer, max_length=limit, max_drop_ratio=0.7)
    assert one.length != two.length
    assert len(method) == 1 and dict(method.ledger.totals) == {"read": 3, "kept": 1, "dropped": 2}
    assert {status for _, status in method.ledger.reasons} == {
        f"dropped: a side is longer than {limit} tokens",
        "dropped: chosen and rejected are the same",
    }
    with pytest.raises(UserError, match="2 of 3 rows cannot be used"):
        PairAccuracy(pairs(tmp_path, rows), tokenizer, max_length=limit)


def test_classifiers_that_are_no_reward_models(tokenizer, tmp_path):
    method = PairAccuracy(pairs(tmp_path, ROWS[:2]), tokenizer)
    with pytest.raises(UserError, match="3 labels; a reward model has one"):
        method.compute(reward_model(tokenizer, 3), [0], BatchOptions())
    model = reward_model(tokenizer)
    model.config.pad_token_id = None
    with pytest.raises(UserError, match="no pad_token_id"):
        method.compute(model, [0], BatchOptions())


def test_histogram(tmp_path):
    from matplotlib import pyplot as plt

    path = tmp_path / "margins.png"
    draw_histogram([[-1.0, 0.5, 2.0], [0.0, 3.0]], path, ["before", "after"])
    height, width = plt.imread(path).shape[:2]
    assert (width, height) == (840, 480) and list(tmp_path.iterdir()) == [path]


def test_histograms_do_not_pile_up(tmp_path):
    """A figure is a circle of objects with 2 MB of pixels; one for each evaluation would grow with the run."""
    import gc

    from matplotlib.figure import Figure

    from hf_recipes.evaluation.reports.plots import FIGURES_PER_COLLECTION

    gc.disable()
    try:
        for _ in range(FIGURES_PER_COLLECTION + 2):
            draw_histogram([[0.1, 0.5, -0.3]], tmp_path / "differences.png", ["model"])
        assert sum(isinstance(found, Figure) for found in gc.get_objects()) < FIGURES_PER_COLLECTION
    finally:
        gc.enable()
