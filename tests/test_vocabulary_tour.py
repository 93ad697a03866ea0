"""The commands of docs/en/vocabulary.md, run as they stand there, on a tiny model and the samples."""

import shlex

from doc_pages import ROOT, commands, read
from hf_recipes.core.arguments.commands import COMMANDS

SMALLER = {"--num_new_tokens": "100", "--max_steps": "2"}
SAMPLES = {
    "zh=corpus.jsonl": f"zh={ROOT / 'datasets/pretrain/news.jsonl'}",
    "held_out.jsonl": str(ROOT / "datasets/pretrain_held_out/held_out.jsonl"),
    "sft.json": str(ROOT / "datasets/alpaca/train.json"),
    "configs/special_tokens/chatml.json": str(ROOT / "configs/special_tokens/chatml.json"),
}


def test_the_commands_run_in_their_order(script, model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for program, name, *flags in map(shlex.split, commands(read(ROOT / "docs" / "en" / "vocabulary.md"))):
        words = [SAMPLES.get(word, model_dir if word == "MODEL" else word) for word in flags]
        words = [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        if name == "pretrain":
            words += ["--block_size", "64"]
        code, out, err = script(COMMANDS[name].script_for(words).name, *words)
        assert program == "hf-recipes" and code == 0, err
    assert "<|im_start|>" not in out or "added the special tokens" in out
    assert (tmp_path / "cuts.html").is_file() and (tmp_path / "runs/chat/adapter_model.safetensors").is_file()
