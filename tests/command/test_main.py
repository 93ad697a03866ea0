"""The command: where it leads, and what it says before anything is imported."""

import json
import os
import runpy
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
import yaml

from conftest import ROOT
from hf_recipes.command import main as command
from hf_recipes.command.main import main
from hf_recipes.core.arguments.commands import COMMANDS, bundled, find_recipe


def said(capsys, *argv, code=None):
    try:
        main(argv)
        assert code is None
    except SystemExit as end:
        assert (end.code or None) == code
    out, err = capsys.readouterr()
    return out if code is None else err


HEAVY = "torch transformers trl peft datasets accelerate numpy pandas"


@pytest.fixture
def started(monkeypatch):
    """What is run instead of running it: script and flags."""
    runs = []
    monkeypatch.setattr(runpy, "run_path", lambda script, run_name: runs.append([*sys.argv]))
    monkeypatch.setattr(sys, "argv", ["hf-recipes"])
    monkeypatch.setattr(command, "_visible_gpus", lambda: 0)
    for name in command.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    return runs


NEEDED = ["--model_name_or_path", "M", "--train_file", __file__, "--output_dir", "out"]
NO_DATA = [*NEEDED[:2], *NEEDED[4:]]


def test_every_script_is_a_command():
    scripts = {script for one in COMMANDS.values() for script in one.scripts}
    assert scripts == {path.name for path in (ROOT / "scripts").glob("*.py")}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sfy"], "unknown command sfy (did you mean sft?)"),
        (["sft", "--lerning_rate", "1"], "unknown flag --lerning_rate (did you mean --learning_rate?)"),
        (["sft", *NEEDED, "--learning_rate", "abc"], "argument --learning_rate: invalid float value: 'abc'"),
        (["dpo", *NEEDED, "--beta", "0"], "--beta 0: expected more than 0"),
        (["kto", *NEEDED, "--seed", "-1"], "--seed -1: expected 0 to 4294967295"),
        (["grpo", *NEEDED, "--optim", "adamm"], "argument --optim: invalid choice: 'adamm'"),
        (["sft"], "the following arguments are required: --model_name_or_path"),
        (["sft", "--cutoff_len", "5"], "unknown flag --cutoff_len (did you mean --max_length?)"),
        (["inspect", "--exmples", "5"], "unknown flag --exmples (did you mean --examples?)"),
        (["score", "--nothing_like_it"], "unknown flag --nothing_like_it"),
        (["sft", "--config", "sft_lor"], "--config sft_lor: no such file (did you mean sft_lora?)"),
        (["recipes", "sft_lor"], "no recipe is called sft_lor (did you mean sft_lora?)"),
        (["sft", "--nproc_per_node", "two"], "--nproc_per_node two: expected a number of processes"),
        (["sft", "--nproc_per_node"], "--nproc_per_node: expected a number of processes"),
        (["sft", "sft_lora", "--seeed", "1"], "unknown flag --seeed (did you mean --seed?)"),
        (["sft", *NEEDED, "--learning_rate", "-1"], "--learning_rate -1: expected at least 0"),
        (["dpo", *NEEDED, "--adam_beta2", "1"], "--adam_beta2 1: expected 0 to below 1"),
        (["grpo", *NEEDED, "--num_train_epochs", "0"], "--num_train_epochs 0: expected more than 0"),
        (["sft", *NO_DATA, "--train_file", "no.jsonl"], "no.jsonl: no such file, folder or glob"),
        (["dpo", *NEEDED, "--validation_file", "no.jsonl"], "no.jsonl: no such file, folder or glob"),
        (
            ["pretrain", *NO_DATA, "--train_file", "zh=no_*.txt#9"],
            "no_*.txt#9: no such file, folder or glob",
        ),
        (["evaluate", *NEEDED[:2], *NEEDED[-2:], "--eval_files", "dev=no.json"], "no.json: no such file"),
        (["sft", "--model_name_or_path", "./no", "--output_dir", "x"], "./no: no such folder"),
        (["env", "--verbose"], "unknown flag --verbose; the command is hf-recipes env"),
        (["recipes", "sft_lora", "dpo"], "stray argument 'dpo'; the command is hf-recipes recipes [NAME]"),
        (["import-config"], "FILE.yaml is missing; the command is hf-recipes import-config FILE.yaml"),
    ],
)
def test_mistakes_are_one_line(argv, message, capsys):
    err = said(capsys, *argv, code=1)
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


def test_help_shows_commands_that_work_where_there_is_no_checkout(capsys):
    for name in COMMANDS:
        examples = said(capsys, name, "--help_all").split("\n\n")[1]
        assert f"hf-recipes {name} " in examples + " " and "scripts/" not in examples and "\\\\" not in examples, name
    assert "hf-recipes sft --nproc_per_node 4 --config configs/recipes/demo.yaml" in said(capsys, "sft", "--help")
    assert said(capsys, "recipes", "--help").splitlines()[2] == "  hf-recipes recipes [NAME]"
    assert said(capsys, "env", "-h").splitlines() == ["Versions and devices.", "", "  hf-recipes env"]


