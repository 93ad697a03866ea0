"""scripts/export.py in k-quants: llama.cpp's quantizer is called, and what it writes is compared with the weights."""

import importlib.util
import os
import re
import sys
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import ROOT, build_tokenizer
from convert_hf_to_gguf import write_gguf
from hf_recipes.core.errors import UserError
from hf_recipes.export import quantize
from llama_quantize import TYPES, k_blocks
from llama_quantize import quantize as quantize_as_llama_cpp

WIDTHS = {"hidden_size": 256, "intermediate_size": 288, "num_attention_heads": 4, "num_key_value_heads": 2}
ATTENTION = "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A tiny Llama; the rows of its down projection are no multiple of 256."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, eos_token_id=2, pad_token_id=0, **WIDTHS)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(llama, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny-f32.gguf"
    write_gguf(llama, path)
    return path


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a program llama-quantize on the PATH, which runs a Python file with its arguments."""

    def install(file):
        (tmp_path / "bin").mkdir()
        path = tmp_path / "bin" / "llama-quantize"
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {file} "$@"\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
        return path

    return install


@pytest.fixture
def export(script, llama, tmp_path):
    flags = ("--llama_cpp", "tests", "--model_name_or_path", llama, "--output_dir", tmp_path / "out")
    return partial(script, "export.py", *flags)


def without_quantizer(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(quantize.shutil, "which", lambda *args, **kwargs: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else find(name))


def test_a_file_for_ollama(export, program, llama, tmp_path):
    program(ROOT / "tests" / "llama_quantize.py")
    code, out, err = export("--format", "ollama", "--outtype", "q4_k_m", "--tolerance", "0.9")
    assert code == 0, err
    name = f"{llama.name}-q4_k_m.gguf"
    assert sorted(os.listdir(tmp_path / "out")) == ["Modelfile", name]
    assert (tmp_path / "out" / "Modelfile").read_text().startswith(f"FROM ./{name}\n")
    kinds = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "out" / name).tensors}
    assert kinds[ATTENTION] == Type.Q4_K and kinds["blk.0.ffn_down.weight"] == Type.Q5_0
    assert f"weights compared with those of {llama.name}-f32.gguf\n" in out
    assert 0.4 < float(re.search(r"largest error +(\S+) steps   \(at most 2\)", out)[1]) < 1.1
    assert "  tensors                       Q4_K 8, F32 3, Q5_0 1\n" in out
    assert "Q4_K needs rows of a multiple of 256 weights; others are Q5_0 1\n" in out
    # Both files are held against the model, and the flag is of the one that is kept.
    (exact, first), (rounded, second) = re.findall(r"difference of logits  (\S+)   \(at most (\S+)\)", out)
    assert float(exact) < float(first) < 1e-3 < float(rounded) < float(second) == 0.9
    assert re.findall(r'^  (f32|q4_k_m) +"', out, re.MULTILINE) == ["f32", "q4_k_m"]


@pytest.mark.parametrize("outtype", ["q4_k_m", "q5_k_m"])
def test_what_the_stand_in_writes_is_read_as_llama_cpp_reads_it(source, tmp_path, outtype, capsys):
    main, stand_in = TYPES[outtype.upper()]
    quantize_as_llama_cpp(source, tmp_path / "a.gguf", outtype.upper())
    quantize.compare_tensors(source, tmp_path / "a.gguf", outtype)
    assert f"tensors                       {main.name} 8, F32 3, {stand_in.name} 1" in capsys.readouterr().out
    weights = np.linspace(-1, 2, 512, dtype=np.float32).reshape(2, 256)
    bits = {"q4_k_m": 4, "q5_k_m": 5}[outtype]
    read = gguf.quants.dequantize(k_blocks(weights, bits), main)
    step = np.array([[0.5 + 1], [2]]) / (2**bits - 1)  # the second row's minimum is 0
    assert (np.abs(read - weights) <= step * 0.51).all()


def test_the_package(source, tmp_path, monkeypatch, capsys):
    """llama-cpp-python's functions, in a process of its own."""
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text(
        "import ctypes\n"
        "from llama_quantize import quantize\n"
        "LLAMA_FTYPE_MOSTLY_Q4_K_M, LLAMA_FTYPE_MOSTLY_Q5_K_M = 15, 17\n"
        "class Params(ctypes.Structure):\n"
        "    _fields_ = [('nthread', ctypes.c_int32), ('ftype', ctypes.c_int)]\n"
        "llama_model_quantize_default_params = Params\n"
        "def llama_model_quantize(source, target, settings):\n"
        "    name = {15: 'Q4_K_M', 17: 'Q5_K_M'}[settings._obj.ftype]\n"
        "    quantize(source.decode(), target.decode(), name)\n"
        "    return 0\n"
    )
    monkeypatch.setattr(quantize.shutil, "which", lambda *args, **kwargs: None)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "tests")]))
    command = quantize.find_quantizer("tests", tmp_path / "model", "q5_k_m")
    assert command == [sys.executable, "-m", "hf_recipes.export.quantize"]
    quantize.quantize(command, source, tmp_path / "a.gguf", "q5_k_m")
    assert "Q5_K 8, F32 3, Q5_1 1" in capsys.readouterr().out


