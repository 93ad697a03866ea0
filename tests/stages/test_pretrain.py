"""The Trainer of pretraining: what its losses are, what it trains, and what tokens see."""

import copy
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from plain_loop import plain_loop
from stage_runs import trainer_of
from transformers import AutoModelForCausalLM

from conftest import TEXT, tiny_model, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.arguments import SourceArguments
from hf_recipes.models.from_config import PretrainModelArguments, freeze, make_model, read_model_config
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.stages.pretrain import STAGE, PretrainArguments
from hf_recipes.stages.trainers.pretrain import collate, step_blocks
from hf_recipes.trainer.reports.throughput import flops_per_token


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for source, count in (("news", 300), ("wiki", 150)):
        rows = [{"text": f"第{number}篇。{TEXT[number % 5] * (1 + number % 4)}"} for number in range(count)]
        write_jsonl(folder / f"{source}.jsonl", rows)
    return [str(folder / "news.jsonl"), str(folder / "wiki.jsonl")]


def built(model, tokenizer, files, tmp_path, **more):
    values = {"block_size": 64, "logging_steps": 1, "report_to": "none", "bf16": False, "save_strategy": "no"}
    args = PretrainArguments(output_dir=str(tmp_path / "run"), **{**values, **more})
    data = SourceArguments(train_file=files, cache_dir=str(tmp_path / "cache"))
    trainer, found = trainer_of(STAGE, args, data, tokenizer, model)
    return trainer, found.train, args


def batches_of(mixture, args):
    location = (0, args.max_steps * step_blocks(args), args.per_device_train_batch_size, 0, 1, step_blocks(args))
    return [collate([mixture[index] for index in own]) for own in mixture.batches_of(*location)]


def test_the_loss_is_that_of_a_plain_loop(tokenizer, files, tmp_path):
    """200 steps of a model of two layers, step by step."""
    model = tiny_model(len(tokenizer))
    twin = copy.deepcopy(model)
    settings = {"max_steps": 200, "learning_rate": 2e-3, "per_device_train_batch_size": 4, "warmup_steps": 20}
    trainer, mixture, args = built(model, tokenizer, files, tmp_path, **settings)
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    plain = plain_loop(twin, batches_of(mixture, args), 2e-3, steps=200, warmup=20, floor=0.1)
    assert found[0] - found[-1] > 1
    assert found == pytest.approx(plain, abs=2e-4)
    assert all(
        torch.allclose(one, two, atol=1e-4) for one, two in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_the_log_and_the_figures(tokenizer, files, tmp_path):
    trainer, mixture, args = built(tiny_model(len(tokenizer)), tokenizer, files, tmp_path, max_steps=6)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in entries:
        assert {"loss_news", "loss_wiki", "grad_norm", "learning_rate", "tokens_per_second_per_device"} <= set(entry)
        assert 0 <= entry["data_wait"] <= 1
    assert entries[-1]["billion_tokens"] == trainer.state.num_input_tokens_seen / 1e9
    rows = [mixture[index] for index in range(6 * step_blocks(args))]
    assert trainer.state.num_input_tokens_seen == sum(row["tokens"] for row in rows)
    figures = trainer.training_metrics()["sources"]
    for number, name in enumerate(("news", "wiki")):
        own = [row for row in rows if row["source"] == number]
        assert figures[name]["tokens"] == sum(row["tokens"] for row in own)
        assert figures[name]["epochs"] == pytest.approx(len(own) / len(mixture.sources[number]))
    assert sum(found["realised"] for found in figures.values()) == pytest.approx(1)
    total = sum(entry["loss"] for entry in entries) / 6
    weighted = sum(found["loss"] * found["tokens"] for found in figures.values())
    assert weighted / trainer.state.num_input_tokens_seen == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tokens_see_their_document_alone(tokenizer, files, tmp_path, attention):
    """A block's logits are those of its documents one by one; without document_attention they are not."""
    _, mixture, _ = built(tiny_model(len(tokenizer)), tokenizer, files, tmp_path, max_steps=1)
    model = tiny_model(len(tokenizer)).eval()
    model.set_attn_implementation(attention)
    batch = collate([mixture[index] for index in range(4)])
    with torch.no_grad():
        together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        plain = model(input_ids=batch["input_ids"], use_cache=False).logits
        for row in range(4):
            starts = (batch["position_ids"][row] == 0).nonzero().flatten().tolist()
            assert len(starts) > 1
            for begin, end in zip(starts, [*starts[1:], 64], strict=True):
                alone = model(input_ids=batch["input_ids"][row : row + 1, begin:end], use_cache=False).logits[0]
                assert torch.allclose(together[row, begin:end], alone, atol=1e-5)
                assert batch["labels"][row, begin] == -100
            assert not torch.allclose(together[row], plain[row], atol=1e-3)


def test_weights_with_and_without_decay(tokenizer, files, tmp_path):
    trainer, _, _ = built(tiny_model(len(tokenizer)), tokenizer, files, tmp_path, max_steps=10, warmup_steps=2)
    decayed, rest = trainer.create_optimizer().param_groups
    assert decayed["weight_decay"] == 0.1 and rest["weight_decay"] == 0 and decayed["betas"] == (0.9, 0.95)
    assert {p.dim() for p in decayed["params"]} == {2} and {p.dim() for p in rest["params"]} == {1}


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        # Cosine from 1 to the floor of 0.1; and level until the last fifth, in which it falls to the floor.
        ("cosine_with_min_lr", {0: 0.0, 2: 1.0, 6: 0.55, 10: 0.1}),
        ("warmup_stable_decay", {0: 0.0, 2: 1.0, 8: 1.0, 9: 0.55, 10: 0.1}),
    ],
)
def test_the_learning_rate(tokenizer, files, tmp_path, kind, rates):
    settings = {"max_steps": 10, "warmup_steps": 2, "lr_scheduler_type": kind, "decay_ratio": 0.2, "learning_rate": 1.0}
    trainer, _, _ = built(tiny_model(len(tokenizer)), tokenizer, files, tmp_path, **settings)
    trainer.create_optimizer_and_scheduler(10)
    scale = trainer.lr_scheduler.lr_lambdas[0]
    for step, rate in rates.items():
        if kind == "warmup_stable_decay" and step == 0:
            continue  # transformers begins at the floor
        assert scale(step) == pytest.approx(rate, abs=1e-6), step


