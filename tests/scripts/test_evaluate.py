"""scripts/evaluate.py as a user runs it."""

import json
import re
import runpy
import sys

import pytest
from judge_server import judge_server
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from conftest import ROOT, json_files, tiny_model, write_jsonl
from hf_recipes.models.adapters.lora import attach_lora, read_lora_config

SAMPLES = ROOT / "datasets"
FILES = ["dev=D/dev.json", *(f"{name}={SAMPLES}/{path}" for name, path in (("exam", "eval/single_choice.jsonl"),))]
FILES += [f"pairs={SAMPLES}/preference/train.jsonl", f"wiki={SAMPLES}/pretrain/wiki.jsonl"]


@pytest.fixture
def evaluate(monkeypatch, capfd):
    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / "evaluate.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def adapter(model_dir, tmp_path):
    import torch

    torch.manual_seed(1)
    adapted = attach_lora(AutoModelForCausalLM.from_pretrained(model_dir), read_lora_config(None), None, [])
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    assert isinstance(adapted, PeftModel)
    return tmp_path / "adapter"


def test_a_comparison_leaves_figures_and_one_page(evaluate, model_dir, adapter, pairs, tmp_path):
    files = [entry.replace("D/", f"{pairs}/") for entry in FILES]
    flags = ["--model_name_or_path", model_dir, "--peft_path", adapter, "--compare", "base", "--max_new_tokens", 4]
    flags += ["--dtype", "float32", "--eval_files", *files, "--output_dir", tmp_path / "out"]
    code, out, err = evaluate(*flags)
    assert code == 0, err
    for line in ("dev ROUGE-L", "exam accuracy", "pairs accuracy", "wiki perplexity"):
        assert line in out
    assert re.search(r"^pairs accuracy.* [-+]\d+\.\d \[[-+]\d+\.\d, [-+]\d+\.\d\]$", out, re.MULTILINE)

    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["adapted"].keys() == found["base"].keys() == {"dev", "exam", "pairs", "wiki"}
    difference = found["adapted"]["pairs"]["accuracy"] - found["base"]["pairs"]["accuracy"]
    change = found["change"]["pairs_accuracy"]
    assert change["mean"] == pytest.approx(difference) and change["low"] <= difference <= change["high"]
    settings = found["settings"]
    assert settings["decoding"]["max_new_tokens"] == 4 and settings["versions"].keys() >= {"torch", "transformers"}
    assert settings["chat_template"] and list(settings["eval_files"]["exam"]) == [f"{SAMPLES}/eval/single_choice.jsonl"]

    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)  # needs no other file
    assert page.count("<img") == 4 and "the worst first" in page
    assert len((tmp_path / "out" / "exam_base.jsonl").read_text().splitlines()) == 60

    code, _, err = evaluate(*flags)
    assert code == 1 and "has results; name another, or add --overwrite_output_dir" in err
    code, out, err = evaluate(*flags, "--overwrite_output_dir", "--json", "--language", "zh")
    again = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert code == 0 and again == found  # the same numbers
    document = json.loads(out)
    report = document.pop("report")
    assert document == found and "dev ROUGE-L" in err
    assert [section["title"] for section in report["sections"]] == ["dev", "exam", "pairs", "wiki"]
    [answers, shares, *_] = report["sections"][0]["blocks"]
    assert answers["kind"] == "answers" and answers["title"] == "回答" and len(answers["rows"][0]["texts"]) == 4
    assert shares["kind"] == "table" and len(shares["rows"][0]) == len(shares["header"]) == 5
    assert not any("png" in block for section in report["sections"] for block in section["blocks"])

    (tmp_path / "out" / "notes.txt").write_text("mine")
    flags = ["--model_name_or_path", model_dir, "--eval_files", files[0], "--max_new_tokens", 4]
    assert evaluate(*flags, "--output_dir", tmp_path / "out", "--overwrite_output_dir")[0] == 0
    names = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert names == {"dev_model.jsonl", "dev_model.png", "metrics.json", "report.html", "notes.txt"}


