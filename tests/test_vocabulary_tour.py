"""The commands of docs/vocabulary.md, run as they stand there, on a tiny model and the samples."""

import re
import shlex

import pytest

from conftest import ROOT

SMALLER = {"--num_new_tokens": "100", "--max_steps": "2"}
SAMPLES = {
    "zh=corpus.jsonl": f"zh={ROOT / 'datasets/pretrain/news.jsonl'}",
    "held_out.jsonl": str(ROOT / "datasets/pretrain_held_out/held_out.jsonl"),
    "sft.json": str(ROOT / "datasets/alpaca/train.json"),
    "configs/special_tokens/chatml.json": str(ROOT / "configs/special_tokens/chatml.json"),
}


def commands(name: str) -> list[list[str]]:
    [block] = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def test_both_pages_have_the_same_commands():
    assert commands("vocabulary.md") == commands("vocabulary_zh.md")


def test_the_commands_run_in_their_order(script, model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for python, path, *flags in commands("vocabulary.md"):
        words = [SAMPLES.get(word, model_dir if word == "MODEL" else word) for word in flags]
        words = [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        if "pretrain.py" in path:
            words += ["--block_size", "64"]
        code, out, err = script(path.removeprefix("scripts/"), *words)
        assert python == "python" and code == 0, err
    assert "<|im_start|>" not in out or "added the special tokens" in out
    assert (tmp_path / "cuts.html").is_file() and (tmp_path / "runs/chat/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["vocabulary.md", "vocabulary_zh.md"])
def test_flags_and_files_that_the_page_names_are_there(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "hf_recipes").rglob("*.py"))
    for flag in set(re.findall(r"--([a-z_]+)", text)):
        assert re.search(rf"\b{flag}\b", sources), flag
    for path in set(re.findall(r"(?:configs|tests|scripts)/[\w/.]+\.\w+", text)):
        assert (ROOT / path).is_file(), path
