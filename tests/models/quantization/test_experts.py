"""Mixtures of experts: what a run's default LoRA trains, all commands load, and the merged model says the same."""

import json
import re

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import build_tokenizer, tiny_model, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.dry_run.memory import estimate
from hf_recipes.dry_run.simulate import Batch, meta_model
from hf_recipes.export.merge import MergeArguments, merge
from hf_recipes.models.adapters.lora import attach_lora, read_lora_config
from hf_recipes.models.adapters.saved_adapter import load_adapter
from hf_recipes.models.adapters.targets import part_of, trained_shares
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.checks.saving import check_saved
from hf_recipes.models.loading import load_model
from hf_recipes.models.quantization.settings import prepare_quantized
from hf_recipes.stages.sft import SFTArguments

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 16, "num_experts_per_tok": 2, "eos_token_id": 2, "pad_token_id": 0}
GROUPS = {"moe_intermediate_size": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 8}
BESIDE = ("deepseek_v3", "glm4_moe")  # whose first layer is dense, and whose others have experts for all tokens
FAMILIES = {
    "qwen3_moe": {"head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4},
    "deepseek_v3": {**GROUPS, **LATENT, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "n_shared_experts": 1},
    "glm4_moe": {**GROUPS, "head_dim": 8, "n_shared_experts": 1},
    "mixtral": {"head_dim": 8, "num_local_experts": 4},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4},
}


EXPERTS = {"lora_target_modules": ["o_proj", "w1", "w2", "w3"]}  # as transformers 4 named them


def make_base(folder, kind: str) -> str:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **FAMILIES[kind]}, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def opened(base: str):
    return load_model(ModelArguments(base, dtype="float32"), trains_all=False, bf16=False).eval()


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_default_lora_is_loaded_merged_and_estimated(tmp_path, kind):
    base, ids = make_base(tmp_path / "base", kind), torch.arange(40).view(2, 20) + 5
    model = attach_lora(opened(base), read_lora_config(None), None, []).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = {"attention", "experts"} | ({"shared experts", "dense layers"} if kind in BESIDE else set())
    assert {part_of(name) for name, p in model.named_parameters() if p.requires_grad} == expected
    shares = trained_shares(model)
    assert shares.keys() == expected | {"router"} and shares["router"] == 0 and sum(shares.values()) == pytest.approx(1)
    model.save_pretrained(tmp_path / "adapter")
    check_saved(model, tmp_path / "adapter")
    build_tokenizer().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model.eval()(ids).logits
        ours = load_adapter(opened(base), str(tmp_path / "adapter"))
        ours = load_adapter(ours, str(tmp_path / "adapter"), name="second")
        for name in ("default", "second"):
            ours.set_adapter(name)
            assert torch.allclose(ours(ids).logits, expected, atol=1e-5)
        plain = PeftModel.from_pretrained(opened(base), tmp_path / "adapter")
        assert torch.allclose(plain(ids).logits, expected, atol=1e-5)
        assert not torch.allclose(opened(base)(ids).logits, expected, atol=1e-3)
        merge(MergeArguments([str(tmp_path / "adapter")], str(tmp_path / "merged"), model_name_or_path=base))
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert torch.allclose(merged(ids).logits, expected, atol=1e-5)

    args = SFTArguments(output_dir=str(tmp_path / "run"), report_to="none", bf16=False)
    how = {
        "config": AutoConfig.from_pretrained(base),
        "tokenizer": build_tokenizer(),
        "added_tokens": [],
        "bf16": False,
    }
    memory = estimate(meta_model(ModelArguments(base, dtype="float32"), **how), Batch(2, 16, 4), args)
    assert memory.trained == sum(p.numel() for p in trained) and memory.parts["activations"] > 0