def test_a_reward_that_one_model_alone_has(evaluate, model_dir, adapter, tmp_path):
    """Of the models' rows, those count for which both have one; where there is none, each has its own figure."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"标准{i}：", "response": "年龄"} for i in range(4)])
    (tmp_path / "own.py").write_text(
        "calls = []\n"
        "def late(completions, **rest):\n"
        "    calls.append(1)\n"
        "    return [float(len(calls)) if len(calls) > 1 else None for _ in completions]\n"
        "def half(completions, location, **rest):\n"
        "    late(completions)\n"
        "    return [len(calls) if len(calls) > 1 or at.endswith(('1', '2')) else None for at in location]\n"
    )
    flags = ["--model_name_or_path", model_dir, "--peft_path", adapter, "--compare", "base", "--max_new_tokens", 2]
    for name, line, own, change in (("late", "0 of 4", None, None), ("half", "2 of 4", 1.0, -1.0)):
        output = tmp_path / name
        more = ["--rewards", f"{tmp_path}/own.py:{name}", "--output_dir", output, "--eval_files", f"dev={rows}"]
        code, out, err = evaluate(*flags, *more)
        assert code == 0 and f"dev reward: {line} rows have a value for both models" in out, err
        found = json_files(output)[output / "metrics.json"]
        assert found["base"]["dev"]["reward"] == 2.0 and found["adapted"]["dev"].get("reward") == own
        assert found["change"].get("dev_reward", {}).get("mean") == change
        assert re.search(r"^dev reward +2\.0000 +", out, re.MULTILINE)
        assert "reward" in (output / "report.html").read_text(encoding="utf-8")


def test_two_models(evaluate, model_dir, tokenizer, tmp_path):
    other = tmp_path / "other"
    tiny_model(len(tokenizer)).save_pretrained(other)
    tokenizer.save_pretrained(other)
    flags = ["--model_name_or_path", model_dir, "--compare", other, "--output_dir", tmp_path / "out"]
    code, _, err = evaluate(*flags, "--eval_files", f"pairs={SAMPLES}/preference/train.jsonl")
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["model"] == found["other"]  # it is the same model
    assert found["change"]["pairs_accuracy"]["low"] == found["change"]["pairs_accuracy"]["high"] == 0


def test_a_reward_model_is_asked_for_pairs_alone(evaluate, tokenizer, tmp_path):
    config = tiny_model(len(tokenizer)).config
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    flags = ["--model_name_or_path", tmp_path / "reward", "--output_dir", tmp_path / "out"]
    code, _, err = evaluate(*flags, "--eval_files", f"exam={SAMPLES}/eval/single_choice.jsonl")
    assert code == 1 and "a reward model, which gives no single_choice" in err
    code, _, err = evaluate(*flags, "--eval_files", f"pairs={SAMPLES}/preference/train.jsonl")
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["model"]["pairs"]
    assert found["pairs"] == 81 and "accuracy_per_token" not in found


def test_text_of_rows_cannot_run_in_the_page(evaluate, model_dir, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "<script>alert(1)</script>", "target": "<b>答</b>"}\n')
    flags = ["--model_name_or_path", model_dir, "--output_dir", tmp_path / "out", "--max_new_tokens", 2]
    assert evaluate(*flags, "--eval_files", f"dev={path}")[0] == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "<b>" not in page
    assert page.count("<script>") == 1 and re.search(r"script-src 'sha256-[\w+/=]+'\"", page)  # the page's own


CHOICES = ROOT / "datasets" / "eval" / "single_choice.jsonl"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--eval_files is missing"),
        (["--compare", "base", "--eval_files", f"a={__file__}"], "--compare base is the model without its adapter"),
        (["--eval_files", "a=none.jsonl"], "none.jsonl: no such file"),
        (["--eval_files", f"a={CHOICES}", "--rewards", "chinese"], "--rewards and --reward_model without answers"),
    ],
)
def test_mistakes(evaluate, model_dir, tmp_path, flags, message):
    code, _, err = evaluate("--model_name_or_path", model_dir, "--output_dir", tmp_path / "out", *flags)
    assert code == 1 and message in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


SWITCH = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)


def test_the_base_is_compared_with_its_better_setting_of_thinking(evaluate, model_dir, adapter, tmp_path):
    template = tmp_path / "switch.jinja"
    template.write_text(SWITCH)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"input": f"第{n}问", "target": "年龄性别药物"} for n in range(3)])
    judge = tmp_path / "closed.py"
    judge.write_text("def reward(completions, **rest):\n    return [len(text) / 6 for text in completions]\n")
    flags = ["--model_name_or_path", model_dir, "--peft_path", adapter, "--compare", "base", "--max_new_tokens", 6]
    flags += ["--chat_template", template, "--eval_files", f"dev={rows}", "--rewards", judge, "--dtype", "float32"]
    code, out, err = evaluate(*flags, "--output_dir", tmp_path / "both")
    assert code == 0, err
    chosen = json.loads((tmp_path / "both" / "metrics.json").read_text())["settings"]["base_thinking"]
    scores, best = chosen["main_score"], chosen["compared"]
    # The tiny model repeats what its prompt ends with: white space, or the end of a mark.
    assert (scores, best) == ({"on": 0.0, "off": 1.0}, "off")
    assert f"base: compared with thinking {best}" in out
    assert f"compared with thinking {best}" in (tmp_path / "both" / "report.html").read_text()
    for setting in scores:
        code, _, err = evaluate(*flags, "--compare_thinking", setting, "--output_dir", tmp_path / setting)
        assert code == 0, err
        found = json.loads((tmp_path / setting / "metrics.json").read_text())
        assert found["settings"]["base_thinking"] == {"compared": setting, "main_score": {setting: scores[setting]}}
        records = [(tmp_path / folder / "dev_base.jsonl").read_text() for folder in ("both", setting)]
        assert (records[0] == records[1]) is (setting == best)


def between(text, start, end):
    return text.partition(start)[2].partition(end)[0]


def longer(prompt):
    """A judge that prefers the longer answer, of question 0 always A, and gives no verdict on question 1."""
    question, one, other = (between(prompt, f"[{name}]\n", f"\n[{name}") for name in ("对话", "回答 A", "回答 B"))
    verdicts = {"第0问": "[[A]]", "第1问": "不知道"}
    return verdicts.get(question) or ("[[C]]" if len(one) == len(other) else f"[[{'AB'[len(one) < len(other)]}]]")


def test_a_judge_compares_the_answers_in_both_orders(evaluate, model_dir, adapter, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"input": f"第{n}问", "target": "年龄"} for n in range(8)])
    flags = ["--model_name_or_path", model_dir, "--peft_path", adapter, "--compare", "base", "--max_new_tokens", 6]
    flags += ["--dtype", "float32", "--eval_files", f"dev={rows}", "--batch_size", 2, "--judge_model", "m"]
    output, prompts = tmp_path / "out", []

    def fails_at_the_fifth(prompt):
        prompts.append(prompt)
        return (400, {}, "no more") if len(prompts) > 4 and not stopped else longer(prompt)

    with judge_server(fails_at_the_fifth) as (address, requests):
        stopped, flags = [], [*flags, "--output_dir", output, "--judge", address]
        code, out, err = evaluate(*flags)
        assert code == 1 and "HTTP 400: no more" in err and not (output / "metrics.json").exists()
        assert f"8 rows in both orders (16 requests) are sent to {address}/chat/completions (model m): " in out
        assert "question, answer_a, answer_b, and nothing else" in out
        stopped.append(True)
        requests.clear()
        code, out, err = evaluate(*flags)
        assert code == 0 and "2 of 8 verdicts are there" in out and len(requests) == 12, err
        assert evaluate(*flags, "--overwrite_output_dir")[0] == 0 and len(requests) == 28

    files = json_files(output)
    lengths = [[len(row["prediction"]) for row in files[output / f"dev_{who}.jsonl"]] for who in ("adapted", "base")]
    expected = ["adapted" if a > b else "base" if a < b else "tie" for a, b in zip(*lengths, strict=True)]
    expected[:2] = ["contradictory", "unparsable"]
    assert [row["verdict"] for row in files[output / "dev_adapted.jsonl"]] == expected
    wins, losses, ties = (expected.count(verdict) for verdict in ("adapted", "base", "tie"))
    judged = files[output / "metrics.json"]["judge"]["dev"]
    assert (judged["wins"], judged["losses"], judged["ties"], judged["unparsable"]) == (wins, losses, ties, 1)
    assert judged["win_rate"] == pytest.approx((wins + ties / 2 + 0.5) / 7) and judged["contradictory_share"] == 1 / 7
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "Judge: adapted against base" in page and "contradictory" in page
    assert f"win rate {judged['win_rate'] * 100:.1f} % [" in out


def test_what_a_judge_needs_is_said_before_any_weight_is_read(evaluate, model_dir, tmp_path):
    flags = ["--model_name_or_path", model_dir, "--output_dir", tmp_path / "out", "--judge", model_dir]
    code, _, err = evaluate(*flags, "--eval_files", f"pairs={SAMPLES}/preference/train.jsonl")
    assert code == 1 and "name the other one with --compare" in err
    flags += ["--compare", model_dir, "--eval_files", f"wiki={SAMPLES}/pretrain/wiki.jsonl"]
    code, _, err = evaluate(*flags)
    assert code == 1 and "none of --eval_files is evaluated by generated answers" in err
