"""Saved = trained = loaded, for each kind of adapter; and with the adapter off, the base alone."""

import json
import warnings
from typing import get_args, get_type_hints

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from conftest import build_tokenizer, same
from hf_recipes.core.errors import UserError
from hf_recipes.dry_run.checks import check_trained
from hf_recipes.export.merge import MergeArguments, merge
from hf_recipes.models.adapters.lora import attach_lora, read_lora_config
from hf_recipes.models.adapters.saved_adapter import load_adapter, read_adapter_config
from hf_recipes.models.checks.saving import check_saved, saved_names
from hf_recipes.models.embeddings import fit_embeddings
from hf_recipes.models.from_config import PretrainModelArguments, freeze
from hf_recipes.models.loading import without_weights
from hf_recipes.run.model import check_settings
from hf_recipes.stages.dpo import DPOArguments
from hf_recipes.stages.pretrain import PretrainArguments
from hf_recipes.stages.sft import SFTArguments

IDS = torch.arange(3, 35).view(2, 16)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[bool, str]:
    """Qwen2 with biases that are not zero, by whether its two embeddings are one weight."""
    folders = {}
    for tied in (True, False):
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 560}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2, "pad_token_id": 0}
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, tie_word_embeddings=tied))
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.data.normal_(std=0.1)
        folders[tied] = str(tmp_path_factory.mktemp("base"))
        model.save_pretrained(folders[tied])
        build_tokenizer().save_pretrained(folders[tied])
    return folders


