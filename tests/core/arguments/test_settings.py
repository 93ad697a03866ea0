import dataclasses
import errno
import io
import os
import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
import yaml

from hf_recipes.core.arguments.limits import PositiveInt, Share, at, check_limits
from hf_recipes.core.arguments.settings import Parser, setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.script import run_script
from hf_recipes.data.arguments import DataArguments
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.run import arguments
from hf_recipes.stages.sft import SFTArguments

KINDS = [ModelArguments, DataArguments, SFTArguments]
NEEDED = ["--model_name_or_path", "m", "--train_file", "t.json", "--output_dir", "o"]


def parse(*flags):
    return Parser(KINDS).parse([*NEEDED, *flags])


def config_file(tmp_path, text) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_win_over_the_file(tmp_path):
    path = config_file(tmp_path, "learning_rate: 2e-4\nseed: 7\nuse_lora: false\nmax_train_samples: null\n")
    model, data, args = parse("--config", path, "--seed", "8")
    assert (args.learning_rate, args.seed, model.use_lora, data.max_train_samples) == (2e-4, 8, False, None)


def test_a_flag_of_a_truth_value_alone_is_true():
    """Also where the default is neither true nor false; and the next flag is not its value."""
    args = parse("--bf16", "--save_only_model", "--tf32", "false", "--gradient_checkpointing", "--seed", "8")[2]
    assert (args.bf16, args.save_only_model, args.tf32, args.gradient_checkpointing) == (True, True, False, True)
    assert args.seed == 8


