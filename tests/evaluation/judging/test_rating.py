import json

import pytest
from judge_server import judge_server

from conftest import write_jsonl
from hf_recipes.evaluation.judging.rating import rating_of


@pytest.mark.parametrize(
    ("reply", "score"),
    [("好。\n[[8]]", 8), ("[[3]] [[7.5]]", 7.5), ("【【10】】", 10), ("[[9/10]]", 9), ("[[11]]", None), ("8 分", None)],
)
def test_the_last_rating_of_a_reply_counts(reply, score):
    assert rating_of(reply) == score


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_length(prompt):
    answer = prompt.partition("[回答]\n")[2].partition("\n[回答结束]")[0]
    return "说不好" if answer == "无" else f"理由。\n[[{len(answer)}]]"


def test_every_row_is_written_with_its_score_and_a_second_call_continues(script, tmp_path):
    rows = [{"id": i, "prompt": f"问题{i}是什么意思？", "response": "答" * i} for i in range(1, 9)]
    rows[3]["response"], rows[5]["response"] = "无", ""
    source, output = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "scored.jsonl"
    with judge_server(by_length) as (address, requests):
        flags = ("--score", "--judge", address, "--judge_model", "m", "--batch_size", 2)
        flags += ("--train_file", source, "--output_file", output)
        code, out, err = script("inspect_data.py", *flags)
        assert code == 0, err
        assert f"sent to {address}/chat/completions (model m): question, answer of 7 rows" in out
        assert len(requests) == 7
        assert any("问题1是什么意思？" in request[2]["messages"][0]["content"] for request in requests)
        assert '"id"' not in str(requests)
        whole = output.read_bytes()
        output.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
        assert script("inspect_data.py", *flags)[0] == 0
        assert output.read_bytes() == whole and len(requests) == 11
    scored = read(output)
    assert [{key: row[key] for key in row if not key.startswith("judge_")} for row in scored] == rows
    assert [row["judge_score"] for row in scored] == [1, 2, 3, None, 5, None, 7, 8]
    assert [row.get("judge_score_problem") for row in scored][3:6] == [
        "no score in the reply: '说不好'",
        None,
        "empty answer",
    ]
    assert "6 of 8 rows have a score from 1 to 10; 2 have none, with the reason as judge_score_problem" in out
    assert f"jq -c 'select(.judge_score >= 7)' {output} > kept.jsonl" in out


def test_both_answers_of_a_pair_are_scored_by_a_model_of_this_machine(script, model_dir, tmp_path, monkeypatch):
    prompts = []

    def replies(judge, texts):
        prompts.extend(texts)
        return [
            by_length(text.replace("Answer]", "回答]").replace("[End of the answer]", "[回答结束]")) for text in texts
        ]

    monkeypatch.setattr("hf_recipes.evaluation.judging.judges.LocalJudge.replies", replies)
    pairs = [{"prompt": "What is the meaning of this?", "chosen": "a" * i, "rejected": "b" * 2} for i in (1, 2, 3)]
    output = tmp_path / "out.jsonl"
    flags = ("--input_file", write_jsonl(tmp_path / "p.jsonl", pairs), "--output_file", output, "--batch_size", 2)
    code, out, err = script("inspect_data.py", "--score", "--judge", model_dir, *flags)
    assert code == 0, err
    assert "scored on this machine: question, answer of 3 rows" in out and len(prompts) == 6
    assert [(row["judge_score_chosen"], row["judge_score_rejected"]) for row in read(output)] == [
        (1, 2),
        (2, 2),
        (3, 2),
    ]
    assert ".judge_score_chosen > .judge_score_rejected" in out


def test_mistakes_of_scoring(script, model_dir, tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "问", "response": "答", "judge_score": 1}])
    flags = ("--score", "--train_file", source, "--output_file", tmp_path / "out.jsonl")
    assert "name the model that scores the rows with --judge" in script("inspect_data.py", *flags)[2]
    assert "a column 'judge_score' already; rename it" in script("inspect_data.py", *flags, "--judge", model_dir)[2]
    (tmp_path / "p.txt").write_text("{question}")
    flags = (*flags, "--judge", model_dir, "--judge_prompt", tmp_path / "p.txt")
    assert "p.txt: {answer} is missing in it" in script("inspect_data.py", *flags)[2]
    (tmp_path / "p.txt").write_text("{question} {answer} {refrence} Reply as {score}.")
    message = "p.txt: {refrence} stands for no text (did you mean reference?)"
    assert message in script("inspect_data.py", *flags)[2]
    assert not (tmp_path / "out.jsonl").exists()
