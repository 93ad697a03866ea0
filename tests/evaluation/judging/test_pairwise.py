import pytest

from hf_recipes.evaluation.judging.arguments import JudgeArguments, JudgePrompt
from hf_recipes.evaluation.judging.pairwise import letter_of, summarise, verdict_of

MODELS = ("adapted", "base")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("理由……\n[[A]]", "A"),
        ("[[A]] 不，应该是 [[B]]", "B"),
        ("【【Ｃ】】", "C"),
        ("[b]", "B"),
        (" A。", "A"),
        ("A is better", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_the_last_verdict_of_a_reply_counts(reply, letter):
    assert letter_of(reply) == letter


def test_a_win_is_what_both_orders_agree_on():
    table = {"AB": "adapted", "BA": "base", "CC": "tie", "AA": "contradictory", "BB": "contradictory"}
    table |= {"AC": "contradictory", "CA": "contradictory"}
    assert {letters: verdict_of(tuple(letters), MODELS) for letters in table} == table
    assert verdict_of(("A", None), MODELS) == "unparsable"


def test_the_win_rate_and_the_share_of_contradictory_verdicts():
    verdicts = ["adapted"] * 5 + ["base"] * 2 + ["tie"] + ["contradictory"] * 2 + ["identical"] * 2 + ["unparsable"]
    summary = summarise(verdicts, MODELS)
    assert summary["win_rate"] == pytest.approx((5 + 5 / 2) / 12)
    assert summary["contradictory_share"] == 2 / 10
    assert 0 <= summary["low"] < summary["win_rate"] < summary["high"] <= 1
    counts = ("rows", "wins", "losses", "ties", "identical", "contradictory", "unparsable")
    assert [summary[key] for key in counts] == [13, 5, 2, 1, 2, 2, 1]
    nothing = summarise(["unparsable"] * 3, MODELS)
    assert (nothing["win_rate"], nothing["contradictory_share"], nothing["unparsable"]) == (None, None, 3)


def test_the_prompt_is_in_the_language_of_the_rows_and_takes_texts_as_they_are():
    prompt = JudgePrompt(JudgeArguments("m"), "pairwise", ["今天天气怎么样？", "What is the weather like today?"])
    assert prompt.language == "zh" and prompt.fields == ["question", "answer_a", "answer_b"]
    text = prompt.fill(question="{answer_a}", answer_a="甲{x}", answer_b="乙", reference="")
    assert "[对话]\n{answer_a}\n" in text and "[回答 A]\n甲{x}\n" in text
    prompt = JudgePrompt(JudgeArguments("m"), "rating", ["What is the weather like today?"])
    assert prompt.language == "en" and "Rate an assistant's answer" in prompt.text
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert prompt.conversation(turns) == "System: Be brief.\n\nUser: Hi" and prompt.conversation(turns[1:]) == "Hi"
    assert JudgePrompt(JudgeArguments("m", judge_language="zh"), "rating", ["Hi there"]).language == "zh"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge_prompt": "p.txt"}, "has an effect with --judge alone"),
        ({"judge_max_new_tokens": 64}, "--judge_max_new_tokens: has an effect with --judge alone"),
        ({"judge": "model", "judge_model": "x"}, "is no address"),
        ({"judge": "http://a/v1"}, "name the model at this address with --judge_model"),
        ({"judge": "https://me:key@a/v1", "judge_model": "x"}, "--judge_key_env"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        JudgeArguments(**settings)
    assert "me:key" not in str(error.value)
