"""Older families by code with the habits of theirs (tests/remote_code), and conversions verified against such code."""

import dataclasses
import functools
import io
import json
import shutil

import pytest
import sentencepiece
import torch
from old_checkpoints import PIECES, sentencepiece_model, state_of, write_old
from peft import PeftModel
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from conftest import ROOT, TEXT
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.dry_run.memory import estimate
from hf_recipes.dry_run.simulate import Batch, meta_model
from hf_recipes.export.merge import MergeArguments, merge
from hf_recipes.models.adapters.lora import attach_lora, read_lora_config
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.saving import check_saved
from hf_recipes.models.families import layouts
from hf_recipes.models.families.convert import convert_checkpoint
from hf_recipes.models.families.remote_code import remote_class
from hf_recipes.models.families.tokenizers import chatglm_tokenizer, fast_tokenizer
from hf_recipes.models.inference.batch_options import ForwardPass
from hf_recipes.models.inference.forward import prefix_cache
from hf_recipes.models.loading import load_config, load_model
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.stages.sft import SFTArguments

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "rms_norm_eps": 1e-5, "pad_token_id": 3}
ALIBI = SIZES | {"intermediate_size": 48, "num_hidden_layers": 2, "model_max_length": 64, "vocab_size": PIECES + 4}
CONFIGS = {
    "Baichuan-13B": ALIBI | {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan"},
    "Baichuan2-13B": ALIBI | {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "z_loss_weight": 0},
    "ChatGLM-6B": SIZES
    | {"architectures": ["ChatGLMModel"], "model_type": "chatglm", "position_encoding_2d": True}
    | {"num_layers": 2, "inner_hidden_size": 64, "max_sequence_length": 64, "vocab_size": PIECES + 104},
}
BLANKS = [token for text, token in chatglm_tokenizer.BLANKS.items() if len(text) < 40]


DECODER = {"AutoConfig": "configuration_decoder.DecoderConfig"}
DECODER |= {"AutoModelForCausalLM": "modeling_decoder.BaichuanForCausalLM"}


def copy_code(folder, auto_map):
    for module in {name.split(".")[0] for name in auto_map.values()}:
        shutil.copy(ROOT / "tests" / "remote_code" / f"{module}.py", folder)


@functools.cache
def ice_text() -> bytes:
    """White space and commands as pieces, padding as the fourth."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXT * 3 for line in text.split("\n") if line]),
        model_writer=written,
        model_type="bpe",
        vocab_size=PIECES + 100,
        pad_id=3,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        user_defined_symbols=[*chatglm_tokenizer.SPECIAL[2:], *BLANKS],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()


def make(folder, name):
    """A checkpoint with random weights, its code and its tokenizer."""
    folder.mkdir()
    config = dict(CONFIGS[name])
    if name == "ChatGLM-6B":
        kinds = {"AutoConfig": "modeling_prefix.PrefixConfig"}
        kinds |= {"AutoModel": "modeling_prefix.ChatGLMForConditionalGeneration"}
        (folder / "ice_text.model").write_bytes(ice_text())
        pieces = sentencepiece.SentencePieceProcessor(model_proto=ice_text())
        tokens = {"bos": "<sop>", "eos": "<eop>", "mask": "[MASK]", "gmask": "[gMASK]"}
        config |= {f"{role}_token_id": pieces.piece_to_id(token) for role, token in tokens.items()}
        settings = {"tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": 0}
    else:
        kinds = DECODER
        turns = ("<reserved_106>", "<reserved_107>")
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(False, turns))
        (folder / "generation_config.json").write_text(json.dumps({"user_token_id": 3, "assistant_token_id": 4}))
        settings = {"tokenizer_class": "BaichuanTokenizer", "add_bos_token": False, "pad_token": "<unk>"}
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_old.OldTokenizer", None]}
    copy_code(folder, kinds)
    config["auto_map"] = kinds
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    torch.manual_seed(0)
    model = by_hand(folder, load=False)
    state = {key: 0.2 * torch.randn(value.shape) + ("norm" in key) for key, value in model.state_dict().items()}
    state |= {key: value for key, value in model.state_dict().items() if "inv_freq" in key}
    if name == "ChatGLM-6B":
        del state["lm_head.weight"]  # which is the embeddings'
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def by_hand(folder, load=True):
    """The model as transformers 4 made it: constructed, then loaded."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    config.tie_word_embeddings, config.use_cache = False, False
    model = remote_class(config, str(folder))(config).float()
    if load:
        state = torch.load(folder / "pytorch_model.bin")
        state.setdefault("lm_head.weight", state.get("transformer.word_embeddings.weight"))
        model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return functools.cache(lambda name: make(tmp_path_factory.mktemp("old") / name.lower(), name))


def opened(folder, **settings):
    arguments = ModelArguments(str(folder), dtype="float32", **settings)
    return load_model(arguments, trains_all=False, bf16=False, trust_remote_code=True)


def prompt(folder, length):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ids = torch.arange(20, 20 + length)
    if "gmask_token_id" in config:
        ids[-2:] = torch.tensor([config["gmask_token_id"], config["bos_token_id"]])
    return ids


@pytest.mark.parametrize("name", CONFIGS)
def test_without_these_shims_it_does_not_work(checkpoint, tmp_path, name):
    """Which a later transformers may change: then they can go."""
    folder = shutil.copytree(checkpoint(name), tmp_path / "alone")
    kind = AutoModel if name == "ChatGLM-6B" else AutoModelForCausalLM
    ids = prompt(folder, 8)[None]
    with pytest.raises((AttributeError, TypeError, ImportError, NotImplementedError)):
        kind.from_pretrained(folder, trust_remote_code=True).generate(ids, max_new_tokens=2)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_and_generation_are_those_of_its_code(checkpoint, name):
    folder = checkpoint(name)
    model, original = opened(folder).eval(), by_hand(folder)
    long, short = prompt(folder, 9), prompt(folder, 6)
    assert model.lm_head.weight.dtype == torch.float32
    options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    alone = [model.generate(row[None], **options)[0] for row in (long, short)]
    ids = long[None]
    for _ in range(6):
        logits = original(ids).logits
        assert torch.allclose(model(ids).logits, logits, atol=1e-5)
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ids[0], alone[0])
    both = torch.stack([long, torch.cat([torch.zeros(3, dtype=torch.long), short])])
    mask = torch.ones_like(both)
    mask[1, :3] = 0
    batch = model.generate(both, attention_mask=mask, **options)
    assert torch.equal(batch[0], alone[0]) and torch.equal(batch[1, 3:], alone[1])
    assert model.generate(both, attention_mask=mask, num_beams=2, **options).shape == (2, 15)
    assert prefix_cache(model, long.tolist()) is None  # with which several tokens would follow at once


