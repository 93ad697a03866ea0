"""The tour of the quick start, from a crawl to a published adapter: its commands, run as they stand there."""

import io
import itertools
import json
import re
import shlex
import subprocess
import sys
import venv

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from doc_pages import ROOT, commands, name_of, read, section
from hf_recipes.core.arguments.commands import COMMANDS
from hf_recipes.hub.download import write_source_record
from hf_recipes.models.gguf.convert import record_conversion
from hf_recipes.models.gguf.demo_model import DEMO_MODEL, DEMO_WHEEL

BASE = ".cache/SmolLM2-135M-Instruct"
# What a stranger begins with, in both languages; that both are the same, tests/test_docs.py holds.
FIRST_PAGES = [ROOT / name for name in ("README.md", "README_zh.md", "docs/en/index.md", "docs/zh/index.md")]


def tour() -> list[str]:
    return commands(section(read(ROOT / "docs" / "en" / "index.md"), "From a crawl to a published adapter"))


@pytest.mark.parametrize("page", FIRST_PAGES, ids=name_of)
def test_what_comes_before_the_first_python_command(page, tmp_path):
    """A clone, the environment, and its activation, after which python is that of `.venv`."""
    clone, demo, _, activate = itertools.takewhile(
        lambda line: not re.match("(python3?|hf-recipes|make setup)", line), commands(read(page))
    )
    assert (clone, demo) == ("git clone ADDRESS hf_recipes && cd hf_recipes", "make demo")
    venv.create(tmp_path / ".venv", symlinks=True)
    shell = ["sh", "-ec", f'{activate}; python -c "import sys; print(sys.prefix)"']
    assert subprocess.check_output(shell, cwd=tmp_path, text=True).strip() == str(tmp_path / ".venv")


def planned(tmp_path, *arguments) -> str:
    """What make would run, in an environment that is not there yet."""
    command = ["make", "--dry-run", *arguments, f"VENV={tmp_path}/venv"]
    return subprocess.check_output(command, cwd=ROOT, text=True)


def test_make_setup_passes_on_how_torch_is_installed(tmp_path):
    install = f"{tmp_path}/venv/bin/python -m pip install --quiet --disable-pip-version-check "
    assert f"{install}torch==2.13.0; }}" in planned(tmp_path, "setup")
    for page in FIRST_PAGES:
        [torch_flags] = re.findall(r'^make setup TORCH="(.*)"$', read(page), re.MULTILINE)
        assert f"{install}{torch_flags}; }}" in planned(tmp_path, "setup", f"TORCH={torch_flags}")


def test_make_demo_says_what_comes_next(tmp_path):
    [*_, train] = [line for line in planned(tmp_path, "demo", "MODEL=a/model").splitlines() if "sft.py" in line]
    said = planned(tmp_path, "demo", "MODEL=a/model").split(train)[1]
    assert f'"  . {tmp_path}/venv/bin/activate' in said
    assert "hf-recipes chat --model_name_or_path a/model --peft_path runs/demo --cli" in said


@pytest.fixture
def location(tokenizer, tmp_path, monkeypatch):
    """A folder that looks like the project's, with a tiny model that has the first layer of the demo's LoRA."""
    for name in ("configs", "datasets", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 16, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **heads)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / BASE)
    tokenizer.save_pretrained(tmp_path / BASE)
    record_conversion(tmp_path / BASE, "demo.gguf", "its digest")
    write_source_record(tmp_path / BASE, "demo", DEMO_MODEL, DEMO_WHEEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_tour(hub, script, location, monkeypatch):
    said = {}
    for line in tour():
        *echo, command = line.split(" | ")
        asked = "".join(" ".join(shlex.split(part)[1:]) for part in echo)
        program, name, *flags = shlex.split(command)
        assert program == "hf-recipes"
        monkeypatch.setattr(sys, "stdin", io.StringIO(asked + "\n"))
        code, out, err = script(COMMANDS[name].script_for(flags).name, *flags)
        assert code == 0, f"{line}\n{err}"
        said[line] = out
    runs = location / "runs"
    assert len((runs / "bilibili-data" / "train.jsonl").read_text().splitlines()) == 42
    assert "runs/bilibili-data/train.jsonl:42" in (runs / "bilibili-data" / "report.html").read_text()
    [chat] = [out for line, out in said.items() if "hf-recipes chat" in line]
    assert chat.strip()

    given, answered = (runs / folder / "test.jsonl" for folder in ("bilibili-data", "bilibili-answers"))
    for row, found in zip(*(map(json.loads, path.read_text().splitlines()) for path in (given, answered)), strict=True):
        assert list(found) == [*row, "prediction"] and isinstance(found["prediction"], str)

    base = AutoModelForCausalLM.from_pretrained(location / BASE, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, runs / "bilibili").eval()
    merged = AutoModelForCausalLM.from_pretrained(runs / "bilibili-merged", dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = adapted(ids).logits
        assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(ids).logits, expected, atol=1e-2)

    [dry, pushed, _] = [out for line, out in said.items() if "hf-recipes push" in line]
    assert "nothing is sent" in dry and f"pushed: {hub.url}/me/bilibili" in pushed
    for repo, content in {"me/bilibili": "model.safetensors", "me/bilibili-lora": "adapter_model.safetensors"}.items():
        files = hub.repos[repo]
        card = files["README.md"].decode()
        assert content in files and f"base_model: {DEMO_MODEL}" in card and "tokenizer.apply_chat_template(" in card
        assert not any(str(location).encode() in data for data in files.values())
    adapter = (runs / "bilibili" / "adapter_model.safetensors").read_bytes()
    assert hub.repos["me/bilibili-lora"]["adapter_model.safetensors"] == adapter
