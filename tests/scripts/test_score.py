"""scripts/score.py: every row of a file with its score, in order, whatever happens in between."""

import json

import pytest
import torch
from transformers import Qwen3ForSequenceClassification

from conftest import conversation, tiny_model, write_jsonl


@pytest.fixture
def reward_dir(tokenizer, tmp_path):
    torch.manual_seed(3)
    config = tiny_model(len(tokenizer)).config
    config.num_labels = 1
    Qwen3ForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


@pytest.fixture
def score(script, reward_dir, tmp_path):
    def run(*flags, model=reward_dir):
        where = ("--model_name_or_path", model, "--output_file", tmp_path / "out.jsonl", "--dtype", "float32")
        return script("score.py", *where, "--batch_size", 2, *flags)

    return run


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def expected(folder, tokenizer, prompt, answer):
    model = Qwen3ForSequenceClassification.from_pretrained(folder).eval()
    ids = tokenizer.apply_chat_template(conversation(prompt, answer), return_tensors="pt", return_dict=False)
    with torch.no_grad():
        return model(ids).logits.item()


def test_answers_and_pairs_keep_their_rows(score, reward_dir, tokenizer, tmp_path):
    answers = [{"id": i, "prompt": f"标准{i}", "response": "年龄" * (i * 7 % 5)} for i in range(75)]
    code, out, err = score("--input_file", write_jsonl(tmp_path / "a.jsonl", answers))
    assert code == 0, err
    found = read(tmp_path / "out.jsonl")
    assert [{key: row[key] for key in row if key != "score"} for row in found] == answers
    assert [row["score"] is None for row in found] == [i % 5 == 0 for i in range(75)]
    assert "15 dropped: empty answer (first at line 1)" in out and "15 dropped rows are kept" in out
    for index in (1, 74):
        prompt, answer = answers[index]["prompt"], answers[index]["response"]
        assert found[index]["score"] == pytest.approx(expected(reward_dir, tokenizer, prompt, answer), abs=1e-5)

    # The last ones fill a window of 16 batches, of which none can be scored.
    pairs = [{"prompt": "一", "selected": "年龄" * i, "rejected": "药物"} for i in (1, 2, *[60] * 62)]
    code, _, err = score(
        "--input_file", write_jsonl(tmp_path / "b.jsonl", pairs), "--max_length", 64, "--overwrite_output", True
    )
    assert code == 0, err
    found = read(tmp_path / "out.jsonl")
    assert [list(row) for row in found] == [["prompt", "selected", "rejected", "score_chosen", "score_rejected"]] * 64
    assert found[2]["score_chosen"] is None and found[2]["score_rejected"] is None
    assert found[1]["score_chosen"] == pytest.approx(expected(reward_dir, tokenizer, "一", "年龄年龄"), abs=1e-5)


def test_a_second_call_goes_on_to_the_same_scores(score, tmp_path):
    pairs = [
        {"prompt": f"标准{i}", "chosen": "年龄" * (i * 7 % 11 + 1), "rejected": "药物" * (i % 3 + 1)} for i in range(80)
    ]
    source = ("--input_file", write_jsonl(tmp_path / "rows.jsonl", pairs))
    assert score(*source)[0] == 0
    output = tmp_path / "out.jsonl"
    whole = output.read_bytes()
    for rows in (1, 33, 79):
        output.write_bytes(b"".join(whole.splitlines(keepends=True)[:rows]) + b'{"cut')
        code, out, err = score(*source)
        assert code == 0 and f"{rows} of 80 rows are there" in out, err
        assert output.read_bytes() == whole
    code, _, err = score(*source, "--max_length", 50)
    assert code == 1 and "it was begun with max_length" in err


def test_what_cannot_be_scored_is_named(score, model_dir, tmp_path):
    rows = [{"prompt": "一", "response": "二", "score": 3}]
    source = ("--input_file", write_jsonl(tmp_path / "rows.jsonl", rows))
    code, _, err = score(*source)
    assert code == 1 and "rows.jsonl:1: there is a column 'score' already" in err
    code, _, err = score(*source, model=model_dir)
    assert code == 1 and "not a reward model; scripts/reward.py trains one" in err
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": "一"}])
    code, _, err = score("--input_file", text)
    assert code == 1 and "rows of text have no answer to score" in err
