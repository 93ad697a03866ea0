"""Older checkpoints, converted, compute what the published architectures do, and their tokenizers cut as before."""

import dataclasses
import functools
import json
import math
import os
import runpy
import signal
import sys

import old_checkpoints
import pytest
import reference_forwards
import torch
from old_checkpoints import FAMILIES, LAYERS, PIECES, sentencepiece_model, state_of, write_old
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from conftest import ROOT
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.models.adapters.lora import read_lora_config
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.families import convert, layouts, weights
from hf_recipes.models.families.convert import convert_checkpoint
from hf_recipes.models.families.detect import detect, refuse_unconverted
from hf_recipes.models.families.tokenizers import fast_tokenizer
from hf_recipes.models.families.tokenizers.from_sentencepiece import USER_DEFINED, as_full_tokenizer
from hf_recipes.models.families.tokenizers.from_tiktoken import Ranks
from hf_recipes.models.loading import load_config
from hf_recipes.models.tokenizers.pretokenizers import mixed_texts
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer

LAYOUTS = {
    "baichuan": layouts.BAICHUAN,
    "baichuan2": layouts.BAICHUAN2,
    "qwen": layouts.QWEN,
    "internlm": layouts.INTERNLM,
    "internlm2": layouts.INTERNLM2,
    "chatglm2": layouts.CHATGLM2,
    "chatglm3": layouts.CHATGLM3,
    "glm4": layouts.GLM4,
    "minicpm": layouts.MINICPM,
}
TEXTS = [*mixed_texts(), "people in the eop, sop", "  two spaces", "\t\n x", "", "def f(x):\n    return x  # 注释\n"]


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    """The proof's random sequences, which `test_ids_are_those_of_the_original_vocabulary` has all of."""
    monkeypatch.setattr(fast_tokenizer, "JOINED", 50)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Old and new folder of a family, by its name, made once."""
    return functools.cache(lambda name: converted(tmp_path_factory.mktemp(name), name))


def converted(tmp_path, name, **settings):
    source = write_old(tmp_path / f"{name}-old", name, **settings)
    return source, convert_checkpoint(str(source), str(tmp_path / f"{name}-new"))


@torch.no_grad()
def difference(name, source, target, length=50):
    """Largest difference of the converted model's logits from the published architecture's."""
    ids = torch.randint(0, PIECES, (length,), generator=torch.Generator().manual_seed(1))
    ids = ids % old_checkpoints.vocabulary_size(name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    expected = getattr(reference_forwards, name)(state_of(name), config, ids)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    return (model(ids[None], use_cache=False).logits[0] - expected).abs().max().item()


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_the_published_architecture(plain, name):
    source, target = plain(name)
    assert difference(name, source, target) < 1e-5
    targets = read_lora_config(LAYOUTS[name].lora_config).target_modules
    modules = [module for module, _ in AutoModelForCausalLM.from_pretrained(target).named_modules()]
    assert all(sum(module.endswith(f".{part}") for module in modules) == LAYERS for part in targets)


@pytest.mark.parametrize(
    ("name", "changes", "length"),
    [
        ("internlm", {}, 100),  # longer than its 64 positions
        ("internlm", {"rotary": {"base": 10000, "type": "dynamic", "scaling_factor": 2.0}}, 100),
        ("internlm2", {}, 100),
        ("internlm2", {"rope_scaling": {"type": "dynamic", "factor": 3.0}}, 100),
        ("chatglm2", {"rope_ratio": 50}, 60),
        ("chatglm3", {"rope_ratio": 50}, 60),
        ("glm4", {"rope_ratio": 500, "multi_query_group_num": 2}, 60),
        ("minicpm", {"num_key_value_heads": 2, "scale_emb": 3, "dim_model_base": 8}, 60),
    ],
)
def test_long_variants(tmp_path, name, changes, length):
    assert difference(name, *converted(tmp_path, name, **changes), length) < 1e-5


def test_the_first_release_of_qwen_has_other_names_for_the_same_sizes(plain, tmp_path):
    first = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    first |= {"n_positions": "max_position_embeddings", "ffn_hidden_size": "intermediate_size"}
    first |= {"padded_vocab_size": "vocab_size"}
    source, expected = plain("qwen")
    later = json.loads((source / "config.json").read_text(encoding="utf-8"))
    settings = dict.fromkeys(first.values()) | {name: later[new] for name, new in first.items()}
    _, target = converted(tmp_path, "qwen", **settings, apply_residual_connection_post_layernorm=False)
    ours, theirs = (files_of(folder) for folder in (target, expected))
    assert {name for name in theirs if ours.get(name) != theirs[name]} == {"converted_from.json"}
    with pytest.raises(UserError, match=r"Qwen-1, whose config.json: apply_residual_connection_post_layernorm is True"):
        converted(tmp_path / "other", "qwen", **settings, apply_residual_connection_post_layernorm=True)


def _exchanged(family, *pair):
    first, second = pair
    modules = dict(family.modules)
    modules[first], modules[second] = modules[second], modules[first]
    return dataclasses.replace(family, modules=modules)


def _with_values(family, **values):
    return dataclasses.replace(family, config=lambda old: family.config(old) | values)


WRONG = {
    "gate and up": ("baichuan", _exchanged(layouts.BAICHUAN, "mlp.gate_proj", "mlp.up_proj")),
    "head that is not normalized": ("baichuan2", dataclasses.replace(layouts.BAICHUAN2, normalized_head=False)),
    "w1 and w2": ("qwen", _exchanged(layouts.QWEN, "mlp.w1", "mlp.w2")),
    "w1 and w3": ("internlm2", _exchanged(layouts.INTERNLM2, "feed_forward.w1", "feed_forward.w3")),
    "wqkv in one run": (
        "internlm2",
        dataclasses.replace(layouts.INTERNLM2, split=lambda tensor, config: list(tensor.split([32, 16, 16]))),
    ),
    "norms": ("chatglm2", _exchanged(layouts.CHATGLM2, "input_layernorm", "post_attention_layernorm")),
    "positions as in ChatGLM3": ("chatglm2", dataclasses.replace(layouts.CHATGLM3, special=layouts.CHATGLM2.special)),
    "queries and keys": (
        "qwen",
        dataclasses.replace(layouts.QWEN, split=lambda rows, config: rows.split(32)[1::-1] + rows.split(32)[2:]),
    ),
    "rows by key head": (
        "chatglm3",
        dataclasses.replace(
            layouts.CHATGLM3,
            split=lambda rows, config: [
                part.flatten(0, 1) for part in rows.unflatten(0, (2, 48)).split([24, 12, 12], 1)
            ],
        ),
    ),
    "residuals that are not scaled": ("minicpm", _with_values(layouts.MINICPM, residual_multiplier=1.0)),
    "logits that are not scaled": ("minicpm", _with_values(layouts.MINICPM, logits_scaling=1.0)),
    "attention that is not scaled": ("minicpm", _with_values(layouts.MINICPM, attention_multiplier=1.0)),
    "a base that is not multiplied": (
        "glm4",
        _with_values(
            layouts.GLM4, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
        ),
    ),
    "keys and values": (
        "internlm",
        _exchanged(layouts.INTERNLM, "self_attn.k_proj", "self_attn.v_proj"),
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_layouts_are_noticed(tmp_path, monkeypatch, what):
    name, family = WRONG[what]
    monkeypatch.setattr(convert, "detect", lambda config, name: family)
    source, target = converted(tmp_path, name, **({"rope_ratio": 50} if "positions" in what else {}))
    assert difference(name, source, target) > 1e-2


@pytest.mark.parametrize(("form", "shards"), [("old bin", 1), ("bin", 3), ("safetensors", 1), ("safetensors", 4)])
def test_files_of_every_form(plain, tmp_path, form, shards):
    _, whole = plain("internlm2")
    source, target = converted(tmp_path, "internlm2", form=form, shards=shards)
    files = sorted(path.name for path in target.glob("*.safetensors*"))
    expected = {name: value for path in target.glob("*.safetensors") for name, value in load_file(path).items()}
    state = load_file(whole / "model.safetensors")
    assert expected.keys() == state.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    if shards > 1:
        index = json.loads((target / "model.safetensors.index.json").read_text(encoding="utf-8"))
        assert index["weight_map"].keys() == state.keys() and len(files) == shards + 1
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in state.values())
        assert difference("internlm2", source, target) < 1e-5
    else:
        assert files == ["model.safetensors"]


def killed_at_shard(number, source, target):
    """Convert in a process that is killed while it writes this shard."""
    child = os.fork()
    if not child:
        import safetensors.torch

        save, saved = safetensors.torch.save_file, []

        def save_file(tensors, path, **kwargs):
            saved.append(path)
            save(tensors if len(saved) < number else {}, path, **kwargs)
            if len(saved) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        safetensors.torch.save_file = save_file
        try:
            convert_checkpoint(str(source), str(target))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not target.exists()


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_conversion_resumes(tmp_path, monkeypatch, capsys):
    source, target = write_old(tmp_path / "old", "baichuan", shards=4), tmp_path / "new"
    expected = files_of(convert_checkpoint(str(source), str(tmp_path / "whole")))
    killed_at_shard(3, source, target)
    (tmp_path / "new.partial" / "model-00001-of-00004.safetensors").write_bytes(b"damaged")
    read, tensors_of = [], weights.tensors_of
    monkeypatch.setattr(weights, "tensors_of", lambda path: read.append(path.name[14:19]) or tensors_of(path))
    convert_checkpoint(str(source), str(target))
    assert "resumes a conversion that was killed, with 2 complete shards" in capsys.readouterr().out
    assert read == ["00001", "00003", "00004"] and files_of(target) == expected
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["new", "old", "whole"]


def test_a_killed_conversion_of_other_files_begins_anew(tmp_path, capsys):
    source, target = write_old(tmp_path / "old", "baichuan", shards=2), tmp_path / "new"
    killed_at_shard(2, source, target)
    write_old(source, "baichuan", shards=2, state=state_of("baichuan", seed=1))
    convert_checkpoint(str(source), str(target))
    assert "of other files or by another version; it begins anew" in capsys.readouterr().out
    assert files_of(target) == files_of(convert_checkpoint(str(source), str(tmp_path / "whole")))
    (tmp_path / "more.partial").mkdir()
    (tmp_path / "more.partial" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"more\.partial: is in the way"):
        convert_checkpoint(str(source), str(tmp_path / "more"))
    assert (tmp_path / "more.partial" / "mine.txt").exists()


def test_a_complete_conversion_is_kept_and_nothing_else_overwritten(tmp_path, capsys):
    source, target = converted(tmp_path, "baichuan")
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    convert_checkpoint(str(source), str(target))
    assert "already converted" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before
    write_old(source, "baichuan", state=state_of("baichuan", seed=1))
    with pytest.raises(UserError, match=r"--output_dir .*not this conversion of .*name another folder"):
        convert_checkpoint(str(source), str(target))
    with pytest.raises(UserError, match="there is something already"):
        convert_checkpoint(str(source), str(source))


def _without(state, key):
    return {name: value for name, value in state.items() if name != key}


STATE = state_of("baichuan")
LAST = "model.layers.1.mlp.up_proj.weight"
DAMAGED = {
    "unknown": (
        STATE | {"model.layers.0.self_attn.x.weight": torch.ones(8)},
        r"no tensor .*x.weight of shape \[8\]",
    ),
    "bias": (STATE | {"model.layers.0.self_attn.W_pack.bias": torch.ones(96)}, r"no tensor .*W_pack.bias"),
    "layer": (STATE | {"model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)}, r"no tensor model.layers.2"),
    "missing": (_without(STATE, LAST), rf"lack weights of Baichuan-7B \({LAST}"),
    "shape": (STATE | {LAST: torch.ones(48, 31)}, rf"{LAST} has the shape \[48, 31\]"),
    "rows": (STATE | {"model.layers.0.self_attn.W_pack.weight": torch.ones(95, 32)}, r"W_pack.weight has the shape"),
    "another base": (
        STATE | {"model.layers.1.self_attn.rotary_emb.inv_freq": 1 / 1e6 ** (torch.arange(0, 8, 2) / 8)},
        r"no tensor model.layers.1.self_attn.rotary_emb.inv_freq",
    ),
    "fewer rotary frequencies": (
        STATE | {"model.layers.1.self_attn.rotary_emb.inv_freq": 1 / 1e4 ** (torch.arange(0, 6, 2) / 6)},
        r"no tensor model.layers.1.self_attn.rotary_emb.inv_freq of shape \[3\]",
    ),
    "one number": (STATE | {"model.layers.0.self_attn.W_pack.weight": torch.tensor(1.0)}, r"has the shape \[\]"),
    "integers": (STATE | {LAST: torch.ones(48, 32, dtype=torch.int8)}, rf"{LAST} holds int8"),
    "8 bits": (STATE | {LAST: torch.ones(48, 32).to(torch.float8_e4m3fn)}, rf"{LAST} holds float8_e4m3fn"),
    "NaN": (STATE | {LAST: torch.full((48, 32), math.nan)}, rf"{LAST} holds NaN or infinite values"),
    "a state with its step": ({"module": STATE, "step": 3}, "module has the type dict, and in a file of weights all"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_a_family_does_not_have_is_named(tmp_path, what):
    state, message = DAMAGED[what]
    with pytest.raises(UserError, match=message):
        converted(tmp_path, "baichuan", state=state)
    assert not (tmp_path / "baichuan-new").exists() and not list(tmp_path.glob("*partial*"))


SHARD, INDEX = "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (SHARD, None, f"names {SHARD}, which is not there; download it again"),
        (SHARD, b"", f"{SHARD}: cannot be read .it ends too early.; download it again"),
        (SHARD, b"PK\x03\x04 and no more", f"{SHARD}: cannot be read .*; download it again"),
        (SHARD, b"version https://git-lfs.github.com/spec/v1\n", f"{SHARD}: a git-lfs pointer, not the weights; fetch"),
        (INDEX, b'{"weight_map": {', f"{INDEX}: not JSON .*; download it again"),
        (INDEX, b"{}", f"{INDEX}: no weight_map"),
        (INDEX, b'{"weight_map": {"a": 3}}', f"{INDEX}: no weight_map"),
        ("config.json", b"[]", "config.json: expected a JSON object, found a list; download it again"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: expected a JSON object, found a list"),
        ("generation_config.json", b"[]", "generation_config.json: expected a JSON object, found a list"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content, message):
    source = write_old(tmp_path / "old", "qwen", shards=2)
    (source / file).unlink(missing_ok=True)
    if content is not None:
        (source / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        convert_checkpoint(str(source), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob("*partial*"))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_no_code_of_the_checkpoint_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = write_old(tmp_path / "old", "qwen", auto_map={"AutoConfig": "configuration_qwen.QWenConfig"})
    for file in ("configuration_qwen.py", "modeling_qwen.py", "tokenization_qwen.py"):
        (source / file).write_text("import os\nos.mkdir('evil')\n", encoding="utf-8")
    target = convert_checkpoint(str(source), "new")
    assert not list(target.glob("*.py")) and "auto_map" not in (target / "config.json").read_text(encoding="utf-8")
    torch.save(state_of("qwen") | {"evil": Evil()}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin: a pickle with more than tensors"):
        convert_checkpoint(str(source), "other")
    assert not (tmp_path / "evil").exists()


def test_a_normalized_head_in_bfloat16(tmp_path):
    state = {name: value.bfloat16() for name, value in state_of("baichuan2").items()}
    _, target = converted(tmp_path, "baichuan2", state=state)
    head = load_file(target / "model.safetensors")["lm_head.weight"]
    exact = torch.nn.functional.normalize(state["lm_head.weight"].double())
    assert head.dtype == AutoConfig.from_pretrained(target).dtype == torch.bfloat16
    assert ((head.double() - exact).abs() <= exact.abs() * 2**-8).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_the_original_vocabulary(plain, name, monkeypatch, capsys):
    source, target = plain(name)
    tokenizer, _ = load_tokenizer(str(target), needs_template=False)
    if name == "qwen":
        encode = Ranks(source / "qwen.tiktoken", "qwen2", composes=True).encode
    elif name == "glm4":
        encode = Ranks(source / "tokenizer.model", "glm4").encode
    else:
        encode = SentencePieceProcessor(model_file=str(source / "tokenizer.model")).encode
    assert tokenizer.is_fast
    monkeypatch.undo()
    vocabulary = fast_tokenizer.build_tokenizer(LAYOUTS[name], source, is_chat=False)[1]
    fast_tokenizer.prove(tokenizer, vocabulary, name)
    assert "tokenizer: 0 of " in capsys.readouterr().out
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == encode(text), text
    ids = tokenizer("问")["input_ids"]
    prefix = tokenizer.convert_ids_to_tokens(ids[: len(ids) - len(encode("问"))])
    expected = {key: ["[gMASK]", "<sop>"] for key in ("chatglm2", "chatglm3", "glm4")}
    expected |= {key: ["<s>"] for key in ("internlm", "internlm2", "minicpm")}
    assert prefix == expected.get(name, [])
    assert tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id


def test_special_ids(plain):
    _, target = plain("chatglm3")
    vocabulary = AutoTokenizer.from_pretrained(target).get_vocab()
    names = [
        "[MASK]",
        "[gMASK]",
        "[sMASK]",
        "<sop>",
        "<eop>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
    ]
    assert [vocabulary[token] for token in names] == list(range(PIECES, PIECES + 9))
    _, target = plain("internlm2")
    vocabulary = AutoTokenizer.from_pretrained(target).get_vocab()
    assert (vocabulary["<|im_end|>"], vocabulary["<|im_start|>"]) == (3, 4) and "[UNUSED_TOKEN_145]" not in vocabulary
    rewritten = SentencePieceProcessor(model_file=str(target / "tokenizer.model"))
    assert rewritten.id_to_piece(4) == "<|im_start|>" and rewritten.is_control(4)
    source, target = plain("qwen")
    ranks = len((source / "qwen.tiktoken").read_bytes().splitlines())
    tokenizer = AutoTokenizer.from_pretrained(target)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [ranks, ranks + 1, ranks + 2, ranks + 3, ranks + 207]


def test_a_vocabulary_that_a_fast_tokenizer_cannot_follow_is_refused(tmp_path):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    source = write_old(tmp_path / "old", "baichuan")
    model = ModelProto.FromString((source / "tokenizer.model").read_bytes())
    for piece in model.pieces:
        piece.score = 0.0  # where all pieces are alike, SentencePiece merges from left to right
    (source / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"of \d,\d+ texts \d+ get other ids .*nothing is converted"):
        convert_checkpoint(str(source), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("user_defined", [(), ("<用户>", "[a]"), ("ab", "aba")])
@pytest.mark.parametrize(("normalization", "remove"), [("identity", True), ("identity", False), ("nmt_nfkc", True)])
def test_sentencepiece_models_of_every_kind(prefix, user_defined, normalization, remove):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    more = {"normalization_rule_name": normalization, "remove_extra_whitespaces": remove}
    written = sentencepiece_model(prefix, user_defined, **more)
    model, original = ModelProto.FromString(written), SentencePieceProcessor(model_proto=written)
    assert [piece.piece for piece in model.pieces if piece.type == USER_DEFINED] == list(user_defined)
    tokenizer = as_full_tokenizer(model)
    texts = [*TEXTS, "<用户>你好[a] x", "x <用户>", "ab cab  ab", "[a][a]", "ａｂ　ｃ"]
    differing = [text for text in texts if tokenizer.encode(text).ids != original.encode(text)]
    assert differing[:3] == []


def test_chat_models_of_baichuan2(tmp_path, capsys):
    source = write_old(tmp_path / "old", "baichuan2")
    settings = {"user_token_id": 3, "assistant_token_id": 4, "temperature": 0.3, "top_k": 5, "do_sample": True}
    (source / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    target = convert_checkpoint(str(source), str(tmp_path / "new"))
    assert "without user_token_id, assistant_token_id" in capsys.readouterr().out
    generation = GenerationConfig.from_pretrained(target)
    assert (generation.temperature, generation.top_k, generation.eos_token_id) == (0.3, 5, 2)
    original = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    # As build_chat_input of its own code: a token, then the text by itself.
    assert prompt_of(target, ["系统", " 你好"]) == [*original.encode("系统"), 3, *original.encode(" 你好"), 4]


def prompt_of(target, contents):
    """Ids before an answer to the last of `contents`; the first is a system turn where there are two."""
    tokenizer, added = load_tokenizer(str(target))
    roles = ["system", "user"][-len(contents) :]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    [row] = ChatEncoder(tokenizer).encode([[*messages, {"role": "assistant", "content": "答"}]])
    assert row.input_ids[: row.prompt_length].tolist() == ids and not added
    assert row.labels[row.labels != -100][-1] == tokenizer.eos_token_id
    return ids


def test_prompts_of_chatglm(plain):
    """ChatGLM3 encodes line ends and messages apart, each with its own prefix."""
    source, target = plain("chatglm3")
    original = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    first = PIECES + 1
    line = original.encode("\n")
    system, user, assistant = PIECES + 5, PIECES + 6, PIECES + 7
    expected = [first, first + 2, system, *line, *original.encode("系统"), user, *line, *original.encode("people")]
    assert prompt_of(target, ["系统", "people"]) == [*expected, assistant, *line]
    assert GenerationConfig.from_pretrained(target).eos_token_id == [2, user, PIECES + 8]
    source, target = plain("chatglm2")
    expected = [first, first + 2, *original.encode("[Round 1]\n\n问：你好\n\n答：")]
    assert prompt_of(target, ["你好"]) == expected


def test_glm4_has_its_special_tokens_behind_its_vocabulary(plain, tmp_path):
    source, target = plain("glm4")
    size = len(old_checkpoints.tiktoken_file().splitlines())  # 151,329 in the published one
    tokenizer = AutoTokenizer.from_pretrained(target)
    names = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>"]
    names += ["<|assistant|>", "<|observation|>", "<|begin_of_image|>"]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(size, size + 11)) and len(tokenizer) == size + 14
    accent = "e\u0301"  # which is not composed
    assert tokenizer.decode(tokenizer(accent, add_special_tokens=False)["input_ids"]) == accent
    assert tokenizer.chat_template is None  # of the base model
    old = write_old(tmp_path / "glm-4-9b-chat", "glm4")
    chat = convert_checkpoint(str(old), str(tmp_path / "new"))
    encode = Ranks(source / "tokenizer.model", "glm4").encode
    system, user, assistant = size + 6, size + 7, size + 8
    prompt = [size + 2, size + 4, system, *encode("\n系统"), user, *encode("\n你好"), assistant, *encode("\n")]
    assert prompt_of(chat, ["系统", "你好"]) == prompt
    assert GenerationConfig.from_pretrained(chat).eos_token_id == [size, user, size + 9]
    (old / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "ChatGLM4Tokenizer", "added_tokens_decoder": {"5": {"content": "<sop>"}}})
    )
    with pytest.raises(UserError, match=rf"gives <sop> the id 5, and in GLM-4-9B it is {size + 4}; copy the files"):
        convert_checkpoint(str(old), str(tmp_path / "other"))


def test_prompts_of_other_chat_models(tmp_path):
    source = write_old(tmp_path / "Qwen-7B-Chat", "qwen")
    target = convert_checkpoint(str(source), str(tmp_path / "qwen"))
    tokenizer = AutoTokenizer.from_pretrained(target)
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    text += "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(prompt_of(target, ["你好"])) == text
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert GenerationConfig.from_pretrained(target).eos_token_id == ends
    source = write_old(tmp_path / "internlm-chat-7b", "internlm")
    target = convert_checkpoint(str(source), str(tmp_path / "internlm"))
    tokenizer = AutoTokenizer.from_pretrained(target)
    original = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    two = [{"role": role, "content": text} for role, text in (("user", "问"), ("assistant", "答"), ("user", "再问"))]
    text = "<|User|>:问<eoh>\n<|Bot|>:答<eoa>\n<|User|>:再问<eoh>\n<|Bot|>:"
    assert tokenizer.apply_chat_template(two, add_generation_prompt=True)["input_ids"] == [1, *original.encode(text)]
    assert prompt_of(target, ["问"]) == [1, *original.encode("<|User|>:问<eoh>\n<|Bot|>:")]
    assert tokenizer.eos_token == "<eoa>"
    source = write_old(tmp_path / "MiniCPM-2B-sft", "minicpm")
    target = convert_checkpoint(str(source), str(tmp_path / "minicpm"))
    original = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    assert prompt_of(target, ["你好"]) == [1, *original.encode("<用户>你好<AI>")]
    source = write_old(tmp_path / "internlm2-chat-7b", "internlm2")
    target = convert_checkpoint(str(source), str(tmp_path / "internlm2"))
    text = "<s><|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert AutoTokenizer.from_pretrained(target).decode(prompt_of(target, ["你好"])) == text


UNCONVERTED = {
    "Baichuan2-7B, in a layout": FAMILIES["baichuan2"].config,
    "Baichuan-7B, in a layout": FAMILIES["baichuan"].config,
    "Qwen-1, in a layout": FAMILIES["qwen"].config,
    "ChatGLM3-6B, in a layout": FAMILIES["chatglm3"].config,
}


@pytest.mark.parametrize("message", UNCONVERTED)
def test_scripts_name_the_command(tmp_path, message):
    (tmp_path / "config.json").write_text(json.dumps(UNCONVERTED[message]), encoding="utf-8")
    command = rf"python scripts/convert_checkpoint.py --model_name_or_path {tmp_path} --output_dir {tmp_path}-\w+$"
    for trust in (False, True):
        with pytest.raises(UserError, match=f"{message}.*convert it: {command}"):
            load_config(ModelArguments(str(tmp_path)), trust)
        with pytest.raises(UserError, match=f"{message}.*convert it: {command}"):
            load_tokenizer(str(tmp_path), trust_remote_code=trust)


B13 = {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "model_max_length": 4096}
CHATGLM1 = {"architectures": ["ChatGLMModel"], "model_type": "chatglm", "position_encoding_2d": True}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (B13, "Baichuan-13B, whose alibi"),
        (B13 | {"z_loss_weight": 0}, "Baichuan2-13B, whose alibi .* --trust_remote_code True"),
        (CHATGLM1, "the first ChatGLM-6B, .* --trust_remote_code True --lora_config configs/lora_all_linear.json"),
        (FAMILIES["glm4"].config | {"_name_or_path": "glm-4v-9b", "vision_config": {}}, "GLM-4V-9B.*glm-4-9b-chat-hf"),
        (FAMILIES["chatglm3"].config | {"_name_or_path": "mine"}, "ChatGLM2-6B or ChatGLM3-6B, and neither"),
    ],
)
def test_families_that_are_not_converted_say_what_works(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_config(ModelArguments(str(tmp_path)), False)
    with pytest.raises(UserError, match=message):
        convert_checkpoint(str(tmp_path), str(tmp_path / "new"))


def test_families_are_told_apart():
    assert detect(B13 | {"max_position_embeddings": 4096}, "x") is layouts.BAICHUAN2
    assert detect({"architectures": ["LlamaForCausalLM"]}, "x") is None and detect({}, "x") is None
    assert detect({"auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}}, "x") is layouts.QWEN
    for config in (B13, B13 | {"z_loss_weight": 0}, CHATGLM1):  # which run
        refuse_unconverted("x", config, trust_remote_code=True)
    with pytest.raises(UserError, match=r"download it \(scripts/download.py\) and convert it: .* models/Baichuan2-7B "):
        refuse_unconverted("baichuan-inc/Baichuan2-7B", FAMILIES["baichuan2"].config)


def test_chatglm2_and_3_by_their_tokenizer(tmp_path):
    config = GLM = FAMILIES["chatglm2"].config | {"_name_or_path": ""}
    assert detect(config | {"_name_or_path": "chatglm3-6b"}, str(tmp_path)) is layouts.CHATGLM3
    code = tmp_path / "tokenization_chatglm.py"
    code.write_text('special_tokens = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]', encoding="utf-8")
    assert detect(config, str(tmp_path)) is layouts.CHATGLM2
    code.write_text('special_tokens = ["sop", "eop", "<|system|>", "<|user|>"]', encoding="utf-8")
    assert detect(GLM, str(tmp_path)) is layouts.CHATGLM3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen", {"rotary_pct": 0.5}, "Qwen-1, whose config.json: rotary_pct is 0.5, and only 1.0"),
        ("qwen", {"quantization_config": {"bits": 4}}, "weights are quantized"),
        ("chatglm3", {"quantization_bit": 4}, "weights are quantized"),
        ("chatglm3", {"kv_channels": None}, "no kv_channels, which ChatGLM3-6B has"),
        (
            "chatglm2",
            {"multi_query_attention": None},
            "ChatGLM2-6B, whose .*: multi_query_attention is False, and only",
        ),
        ("chatglm3", {"multi_query_group_num": 0}, "config.json: its values fit no ChatGLM3-6B .ZeroDivisionError"),
        ("qwen", {"hidden_size": "32"}, "config.json: its values fit no Qwen-1 .TypeError"),
        ("minicpm", {"hidden_act": "fatrelu"}, "config.json: its values fit no MiniCPM .KeyError: 'fatrelu'"),
        ("minicpm", {"rope_scaling": {"type": "longrope"}}, "MiniCPM, whose .* scaled by 'longrope'"),
        ("baichuan", {"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM is of none of the families"),
    ],
)
def test_configurations_without_an_equal_are_named(tmp_path, name, changes, message):
    with pytest.raises(UserError, match=message):
        converted(tmp_path, name, **changes)


def test_script(tmp_path, monkeypatch, capsys):
    source = write_old(tmp_path / "old", "minicpm", form="safetensors")
    flags = ["--model_name_or_path", str(source), "--output_dir", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *flags])
    runpy.run_path(str(ROOT / "scripts" / "convert_checkpoint.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "0 of 1," in out and "LoRA: --lora_config configs/lora_llama.json" in out
    assert len(weights.weight_files(tmp_path / "new")) == 1