def written(folder, **settings) -> str:
    path = folder / "lora.json"
    path.write_text(json.dumps({"lora_r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}))
    return str(path)


def opened(base: str, tokenizer=None) -> Qwen2ForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokenizer is not None:
        torch.manual_seed(0)
        fit_embeddings(model, tokenizer)
    return model


def train(model, ids=IDS) -> torch.Tensor:
    """Two steps of training, and then the logits."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return logits(model, ids)


def logits(model, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


KINDS = {
    "plain": {"init_lora_weights": True},
    "random": {"init_lora_weights": False},
    "Gaussian": {"init_lora_weights": "gaussian"},
    "DoRA": {"use_dora": True},
    "rank-stabilized": {"use_rslora": True},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "MiCA": {"init_lora_weights": "mica"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, fast": {"init_lora_weights": "pissa_niter_4"},
    "PiSSA, patterns": {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "PiSSA, rank-stabilized": {"init_lora_weights": "pissa", "use_rslora": True},
    "PiSSA, embeddings": {"init_lora_weights": "pissa", "modules_to_save": ["embed_tokens"]},
    "OLoRA": {"init_lora_weights": "olora"},
    "all biases": {"bias": "all"},
    "biases of its layers": {"bias": "lora_only"},
    "embeddings, whole": {"modules_to_save": ["embed_tokens"]},
    "embeddings, whole, as one": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "embeddings, by LoRA": {"target_modules": ["q_proj", "embed_tokens"]},
    "some tokens": {"trainable_token_indices": [3, 4, 5]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_is_trained_and_the_base_is_the_base(bases, tmp_path, kind):
    tied = kind != "embeddings, whole"
    path, base = written(tmp_path, **KINDS[kind]), bases[tied]
    plain = logits(opened(base))
    model = attach_lora(opened(base), read_lora_config(path), path, [])
    assert torch.allclose(logits(model), plain, atol=1e-6) is (kind != "random")
    trained = train(model.train())
    assert (trained - plain).abs().max() > 0.01
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), trained)

    model.save_pretrained(tmp_path / "adapter")
    check_saved(model, tmp_path / "adapter")
    assert {name for name, p in model.named_parameters() if p.requires_grad} <= saved_names(model).keys()
    for loaded in (
        PeftModel.from_pretrained(opened(base), tmp_path / "adapter").eval(),
        load_adapter(opened(base), str(tmp_path / "adapter")),
    ):
        assert torch.allclose(logits(loaded), trained, atol=1e-5)
    with loaded.disable_adapter():  # by our own commands
        assert torch.equal(logits(loaded), plain)

    build_tokenizer().save_pretrained(tmp_path / "adapter")
    merge(MergeArguments([str(tmp_path / "adapter")], str(tmp_path / "merged"), model_name_or_path=base))
    assert torch.allclose(logits(opened(str(tmp_path / "merged"))), trained, atol=1e-5)

    for one in (model, loaded):
        assert one.get_output_embeddings().bias is None  # which TRL's losses read

    # As a run goes on from a checkpoint: bit by bit.
    torch.manual_seed(7)
    other = attach_lora(opened(base), read_lora_config(path), path, [])
    other.load_adapter(str(tmp_path / "adapter"), "default", is_trainable=True)
    assert torch.equal(logits(other), trained)
    assert torch.equal(train(other.train()), train(model.train()))


@pytest.mark.parametrize(
    ("tied", "settings"),
    [
        (True, {}),
        (False, {}),
        (True, {"init_lora_weights": "pissa"}),
        (True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        (True, {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
        (True, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (False, {"modules_to_save": ["embed_tokens"]}),
        (False, {"trainable_token_indices": [3, 4]}),
        (True, {"target_modules": ".*(q_proj|lm_head)"}),
    ],
    ids=str,
)
def test_new_tokens_are_learned_saved_and_merged(bases, tmp_path, tied, settings):
    tokenizer = build_tokenizer()
    names = [f"<|new{i}|>" for i in range(570 - len(tokenizer))]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    new, ids = tokenizer.convert_tokens_to_ids(names), torch.arange(554, 570)[None]
    path = written(tmp_path, **{"target_modules": ["q_proj", "v_proj"], **settings})
    model = attach_lora(opened(bases[tied], tokenizer), read_lora_config(path), path, new)
    start = logits(model, ids)
    trained = train(model.train(), ids)
    assert (trained - start)[..., new[-1]].abs().max() > 0.01
    model.save_pretrained(tmp_path / "adapter")
    check_saved(model, tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(opened(bases[tied], tokenizer), str(tmp_path / "adapter"))
    assert torch.allclose(logits(loaded, ids), trained, atol=1e-5)
    merge(MergeArguments([str(tmp_path / "adapter")], str(tmp_path / "merged"), model_name_or_path=bases[tied]))
    assert torch.allclose(logits(opened(str(tmp_path / "merged")), ids), trained, atol=1e-5)
    if "trainable_token_indices" in settings:
        rows = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["trainable_token_indices"]
        assert rows["embed_tokens"] == [3, 4, *new] and rows["lm_head"] == new


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["embed_tokens"]}, 'which are one weight: add "ensure_weight_tying"'),
        ({"target_modules": ["embed_tokens"]}, "where the rows of new tokens are trained: take it out"),
    ],
)
def test_new_tokens_that_could_not_be_learned(bases, tmp_path, settings, message):
    path = written(tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        attach_lora(opened(bases[True]), read_lora_config(path), path, [558, 559])


@pytest.mark.parametrize(
    ("rows", "whole", "tying"),
    [("embed_tokens", "lm_head", False), ("embed_tokens", "lm_head", True), ("lm_head", "embed_tokens", True)],
)
def test_rows_of_one_tied_embedding_and_the_whole_other(bases, tmp_path, rows, whole, tying):
    settings = {"target_modules": ["q_proj"], "trainable_token_indices": {rows: [3, 4]}, "modules_to_save": [whole]}
    path = written(tmp_path, **settings, ensure_weight_tying=tying)
    with pytest.raises(UserError, match="whole and trainable_token_indices rows of the other, which are one weight"):
        attach_lora(opened(bases[True]), read_lora_config(path), path, [])


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_an_adapter_that_peft_saved_for_its_own_base(bases, tmp_path, kind):
    """The rank is half of what it is to the whole base, which stays as it is."""
    base = bases[True]
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(opened(base), LoraConfig(init_lora_weights=kind, **settings))
    trained = train(model)
    model.save_pretrained(tmp_path / "adapter")
    plain = opened(base)
    loaded = load_adapter(plain, str(tmp_path / "adapter"))
    assert torch.allclose(logits(loaded), trained, atol=1e-5)
    beside = load_adapter(loaded, str(tmp_path / "adapter"), name="second")
    beside.set_adapter("second")
    assert torch.allclose(logits(beside), trained, atol=1e-5)
    with beside.disable_adapter():
        assert torch.equal(logits(beside), logits(opened(base)))
    build_tokenizer().save_pretrained(tmp_path / "adapter")
    merge(MergeArguments([str(tmp_path / "adapter")], str(tmp_path / "merged"), model_name_or_path=base))
    assert torch.allclose(logits(opened(str(tmp_path / "merged"))), trained, atol=1e-5)


REFUSED = [
    ({"init_lora_weights": "eva"}, "eva is computed from data beforehand"),
    ({"init_lora_weights": "corda"}, "corda is computed from data beforehand"),
    ({"init_lora_weights": "lora_ga"}, "lora_ga is computed from data beforehand"),
    ({"init_lora_weights": "loftq"}, "loftq changes the base"),
    ({"kasa_config": {}}, "kasa_config changes the base"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication changes the base"),
    ({"init_lora_weights": "pissa", "use_dora": True}, "pissa does not go with use_dora"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_ways_to_begin_that_are_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        read_lora_config(written(tmp_path, **settings))


def test_every_way_to_begin_of_this_peft_is_tried():
    settings = [*KINDS.values(), *(one for one, _ in REFUSED)]
    tried = {str(one["init_lora_weights"]) for one in settings if "init_lora_weights" in one}
    truth, names = get_args(get_type_hints(LoraConfig)["init_lora_weights"])
    assert truth is bool
    names = {name.replace("[number of iters]", "4") for name in get_args(names)}
    assert tried >= {"True", "False", *names}


@pytest.mark.parametrize("kind", ["PISSA", "pissa_niter_x", "nonsense"])
def test_ways_to_begin_that_do_not_exist(bases, tmp_path, kind):
    path = written(tmp_path, init_lora_weights=kind)
    with pytest.raises(UserError, match=r"lora\.json: "):
        attach_lora(opened(bases[True]), read_lora_config(path), path, [])


def test_layers_of_which_no_part_can_be_taken(bases, tmp_path):
    for settings, message in (
        ({"lora_r": 40}, "rank 40 is above the width of model.layers.0.self_attn.q_proj, 32"),
        ({"target_modules": ["embed_tokens"]}, "model.embed_tokens is no linear layer"),
    ):
        path = written(tmp_path, init_lora_weights="pissa", **settings)
        with pytest.raises(UserError, match=message):
            attach_lora(opened(bases[True]), read_lora_config(path), path, [])


def test_a_saved_adapter_whose_base_is_not_known(bases, tmp_path):
    settings = {"target_modules": ["q_proj"], "init_lora_weights": "pissa_niter_4"}
    get_peft_model(opened(bases[True]), LoraConfig(**settings)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"pissa_niter_4 changes the base.*convert it to plain LoRA"):
        read_adapter_config(str(tmp_path))


def test_what_does_not_go_together_is_said_before_weights_are_read(bases, tmp_path):
    def refused(message, kind=SFTArguments, is_quantized=False, **settings):
        path = written(tmp_path, **settings)
        model = attach_lora(opened(bases[True]), read_lora_config(path), path, [])
        args = kind(output_dir=str(tmp_path / "run"), report_to="none", bf16=False)
        with pytest.raises(UserError, match=message):
            check_trained(model, args, is_quantized)

    refused("pissa or olora needs full float weights", is_quantized=True, init_lora_weights="olora")
    refused("which does not go with a reference", kind=DPOArguments, bias="all")

    tying = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    for lora in (tying, {"target_modules": ["lm_head"]}):
        refused(r"LoRA on the output embeddings \(lm_head\) would not be trained", **lora)

    args = PretrainArguments(output_dir=str(tmp_path / "run"), report_to="none", bf16=False, train_only="embeddings")
    with pytest.raises(UserError, match="--train_only embeddings trains weights that no adapter holds"):
        check_settings(PretrainModelArguments("tiny", use_lora=True), args)
    check_settings(PretrainModelArguments("tiny"), args)


def test_what_is_trained_and_not_saved_is_named(bases, tmp_path):
    model = attach_lora(opened(bases[True]), read_lora_config(None), None, [])
    args = SFTArguments(output_dir=str(tmp_path / "run"), report_to="none", bf16=False)
    check_trained(model, args, is_quantized=False)
    freeze(model, None, "1")  # the adapter's matrices there stay zero, and are saved so
    check_trained(model, args, is_quantized=False)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.0" in name and "q_proj.lora_B" in name)
    for wrong in ({**tensors, name: tensors[name] + 1}, {key: value for key, value in tensors.items() if key != name}):
        save_file(wrong, file)
        with pytest.raises(
            UserError, match=r"lacks .*layers.0.self_attn.q_proj.lora_B.default.weight as it was trained"
        ):
            check_saved(model, tmp_path)
    save_file(tensors, file)
    check_saved(model, tmp_path)
    freeze(model, "embeddings", None)
    with pytest.raises(UserError, match=r"1 of the trained tensors would not be saved .*embed_tokens.weight"):
        check_trained(model, args, is_quantized=False)


@pytest.mark.parametrize("frozen", [False, True])
def test_of_a_whole_model_the_weights_are_counted(bases, tmp_path, frozen):
    """Frozen ones too: they would stand in for those that are missing."""
    model = opened(bases[True])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or "norm" in name)
    model.save_pretrained(tmp_path)
    check_saved(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "norm.weight" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"the model has [\d,]+ weights and [\d,]+ were saved"):
        check_saved(model, tmp_path)
    assert not same(tensors, load_file(tmp_path / "model.safetensors"))


def test_an_adapter_is_tried_without_weights_in_silence(bases, tmp_path):
    path = written(tmp_path)
    attach_lora(opened(bases[True]), read_lora_config(path), path, []).save_pretrained(tmp_path / "adapter")
    tokenizer = build_tokenizer()
    with warnings.catch_warnings(action="error"):
        model = without_weights(AutoConfig.from_pretrained(bases[True]), tokenizer, is_reward=False)
        assert all(weight.is_meta for weight in load_adapter(model, str(tmp_path / "adapter")).parameters())
