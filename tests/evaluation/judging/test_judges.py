import pytest
from judge_server import judge_server

from hf_recipes.core.errors import UserError
from hf_recipes.evaluation.judging import judges
from hf_recipes.evaluation.judging.arguments import JudgeArguments


def open_remote(address, monkeypatch, key="s3cret"):
    monkeypatch.setenv("MY_KEY", key)
    judge = judges.open_judge(JudgeArguments(address, judge_model="m", judge_key_env="MY_KEY"), 4)
    judge.load()
    return judge


def test_an_address_gets_the_prompts_and_nothing_else(monkeypatch):
    with judge_server(lambda prompt: prompt.upper()) as (address, requests):
        judge = open_remote(address, monkeypatch)
        assert judge.replies(["a", "b", "c"]) == ["A", "B", "C"]
    assert {path for path, _, _ in requests} == {"/v1/chat/completions"}
    assert {headers["Authorization"] for _, headers, _ in requests} == {"Bearer s3cret"}
    bodies = sorted((body for _, _, body in requests), key=lambda body: body["messages"][0]["content"])
    assert bodies[0] == {
        "model": "m",
        "temperature": 0,
        "max_tokens": 512,
        "messages": [{"role": "user", "content": "a"}],
    }
    assert "s3cret" not in str(judge.settings) + judge.destination


def test_errors_that_pass_are_tried_again_and_others_end(monkeypatch):
    waits = []
    monkeypatch.setattr(judges.time, "sleep", waits.append)
    failures = [(429, {"Retry-After": "7"}, "slow down"), (503, {}, "busy")]
    with judge_server(lambda prompt: "ok", failures) as (address, requests):
        assert open_remote(address, monkeypatch).replies(["a"]) == ["ok"]
    assert waits == [7, 2] and len(requests) == 3

    with (
        judge_server(lambda prompt: "ok", [(500, {}, "down")] * 9) as (address, requests),
        pytest.raises(UserError, match=r"HTTP 500: down \(5 attempts\); what is judged is kept, and the same"),
    ):
        open_remote(address, monkeypatch).replies(["a"])
    assert len(requests) == 5

    with (
        judge_server(lambda prompt: "ok", [(401, {}, "wrong key s3cret")]) as (address, requests),
        pytest.raises(UserError, match="HTTP 401: wrong key …; what"),
    ):
        open_remote(address, monkeypatch).replies(["a"])
    assert len(requests) == 1

    with (
        judge_server(lambda prompt: "ok", [(200, {}, "<html>")]) as (address, _),
        pytest.raises(UserError, match="no chat completion"),
    ):
        open_remote(address, monkeypatch).replies(["a"])
    with pytest.raises(UserError, match=r"ConnectError.*5 attempts"):
        open_remote(address, monkeypatch).replies(["a"])


def test_a_missing_key_is_an_error(monkeypatch):
    with pytest.raises(UserError, match="--judge_key_env MY_KEY: there is no environment variable"):
        open_remote("http://127.0.0.1:9/v1", monkeypatch, key=" ")


def test_a_local_model_replies_and_prompts_over_its_context_get_nothing(model_dir):
    judge = judges.open_judge(JudgeArguments(model_dir, judge_max_new_tokens=4), 2)
    judge.load()
    judge._context = 40
    replies = judge.replies(["年龄", "标准" * 200, "药物"])
    assert len(replies) == 3 and replies[1] == "" and judge.destination is None
    assert judge.replies(["药物"]) == [replies[2]]
