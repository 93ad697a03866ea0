"""What cannot work whatever the data is named before a row or a weight is read: the data here is none."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from conftest import tiny_model, write_jsonl
from hf_recipes.stages.table import STAGES


@pytest.fixture
def refused(script, model_dir, tmp_path):
    """``refused("part of the message", "--flag", value, …)`` of a stage's script, with a copy of the model."""
    base = shutil.copytree(model_dir, tmp_path / "base")
    (tmp_path / "none.jsonl").write_text("{")

    def run(message, *flags, stage="sft"):
        argv = ["--model_name_or_path", base, "--train_file", tmp_path / "none.jsonl", "--output_dir", tmp_path / "run"]
        code, out, err = script(f"{stage}.py", *argv, "--report_to", "none", *flags)
        error = err[err.index("error: ") :]
        assert code == 1 and message in error and "Traceback" not in err, (out, err)
        assert "none.jsonl" not in error

    run.base = base
    return run


@pytest.mark.parametrize("stage", ["sft", "pretrain", "reward", "dpo", "kto", "orpo"])
def test_an_optimizer_that_is_not_installed(refused, stage):
    refused("--optim galore_adamw: not installed (", "--optim", "galore_adamw", stage=stage)


@pytest.mark.parametrize("stage", STAGES)
def test_evaluation_without_rows(refused, stage):
    more = ["--rewards", "repetition"] if stage == "grpo" else []
    refused("without rows to evaluate on: give --validation_file", "--eval_steps", "5", *more, stage=stage)


@pytest.mark.parametrize(
    ("stage", "flag"), [*((stage, "--eval_on_start") for stage in STAGES), ("pretrain", "--eval_steps")]
)
def test_evaluations_of_nothing(refused, stage, flag):
    flags = ["--rewards", "chinese", "--num_generations", 4] if stage == "grpo" else []
    flags += [flag, 1] if flag == "--eval_steps" else [flag]
    refused("without rows to evaluate on: give --validation_file", *flags, stage=stage)