def test_a_program_of_a_checkout_comes_first(program, tmp_path):
    path = program("quantize.py")
    (tmp_path / "build").mkdir()
    path.parent.rename(tmp_path / "build" / "bin")
    found = quantize.find_quantizer(str(tmp_path), tmp_path / "model", "q4_k_m")
    assert found == [str(tmp_path / "build" / "bin" / "llama-quantize")]


def test_without_a_quantizer_the_command_is_named(export, tmp_path, monkeypatch):
    without_quantizer(monkeypatch)
    monkeypatch.setattr("hf_recipes.export.gguf.open_for_inference", None)  # before the model is opened
    code, _, err = export("--outtype", "q4_k_m", "--model_name_or_path", "models/my model")
    out = tmp_path / "out" / "my model"
    assert code == 1 and not list(tmp_path.glob("out*"))
    assert err == (
        "error: --outtype q4_k_m: llama.cpp's quantizer is not installed; get it with: pip install llama-cpp-python "
        "(or put llama-quantize on the PATH); or export with --outtype bf16, and where llama.cpp is installed run: "
        f"llama-quantize '{out}-bf16.gguf' '{out}-q4_k_m.gguf' Q4_K_M\n"
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('llama_model_quantize: failed to quantize: full\\nbye'); sys.exit(1)", "llama_model_.* quantize: full"),
        ("sys.exit('usage')", "usage"),
        ("os.abort()", ".+"),
        ("pass", "exit code 0"),
    ],
)
def test_a_quantizer_that_fails(source, program, tmp_path, code, reason):
    (tmp_path / "quantize.py").write_text(f"import os, sys\n{code}")
    command = [str(program(tmp_path / "quantize.py"))]
    with pytest.raises(UserError, match=f"^--outtype q4_k_m: llama.cpp's quantizer failed: {reason}$"):
        quantize.quantize(command, source, tmp_path / "a.gguf", "q4_k_m")


def changed(change):
    """One tensor, the rest as they are."""
    return lambda tensor: change(*tensor) if tensor[0] == ATTENTION else tensor


def other_block(name, data, kind):
    data = data.copy()
    data[3, :144] = data[4, :144]
    return name, data, kind


def no_number(name, data, kind):
    data = data.copy()
    data[0, :2] = np.array([np.nan], np.float16).view(np.uint8)
    return name, data, kind


def of_type(kind):
    return changed(lambda name, *_: (name, gguf.quants.quantize(np.zeros((256, 256), np.float32), kind), kind))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(other_block), r"blk.0.attn_q.weight is not the model's: a weight is \S+ steps of Q4_K off"),
        (changed(no_number), "blk.0.attn_q.weight is not the model's: a weight is nan steps of Q4_K off"),
        (changed(lambda *tensor: None), "blk.0.attn_q.weight is missing"),
        (changed(lambda name, *rest: (f"{name}s", *rest)), "blk.0.attn_q.weight is missing"),
        (lambda t: (f"z{t[0]}" if t[0] == "output.weight" else t[0], *t[1:]), "output.weight is missing"),
        (changed(lambda name, data, kind: (name, data[:128], kind)), r"has the shape \[256, 128\], not \[256, 256\]"),
        (of_type(Type.Q4_0), "blk.0.attn_q.weight is Q4_0, which q4_k_m does not have for rows of 256 weights"),
        (of_type(Type.Q5_0), "blk.0.attn_q.weight is Q5_0, which q4_k_m does not have for rows of 256 weights"),
        (lambda t: (t[0], t[1] + t[1].ndim % 2, t[2]), "output_norm.weight is not the model's"),
    ],
)
def test_a_wrong_tensor_is_noticed(source, tmp_path, change, message):
    quantize_as_llama_cpp(source, tmp_path / "a.gguf", "Q4_K_M", change)
    with pytest.raises(UserError, match=rf"a.gguf: .*{message}.*: nothing is left in --output_dir"):
        quantize.compare_tensors(source, tmp_path / "a.gguf", "q4_k_m")


def test_a_file_that_is_not_quantized_or_damaged(source, tmp_path):
    with pytest.raises(UserError, match=r"tiny-f32.gguf: no tensor is Q5_K: nothing is left"):
        quantize.compare_tensors(source, source, "q5_k_m")
    quantize_as_llama_cpp(source, tmp_path / "a.gguf", "Q4_K_M")
    with pytest.raises(UserError, match=r"token_embd.weight is Q4_K, which q5_k_m does not have"):
        quantize.compare_tensors(source, tmp_path / "a.gguf", "q5_k_m")
    (tmp_path / "a.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:-100_000])
    with pytest.raises(UserError, match=r"a.gguf: it cannot be read back"):
        quantize.compare_tensors(source, tmp_path / "a.gguf", "q4_k_m")


def test_nothing_is_left_of_a_file_that_differs(export, program, tmp_path):
    (tmp_path / "quantize.py").write_text(
        f"import sys; sys.path.append({str(ROOT / 'tests')!r})\n"
        "from llama_quantize import quantize\n"
        "quantize(*sys.argv[1:], lambda tensor: (tensor[0], tensor[1][::-1].copy(), tensor[2]))\n"
    )
    program(tmp_path / "quantize.py")
    code, _, err = export("--outtype", "q4_k_m")
    assert code == 1 and "is not the model's: a weight is" in err and not list(tmp_path.glob("out*"))