def test_embeddings_alone_are_trained(tokenizer, files, tmp_path):
    model = tiny_model(len(tokenizer))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    freeze(model, "embeddings", None)
    trainer, _, _ = built(model, tokenizer, files, tmp_path, max_steps=2)
    trainer.train()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"model.embed_tokens.weight", "lm_head.weight"}  # which are tied


def test_frozen_layers(tokenizer):
    model = tiny_model(len(tokenizer))
    freeze(model, None, "0")
    names = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert names and all(name.startswith("model.layers.0.") for name in names)


def test_a_new_model(model_dir, tokenizer, tmp_path, capsys):
    path = tmp_path / "shape.json"
    path.write_text(
        json.dumps(
            {
                "model_type": "qwen3",
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "head_dim": 16,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 96,
                "tie_word_embeddings": True,
            }
        )
    )
    arguments = PretrainModelArguments(config_name=str(path), tokenizer_name=model_dir, initializer_range=0.5)
    tokenizer, _ = load_tokenizer(model_dir)
    config = read_model_config(arguments, tokenizer)
    text = path.read_text().ljust(300)  # longer than a file's name may be
    in_line = PretrainModelArguments(config_name=text, tokenizer_name=model_dir, initializer_range=0.5)
    assert read_model_config(in_line, tokenizer).to_dict() == config.to_dict()
    assert config.vocab_size == -(-len(tokenizer) // 64) * 64 and config.eos_token_id == tokenizer.eos_token_id
    model = make_model(arguments, config=config)
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.5, rel=0.05)
    count = sum(p.numel() for p in model.parameters())
    out = capsys.readouterr().out
    assert f"a new qwen3 model: {count:,} weights, of them {config.vocab_size * 64:,} in tied embeddings" in out
    model.save_pretrained(tmp_path / "saved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config.vocab_size == config.vocab_size


def test_the_shape_of_a_published_model(model_dir, tokenizer, hub):
    """Its config.json, of a Hub id, has keys of the version that wrote it, and what is of its weights."""
    shape = {"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16, "rope_theta": 5000.0}
    shape |= {"torch_dtype": "bfloat16", "max_window_layers": 28, "transformers_version": "4.51.0", "vocab_size": 9}
    shape |= {"quantization_config": {"quant_method": "awq"}, "auto_map": {"AutoModel": "code.Model"}}
    hub.repos["me/shape"] = {"config.json": json.dumps(shape).encode()}
    config = read_model_config(PretrainModelArguments(config_name="me/shape", tokenizer_name=model_dir), tokenizer)
    assert (config.hidden_size, config.rope_parameters["rope_theta"]) == (64, 5000.0)
    assert config.vocab_size == -(-len(tokenizer) // 64) * 64
    assert not {"quantization_config", "auto_map"} & config.to_dict().keys()
    with pytest.raises(UserError, match=r"^--config_name me/none: neither a local folder"):
        read_model_config(PretrainModelArguments(config_name="me/none", tokenizer_name=model_dir), tokenizer)


def test_operations_of_a_token():
    """Six for each weight that multiplies, and twelve for each of layers × width × length."""
    model = tiny_model(100)
    weights = sum(p.numel() for p in model.parameters())
    assert flops_per_token(model, 50) == 6 * weights + 12 * 2 * 32 * 50
    tokens = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=[3, 4], r=4)
    adapted = get_peft_model(model, tokens)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == 2 * 4 * (32 + 32) + 2 * 32
    assert flops_per_token(adapted, 50) == 4 * weights + 6 * trained + 12 * 2 * 32 * 50


@pytest.mark.parametrize("apart", [True, False])
def test_flash_attention_gets_its_rows_as_one(tokenizer, files, tmp_path, apart):
    """Flash attention tells documents by their positions in one long row; sdpa reads such a row alike."""
    settings = {"max_steps": 1, "document_attention": apart, "per_device_train_batch_size": 4}
    trainer, mixture, _ = built(tiny_model(len(tokenizer)).eval(), tokenizer, files, tmp_path, **settings)
    batch = collate([mixture[index] for index in range(4)])
    found = []
    for trainer._flattens in (False, True):
        with torch.no_grad():
            found.append(trainer.compute_loss(trainer.model, dict(batch)).item())
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("unit", ["tokens", "documents", "bytes"])
def test_shares_by_each_unit(tokenizer, tmp_path, unit, streaming):
    """Of two sources, one with documents three times as long, the run has the shares that were asked for."""
    for name, times in (("long", 9), ("short", 3)):
        rows = [{"text": f"{number}：" + TEXT[number % 4] * times} for number in range(150)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"by": unit, "sources": {"long": 0.25, "short": 0.75}}))
    files = [str(tmp_path / "long.jsonl"), str(tmp_path / "short.jsonl")]
    settings = {"mixture": str(policy), "max_steps": 400, "per_device_train_batch_size": 1, "streaming": streaming}
    _, mixture, _ = built(tiny_model(len(tokenizer)), tokenizer, files, tmp_path, **settings)
    rows = [mixture[index] for index in range(2048)]
    count = {"tokens": "tokens", "documents": "documents", "bytes": "tokens"}[unit]  # the texts are of one kind
    long = sum(row[count] for row in rows if row["source"] == 0)
    assert long / sum(row[count] for row in rows) == pytest.approx(0.25, abs=0.02)