def test_a_run_of_it_evaluates_by_generation_and_is_estimated(forks, tmp_path):
    """Prompts of several lengths, while TRL trains the balance of the experts; the whole model generates after it."""
    base = make_base(tmp_path / "base", "qwen3_moe")
    rows = [{"instruction": "问题" * (i % 3 + 1), "output": "好的"} for i in range(8)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    argv = ["--model_name_or_path", base, "--train_file", file, "--validation_file", file, "--max_steps", 2]
    argv += ["--report_to", "none", "--logging_steps", 1, "--max_new_tokens", 4, "--output_dir", tmp_path / "run"]
    dry = forks.run(*argv, "--dry_run", "--gradient_accumulation_steps", 4)
    assert dry.out.count("(--router_aux_loss_coef) is measured in each batch by itself: an update of 4 batches") == 1
    assert dry.code == 0 and re.search(r"^memory .* a device, estimated", dry.out, re.MULTILINE)
    assert "Traceback" not in dry.err and "_subclasses" not in dry.err
    run = forks.run(*argv, "--use_lora", "False")
    assert run.code == 0, run.err
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert any("aux_loss" in entry for entry in state["log_history"])
    assert len((tmp_path / "run" / "predictions" / "step-2.jsonl").read_text().splitlines()) == 8
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert model.generate(mask + 5, attention_mask=mask, max_new_tokens=2).shape[0] == 2


def quantized(base: str):
    """With the kernel that training has, also on processors that have another one for inference."""
    model = load_model(ModelArguments(base, dtype="float32", load_in_4bit=True), trains_all=False, bf16=False).eval()
    prepare_quantized(model)
    return model


@pytest.mark.parametrize("kind", FAMILIES)
def test_experts_are_trained_in_four_bits(tmp_path, monkeypatch, kind):
    """And the adapter fits the base in full as it does in four bits, a second time too."""
    monkeypatch.setitem(SIZES, "hidden_size", 64)  # four bits come in blocks of 64
    base, ids = make_base(tmp_path / "base", kind), torch.arange(40).view(2, 20) + 5
    model = quantized(base)
    experts = [weight for name, weight in model.named_parameters() if ".experts.parametrizations." in name]
    assert experts and all(weight.dtype == torch.uint8 for weight in experts)
    model = attach_lora(model, read_lora_config(None), None, []).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    losses = []
    for _ in range(3):
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[1] < losses[0]
    full = attach_lora(opened(base), read_lora_config(None), None, [])
    names = {name: p.shape for name, p in full.named_parameters() if p.requires_grad}
    assert {name: p.shape for name, p in model.named_parameters() if p.requires_grad} == names
    model.save_pretrained(tmp_path / "adapter")
    check_saved(model, tmp_path / "adapter")
    with torch.no_grad():
        expected = model.eval()(ids).logits
        ours = load_adapter(quantized(base), str(tmp_path / "adapter"))
        assert torch.equal(ours(ids).logits, expected)
        ours = load_adapter(ours, str(tmp_path / "adapter"), name="second")
        ours.set_adapter("second")
        assert torch.equal(ours(ids).logits, expected)
        plain = PeftModel.from_pretrained(opened(base), tmp_path / "adapter")
        assert (
            not plain.training
            and (plain(ids).logits - expected).abs().max() < (opened(base)(ids).logits - expected).abs().max()
        )
    trained = {name: p for name, p in model.named_parameters() if name in names}
    assert all(torch.equal(p, trained[name]) for name, p in plain.named_parameters() if name in names)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_recommended_file_gives_experts_a_lower_rank(tmp_path, kind):
    path = "configs/lora_moe.json"
    model = attach_lora(opened(make_base(tmp_path, kind)), read_lora_config(path), path, [])
    ranks = {"experts": 4 * 2, "attention": 16, "shared experts": 16, "dense layers": 16}  # four experts of rank 2
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            assert parameter.shape[0] == ranks[part_of(name)], name


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("qwen3_moe", {"lora_dropout": 0.05}, "lora_dropout 0.05 does not reach experts.* set it to 0"),
        ("gpt_oss", {"use_dora": True}, "use_dora True does not reach experts"),
        ("mixtral", {**EXPERTS, "layers_to_transform": [0]}, "layers_to_transform .* name the weights of those layers"),
        ("mixtral", {"lora_target_modules": ["wq"]}, "names 'wq'.* target_parameters may name experts.down_proj"),
        (
            "mixtral",
            {"lora_target_modules": r".*\.w1"},
            r"leaves out w3 of experts.* \(model.layers.0.mlp.experts.gate_up",
        ),
        ("mixtral", {"lora_target_modules": "*w1"}, "target_modules '.w1' is no regular expression"),
        ("mixtral", {"rank_pattern": {"experts.w1": 2}}, "rank_pattern names 'experts.w1', and no weight of that name"),
    ],
)
def test_settings_that_experts_cannot_have(tmp_path, kind, settings, message):
    path = tmp_path / "lora.json"
    path.write_text(json.dumps({"lora_r": 4, "lora_target_modules": "all-linear", **settings}))
    with pytest.raises(UserError, match=message):
        attach_lora(opened(make_base(tmp_path / "base", kind)), read_lora_config(str(path)), str(path), [])