def test_a_file_says_what_flags_say(tmp_path):
    text = (
        "save_strategy: no\nreport_to: none\nuse_lora: off\nmax_steps: 1e1\nrun_name: 010\nrewards: {choice: 2}\n"
        "eval_files: {dev: a.jsonl, 考试: b.csv}\nignore_columns: [-1, --x, on]\n"
        "lora_config: {day: 2026-01-02, x: no, y: 1e-6, z: [2E3, 3]}\n"
    )
    parser = Parser([*KINDS, EvaluationArguments])
    with pytest.raises(UserError, match="--use_lora False trains all weights"):
        parser.parse([*NEEDED, "--config", config_file(tmp_path, "\ufeff" + text)])
    expected = {
        "save_strategy": "no",
        "report_to": "none",
        "use_lora": False,
        "max_steps": 10,
        "run_name": "010",
        "rewards": ["choice=2"],
        "eval_files": ["dev=a.jsonl", "考试=b.csv"],
        "ignore_columns": ["-1", "--x", "on"],
        "lora_config": '{"day": "2026-01-02", "x": false, "y": 1e-06, "z": [2000.0, 3]}',
    }
    assert {key: parser.settings[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("flags", "text", "message"),
    [
        (["--run_name", "--x"], "", "unknown flag --x; as the value of --run_name, write --run_name=--x"),
        (["--max_steps", "--x"], "", "unknown flag --x$"),
        (["--learning_rat", "1"], "", r"unknown flag --learning_rat \(did you mean --learning_rate\?\)"),
        (["--use_lora", "maybe"], "", "--use_lora"),
        (["--seed", "x"], "", "argument --seed: invalid int value: 'x'"),
        (["stray"], "", "stray"),
        (
            ["--warmup_ratio", "0.1"],
            "",
            "flag --warmup_ratio; here it is --warmup_steps, of which a value below 1 is a share",
        ),
        ([], "warmup_ratio: 0.1", "key 'warmup_ratio'; here it is warmup_steps, of which a value below 1"),
        ([], "learning_rat: 1", r"unknown key 'learning_rat' \(did you mean learning_rate\?\)"),
        ([], "seed: x", r"run.yaml: argument --seed: invalid int value"),
        ([], "a: b: c", r"run.yaml: not YAML \(.*line 1"),
        ([], "report_to: off", "--report_to off: no such tracker"),
        ([], "seed: 1\nmax_steps: 2\nseed: 3", "run.yaml: not YAML \\('seed' is given twice, in lines 1 and 3\\)"),
        ([], "lora_config: {r: 1, r: 2}", "'r' is given twice"),
        ([], "seed: 1e-1", "argument --seed: invalid int value: '1e-1'"),
        ([], "- a", "expected a YAML mapping, found a list"),
        (["--max_target_length", "0"], "", "--max_target_length 0: expected at least 1"),
        (["--per_device_train_batch_size", "0"], "", "expected at least 1"),
        (["--num_train_epochs", "0"], "", "expected more than 0"),
        (["--train_on", "first"], "", "--train_on"),
        (["--max_drop_ratio", "2"], "", "expected a share"),
        (["--assistant_only_loss", "True"], "", "--assistant_only_loss has no effect here; use --train_on"),
        (["--overwrite_output_dir", "--resume_from_checkpoint", "true"], "", "contradict each other"),
        (["--use_lora", "False", "--lora_config", "l.json"], "", "trains all weights"),
        (["--validation_file", "d", "--validation_split_percentage", "5"], "", "give one of them"),
        (["--liger_kernel_config", '{"rope": tru}'], "", "argument --liger_kernel_config: a JSON object expected"),
        (["--liger_kernel_config", '{"rope": true, "rope": false}'], "", "a JSON object expected"),
        (["--liger_kernel_config", '{"rope": true}'], "", "--liger_kernel_config has no effect without"),
        ([], "liger_kernel_config: {rope: true}", "--liger_kernel_config has no effect without"),
        (["--report_to", "swanlabs"], "", r"no such tracker \(did you mean swanlab\?\)"),
        (["--packing", "--packing_strategy", "wrapped"], "", "leak"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, flags, text, message):
    with pytest.raises(UserError, match=message) as caught:
        parse("--config", config_file(tmp_path, text), *flags)
    assert "\n" not in str(caught.value)


def test_lists_that_are_given_twice_are_said(capsys):
    parser = Parser(KINDS)
    parser.parse([*NEEDED, "--seed", "1", "--train-file", "b", "c", "--seed", "2"])
    assert (parser.settings["train_file"], parser.settings["seed"]) == (["b", "c"], 2)
    out, err = capsys.readouterr()
    assert not out
    assert err == "note: of several --train_file the last one counts; put all values after one: --train_file A B\n"


@pytest.mark.parametrize("encoding", ["utf-16", "gb18030"])
def test_a_settings_file_in_another_encoding(tmp_path, encoding):
    (tmp_path / "run.yaml").write_text("# 训练\nseed: 1", encoding=encoding)
    with pytest.raises(UserError, match=r"--config .*run\.yaml: not UTF-8 text; save it as UTF-8$"):
        parse("--config", str(tmp_path / "run.yaml"))


def test_a_tracker_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--report_to wandb: not installed; pip install wandb"):
        parse("--report_to", "wandb")


def test_missing_config_file():
    with pytest.raises(UserError, match=r"--config nowhere.yaml: no such file"):
        parse("--config", "nowhere.yaml")


def test_settings_survive_the_file_and_hold_no_secret(tmp_path):
    first = Parser(KINDS)
    flags = [
        "--learning_rate",
        "2e-4",
        "--hub_token",
        "hf_secret",
        "--train_file",
        "a.json",
        "b.json",
        "--max_length",
        "99",
    ]
    before = first.parse([*NEEDED, *flags])
    path = tmp_path / "run_config.yaml"
    first.save_settings(path)
    assert "hf_secret" not in path.read_text(encoding="utf-8")
    second = Parser(KINDS)
    after = second.parse(["--config", str(path)])
    different = {key for key in first.settings if first.settings[key] != second.settings[key]}
    assert different == {"hub_token"}
    assert after[1] == before[1] and after[0] == before[0]
    # Set to what it is by default (seed) is no change.
    head = path.read_text(encoding="utf-8").split("# Defaults")[0]
    assert set(yaml.safe_load(head)) == {
        "model_name_or_path",
        "train_file",
        "output_dir",
        "learning_rate",
        "max_length",
    }


def test_launchers_local_rank_is_taken():
    assert parse("--local_rank=0")[2].output_dir == "o"


def test_defaults_suit_a_cpu():
    args = parse()[2]
    assert args.use_cpu and not args.gradient_checkpointing and args.report_to == ["swanlab"]
    assert args.max_length == 1024
    assert parse("--max_source_length", "512", "--max_target_length", "64")[2].max_length == 576
    assert parse("--max_source_length", "2048")[2].max_length == 3072
    assert parse("--max_target_length", "64")[2].max_length == 1088
    assert parse("--eval_steps", "5")[2].eval_strategy == "steps"


@dataclass
class Small:
    number: int = 1


def test_any_dataclass_can_be_parsed():
    assert Parser([Small]).parse(["--number", "3"])[0].number == 3


@pytest.mark.parametrize("encoding", ["gbk", "ascii"])
def test_no_character_ends_a_run(monkeypatch, encoding):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def main():
        say("字 🙂")
        raise UserError("名 🙂")

    with pytest.raises(SystemExit):
        run_script(main)
    lines = [stream.buffer.getvalue().decode(encoding) for stream in (out, err)]
    escaped = ["字 \\U0001f642\n", "error: 名 \\U0001f642\n"]
    if encoding == "ascii":
        escaped = [line.replace("字", "\\u5b57").replace("名", "\\u540d") for line in escaped]
    assert lines == escaped


def test_a_full_disk_is_one_sentence_wherever_it_is_met(capsys):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/out.json")

    def full_for_torch():
        try:
            full()
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    for main, why in ((full, "No space left on device: /data/out.json"), (full_for_torch, "unexpected pos 64 vs 0")):
        with pytest.raises(SystemExit) as stop:
            run_script(main)
        err = capsys.readouterr().err
        assert stop.value.code == 1 and err.count("\n") == 1 and why in err, err
        assert err.startswith("error: a file cannot be read or written (")
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)


@dataclasses.dataclass
class Limited:
    share: Share = setting("A share.", 0.5)
    count: PositiveInt | None = setting("How many.")
    low: Annotated[float, at(gt=0, lt=0.5)] = setting("Below a half.", 0.25)
    rest: int = 0

    limits: ClassVar = {"rest": at(ge=0, le=9)}

    def __post_init__(self):
        check_limits(self)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--share", "1.5"], "--share 1.5: expected a share from 0 to 1"),
        (["--share", "nan"], "--share nan: expected a share from 0 to 1"),
        (["--count", "0"], "--count 0: expected at least 1"),
        (["--low", "0.5"], "--low 0.5: expected 0 to below 0.5"),
        (["--rest", "10"], "--rest 10: expected 0 to 9"),
    ],
)
def test_numbers_stay_within_their_limits(argv, message):
    assert Parser([Limited]).parse([])[0] == Limited()
    with pytest.raises(UserError) as raised:
        Parser([Limited]).parse(argv)
    assert str(raised.value) == message


def test_a_reader_that_has_enough_ends_a_script_without_a_traceback(monkeypatch):
    with open(writer_of_a_closed_pipe(), "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        for lines in (1, 100_000):  # that are written at the end, and while it prints
            with pytest.raises(SystemExit) as stop:
                run_script(lambda lines=lines: print("line\n" * lines))
            assert stop.value.code == 141
            stdout.flush()  # as Python does at its end
            os.dup2(writer_of_a_closed_pipe(), stdout.fileno())
    monkeypatch.undo()

    def other_pipe():
        raise BrokenPipeError("a worker ended")

    with pytest.raises(BrokenPipeError, match="a worker ended"):
        run_script(other_pipe)


def writer_of_a_closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer
