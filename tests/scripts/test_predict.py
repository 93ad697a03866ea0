"""scripts/predict.py: every row of a file with its answer, in order, whatever happens in between."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig

from conftest import ROOT, tiny_model, write_jsonl
from hf_recipes.core.files import lock_of, locked
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.loading import load_for_inference, open_for_inference

SCRIPT = "scripts/predict.py"
SHORT = ["--max_new_tokens", "6", "--batch_size", "2", "--dtype", "float32"]
SAMPLING = ["--do_sample", "--temperature", "0.9", "--top_p", "0.95"]


def read(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def predict(monkeypatch, capfd, model_dir):
    """Run the script in this process: ``predict("--flag", value, …)`` → (exit code, stdout, stderr)."""

    def run(*flags, model=model_dir):
        monkeypatch.setattr(sys, "argv", ["predict.py", "--model_name_or_path", str(model), *map(str, flags)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / SCRIPT), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def rows(tmp_path) -> Path:
    """75 rows of different lengths; line 20 has no prompt and line 41 is broken."""
    rows = [{"id": i, "input": "标准" + "年龄" * (i * 7 % 11), "target": "药物", "more": {"x": [i]}} for i in range(74)]
    rows[19]["input"] = ""
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:40], lines[40][:-4], *lines[40:]]) + "\n", encoding="utf-8")
    return path


def test_fields_and_order_are_kept_and_nothing_is_left_out(predict, model_dir, rows, tmp_path, tokenizer):
    output = tmp_path / "new" / "out.jsonl"
    code, out, err = predict("--input_file", rows, "--output_file", output, *SHORT)
    assert code == 0, err
    found, given = read(output), rows.read_text(encoding="utf-8").splitlines()
    assert len(found) == len(given) == 75
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    for line, (row, text) in enumerate(zip(found, given, strict=True), 1):
        if line == 41:
            assert list(row) == ["prediction", "prediction_problem"] and row["prediction"] is None
            assert row["prediction_problem"].startswith(f"{rows}:41: broken JSON (")
            continue
        own = json.loads(text)
        problem = {"prediction_problem": f"{rows}:20: empty prompt"} if line == 20 else {}
        assert list(row) == [*own, "prediction", *problem]
        assert row == {**own, **problem, "prediction": row["prediction"]}
        assert (row["prediction"] is None) is (line == 20)
        if line in (1, 2, 75):
            ids = tokenizer.apply_chat_template([{"role": "user", "content": row["input"]}], add_generation_prompt=True)
            new = model.generate(torch.tensor([ids["input_ids"]]), max_new_tokens=6, do_sample=False, eos_token_id=2)
            answer = tokenizer.decode(new[0, len(ids["input_ids"]) :], skip_special_tokens=True)
            assert row["prediction"] == answer.rstrip("\ufffd").strip()
    assert "1 dropped: empty prompt (first at line 20)" in out and "dropped: broken JSON" in out
    assert "the 2 dropped rows are kept in the output, with prediction null and the reason as prediction_problem" in out
    settings = json.loads((output.parent / "generation_config.json").read_text(encoding="utf-8"))
    assert (settings["max_new_tokens"], settings["do_sample"], settings["dtype"]) == (6, False, "float32")
    assert settings["versions"].keys() == {"hf_recipes", "transformers", "torch"}
    assert (settings["eos_token_id"], settings["pad_token_id"]) == ([2], 0) and "temperature" not in settings
    assert settings["ledger"]["reasons"][0]["first"] == [f"{rows}:20"]
    left = [".out.jsonl.lock", "generation_config.json", "out.jsonl"]
    assert sorted(path.name for path in output.parent.iterdir()) == left


KILLED = """
import os, signal
from hf_recipes.evaluation.resumable_output import Results
append = Results.append
def killed(self, rows, calls=[]):
    calls.append(1)
    append(self, rows)
    if len(calls) == {number}:
        self._file.write(b'{{"id": 1, "inp' if {cut} else b"")
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
Results.append = killed
"""


@pytest.mark.parametrize("flags", [[], SAMPLING], ids=["greedy", "sampling"])
def test_killed_and_started_again_it_writes_the_same_file(forks, model_dir, rows, tmp_path, flags):
    argv = ["--model_name_or_path", model_dir, "--input_file", rows, *SHORT, *flags, "--output_file"]
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken" / "out.jsonl"
    # In bfloat16 a text can depend on its batch, and each run has to form the same ones.
    argv[argv.index("float32")] = "bfloat16"
    run = forks.run(*argv, whole, script=SCRIPT)
    assert run.code == 0, run.err
    counts = [0]
    for number, cut in ((2, True), (1, False), (3, True)):
        run = forks.run(*argv, broken, script=SCRIPT, before=KILLED.format(number=number, cut=cut))
        assert run.code == -9, run.err
        assert broken.read_bytes().endswith(b"\n") is not cut
        counts.append(broken.read_bytes().count(b"\n"))
    assert counts == sorted(set(counts)) and counts[-1] < 75
    run = forks.run(*argv, broken, script=SCRIPT)
    assert run.code == 0, run.err
    assert f"out.jsonl:{counts[-1] + 1}: this line was cut short; it is written again" in run.out
    assert f"{counts[-1]} of 75 rows are there" in run.out
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("flags", [["--repetition_penalty", "1.3"], ["--num_beams", "2"], SAMPLING], ids=lambda f: f[0])
def test_the_settings_beside_the_answers_are_those_of_generate(predict, model_dir, tokenizer, tmp_path, flags, caplog):
    """The model's own end token is another than the template's, and both end a text."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.generation_config.eos_token_id = [1, tokenizer.encode("药")[0]]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path = write_jsonl(tmp_path / "rows.jsonl", [{"input": "年龄" * i} for i in range(1, 6)])
    output = tmp_path / "out" / "rows.jsonl"
    code, _, err = predict("--input_file", path, "--output_file", output, *SHORT, *flags, model=tmp_path / "model")
    assert code == 0, err
    caplog.clear()
    config = GenerationConfig.from_pretrained(output.parent)
    assert config.eos_token_id == sorted([1, 2, tokenizer.encode("药")[0]]) and not caplog.records
    assert (config.temperature, config.top_p) == ((0.9, 0.95) if config.do_sample else (None, None))
    for row in [] if config.do_sample else read(output):
        chat = [{"role": "user", "content": row["input"]}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        new = model.generate(ids, generation_config=config)[0, ids.shape[1] :]
        assert row["prediction"] == tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd").strip()


def test_a_file_that_is_whole_is_left_as_it_is(predict, model_dir, rows, tmp_path, monkeypatch):
    flags = ["--input_file", rows, "--output_file", tmp_path / "out.jsonl", *SHORT]
    assert predict(*flags)[0] == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    code, out, err = predict(*flags)
    assert code == 0 and "75 of 75 rows are there" in out, err
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_other_settings_are_not_mixed(predict, model_dir, rows, tmp_path):
    output = tmp_path / "out.jsonl"
    flags = ["--input_file", rows, "--output_file", output, *SHORT]
    assert predict(*flags, "--num_beams", "2")[0] == 0
    before = output.read_bytes()
    code, _, err = predict(*flags)
    assert code == 1 and output.read_bytes() == before
    assert "it was begun with num_beams 2, now 1: choose another --output_file, or start over with --ov" in err
    rows.write_text(rows.read_text(encoding="utf-8").replace("标准", "标题"), encoding="utf-8")
    code, _, err = predict(*flags, "--num_beams", "2")
    assert code == 1 and "it was begun with input_file" in err and "num_beams" not in err
    assert predict(*flags, "--overwrite_output")[0] == 0
    assert [row.get("input", "")[:2] for row in read(output)[:2]] == ["标题", "标题"]
    # Another file beside it has settings of its own.
    assert predict(*flags, "--output_file", tmp_path / "b.jsonl", "--num_beams", "2")[0] == 0
    assert json.loads((tmp_path / "generation_config.json").read_text())["num_beams"] == 1
    assert json.loads((tmp_path / "b.jsonl.generation_config.json").read_text())["num_beams"] == 2
    for name in ("out.jsonl", "b.jsonl"):
        assert predict(*flags, "--output_file", tmp_path / name, "--num_beams", "2")[0] == (name == "out.jsonl")
    (tmp_path / "foreign.jsonl").write_text("{}\n")
    for more in ((), ("--overwrite_output",)):
        code, _, err = predict(*flags, "--output_file", tmp_path / "foreign.jsonl", *more)
        assert code == 1 and "no generation_config.json that tells its settings" in err
    assert (tmp_path / "foreign.jsonl").read_text() == "{}\n"


def test_a_model_that_changed_is_noticed(predict, tokenizer, rows, tmp_path):
    model = tiny_model(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    flags = ["--input_file", rows, "--output_file", tmp_path / "out.jsonl", *SHORT]
    assert predict(*flags, model=tmp_path / "model")[0] == 0
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(1)
    model.save_pretrained(tmp_path / "model")
    code, _, err = predict(*flags, model=tmp_path / "model")
    assert code == 1 and "it was begun with model_digest" in err


def test_two_at_once_do_not_write_one_file(predict, rows, tmp_path):
    output = tmp_path / "out.jsonl"
    with locked(lock_of(output), ""):
        code, _, err = predict("--input_file", rows, "--output_file", output, *SHORT)
    assert code == 1 and "another process is writing it" in err


def test_over_several_processes_the_first_one_answers(forks, model_dir, rows, tmp_path):
    argv = ["--model_name_or_path", model_dir, "--input_file", rows, "--output_file", tmp_path / "out.jsonl", *SHORT]
    run = forks.run(*argv, script=SCRIPT, world=2)
    assert run.codes == [0, 0], run.err
    assert len(read(tmp_path / "out.jsonl")) == 75 and run.out.count("schema prompt_response") == 1


def test_every_kind_of_file(predict, tmp_path, model_dir):
    questions = ["年龄？", "性别\n？", "疾病"]
    (tmp_path / "a.txt").write_text("年龄？\n疾病\n", encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps([{"input": q, "target": ""} for q in questions]), encoding="utf-8")
    with open(tmp_path / "c.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["question", "n"], *([q, i] for i, q in enumerate(questions))])
    pq.write_table(pa.table({"prompt": questions, "response": ["a", "b", "c"]}), tmp_path / "d.parquet")
    inputs = [tmp_path / name for name in ("a.txt", "b.json", "c.csv", "d.parquet")]
    flags = ["--output_file", tmp_path / "out.jsonl", "--text_as", "question", *SHORT]
    code, _, err = predict("--input_file", *inputs, *flags)
    assert code == 0, err
    found = read(tmp_path / "out.jsonl")
    assert [list(row)[:-1] for row in found[::3]] == [
        ["text"],
        ["input", "target"],
        ["question", "n"],
        ["prompt", "response"],
    ]
    # The same question has the same answer, however it came.
    answers = {}
    for row in found:
        answers.setdefault(next(iter(row.values())), set()).add(row["prediction"])
    assert len(answers) == 3 and all(len(texts) == 1 for texts in answers.values())


def test_text_is_continued_by_a_model_without_a_chat_template(predict, tokenizer, tmp_path):
    tiny_model(len(tokenizer)).save_pretrained(tmp_path / "base")
    template, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(tmp_path / "base")
    tokenizer.chat_template = template
    path = write_jsonl(tmp_path / "in.jsonl", [{"content": "春天"}, {"content": "你好"}])
    flags = ["--input_file", path, "--output_file", tmp_path / "out.jsonl", *SHORT]
    code, out, err = predict(*flags, model=tmp_path / "base")
    assert code == 0 and "continued as it is" in out, err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    for row in read(tmp_path / "out.jsonl"):
        ids = tokenizer(row["content"])["input_ids"]
        new = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
        assert row["prediction"] == tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd")
    code, _, err = predict(*flags, "--text_as", "question", model=tmp_path / "base")
    assert code == 1 and "no chat template; name one with --chat_template" in err


def test_submission_to_promptcblue(predict, tmp_path):
    sample = ROOT / "datasets" / "promptcblue" / "test.json"
    lines = sample.read_text(encoding="utf-8").splitlines()[:4]
    path = tmp_path / "test.json"
    path.write_text("\n".join(lines) + '\n{"input": " ", "target": "", "sample_id": "test-9"}\n', encoding="utf-8")
    flags = ["--input_file", path, "--output_file", tmp_path / "out.jsonl", "--submission", "promptcblue", *SHORT]
    code, _, err = predict(*flags)
    assert code == 0, err
    submitted, found = read(tmp_path / "test_predictions.json"), read(tmp_path / "out.jsonl")
    for row, own, line in zip(submitted, found, lines, strict=False):
        assert row == {**json.loads(line), "target": own["prediction"]} and list(row) == list(json.loads(line))
    assert len(submitted) == 5 and submitted[4] == {"input": " ", "target": "", "sample_id": "test-9"}


@pytest.fixture
def adapter(model_dir, tokenizer, tmp_path) -> Path:
    """An adapter whose tokenizer has two tokens more than its base."""
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    larger = tokenizer.__class__.from_pretrained(model_dir)
    larger.add_tokens(["<新一>", "<新二>"], special_tokens=True)
    base.resize_token_embeddings(len(larger))
    config = LoraConfig(
        target_modules=["q_proj", "v_proj"],
        trainable_token_indices={"embed_tokens": [len(tokenizer), len(tokenizer) + 1]},
    )
    model = get_peft_model(base, config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    larger.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_with_new_tokens_is_loaded_as_it_was_saved(model_dir, adapter):
    arguments = ModelArguments(model_dir, peft_path=str(adapter), dtype="float32")
    _, tokenizer = open_for_inference(arguments)
    model = load_for_inference(arguments, tokenizer)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    base.resize_token_embeddings(len(tokenizer))
    expected = PeftModel.from_pretrained(base, adapter).eval()
    ids = torch.tensor([[5, 9, len(tokenizer) - 1, 30, len(tokenizer) - 2]])
    with torch.no_grad():
        logits = model(ids).logits
        assert logits.shape[-1] == len(tokenizer)
        assert torch.equal(logits, expected(ids).logits)
        with expected.disable_adapter():
            assert not torch.allclose(logits, expected(ids).logits, atol=0.1)


@pytest.mark.parametrize(
    "form", [["--load_in_4bit"], ["--load_in_8bit"], ["--bnb_config", "configs/bnb_nf4.json"]], ids=lambda form: form[0]
)
def test_quantized_with_an_adapter(predict, adapter, rows, tmp_path, form):
    output = tmp_path / "out.jsonl"
    flags = ["--input_file", rows, "--output_file", output, *SHORT[:4], "--peft_path", adapter]
    code, _, err = predict(*flags, *form)
    assert code == 0, err
    found = read(output)
    assert len(found) == 75 and sum(row["prediction"] is None for row in found) == 2
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings["quantization"]["load_in_8bit"] is (form == ["--load_in_8bit"])
    code, _, err = predict(*flags)
    assert code == 1 and "it was begun with quantization" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input_file", "T/none.jsonl"], "T/none.jsonl: no such file"),
        (["--input_file", "T/odd.jsonl"], "no known schema in the columns foo"),
        (["--input_file", "T/taken.jsonl"], "T/taken.jsonl:1: there is a column 'prediction' already; name another"),
        (["--input_file", "T/reason.jsonl"], "T/reason.jsonl:1: there is a column 'prediction_problem' already; name"),
        (["--input_file", "T/empty.jsonl"], "2 of 2 rows cannot be used"),
        (["--output_file", "T"], "this is a folder; name a file in it"),
        (["--output_file", "T/test_predictions.json", "--submission", "promptcblue"], "choose another name"),
        (["--submission", "clue"], "invalid choice: 'clue'"),
        (["--temperature", "0.5"], "--temperature 0.5 has no effect without --do_sample"),
        (["--batch_size", "0"], "--batch_size 0: expected at least 1"),
        (["--max_new_tokens", "32768"], "the model's context is 32,768 tokens, prompt included"),
        (["--lora_config", "configs/lora_qwen.json"], "--lora_config is for training"),
        (["--peft_path", "T/none"], "expected a folder with adapter_config.json"),
        (["--chat_template", "glm"], "writes tokens that"),
        (["--prompt_column", "question"], "--prompt_column 'question' is not a column; there are input"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(predict, tmp_path, monkeypatch, flags, message):
    write_jsonl(tmp_path / "good.jsonl", [{"input": "问"}])
    write_jsonl(tmp_path / "odd.jsonl", [{"foo": "1"}])
    write_jsonl(tmp_path / "taken.jsonl", [{"input": "问", "prediction": "1"}])
    write_jsonl(tmp_path / "reason.jsonl", [{"input": "问", "prediction_problem": "1"}])
    write_jsonl(tmp_path / "empty.jsonl", [{"input": "", "target": "答"}] * 2)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    flags = [flag.replace("T/", f"{tmp_path}/") if flag != "T" else str(tmp_path) for flag in flags]
    basic = ["--input_file", tmp_path / "good.jsonl", "--output_file", tmp_path / "out.jsonl"]
    code, _, err = predict(*basic, *flags)
    assert code == 1 and "Traceback" not in err
    assert message.replace("T/", f"{tmp_path}/") in err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_under_torchrun(model_dir, rows, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    flags = ["--model_name_or_path", model_dir, "--input_file", rows, "--output_file", tmp_path / "out.jsonl", *SHORT]
    done = subprocess.run(
        [*launcher, *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read(tmp_path / "out.jsonl")) == 75
