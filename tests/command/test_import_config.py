"""LLaMA-Factory's files of a training, as ours."""

import json

import pytest
import yaml

from hf_recipes.command.flags import command_line
from hf_recipes.command.import_config import SPECIAL, STAGES, import_config
from hf_recipes.core.errors import UserError
from hf_recipes.models.adapters.lora import read_lora_config

THEIRS = """
### model
model_name_or_path: Qwen/Qwen3-4B
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
quantization_bit: 4
flash_attn: fa2
dataset: identity,alpaca_zh_demo
eval_dataset: held_out
template: qwen3
enable_thinking: false
cutoff_len: 1024
max_samples: 1000
overwrite_cache: true
output_dir: saves/qwen3
plot_loss: true
warmup_ratio: 0.1
learning_rate: 1.0e-4
resume_from_checkpoint: null
early_stopping_steps: 3
galore_rank: 8
"""


@pytest.fixture
def imported(tmp_path):
    def run(text, command="sft"):
        (tmp_path / "theirs.yaml").write_text(text)
        ours = import_config(str(tmp_path / "theirs.yaml"))
        assert ours.startswith(f"# hf-recipes {command} --config FILE\n")
        (tmp_path / "ours.yaml").write_text(ours)
        line = command_line(command, command)
        values = line.read(["--config", str(tmp_path / "ours.yaml"), "--model_name_or_path", "M", "--output_dir", "O"])
        return {name: values[name] for name in line.given - {"model_name_or_path", "output_dir"}}, ours

    return run


def test_a_fine_tuning(imported):
    values, text = imported(THEIRS)
    lora = values.pop("lora_config")
    assert values == {
        "load_in_4bit": True,
        "attn_implementation": "flash_attention_2",
        "dataset": "identity,alpaca_zh_demo",
        "dataset_dir": "data",
        "validation_file": ["data/dataset_info.json:held_out"],
        "thinking": "off",
        "max_length": 1024,
        "max_train_samples": 1000,
        "warmup_steps": 0.1,
        "learning_rate": 1e-4,
        "early_stopping_patience": 3,
    }
    assert json.loads(lora) == {
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0,
        "lora_target_modules": "q_proj,v_proj",
    }
    config = read_lora_config(lora)
    assert (config.r, config.lora_alpha, config.target_modules) == (16, 32, {"q_proj", "v_proj"})
    assert "# galore_rank: 8: left out; there is nothing like it\n" in text
    assert "# template: left out" in text and "do_train" not in text


@pytest.mark.parametrize(
    ("text", "command", "expected"),
    [
        ("finetuning_type: full", "sft", {"use_lora": False, "max_length": 2048, "learning_rate": 5e-5}),
        ("stage: pt\nfinetuning_type: full\ncutoff_len: 512", "pretrain", {"block_size": 512}),
        ("stage: dpo\npref_loss: ipo\npref_beta: 0.2", "dpo", {"loss_type": ["ipo"], "beta": 0.2}),
        ("stage: dpo\npref_loss: orpo\npref_beta: 0.2", "orpo", {"beta": 0.2}),
        ("stage: kto\nkto_chosen_weight: 2.0", "kto", {"desirable_weight": 2.0}),
        ("stage: rm\nval_size: 0.1", "reward", {"validation_split_percentage": 10.0}),
        ("neat_packing: true\nmask_history: true", "sft", {"packing": True, "train_on": "last"}),
        ("use_swanlab: true\nreport_to: none", "sft", {"report_to": "swanlab"}),
        ("stage: dpo\ndisable_gradient_checkpointing: true", "dpo", {"gradient_checkpointing": False}),
        ("additional_target: embed_tokens,lm_head\npissa_init: true", "sft", {}),
    ],
)
def test_other_trainings(imported, text, command, expected):
    values, _ = imported(text, command)
    assert values | expected == values
    if "pissa" in text:
        lora = json.loads(values["lora_config"])
        assert lora["init_lora_weights"] == "pissa" and lora["modules_to_save"] == ["embed_tokens", "lm_head"]
        assert lora["lora_target_modules"] == "all-linear" and lora["lora_alpha"] == 16


def test_what_is_not_here_is_said(imported, tmp_path):
    for text, message in {
        "stage: ppo": "stage ppo: here are sft, pt, rm, dpo, kto; in place of ppo, GRPO",
        "export_dir: merged": "export_dir belongs to no training; the command for it is hf-recipes merge",
        "infer_backend: vllm": "infer_backend belongs to no training; the command for it is hf-recipes chat",
    }.items():
        with pytest.raises(UserError, match=message):
            imported(text)
    _, text = imported("finetuning_type: freeze\npackin: true")
    assert "# finetuning_type: freeze: here are lora and full" in text and "# packin: True: left out" in text
    assert yaml.safe_load(text)["lora_config"]["lora_r"] == 8


@pytest.mark.parametrize(("stage", "command"), [*STAGES.items(), ("dpo", "orpo")])
def test_no_key_becomes_one_that_the_command_does_not_have(imported, stage, command):
    text = f"stage: {stage}\npref_loss: {'orpo' if command == 'orpo' else 'simpo'}\ndataset: a,b\nmax_samples: 9\n"
    values, ours = imported(text + "".join(f"{key}: 3\n" for key in SPECIAL), command)
    for key in (key for key in SPECIAL if key not in ("template", "flash_attn")):
        translated = SPECIAL[key](3, {}, command)
        assert f"# {key}: 3: left out" in ours if translated.keys() - values.keys() else key not in ours.split("\n"), (
            key
        )
    assert ("# val_size: 3: left out; here it is validation_" in ours) and "load_in_3bit" not in values
    assert ("pref_loss: simpo: left out, which makes it sigmoid" in ours) == (command == "dpo")
    assert ("# max_samples: of each data set there" in ours) == ("max_train_samples" in values)
