"""Special tokens of a file: read, added, and their embeddings begun from descriptions."""

import json

import pytest
import torch

from conftest import ROOT, build_tokenizer, tiny_model
from hf_recipes.core.errors import UserError
from hf_recipes.models.embeddings import fit_embeddings
from hf_recipes.models.special_tokens import read_special_tokens
from hf_recipes.models.tokenizer import load_tokenizer

ROLES = str(ROOT / "configs/special_tokens/roles.json")


def test_a_tokenizer_gets_the_tokens_their_template_and_their_end(tokens_only):
    tokenizer, added = load_tokenizer(tokens_only, special_tokens=ROLES)
    assert added == ["<|system|>", "<|user|>", "<|assistant|>", "<|endofchat|>"]
    assert tokenizer.eos_token == "<|endofchat|>" and "<|endofchat|>" in tokenizer.chat_template
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "你"}], add_generation_prompt=True)["input_ids"]
    first = len(build_tokenizer())
    assert ids[0] == first + 1 and first + 2 in ids and first + 3 in ids


def test_another_template_may_be_chosen(tokens_only):
    tokenizer, _ = load_tokenizer(tokens_only, "alpaca", special_tokens=ROLES)
    assert "### Response" in tokenizer.chat_template


def test_embeddings_begin_from_descriptions_and_old_ones_stay(tokens_only):
    tokenizer, added = load_tokenizer(tokens_only, special_tokens=ROLES)
    model = tiny_model(len(build_tokenizer()))
    before = model.get_input_embeddings().weight.detach().clone()
    texts = read_special_tokens(ROLES).tokens
    fit_embeddings(model, tokenizer, {token: texts[token] for token in added})
    after = model.get_input_embeddings().weight
    assert torch.equal(after[: len(before)], before)
    for token in added:
        ids = build_tokenizer()(texts[token])["input_ids"]
        torch.testing.assert_close(after[tokenizer.convert_tokens_to_ids(token)], before[ids].mean(0))


def test_a_run_touches_the_embeddings_of_added_tokens_alone(model_dir, sft, tmp_path):
    flags = ["--model_name_or_path", model_dir, "--train_file", ROOT / "datasets/alpaca/train.json", "--max_steps", 1]
    code, _, err = sft(*flags, "--add_special_tokens", ROLES, "--output_dir", tmp_path / "run")
    assert code == 0, err
    first = len(build_tokenizer())
    config = json.loads((tmp_path / "run/adapter_config.json").read_text(encoding="utf-8"))
    assert config["trainable_token_indices"] == {"embed_tokens": [first, first + 1, first + 2, first + 3]}
    assert "<|endofchat|>" in (tmp_path / "run/chat_template.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"token": ["<a>"]}, r"unknown key 'token' \(did you mean tokens\?\)"),
        ({"tokens": []}, "tokens: expected"),
        ({"tokens": [" "]}, "tokens: expected"),
        ({"tokens": {"<a>": 3}}, "tokens: expected"),
        ({"tokens": ["<a>"], "eos_token": 2}, "eos_token is 2; expected a text"),
    ],
)
def test_bad_files(content, message, tmp_path):
    path = tmp_path / "special.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_special_tokens(str(path))


def test_a_role_that_is_nowhere(tokens_only, tmp_path):
    path = tmp_path / "special.json"
    path.write_text(json.dumps({"tokens": ["<a>"], "pad_token": "<pad>"}), encoding="utf-8")
    with pytest.raises(UserError, match="pad_token '<pad>' is neither among its tokens nor in the tokenizer"):
        load_tokenizer(tokens_only, special_tokens=str(path))
