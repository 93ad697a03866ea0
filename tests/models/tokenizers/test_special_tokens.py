"""Special tokens of a file: read, added, and their embeddings begun from descriptions."""

import json

import pytest
import torch

from conftest import CHATML, ROOT, build_tokenizer, tiny_model
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder, tokenizer_hash
from hf_recipes.models.embeddings import fit_embeddings
from hf_recipes.models.tokenizers.special_tokens import read_special_tokens, set_pad_token
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer

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


def tokenizer_with(tmp_path, *special, **roles):
    tokenizer = build_tokenizer(**{"chat_template": None, **roles})
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path), len(tokenizer)


@pytest.mark.parametrize(
    ("special", "spare", "expected"),
    [
        (["[PAD]", "<|reserved_0|>"], 0, "[PAD]"),
        (["<|reserved_0|>", "<|reserved_1|>"], 0, "<|reserved_1|>"),
        (["[UNUSED_TOKEN_1]"], 0, "[UNUSED_TOKEN_1]"),
        (["<|extra_0|>"], 0, "<|extra_0|>"),
        (["<|vision_pad|>"], 1, "<|pad|>"),
        ([], 1, "<|pad|>"),
        ([], 0, "<|im_end|>"),
    ],
)
@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_what_pads_has_no_loss_and_a_row_of_the_embeddings(tmp_path, capsys, special, spare, expected, pad):
    name, size = tokenizer_with(tmp_path, *special, pad_token=pad)
    tokenizer, added = load_tokenizer(name, needs_template=False, rows=size + spare)
    assert tokenizer.pad_token == expected and tokenizer.pad_token_id < size + spare
    assert not added and tokenizer.eos_token == "<|im_end|>"
    out = capsys.readouterr().out
    assert ("no pad token" if pad is None else "the pad token <|im_end|>, which has loss") in out
    assert (f"{expected} pads now" if expected != "<|im_end|>" else "no token is free") in out
    model = tiny_model(size + spare)
    fit_embeddings(model, tokenizer)
    assert model.get_input_embeddings().num_embeddings == size + spare


def test_a_pad_token_that_carries_no_loss_is_kept(tmp_path, capsys):
    name, size = tokenizer_with(tmp_path, "[PAD]", pad_token="<|endoftext|>")
    load = {"needs_template": False, "rows": size}
    assert load_tokenizer(name, **load)[0].pad_token == "<|endoftext|>" and not capsys.readouterr().out
    assert load_tokenizer(name, **load, ends=["<|endoftext|>"])[0].pad_token == "[PAD]"
    path = tmp_path / "a.jinja"
    path.write_text("{% for message in messages %}{{ message.content }}<|endoftext|>{% endfor %}", encoding="utf-8")
    assert load_tokenizer(name, str(path), rows=size)[0].pad_token == "[PAD]"


def test_without_a_model_to_train_any_pad_token_will_do(tmp_path, capsys):
    name, _ = tokenizer_with(tmp_path, "[PAD]", pad_token="<|im_end|>")
    assert load_tokenizer(name, needs_template=False)[0].pad_token == "<|im_end|>" and not capsys.readouterr().out


def test_the_unknown_token_pads_where_no_text_gets_it(tmp_path):
    name, size = tokenizer_with(tmp_path, unk_token="<|endoftext|>", pad_token=None)
    assert load_tokenizer(name, needs_template=False, rows=size)[0].pad_token == "<|endoftext|>"


def test_the_end_token_of_a_flag(tmp_path, capsys):
    name, size = tokenizer_with(tmp_path, eos_token=None)
    load = {"needs_template": False, "rows": size}
    assert load_tokenizer(name, **load)[0].eos_token is None
    assert "the tokenizer has no end token; --eos_token names one" in capsys.readouterr().out
    assert load_tokenizer(name, **load, eos_token="<|im_end|>")[0].eos_token == "<|im_end|>"
    with pytest.raises(UserError, match=rf"--eos_token <end>: no token of {name}; --add_special_tokens adds it"):
        load_tokenizer(name, **load, eos_token="<end>")
    name, size = tokenizer_with(tmp_path / "bare", eos_token=None, pad_token=None)
    with pytest.raises(UserError, match="neither a pad nor an end token; name its end with --eos_token"):
        load_tokenizer(name, needs_template=False, rows=size)


def test_tokens_that_are_bytes_have_a_fingerprint(slow_tokenizer):
    """As in Qwen-1's tokenizer."""

    class OfBytes(type(slow_tokenizer)):
        def get_vocab(self):
            special = {str(token) for token in self.added_tokens_decoder.values()}
            return {
                token if token in special else token.encode(): index for token, index in super().get_vocab().items()
            }

    tokenizer = OfBytes(slow_tokenizer._fast, eos_token="<|im_end|>", pad_token=None, chat_template=CHATML)
    set_pad_token(tokenizer, "x", rows=len(tokenizer) + 1)
    assert ChatEncoder(tokenizer).fingerprint == ChatEncoder(tokenizer).fingerprint
    assert DocumentEncoder(tokenizer).settings["tokenizer"] == tokenizer_hash(tokenizer)
