"""What comes after a run takes its settings from the run's record: the figures of its last evaluation come out."""

import json
import shutil

import pytest

from conftest import write_jsonl

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
