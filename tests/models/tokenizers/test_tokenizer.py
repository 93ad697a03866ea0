import base64
import json
import sys

import pytest
from transformers import LlamaConfig

from conftest import build_tokenizer, tiny_model
from hf_recipes.core.errors import UserError
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer


@pytest.mark.parametrize("named", [None, "Qwen2Tokenizer"])
def test_a_folder_without_tokenizer_files_is_an_error(tmp_path, named):
    """transformers would make up a tokenizer without a vocabulary, and every text would be empty."""
    tokenizer = build_tokenizer()
    tiny_model(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    if named:
        settings = {"tokenizer_class": named, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"vocabulary files are missing"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("is_given", [True, False])
def test_a_template_without_its_byte_order_mark(tmp_path, is_given):
    build_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "chat_template.jinja"
    path.write_text("{{ messages[0].content }}<|im_end|>", encoding="utf-8-sig")
    tokenizer, _ = load_tokenizer(str(tmp_path), chat_template=str(path) if is_given else None)
    question = [{"role": "user", "content": "问"}]
    assert tokenizer.apply_chat_template(question, tokenize=False) == "问<|im_end|>"
    assert not tokenizer.chat_template.startswith("\ufeff")


@pytest.mark.parametrize("content", ["{bad", "{}"])
def test_a_damaged_tokenizer_file_is_an_error(tmp_path, content):
    tiny_model(64).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 1 / 0 }}", r"ZeroDivisionError: division by zero"),
        ("{{ messages[0].content.index('x') }}", r"ValueError: substring not found"),
        ("{{ messages[0].content.encode('ascii') }}", r"UnicodeEncodeError"),
        ("{% for %}", r"TemplateSyntaxError"),
    ],
)
def test_a_template_that_fails_is_named(tmp_path, template, message):
    build_tokenizer(chat_template=template).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}: its chat template cannot render a question \({message}"):
        load_tokenizer(str(tmp_path))
    path = tmp_path / "own.jinja"
    path.write_text(template)
    with pytest.raises(UserError, match=rf"--chat_template {path}: it cannot render a question \({message}"):
        load_tokenizer(str(tmp_path), str(path))


def test_a_file_of_tiktoken_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    LlamaConfig(vocab_size=300).save_pretrained(tmp_path)
    lines = (b"%s %d" % (base64.b64encode(bytes([byte])), byte) for byte in range(256))
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"is one of tiktoken, which is missing: pip install -e '\.\[tiktoken\]'"):
        load_tokenizer(str(tmp_path))