@pytest.mark.parametrize("name", CONFIGS)
def test_its_memory_is_estimated(checkpoint, name, tmp_path):
    """By its own code on tensors without values: of a step, and of an evaluation that generates."""
    folder = checkpoint(name)
    arguments = ModelArguments(str(folder), dtype="float32", use_lora=False)
    tokenizer, _ = load_tokenizer(str(folder), trust_remote_code=True)
    settings = {"bf16": False, "trust_remote_code": True}
    model = meta_model(arguments, load_config(arguments, True), tokenizer, [], **settings)
    args = SFTArguments(str(tmp_path), report_to="none", gradient_checkpointing=False, **settings)
    memory = [estimate(model, Batch(2, 16, 4), args, passes=passes) for passes in ([], [ForwardPass(2, 512, 4)])]
    weights = sum(value.numel() for value in opened(folder, use_lora=False).parameters())
    assert memory[0].trained == memory[0].total == weights
    assert memory[0].parts["optimizer"] == 8 * weights and 0 <= memory[0].parts["weights"] - 4 * weights < 100
    assert [one.evaluates for one in memory] == [False, True]
    assert 0 < memory[0].parts["activations"] < memory[1].parts["activations"]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_trained_saved_and_merged(checkpoint, tmp_path, name):
    folder = checkpoint(name)
    path = str(ROOT / "configs" / ("lora_all_linear.json" if name == "ChatGLM-6B" else "lora_baichuan.json"))
    config = read_lora_config(path)
    config.lora_dropout = 0.0
    model = attach_lora(opened(folder), config, path, [])
    ids = torch.cat([prompt(folder, 9), torch.arange(30, 36)])[None]
    labels = ids.clone()
    labels[:, :9] = -100
    gradients = []
    for checkpointing in (True, False):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        mask = torch.ones_like(ids, dtype=torch.bool)
        model.train()(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad})
        model.zero_grad()
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter)
    check_saved(model, adapter)
    load_tokenizer(str(folder), trust_remote_code=True)[0].save_pretrained(adapter)
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        plain = PeftModel.from_pretrained(opened(folder), adapter).eval()
        assert torch.equal(plain(input_ids=ids).logits, expected)
    merged = tmp_path / "merged"
    merge(MergeArguments([str(adapter)], str(merged), model_name_or_path=str(folder), trust_remote_code=True))
    with torch.no_grad():
        assert torch.allclose(opened(merged).eval()(ids).logits, expected, atol=1e-4)