def test_a_number_of_epochs_for_each_source(tokenizer, files, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"by": "epochs", "sources": {"news": 0.5, "wiki": 2}}))
    settings = {"mixture": str(policy), "per_device_train_batch_size": 16, "learning_rate": 1e-4}
    trainer, mixture, _ = built(tiny_model(len(tokenizer)), tokenizer, files, tmp_path, **settings)
    news, wiki = (len(source) for source in mixture.sources)
    assert mixture.blocks == round(news / 2) + 2 * wiki
    trainer.train()
    found = trainer.training_metrics()["sources"]
    assert found["news"]["epochs"] == pytest.approx(0.5, abs=0.02) and found["wiki"]["epochs"] == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_left_out_is_counted(tokenizer, files, tmp_path, streaming):
    settings = {"block_size": 16, "sequence_sample_mode": "truncate", "max_steps": 60, "streaming": streaming}
    trainer, _, _ = built(tiny_model(len(tokenizer)), tokenizer, files[:1], tmp_path, **settings)
    trainer.train()
    [found] = trainer.training_metrics()["sources"].values()
    whole, _, _ = built(tiny_model(len(tokenizer)), tokenizer, files[:1], tmp_path, max_steps=1)
    [source] = whole.mixture.sources
    lengths = [len(row) for row in np.split(source.shards.tokens[0], source.shards.ends[0])[:-1]]
    expected = sum(max(0, length - 16) for length in lengths) * found["epochs"]
    assert found["left_out"] == pytest.approx(expected, rel=0.1) and found["left_out"] > 0
