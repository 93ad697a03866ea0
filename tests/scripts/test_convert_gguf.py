"""scripts/convert_gguf.py on a GGUF file written here: every weight comes back as it went in."""

import errno
import os
import runpy
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from conftest import CHATML, ROOT, build_tokenizer
from convert_hf_to_gguf import write_gguf
from hf_recipes.errors import UserError
from hf_recipes.models.conversion import convert_gguf


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("gguf")
    model.save_pretrained(folder / "whole")
    tokenizer.save_pretrained(folder / "whole")
    path = folder / "tiny.gguf"
    write_gguf(folder / "whole", path)
    return path, model, tokenizer


def test_weights_and_tokens_survive(source, tmp_path, monkeypatch, capsys):
    path, model, tokenizer = source
    output = tmp_path / "model"
    monkeypatch.setattr(sys, "argv", ["convert_gguf.py", "--gguf_file", str(path), "--output_dir", str(output)])
    runpy.run_path(str(ROOT / "scripts" / "convert_gguf.py"), run_name="__main__")
    loaded = AutoModelForCausalLM.from_pretrained(output)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    again = AutoTokenizer.from_pretrained(output)
    text = "患者年龄在十八岁以上。<|im_end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == CHATML
    # A second time it is only named, not written again.
    stamp = (output / "config.json").stat().st_mtime_ns
    convert_gguf(path, output)
    assert (output / "config.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gguf_file", "none.gguf"], "none.gguf: no such file"),
        ([], "the following arguments are required: --gguf_file"),
    ],
)
def test_mistakes(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert_gguf.py", *flags, "--output_dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts" / "convert_gguf.py"), run_name="__main__")
    assert stop.value.code == 1 and message in capsys.readouterr().err


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"not a model")
    with pytest.raises(UserError, match="cannot be converted"):
        convert_gguf(tmp_path / "a.gguf", tmp_path / "out")


def test_a_folder_without_a_model_is_not_taken_for_one(source, tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out: the folder is not empty and holds no model"):
        convert_gguf(source[0], output)
    (output / "notes.txt").unlink()

    def refuse(*paths):
        raise PermissionError(errno.EPERM, "Operation not permitted", *map(str, paths))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"out: cannot be written \(No space left"):
        patch.setattr(LlamaForCausalLM, "save_pretrained", full)
        convert_gguf(source[0], output)
    assert os.listdir(tmp_path) == ["out"]
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"out: cannot be written \(Operation not permitted"):
        convert_gguf(source[0], output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not list(output.iterdir())