def test_chatglm_6b_has_the_ids_of_its_vocabulary_and_its_prompts(checkpoint):
    tokenizer, added = load_tokenizer(str(checkpoint("ChatGLM-6B")), trust_remote_code=True)
    original = sentencepiece.SentencePieceProcessor(model_proto=ice_text())
    assert tokenizer.is_fast and not added
    text = "你好\n    x = 1\t# 好"
    pieces = original.encode("你好<n><|blank_4|>x = 1<|tab|># 好")
    start = [original.piece_to_id(token) for token in ("[gMASK]", "<sop>")]
    assert tokenizer(text)["input_ids"] == [*pieces, *start] and tokenizer.decode(pieces) == text
    turns = [("user", "问"), ("assistant", "答"), ("user", "再问"), ("assistant", "好")]
    messages = [{"role": role, "content": content} for role, content in turns]
    first, second = ChatEncoder(tokenizer).encode([messages])
    end = original.piece_to_id("<eop>")
    assert first.input_ids.tolist() == [*original.encode("问"), *start, *original.encode("答"), end]
    prompt = original.encode("[Round 0]<n>问：问<n>答：答<n>[Round 1]<n>问：再问<n>答：")
    assert second.input_ids.tolist() == [*prompt, *start, *original.encode("好"), end]
    assert (second.labels != -100).sum() == len(original.encode("好")) + 1


def test_the_first_chatglm_6b_is_named(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("ChatGLM-6B"), tmp_path / "first")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ChatGLMTokenizer"}))
    with pytest.raises(UserError, match="the first release of ChatGLM-6B, with tokens for images"):
        load_tokenizer(str(folder), trust_remote_code=True)


def test_chatglm_6b_is_trained_on_conversations_alone(checkpoint):
    model = opened(checkpoint("ChatGLM-6B")).train()
    with pytest.raises(UserError, match=r"generates behind \[gMASK\] <sop>, and a row has none"):
        model(input_ids=torch.arange(30, 40)[None])


def test_turns_of_a_baichuan_13b_are_those_of_its_settings(checkpoint):
    tokenizer, _ = load_tokenizer(str(checkpoint("Baichuan-13B")), trust_remote_code=True)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "你好"}], add_generation_prompt=True)["input_ids"]
    assert (ids[0], ids[-1]) == (3, 4) and tokenizer.decode(ids[1:-1]) == "你好"


