"""What comes after a run takes its settings from the run's record: the figures of its last evaluation come out."""

import json
import shutil

import pytest

from conftest import build_tokenizer, write_jsonl
from hf_recipes.apps.chat.arguments import ChatArguments
from hf_recipes.apps.chat.launch import as_trained, load
from hf_recipes.apps.chat.models import BASE
from hf_recipes.models.templates.options import with_options

THOUGHTS = "<think>\n{}\n</think>\n\n"
RUNS = {
    "system_prompt": (["--system_prompt", "只回答类别。"], {"input": "标准{}：年龄", "target": "年龄{}"}),
    "columns": (["--prompt_column", "q", "--response_column", "a"], {"q": "标准{}", "a": "性别{}", "input": "x{}"}),
    "schema": (
        ["--schema", "prompt_response", "--prompt_column", "instruction", "--response_column", "output"],
        {"instruction": "标准{}", "input": "患者", "output": "性别{}"},
    ),
    "thoughts": (["--thoughts_column", "why"], {"input": "标准{}", "target": "性别{}", "why": "想一想{}"}),
    "budgets": (
        ["--max_source_length", "24", "--max_target_length", "6", "--train_on", "last"],
        {"input": "患者年龄在十八岁以上，性别不限，自愿签署知情同意书。{}", "target": "年龄，性别，疾病，药物{}"},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_figures_of_the_run(script, model_dir, tmp_path, name):
    flags, row = RUNS[name]
    rows = [{key: value.format(number) for key, value in row.items()} for number in range(6)]
    path, run = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    common = ["--model_name_or_path", model_dir]
    training = ["--train_file", path, "--validation_file", path, "--output_dir", run, "--max_steps", 2]
    training += ["--learning_rate", "1e-2", "--report_to", "none", "--max_new_tokens", 12]
    code, _, err = script("sft.py", *common, *training, *flags)
    assert code == 0, err
    after = json.loads((run / "metrics.json").read_text())["after"]

    evaluated = [*common, "--peft_path", run, "--eval_files", f"dev={path}", "--eval_methods", "rouge", "nll"]
    code, _, err = script("evaluate.py", *evaluated, "--output_dir", tmp_path / "out")
    assert code == 0, err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["adapted"]
    print(json.dumps([after, metrics]))
    found = metrics["dev_answers"] | {"loss": metrics["dev_nll"]["loss"]}
    found["mean_token_accuracy"] = metrics["dev_nll"]["token_accuracy"]
    assert found == after


def test_flags_win_and_other_files_are_read_by_their_own_columns(script, model_dir, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copytree(model_dir, tmp_path / "run", dirs_exist_ok=True)
    (tmp_path / "run" / "run_config.yaml").write_text("prompt_column: q\ntrain_on: all\nbf16: false\n")
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"input": f"标准{n}"} for n in range(4)])
    flags = ["--model_name_or_path", tmp_path / "run", "--eval_files", f"dev={rows}", "--max_new_tokens", 2]
    flags += ["--max_eval_samples", 3, "--system_prompt", "详", "--output_dir", tmp_path / "out"]
    code, out, err = script("evaluate.py", *flags)
    assert code == 0, err
    assert "run_config.yaml: as in the run, prompt_column q, max_length 1024" in out and "dtype float32" in out
    assert "rows.jsonl: read without q" in out
    assert "no row has an answer to compare with; scripts/predict.py writes the model's answers to a file" in out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    settings = metrics["settings"]["rows"]
    assert (settings["system_prompt"], settings["prompt_column"], settings["max_length"]) == ("详", "q", 1024)
    assert len((tmp_path / "out" / "dev_model.jsonl").read_text().splitlines()) == 3

    code, _, err = script("evaluate.py", *flags, "--prompt_column", "q", "--overwrite_output_dir")
    assert code == 1 and "--prompt_column 'q' is not a column; there are input" in err