def test_a_shell_completes_commands_flags_values_and_recipes(tmp_path):
    def completed(line):
        variables = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1"}
        variables |= {"_ARGCOMPLETE_IFS": " ", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words")}
        subprocess.run([sys.executable, "-m", "hf_recipes"], env={**os.environ, **variables}, cwd=ROOT)
        return (tmp_path / "words").read_text().split()

    assert completed("hf-recipes re") == ["reward", "recipes"]
    assert completed("hf-recipes sft --thinking ") == ["on", "off", "keep"]
    assert completed("hf-recipes recipes sft_l") == ["sft_lora"]


@pytest.mark.parametrize(
    "argv", [["--help"], ["env", "--help"], ["sft", "--help"], ["grpo", "--help_all"], ["sft", "--optin", "x"]]
)
def test_help_and_mistakes_import_no_library_of_a_run(argv):
    code = f"""
import sys
from hf_recipes.command.main import main
try:
    main({argv!r})
except SystemExit:
    pass
sys.exit(" ".join(set({HEAVY!r}.split()) & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_neither_do_those_of_a_script():
    code = f"""
import glob, runpy, sys
for path in sorted(glob.glob("scripts/*.py")):
    for flag in ("--help", "--optin"):
        sys.argv = [path, flag]
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            assert bool(end.code) == (flag == "--optin"), path
        assert not set({HEAVY!r}.split()) & set(sys.modules), path
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("python scripts/") >= 2 * len(COMMANDS)


def test_where_a_command_line_leads(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("seed: 3\n")
    main(["sft", "run.yaml", *NEEDED])
    main(["sft", "sft_lora", *NEEDED])
    main(["convert", "--gguf_file", "m.gguf", "--output_dir", "m"])
    main(["prepare-qq", "--input", "chat.txt", "--me", "me", "--output_dir", "o"])
    assert [[os.path.basename(script), *argv] for script, *argv in started] == [
        ["sft.py", "--config", "run.yaml", *NEEDED],
        ["sft.py", "--config", "sft_lora", *NEEDED],
        ["convert_gguf.py", "--gguf_file", "m.gguf", "--output_dir", "m"],
        ["prepare_qq.py", "--input", "chat.txt", "--me", "me", "--output_dir", "o"],
    ]


def test_the_devices_of_any_accelerator_are_counted(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    assert command._visible_gpus() == 8


def test_training_takes_every_visible_gpu_unless_something_launched_it(started, monkeypatch):
    launched = []
    monkeypatch.setattr(os, "execv", lambda program, argv: launched.append(argv[1:]))
    monkeypatch.setattr(command, "_visible_gpus", lambda: 4)
    main(["sft", *NEEDED])
    script = str(bundled("scripts/sft.py"))
    torchrun = ["-m", "torch.distributed.run", "--standalone"]
    assert launched == [[*torchrun, "--nproc_per_node=4", script, *NEEDED]]
    launched.clear(), started.clear()
    main(["dpo", *NEEDED, "--nproc_per_node", "2"])
    assert launched == [[*torchrun, "--nproc_per_node=2", str(bundled("scripts/dpo.py")), *NEEDED]]
    launched.clear(), started.clear()
    main(["sft", *NEEDED, "--nproc_per_node=1"])
    monkeypatch.setenv("RANK", "0")
    main(["sft", *NEEDED])
    monkeypatch.delenv("RANK")
    main(["evaluate", "--model_name_or_path", "M", "--output_dir", "o"])
    assert not launched and [argv[1:] for argv in started[:2]] == [NEEDED, NEEDED]


def test_recipes_are_found_in_the_working_folder_and_then_in_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("sft_lora.yaml") == find_recipe("sft_lora") == str(bundled("configs/recipes/sft_lora.yaml"))
    assert find_recipe("nothing.yaml") == "nothing.yaml"
    (tmp_path / "sft_lora.yaml").write_text("seed: 1\n")
    assert find_recipe("sft_lora.yaml") == "sft_lora.yaml"
    listed = said(capsys, "recipes")
    assert [line.split()[0] for line in listed.splitlines()] == sorted(
        path.stem for path in bundled("configs/recipes").glob("*.yaml")
    )
    assert all(len(line.split()) > 3 for line in listed.splitlines())
    assert yaml.safe_load(said(capsys, "recipes", "sft_lora")) == yaml.safe_load(
        bundled("configs/recipes/sft_lora.yaml").read_text(encoding="utf-8")
    )


def test_env_names_versions_and_devices_and_nobody(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    lines = dict(line.split(None, 1) for line in said(capsys, "env").splitlines())
    assert lines["torch"] == version("torch") and lines["transformers"] == version("transformers")
    assert lines["accelerator"] == "xpu, 2 of them"
    assert lines["uvicorn"] == version("uvicorn") and "mkdocs-material" not in lines
    assert lines["hf_recipes"] and "memory" in lines and "secret" not in json.dumps(lines)