def test_code_that_reads_no_mask_answers_one_prompt_at_a_time(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("Baichuan-13B"), tmp_path / "first")
    path = folder / "modeling_decoder.py"
    path.write_text(
        path.read_text().replace("attention_mask=None, past", "mask=None, past").replace("attention_mask", "mask")
    )
    model = opened(folder)
    ids = prompt(folder, 6)[None].repeat(2, 1)
    mask = torch.ones_like(ids)
    assert torch.equal(model(ids, attention_mask=mask).logits, model(ids).logits)
    mask[0, 0] = 0
    with pytest.raises(UserError, match="does not read attention_mask"):
        model(ids, attention_mask=mask)


def test_it_needs_trust_and_code(checkpoint, tmp_path):
    folder = checkpoint("Baichuan2-13B")
    with pytest.raises(UserError, match="trains by its own code: --trust_remote_code True"):
        load_config(ModelArguments(str(folder)), False)
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]["AutoModelForCausalLM"]
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json names no code \(auto_map\)"):
        load_config(ModelArguments(str(tmp_path / "other")), True)


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A Baichuan-7B with code."""
    monkeypatch.setattr(fast_tokenizer, "JOINED", 20)
    folder = write_old(tmp_path / "old", "baichuan", auto_map=DECODER)
    copy_code(folder, DECODER)
    return folder


def test_verified(old, tmp_path, capsys):
    target = tmp_path / "new"
    for _ in range(2):  # converted, then there already
        convert_checkpoint(str(old), str(target), verify=True, trust_remote_code=True)
        said = capsys.readouterr().out
        assert "verified against the original's own code, in float32" in said
        assert float(said.split("difference of logits is ")[1].split()[0]) < 1e-5
    with pytest.raises(
        UserError, match="--verify runs the code of the checkpoint; read it, then allow it with --trust"
    ):
        convert_checkpoint(str(old), str(target), verify=True)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_a_head_that_is_normalized_once_is_verified(tmp_path, monkeypatch, capsys, dtype, limit):
    """In bfloat16 each of its weights is rounded."""
    monkeypatch.setattr(fast_tokenizer, "JOINED", 20)
    state = {key: value.to(dtype) for key, value in state_of("baichuan2").items()}
    folder = write_old(tmp_path / "old", "baichuan2", state=state, auto_map=DECODER)
    copy_code(folder, DECODER)
    convert_checkpoint(str(folder), str(tmp_path / "new"), verify=True, trust_remote_code=True)
    difference = float(capsys.readouterr().out.split("difference of logits is ")[1].split()[0])
    assert difference < limit and (difference > 1e-5) == (dtype == torch.bfloat16)


def test_another_model_is_not_left(old, tmp_path, monkeypatch):
    modules = layouts.BAICHUAN.modules
    swapped = {"mlp.gate_proj": modules["mlp.up_proj"], "mlp.up_proj": modules["mlp.gate_proj"]}
    wrong = dataclasses.replace(layouts.BAICHUAN, modules={**modules, **swapped})
    monkeypatch.setattr("hf_recipes.models.families.convert.detect", lambda config, name: wrong)
    with pytest.raises(
        UserError, match=r"the converted model is another one .* greedy tokens are alike; nothing is left"
    ):
        convert_checkpoint(str(old), str(tmp_path / "new"), verify=True, trust_remote_code=True)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["old"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import a_package_of_2023", "a_package_of_2023"),
        ("from transformers import find_pruneable_heads_of_2023", "ImportError"),
        ("raise KeyError('type')", "KeyError: 'type'"),
    ],
)
def test_code_that_does_not_run(old, tmp_path, line, message):
    path = old / "modeling_decoder.py"
    path.write_text(path.read_text() + f"\n{line}\n")
    with pytest.raises(
        UserError, match=rf"does not run on transformers .*{message}.*the proof are this package's tests"
    ):
        convert_checkpoint(str(old), str(tmp_path / "new"), verify=True, trust_remote_code=True)
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == ["old"]