@pytest.mark.parametrize(
    ("message", "flags"),
    {
        "--optim adamw_torch_4bit: not installed (": ["--optim", "adamw_torch_4bit"],
        "--adam_beta1 1.5: expected 0 to below 1": ["--adam_beta1", "1.5"],
        "--optim ademamix with --optim_args beta3=x: ": ["--optim", "ademamix", "--optim_args", "beta3=x"],
        "--optim_args: 'foo' is no setting of --optim sgd; leave it out": [
            *("--optim", "sgd", "--optim_args", "momentum=0.9,foo=3"),
        ],
        "give --lr_scheduler_kwargs '{\"num_decay_steps\": 100}'": ["--lr_scheduler_type", "warmup_stable_decay"],
        "cosine_with_min_lr: One of min_lr or min_lr_rate": ["--lr_scheduler_type", "cosine_with_min_lr"],
        "'num_cycle' is no setting of --lr_scheduler_type cosine (did you mean num_cycles?)": [
            *["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycle": 1}']
        ],
        "--lr_scheduler_kwargs [1]: expected a JSON object, found a list": ["--lr_scheduler_kwargs", "[1]"],
        "--lr_scheduler_kwargs has no effect with --lr_scheduler_type constant": [
            *["--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", '{"num_cycles": 1}']
        ],
        "could not convert string to float: 'x'": [
            *["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycles": "x"}']
        ],
        "--use_liger_kernel: not installed": ["--use_liger_kernel", "true"],
        "--lr_scheduler_kwargs num_cycles=2: no such file": ["--lr_scheduler_kwargs", "num_cycles=2"],
        '--lr_scheduler_kwargs {"a":: not JSON (': ["--lr_scheduler_kwargs", '{"a":'],
        "--fsdp_config fsdp.json: no such file": ["--fsdp", "full_shard", "--fsdp_config", "fsdp.json"],
        "lr_end (0.01) must be smaller than initial lr (0.0002)": [
            *["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"lr_end": 0.01}']
        ],
        "--lr_scheduler_type greedy follows the evaluations: give --eval_steps": ["--lr_scheduler_type", "greedy"],
    }.items(),
)
def test_settings_of_the_optimizer(refused, message, flags):
    refused(message, *flags)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["lm_head", "q_proj"]}, "LoRA on the output embeddings (lm_head) would not be trained"),
        ({"target_modules": "q_proj("}, "'q_proj(' is no regular expression"),
        ({"target_modules": "(.*)*.*(.*)*zz"}, "in target_modules does not end (stopped after 0.2 seconds)"),
        ({"target_modules": "all-linear", "rank_pattern": {"(.*)*.*(.*)*zz": 4}}, "in rank_pattern does not end"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "loftq"}, "init_lora_weights loftq changes the base's"),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "(.*)*.*(.*)*zz"},
            "in layers_pattern does not end (stopped after 0.2 seconds)",
        ),
        (
            {"target_modules": ["q_proj"], "target_parameters": ["mlp.foo"]},
            "target_parameters names 'mlp.foo', which Qwen3ForCausalLM lacks",
        ),
        (
            {"target_modules": ["q_proj"], "trainable_token_indices": [99999]},
            "trainable_token_indices names 99999, and the model has 544 tokens",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_an_adapters_targets(refused, tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr("hf_recipes.core.bounds.SECONDS", 0.2)
    (tmp_path / "lora.json").write_text(json.dumps({"r": 4, **settings}))
    refused(message, "--lora_config", tmp_path / "lora.json")


@pytest.mark.parametrize("value", [0, -4, 7.5, "x"])
@pytest.mark.parametrize("key", ["num_attention_heads", "vocab_size", "hidden_size"])
def test_a_configuration_of_which_no_model_can_be_built(refused, key, value):
    settings = json.loads((refused.base / "config.json").read_text())
    (refused.base / "config.json").write_text(json.dumps({**settings, key: value}))
    refused(f"{refused.base}: no model can be ", "--dry_run")


def test_heads_that_cannot_share_keys(refused):
    settings = json.loads((refused.base / "config.json").read_text())
    (refused.base / "config.json").write_text(json.dumps({**settings, "num_key_value_heads": 3}))
    refused("(4 num_attention_heads are no multiple of 3 num_key_value_heads)", "--dry_run", stage="orpo")


def test_a_decay_longer_than_the_run(refused, tmp_path):
    write_jsonl(tmp_path / "none.jsonl", [{"prompt": "问", "response": "答"}] * 8)
    kind = ["--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs", '{"num_decay_steps": 100}']
    message = "num_decay_steps 100 and 2 steps of warm-up are more than the run's 50 steps"
    refused(message, *kind, "--warmup_steps", "2", "--max_steps", "50", "--dry_run")


@pytest.mark.parametrize("text", ["[1]", '{"a":', "1"])
@pytest.mark.parametrize(
    "name",
    ["config", "tokenizer", "tokenizer_config", "special_tokens_map", "generation_config", "added_tokens"],
)
def test_a_file_of_the_model_that_is_none(refused, name, text):
    (refused.base / f"{name}.json").write_text(text)
    refused(f"{refused.base}/{name}.json: ")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_of_the_model_with_a_byte_order_mark(refused, name):
    (refused.base / name).write_text("\ufeff" + (refused.base / name).read_text(encoding="utf-8"), encoding="utf-8")
    refused(f"{refused.base}/{name}: begins with a byte order mark")


@pytest.mark.parametrize("command", ["convert_checkpoint", "pretrain"])
def test_a_configuration_that_is_a_list(refused, script, tmp_path, command):
    (refused.base / "config.json").write_text("[1]")
    if command == "pretrain":
        refused(f"{refused.base}/config.json: expected a JSON object, found a list", stage=command)
        return
    code, _, err = script(f"{command}.py", "--model_name_or_path", refused.base, "--output_dir", tmp_path / "out")
    assert code == 1 and f"{refused.base}/config.json: expected a JSON object, found a list" in err


@pytest.mark.parametrize("tensor", ["lora_A", "lora_B"])
@pytest.mark.parametrize("dimension", [0, 1])
def test_a_tensor_of_an_adapter_with_another_shape(refused, tmp_path, tensor, dimension):
    settings = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model(600), settings).save_pretrained(tmp_path / "first")
    path = tmp_path / "first" / "adapter_model.safetensors"
    state = load_file(path)
    name = next(key for key in state if tensor in key)
    state[name] = torch.cat([state[name]] * 2, dimension)
    save_file(state, path, {"format": "pt"})
    refused(str(list(state[name].shape)), "--peft_path", tmp_path / "first")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda values, state: state.update({key: one.flatten() for key, one in state.items()}), "of size None, where"),
        (lambda values, state: state.popitem(), "lacks 1 of the 4 tensors that adapter_config.json implies"),
        (lambda values, state: values.update(r="4"), 'adapter_config.json: r is "4"; expected a number'),
        (lambda values, state: values.update(target_modules="q("), "the regular expression 'q(' in target_modules is"),
        (lambda values, state: values.update(target_modules="(.*)*.*(.*)*zz"), "in target_modules does not end"),
    ],
    ids=["a vector", "a tensor missing", "type", "no expression", "no end"],
)
@pytest.mark.parametrize("command", ["dpo", "predict", "evaluate", "merge_adapter"])
def test_an_adapter_that_cannot_be_loaded(refused, script, tmp_path, monkeypatch, command, spoil, message):
    monkeypatch.setattr("hf_recipes.core.bounds.SECONDS", 0.2)
    folder = tmp_path / "first"
    settings = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model(544), settings).save_pretrained(folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    state = load_file(folder / "adapter_model.safetensors")
    spoil(values, state)
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    if command == "dpo":
        refused(message, "--peft_path", folder, "--dry_run", stage=command)
        return
    (refused.base / "model.safetensors").unlink()  # no weight of the base is read
    none, out = tmp_path / "none.jsonl", tmp_path / "out"
    more = {"predict": ["--input_file", none, "--output_file", out], "evaluate": ["--eval_files", f"dev={none}"]}
    argv = ["--model_name_or_path", refused.base, "--peft_path", folder, *more.get(command, [])]
    argv += [] if command == "predict" else ["--output_dir", out]
    code, _, err = script(f"{command}.py", *argv)
    assert code == 1 and message in err and str(folder) in err and "Traceback" not in err, err


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% set x = namespace(s='a') %}{% for i in range(60) %}{% set x.s = x.s ~ x.s %}{% endfor %}{{ x.s }}",
            "fills",
        ),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not end"),
        (
            "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{% for i in range(99999) %}"
            "{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}{% endfor %}",
            "does not end",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{% for i in range(99999) %}"
            "{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}",
            "does not end",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is defined %}"
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}",
            "does not end",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}"
            "{% if messages[-1].role == 'assistant' %}{{ 'x' * 10**10 }}{% endif %}",
            "fills the memory",
        ),
    ],
    ids=["doubles", "loops", "loops at answers", "loops with tools", "loops with a variable", "one operation"],
)
def test_a_chat_template_without_an_end(refused, tmp_path, monkeypatch, template, message):
    monkeypatch.setattr("hf_recipes.core.bounds.SECONDS", 10 if "fills" in message else 0.5)
    monkeypatch.setattr("hf_recipes.core.bounds.BYTES", 1 << 27)
    (tmp_path / "t.jinja").write_text(template)
    write_jsonl(tmp_path / "none.jsonl", [{"prompt": "问", "response": "答"}] * 2)
    options = ["--chat_template_kwargs", '{"enable_thinking": true}'] if "enable_thinking" in template else []
    refused(message, "--chat_template", tmp_path / "t.jinja", *options, "--dry_run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zero_optimization": {"stage": 2,}', "ds.json: not JSON ("),
        ("[1]", "ds.json: expected a JSON object, found a list"),
        ('{"zero_optimisation": {"stage": 2}}', "(did you mean zero_optimization?)"),
        ('{"zero_optimization": {"stage": true}}', 'ds.json: expected "zero_optimization": {"stage": 1, 2 or 3} in it'),
        ('{"zero_optimization": 2}', "ds.json: zero_optimization is 2; expected a JSON object"),
        ('{"zero_optimization": {"stage": 2}, "bf16": true}', "ds.json: bf16 is true; expected a JSON object"),
        ('{"optimizer": "AdamW"}', 'ds.json: optimizer is "AdamW"; expected a JSON object'),
        ('{"scheduler": {"params": []}}', "ds.json: params is []; expected a JSON object"),
        (
            '{"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}',
            'ds.json: offload_optimizer is "cpu"; expected a JSON object',
        ),
        (
            '{"zero_optimization": {"stage": "two"}}',
            'ds.json: expected "zero_optimization": {"stage": 1, 2 or 3} in it',
        ),
    ],
)
def test_a_deepspeed_file_that_is_none(refused, tmp_path, text, message):
    (tmp_path / "ds.json").write_text(text)
    refused(message, "--deepspeed", tmp_path / "ds.json")
