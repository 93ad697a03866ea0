"""A model that follows an extended tokenizer, from the new rows to training, merging and export."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from conftest import ROOT, build_tokenizer, tiny_model
from hf_recipes.core.errors import UserError
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.embeddings import initialize_rows
from hf_recipes.models.inference.loading import load_for_inference, open_for_inference
from hf_recipes.vocabulary.arguments import ExtendModelArguments, ExtendTokenizerArguments
from hf_recipes.vocabulary.extend import extend_tokenizer
from hf_recipes.vocabulary.extend_model import extend_model

NEWS = str(ROOT / "datasets/pretrain/news.jsonl")
ROLES = str(ROOT / "configs/special_tokens/roles.json")


@pytest.fixture(scope="module")
def extended(model_dir, tmp_path_factory):
    """Folders of the extended tokenizer and of the extended model; bits per character before and after."""
    folder = tmp_path_factory.mktemp("extended")
    settings = {"num_new_tokens": 100, "special_tokens": ROLES}
    extend_tokenizer(
        ExtendTokenizerArguments(
            tokenizer_name=model_dir, train_file=[NEWS], output_dir=str(folder / "tokenizer"), **settings
        )
    )
    extend_model(
        ExtendModelArguments(
            model_name_or_path=model_dir,
            tokenizer_name=str(folder / "tokenizer"),
            output_dir=str(folder / "model"),
            validation_file=[NEWS],
            max_eval_bytes=3000,
        )
    )
    return folder / "tokenizer", folder / "model"


def test_plain_transformers_loads_it(extended, model_dir):
    old, new = (AutoModelForCausalLM.from_pretrained(folder) for folder in (model_dir, extended[1]))
    tokenizer = AutoTokenizer.from_pretrained(extended[1])
    rows, before = new.get_input_embeddings().num_embeddings, old.get_input_embeddings().num_embeddings
    assert rows % 64 == 0 and rows - 64 < len(tokenizer) <= rows and len(tokenizer) == before + 100 + 4
    assert new.get_output_embeddings().weight is new.get_input_embeddings().weight  # tied still
    assert torch.equal(new.get_input_embeddings().weight[:before], old.get_input_embeddings().weight)
    assert tokenizer.eos_token == "<|endofchat|>"
    assert tokenizer.eos_token_id in new.generation_config.eos_token_id
    assert tokenizer.decode(tokenizer("北京的新闻🙂")["input_ids"]) == "北京的新闻🙂"
    assert new.generate(**tokenizer("北京", return_tensors="pt"), max_new_tokens=3, do_sample=False).shape[1] >= 2


def test_a_text_without_new_tokens_has_the_logits_that_it_had(extended, model_dir):
    old, new = (AutoModelForCausalLM.from_pretrained(folder) for folder in (model_dir, extended[1]))
    ids = AutoTokenizer.from_pretrained(model_dir)("The quick brown fox", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(new(ids).logits[..., : old.config.vocab_size], old(ids).logits)


def test_new_rows_are_means_of_the_old_tokens(extended, model_dir):
    old, new = (
        AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
        for folder in (model_dir, extended[1])
    )
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (model_dir, extended[1]))
    whole = [i for i in range(len(before), len(after)) if i not in after.added_tokens_decoder]
    whole = [i for i in whole if "\ufffd" not in after.decode([i])]
    assert len(whole) > 20
    for index in whole:
        parts = before(after.decode([index]))["input_ids"]
        assert len(parts) > 1
        torch.testing.assert_close(new[index], old[parts].mean(0))
    description = json.loads((ROOT / "configs/special_tokens/roles.json").read_text(encoding="utf-8"))["tokens"]
    for token, text in description.items():
        expected = old[before(text)["input_ids"]].mean(0)
        torch.testing.assert_close(new[after.convert_tokens_to_ids(token)], expected)
    torch.testing.assert_close(new[-1], old.mean(0))  # a padding row


def untied() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=4, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def test_rows_weighted_by_position():
    model = untied()
    rows = model.get_input_embeddings().weight.detach().clone(), model.get_output_embeddings().weight.detach().clone()
    initialize_rows(model, {6: [0, 1, 2], 7: [3]}, "weighted")
    first, last = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    torch.testing.assert_close(first[6], (rows[0][0] + 2 * rows[0][1] + 3 * rows[0][2]) / 6)
    torch.testing.assert_close(last[6], (3 * rows[1][0] + 2 * rows[1][1] + rows[1][2]) / 6)
    torch.testing.assert_close(first[7], rows[0][3])
    torch.testing.assert_close(first[:6], rows[0][:6])


def test_random_rows_have_the_spread_of_the_old_ones_and_follow_the_seed():
    one, other, third = tiny_model(400), tiny_model(400), tiny_model(400)
    for model, seed in ((one, 1), (other, 1), (third, 2)):
        initialize_rows(model, {index: [0] for index in range(300, 400)}, "random", seed)
    weight = one.get_input_embeddings().weight.detach()
    assert torch.equal(weight, other.get_input_embeddings().weight)
    assert not torch.equal(weight, third.get_input_embeddings().weight)
    assert weight[300:].std().item() == pytest.approx(weight[:300].std().item(), rel=0.1)


def test_bits_per_character_are_measured_before_and_after(extended):
    results = json.loads((extended[1] / "extension_results.json").read_text(encoding="utf-8"))
    before, after = results["before"], results["after"]
    assert before["characters"] == after["characters"] and after["tokens"] < before["tokens"]
    for figures in (before, after):
        bits = figures["loss"] * figures["tokens"] / figures["characters"] / 0.6931471805599453
        assert figures["bits_per_character"] == pytest.approx(bits)


def test_an_adapter_trains_the_new_rows_and_is_merged_with_them(extended, script, tmp_path):
    flags = ["--model_name_or_path", extended[1], "--train_file", NEWS, "--block_size", 64, "--max_steps", 3]
    flags += ["--use_lora", "true", "--learning_rate", 0.01, "--per_device_train_batch_size", 2]
    code, out, err = script("pretrain.py", *flags, "--output_dir", tmp_path / "run")
    assert code == 0, err
    assert "104 new tokens: their embeddings are trained beside the adapter" in out
    config = json.loads((tmp_path / "run/adapter_config.json").read_text(encoding="utf-8"))
    first = len(build_tokenizer())
    assert config["trainable_token_indices"] == {"embed_tokens": list(range(first, first + 104))}
    merge = ["--model_name_or_path", extended[1], "--peft_path", tmp_path / "run", "--output_dir", tmp_path / "merged"]
    code, out, err = script("merge_adapter.py", *merge)
    assert code == 0, err
    assert not (tmp_path / "merged/new_tokens.json").exists()  # they are trained now
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
        for folder in (extended[1], tmp_path / "merged")
    )
    assert torch.equal(before[:first], after[:first]) and not torch.equal(before[first:], after[first:])
    code, out, _ = script(
        "pretrain.py", *flags, "--train_new_tokens", "false", "--dry_run", "true", "--output_dir", tmp_path / "dry"
    )
    assert code == 0 and "new tokens" not in out


@pytest.mark.parametrize("quantized", [False, True], ids=["full", "four bits"])
def test_a_resumed_run_trains_the_new_rows_as_an_uninterrupted_one(extended, script, tmp_path, quantized):
    """With QLoRA too, whose adapter with its rows is loaded onto the base in four bits and in full."""
    flags = ["--model_name_or_path", extended[1], "--train_file", NEWS, "--block_size", 64, "--learning_rate", 0.01]
    flags += ["--use_lora", "true", "--per_device_train_batch_size", 2, "--lr_scheduler_type", "constant"]
    flags += ["--save_strategy", "steps", "--save_steps", 2, *(["--load_in_4bit"] if quantized else [])]
    for name, steps, more in (("whole", 4, []), ("parts", 2, []), ("parts", 4, ["--resume_from_checkpoint", "true"])):
        code, _, err = script("pretrain.py", *flags, "--max_steps", steps, "--output_dir", tmp_path / name, *more)
        assert code == 0, err
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    rows = next(tensor for name, tensor in whole.items() if "embed_tokens" in name)
    old = AutoModelForCausalLM.from_pretrained(extended[1]).get_input_embeddings().weight
    assert rows.shape == (104, old.shape[1]) and not torch.equal(rows, old[len(build_tokenizer()) :][:104])
    arguments = ModelArguments(str(extended[1]), peft_path=str(tmp_path / "whole"), dtype="float32")
    ids = torch.arange(len(build_tokenizer()) + 4)[None, -20:]
    logits = []
    for load_in_4bit in (quantized, False):
        arguments.load_in_4bit = load_in_4bit
        _, tokenizer = open_for_inference(arguments)
        with torch.no_grad():
            logits.append(load_for_inference(arguments, tokenizer)(ids).logits)
    error = (logits[0] - logits[1]).norm() / logits[1].norm()
    assert error < (0.5 if quantized else 1e-6)


def test_embeddings_alone_then_all_weights(extended, script, tmp_path):
    flags = ["--train_file", NEWS, "--block_size", 64, "--max_steps", 2, "--use_lora", "false"]
    first = ["--model_name_or_path", extended[1], "--train_only", "embeddings", "--output_dir", tmp_path / "one"]
    code, _, err = script("pretrain.py", *flags, *first)
    assert code == 0, err
    assert not (tmp_path / "one/new_tokens.json").exists()
    code, _, err = script(
        "pretrain.py", *flags, "--model_name_or_path", tmp_path / "one", "--output_dir", tmp_path / "two"
    )
    assert code == 0, err
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (extended[1], tmp_path / "one")
    )
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed == ["model.embed_tokens.weight", "lm_head.weight"]


def test_models_and_tokenizers_that_do_not_go_together(extended, model_dir, tmp_path):
    def extend(**settings):
        names = {"model_name_or_path": model_dir, "tokenizer_name": str(extended[0])}
        extend_model(ExtendModelArguments(output_dir=str(tmp_path / "new"), **{**names, **settings}))

    with pytest.raises(UserError, match="it has no token that"):
        extend(tokenizer_name=model_dir)
    other = build_tokenizer()
    other.add_tokens(["新词"])
    settings = json.loads(other.backend_tokenizer.to_str())
    settings["model"]["vocab"]["Ġfox"], settings["model"]["vocab"]["<|gone|>"] = 5000, 300
    settings["model"]["vocab"] = {k: v for k, v in settings["model"]["vocab"].items() if k != "<|gone|>"}
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(UserError, match="no extension of the tokenizer of"):
        extend(tokenizer_name=str(tmp_path / "other"))
    small = tmp_path / "small"
    tiny_model(300).save_pretrained(small)
    build_tokenizer().save_pretrained(small)
    with pytest.raises(UserError, match=r"300 rows of embeddings for \d+ tokens"):
        extend(model_name_or_path=str(small))
    quantized = json.loads((small / "config.json").read_text(encoding="utf-8"))
    quantized["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (small / "config.json").write_text(json.dumps(quantized), encoding="utf-8")
    with pytest.raises(UserError, match="its weights are quantized"):
        extend(model_name_or_path=str(small))
    (tmp_path / "new").mkdir()
    (tmp_path / "new/mine").touch()
    with pytest.raises(UserError, match="there is something already"):
        extend()