@pytest.mark.parametrize("kind", BESIDE)
def test_names_of_modules_reach_experts_and_the_layers_beside_them(tmp_path, kind):
    """As configs/lora_qwen.json has them, less its dropout."""
    path = tmp_path / "lora.json"
    path.write_text(json.dumps({"lora_r": 4, "lora_target_modules": ["o_proj", "gate_proj", "up_proj", "down_proj"]}))
    model = attach_lora(opened(make_base(tmp_path / "base", kind)), read_lora_config(str(path)), str(path), [])
    names = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {"attention", "experts", "shared experts", "dense layers"}


@pytest.mark.parametrize(
    ("kind", "pattern", "adapted"),
    [
        ("glm4_moe", r".*\.mlp\.\w+_proj", "0.mlp.down_proj 0.mlp.gate_proj 0.mlp.up_proj"),
        (
            "deepseek_v3",
            r".*\.1\.mlp\.shared_experts\.up_proj|.*\.1\..*o_proj",
            "1.mlp.shared_experts.up_proj 1.self_attn.o_proj",
        ),
        ("qwen3_moe", r".*\.0\.mlp\.experts\.\d+\.(gate|up|down)_proj", "0.mlp.experts 0.mlp.experts.base_layer"),
        ("gpt_oss", r".*\.1\..*(experts\.down_proj|q_proj)", "1.mlp.experts 1.self_attn.q_proj"),
        ("qwen3_moe", r".*\.0\.mlp\.gate|.*\.0\..*q_proj", "0.mlp.gate 0.self_attn.q_proj"),
    ],
)
def test_a_regular_expression_matches_whole_paths(tmp_path, kind, pattern, adapted):
    base, ids, path = make_base(tmp_path / "base", kind), torch.arange(20)[None] + 5, tmp_path / "lora.json"
    path.write_text(json.dumps({"lora_r": 4, "lora_target_modules": pattern}))
    model = attach_lora(opened(base), read_lora_config(str(path)), str(path), [])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sorted({name.split(".lora_")[0].split(".layers.")[1] for name in trained}) == adapted.split()
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        plain = PeftModel.from_pretrained(opened(base), tmp_path / "adapter")
        assert torch.equal(plain(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_pretraining_balances_experts(forks, tmp_path, accumulation):
    """Its gradient is that of the mean over batches, with the weight that the flag gives."""
    base = make_base(tmp_path / "base", "qwen3_moe")
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "北京大学成立于一八九八年。" * 8}] * 16)
    argv = ["--model_name_or_path", base, "--train_file", file, "--block_size", 32, "--report_to", "none"]
    argv += ["--max_steps", 1, "--use_lora", "False", "--logging_steps", 1, "--shuffle", "False", "--max_grad_norm", 0]
    argv += ["--per_device_train_batch_size", 4 // accumulation, "--gradient_accumulation_steps", accumulation]
    argv += ["--optim", "sgd", "--learning_rate", 1.0, "--lr_scheduler_type", "constant", "--warmup_steps", 0]
    argv += ["--weight_decay", 0, "--bf16", "False"]
    routers = {}
    for weight in (0, 1, 2):
        out = tmp_path / f"run{weight}"
        run = forks.run(*argv, "--router_aux_loss_coef", weight, "--output_dir", out, script="scripts/pretrain.py")
        assert run.code == 0, run.err
        state = json.loads((out / "checkpoint-1" / "trainer_state.json").read_text())
        assert ("aux_loss" in state["log_history"][0]) is bool(weight)
        routers[weight] = AutoModelForCausalLM.from_pretrained(out).model.layers[0].mlp.gate.weight
    one, two = routers[1] - routers[0], routers[2] - routers[0]
    assert one.norm() > 1e-5 and torch.allclose(2 * one, two, atol=1e-6)
    dense = tmp_path / "dense"
    tiny_model(len(build_tokenizer())).save_pretrained(dense)
    build_tokenizer().save_pretrained(dense)
    argv[1] = dense
    run = forks.run(*argv, "--router_aux_loss_coef", 1, "--output_dir", tmp_path / "no", script="scripts/pretrain.py")
    assert run.code == 1 and "--router_aux_loss_coef is for mixtures of experts; qwen3 is not one" in run.err


def read_rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_scripts_from_training_to_a_merged_model(script, tmp_path, kind):
    """Training evaluates by generation; adapter and merged model then answer alike."""
    base, adapter, merged = make_base(tmp_path / "base", kind), tmp_path / "run", tmp_path / "merged"
    rows = [{"instruction": "问题" * (i % 3 + 1), "output": "好的"} for i in range(8)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)

    def done(name, *flags):
        code, out, err = script(name, *flags)
        assert code == 0 and "Traceback" not in err, f"{name}\n{err}"
        return out

    argv = ["--model_name_or_path", base, "--train_file", file, "--validation_file", file, "--max_steps", 6]
    argv += ["--report_to", "none", "--learning_rate", 1e-2, "--max_new_tokens", 4, "--bf16", "False"]
    done("sft.py", *argv, "--output_dir", adapter)
    last = read_rows(adapter / "predictions" / "step-6.jsonl")
    models = {
        "adapter": ("--model_name_or_path", base, "--peft_path", adapter),
        "merged": ("--model_name_or_path", merged),
    }
    assert "greedy tokens alike" in done("merge_adapter.py", *models["adapter"], "--output_dir", merged)
    answers, figures = {}, {}
    for name, model in models.items():
        same = [*model, "--dtype", "float32", "--max_new_tokens", 4]
        output = tmp_path / f"{name}.jsonl"
        done("predict.py", *same, "--input_file", file, "--output_file", output)
        answers[name] = [row["prediction"] for row in read_rows(output)]
        compare = ["--compare", "base"] if name == "adapter" else []
        folder = tmp_path / f"{name}-figures"
        done("evaluate.py", *same, *compare, "--eval_files", f"rows={file}", "--output_dir", folder)
        figures[name] = json.loads((folder / "metrics.json").read_text())
    assert answers["adapter"] == answers["merged"] == [row["prediction"] for row in last]
    assert figures


@pytest.mark.slow
def test_the_scripts_of_a_reward_model(script, tmp_path):
    base, adapter, merged = make_base(tmp_path / "base", "qwen3_moe"), tmp_path / "run", tmp_path / "merged"
    pairs = [{"prompt": "标准" * (i % 3 + 1), "chosen": "好的", "rejected": "不行" * (i % 2 + 1)} for i in range(8)]
    file = write_jsonl(tmp_path / "pairs.jsonl", pairs)

    def done(name, *flags):
        code, out, err = script(name, *flags)
        assert code == 0 and "Traceback" not in err, f"{name}\n{err}"
        return out

    argv = ["--model_name_or_path", base, "--train_file", file, "--validation_file", file, "--max_steps", 6]
    done("reward.py", *argv, "--report_to", "none", "--learning_rate", 1e-2, "--bf16", "False", "--output_dir", adapter)
    given = ("--model_name_or_path", base, "--peft_path", adapter)
    done("merge_adapter.py", *given, "--output_dir", merged)
    scores = {}
    for name, model in (("adapter", given), ("merged", ("--model_name_or_path", merged))):
        output = tmp_path / f"{name}.jsonl"
        done("score.py", *model, "--dtype", "float32", "--input_file", file, "--output_file", output)
        scores[name] = torch.tensor([[row["score_chosen"], row["score_rejected"]] for row in read_rows(output)])
    assert scores["adapter"].std() > 1e-3 and torch.allclose(scores["adapter"], scores["merged"], atol=1e-4)