PAIR = {"prompt": "标准{}：性别？", "chosen": "性别不限{}", "rejected": "药物{}"}
TEXT = {"text": "第{}篇：患者年龄在十八岁以上，性别不限，自愿签署知情同意书。"}
CHOICE = {"question": "第{}题？", "A": "年龄", "B": "性别", "C": "疾病", "D": "药物", "answer": "B"}
SYSTEM = RUNS["system_prompt"][0]
STAGES = {  # flags, rows to train on, rows to evaluate on, methods
    "sft": ([*SYSTEM, "--use_lora", "False"], RUNS["system_prompt"][1], RUNS["system_prompt"][1], "rouge nll"),
    "dpo": ([*SYSTEM, "--bf16", "True"], PAIR, PAIR, "pair_accuracy"),
    "reward": ([*SYSTEM, "--max_length", 52, "--max_drop_ratio", 0.5], PAIR, PAIR, "pair_accuracy"),
    "pretrain": (["--block_size", 32, "--nll_prefix_token", "eos"], TEXT, TEXT, "nll"),
    "orpo": (["--use_lora", "False", "--few_shot_file", "few.jsonl", "--few_shot", 2], PAIR, CHOICE, "single_choice"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_figures_of_every_stage(script, model_dir, tmp_path, monkeypatch, stage):
    monkeypatch.chdir(tmp_path)
    flags, *shapes, methods = STAGES[stage]
    for name, row in zip(("train", "dev", "few"), (*shapes, CHOICE), strict=True):
        rows = [
            {key: value.format("一二三四五六"[number] * number) for key, value in row.items()} for number in range(6)
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    evaluation = ["--eval_files", "dev=dev.jsonl", "--eval_methods", *methods.split()]
    training = ["--model_name_or_path", model_dir, "--train_file", "train.jsonl", "--output_dir", "run", *evaluation]
    training += ["--max_steps", 2, "--learning_rate", "1e-2", "--report_to", "none"]
    code, _, err = script(f"{stage}.py", *training, *flags)
    assert code == 0, err
    after = json.loads((tmp_path / "run" / "metrics.json").read_text())["after"]

    is_whole = (tmp_path / "run" / "config.json").exists()
    model = ["--model_name_or_path", *(["run"] if is_whole else [model_dir, "--peft_path", "run"])]
    code, _, err = script("evaluate.py", *model, *evaluation, "--output_dir", "out")
    assert code == 0, err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["model" if is_whole else "adapted"]
    assert after == {f"{name}_{key}": value for name, values in metrics.items() for key, value in values.items()}


ASKED = {"q": "标准{}", "a": "性别{}", "input": "x"}
HELD_OUT = {
    "sft": ([*RUNS["columns"][0], "--max_new_tokens", 4], ASKED),
    "grpo": ([*RUNS["columns"][0], "--rewards", "rouge", "--max_completion_length", 4, "--num_generations", 2], ASKED),
    "reward": ([], PAIR),
}


@pytest.mark.parametrize("stage", HELD_OUT)
def test_what_a_run_held_out_is_evaluated_on(script, model_dir, tmp_path, monkeypatch, stage):
    """Of files of one name, with a row that cannot be used."""
    monkeypatch.chdir(tmp_path)
    flags, row = HELD_OUT[stage]
    for folder in "甲乙":
        rows = [
            {key: value.format(folder + "一二三四五六"[number]) for key, value in row.items()} for number in range(6)
        ]
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "rows.jsonl", [dict.fromkeys(row, ""), *rows])
    training = ["--model_name_or_path", model_dir, "--train_file", "甲/rows.jsonl", "乙/rows.jsonl*2", *flags]
    training += ["--validation_split_percentage", 40, "--max_drop_ratio", 0.5, "--max_steps", 1, "--eval_steps", 1]
    training += ["--per_device_train_batch_size", 2, "--report_to", "none"]
    code, _, err = script(f"{stage}.py", *training, "--output_dir", "run")
    assert code == 0, err
    locations = json.loads((tmp_path / "run" / "held_out.json").read_text(encoding="utf-8"))

    evaluating = ["--model_name_or_path", model_dir, "--peft_path", "run", "--output_dir", "out"]
    code, _, err = script("evaluate.py", *evaluating, *([] if stage != "grpo" else ["--rewards", "rouge"]))
    assert code == 0, err
    [of_run] = (tmp_path / "run" / "predictions").glob("step-1.jsonl")
    [of_rows] = (tmp_path / "out").glob("held_out*_adapted.jsonl")
    records = [[json.loads(line) for line in path.read_text().splitlines()] for path in (of_run, of_rows)]
    keys = (records[0][0].keys() & records[1][0].keys()) - {"location", "source"}
    first, second = ([[record[key] for key in sorted(keys)] for record in found] for found in records)
    assert first == second and keys & {"prediction", "chosen"} and 3 < len(first) <= len(locations) < 8
    assert {location.split("/")[0] for location in locations} == {"甲", "乙"}

    (tmp_path / "甲" / "rows.jsonl").write_text("")
    code, _, err = script("evaluate.py", *evaluating, "--overwrite_output_dir")
    assert code == 1 and "甲/rows.jsonl" in err


def test_a_validation_folder_of_several_splits_is_not_guessed(script, model_dir, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    for name in ("train", "dev", "test"):
        write_jsonl(data / f"{name}.jsonl", [{"input": "标准", "target": name}])
    shutil.copytree(model_dir, run)
    evaluating = ["--model_name_or_path", run, "--output_dir", tmp_path / "out", "--max_new_tokens", 2]
    settings = {"bf16": False, "validation_split_percentage": None, "validation_file": [str(data)]}
    (run / "run_config.yaml").write_text(json.dumps(settings))
    code, _, err = script("evaluate.py", *evaluating)
    assert code == 1 and f"{data} has several splits; name the one to take" in err
    (run / "run_config.yaml").write_text(json.dumps(settings | {"validation_file": [str(data / "dev.jsonl")]}))
    code, _, err = script("evaluate.py", *evaluating)
    assert code == 0, err
    assert list((tmp_path / "out").glob("dev*_model.jsonl"))


def test_the_chat_is_as_the_run(model_dir, tmp_path):
    """Its template, with the variables that the run saved in it, its system prompt, and its budget of thoughts."""
    run = shutil.copytree(model_dir, tmp_path / "run")
    template = "{%- for message in messages %}{{ message.role ~ message.content }}{%- endfor %}"
    template += "{%- if add_generation_prompt %}{{ '<think>' if enable_thinking else '<think></think>' }}{%- endif %}"
    tokenizer = build_tokenizer(chat_template=with_options(template, {"enable_thinking": False}))
    tokenizer.save_pretrained(run)
    (run / "run_config.yaml").write_text("system_prompt: 只回答类别。\nmax_thinking_tokens: 7\nmax_steps: 2\n")
    arguments = as_trained(ChatArguments(str(run), gpus="cpu"), set())
    assert arguments.decoding.max_thinking_tokens == 7
    messages = [{"role": "system", "content": arguments.system_prompt}, {"role": "user", "content": "性别"}]
    ids = load(arguments).prompt(BASE, messages, arguments.decoding).ids
    assert tokenizer.decode(ids) == "system只回答类别。user性别<think></think>"
    given = as_trained(ChatArguments(str(run), system_prompt="详", max_thinking_tokens=3), {"system_prompt"})
    assert (given.system_prompt, given.max_thinking_tokens) == ("详", 7)
