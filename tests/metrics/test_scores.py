import pytest
import torch

from conftest import tiny_model
from hf_recipes.evaluation.reports.tables import comparison, samples
from hf_recipes.metrics.text import bleu4, choice_accuracy, rouge, words
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches, plan_batches


def test_rouge_by_hand():
    """今天 天气 很 好 against 今天 天气 不错: 2 of 4 and 2 of 3 words, one of 3 and one of 2 word pairs."""
    assert words("今天天气很好") == ["今天天气", "很", "好"] or words("今天天气很好")[:2] == ["今天", "天气"]
    scores = rouge(["我 爱 北京"], ["我 爱 上海"])
    assert scores["rouge1"] == pytest.approx(2 / 3, abs=1e-6)
    assert scores["rouge2"] == pytest.approx(1 / 2, abs=1e-6)
    assert scores["rougeL"] == pytest.approx(2 / 3, abs=1e-6)


def test_empty_predictions_count_as_zero():
    assert rouge(["我爱北京", ""], ["我爱北京", "我爱北京"])["rougeL"] == pytest.approx(0.5, abs=1e-6)
    assert rouge([], []) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    assert bleu4(["", ""], ["一二三四", "一二三四"]) == 0.0


def test_bleu4_by_hand():
    assert bleu4(["一二三四五"], ["一二三四五"]) == pytest.approx(1.0)
    # 4 of 5, 3 of 4, 2 of 3 and 1 of 2 n-grams match; equal lengths, so no brevity penalty.
    assert bleu4(["一二三四六"], ["一二三四五"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_accuracy_counts_exact_choices():
    choices = [["年龄", "性别"]] * 4 + [None, ["年龄", "性别"]]
    found = choice_accuracy(
        ["年龄", " 性别。", "年龄，性别", "", "年龄", "年龄"], ["年龄", "性别", "年龄", "性别", "年龄", "病史"], choices
    )
    assert found == (0.5, 4)
    assert choice_accuracy(["一"], ["一"], [None]) is None


def test_batched_generation_equals_one_by_one(tokenizer):
    model = tiny_model(len(tokenizer)).train()
    prompts = [tokenizer(text)["input_ids"] for text in ("你好", "请问这条标准属于哪一类？", "年龄" * 9, "a")]

    def answers(batches):
        found = {}
        for batch, texts in continue_batches(model, tokenizer, prompts, batches, Decoding(12), stop_ids=[7]):
            found.update(zip(batch, [text.text.strip() for text in texts], strict=True))
        return [found[index] for index in range(len(prompts))]

    batched = answers(plan_batches(prompts, 3))
    assert batched == answers([[index] for index in range(len(prompts))])
    assert model.training

    # The plain loop that generation stands for.
    model.eval()
    for prompt, text in zip(prompts, batched, strict=True):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in (7, tokenizer.eos_token_id, 2):
                ids.pop()
                break
        assert tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip() == text


def test_table_and_samples():
    table = comparison({"accuracy": 0.1, "loss": 2.0}, {"accuracy": 0.75, "rougeL": 0.5, "loss": 0.25})
    assert [line.split() for line in table.splitlines()] == [
        ["base", "adapted", "change"],
        ["accuracy", "10.0", "%", "75.0", "%", "+65.0"],
        ["ROUGE-L", "–", "50.0", "%", "–"],
        ["loss", "2.0000", "0.2500", "-1.7500"],
    ]
    text = samples([{"prediction": ""}], [{"question": "长" * 90, "reference": "甲", "prediction": "乙"}])
    assert "base       (nothing)" in text and "adapted    乙" in text and "长" * 42 + "…" in text
