"""Names of other toolkits, and misspellings: what an unknown flag or key is told."""

import re

import pytest

from hf_recipes.core.arguments.other_names import OTHER_NAMES
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError
from hf_recipes.evaluation.predict import PredictArguments
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.stages.table import STAGES
from hf_recipes.vocabulary.arguments import TrainTokenizerArguments

OTHERS = {
    "predict": [ModelArguments, Decoding, PredictArguments],
    "evaluate": [ModelArguments, EvaluationArguments],
    "train_tokenizer": [TrainTokenizerArguments],
}


def parser_of(script: str) -> Parser:
    if script in OTHERS:
        return Parser(OTHERS[script])
    stage = STAGES[script]
    return Parser([stage.model, stage.data, stage.arguments, EvaluationArguments])


@pytest.fixture
def unknown(tmp_path):
    """``unknown("sft", "lr")`` → what is said after the name, of a flag and of a key in YAML."""

    def said(script, name):
        path = tmp_path / "run.yaml"
        path.write_text(f"{name}: 1\n")
        texts = []
        for argv in ([f"--{name}", "1"], [f"--{name.replace('_', '-')}=1"], ["--config", str(path)]):
            with pytest.raises(UserError) as raised:
                parser_of(script).parse(argv)
            texts.append(
                re.sub(rf"^(unknown flag --{argv[0].split('=')[0][2:]}|.*unknown key '{name}')", "", str(raised.value))
            )
        assert texts[0] == texts[1] and texts[0].replace("--", "") == texts[2]
        return texts[0]

    return said


HERE = {
    "stage": "; here it is the script itself: sft.py, pretrain.py, reward.py, dpo.py, orpo.py, kto.py or grpo.py",
    "template": " (did you mean --chat_template?)",
    "cutoff_len": " (did you mean --max_length?)",
    "max_seq_length": " (did you mean --max_length?)",
    "lora_rank": '; here it is "lora_r" in the JSON file of --lora_config',
    "lora_r": '; here it is "lora_r" in the JSON file of --lora_config',
    "lora_alpha": '; here it is "lora_alpha" in the JSON file of --lora_config',
    "lora_dropout": '; here it is "lora_dropout" in the JSON file of --lora_config',
    "lora_target": '; here it is "lora_target_modules" in the JSON file of --lora_config',
    "dataset_path": "; here it is --train_file, which takes files, folders and Hub ids",
    "finetuning_type": "; here it is --use_lora, with --load_in_4bit for QLoRA",
    "train_type": "; here it is --use_lora, with --load_in_4bit for QLoRA",
    "quantization_bit": "; here it is --load_in_4bit or --load_in_8bit",
    "val_size": "; here it is --validation_split_percentage, in percent",
    "lr": " (did you mean --learning_rate?)",
    "batch_size": " (did you mean --per_device_train_batch_size?)",
    "num_epochs": " (did you mean --num_train_epochs?)",
    "warmup_ratio": "; here it is --warmup_steps, of which a value below 1 is a share",
    "torch_dtype": " (did you mean --dtype?)",
    "model": " (did you mean --model_name_or_path?)",
    "group_by_length": "; here it is --train_sampling_strategy group_by_length",
    "early_stopping_steps": " (did you mean --early_stopping_patience?)",
    "early_stopping_rounds": " (did you mean --early_stopping_patience?)",
    "use_galore": "; here it is --optim galore_adamw",
    "fp32": "; here it is --dtype float32",
    "min_learning_rate": "; here it is --lr_scheduler_type cosine_with_min_lr, with --lr_scheduler_kwargs",
    "truncation_strategy": " (did you mean --truncation?)",
    "train_on_eos": "; here it is --train_on, the turns that carry loss",
    "nproc_per_node": "; here it is torchrun in front of the script",
    # misspelt
    "learning_rat": " (did you mean --learning_rate?)",
    "max_lenght": " (did you mean --max_length?)",
    "num_epoch": " (did you mean --num_train_epochs?)",
    "per_device_batch_size": " (did you mean --per_device_train_batch_size?)",
    "early_stoping_patience": " (did you mean --early_stopping_patience?)",
    # near nothing, whatever shares an ending
    "prune_steps": "",
    "optimizer_length": "",
    "weight_noise": "",
}


@pytest.mark.parametrize("name", HERE)
def test_what_it_is_called_here(unknown, name):
    assert unknown("sft", name) == HERE[name]


@pytest.mark.parametrize(
    ("script", "name", "text"),
    [
        ("pretrain", "cutoff_len", " (did you mean --block_size?)"),
        ("pretrain", "val_size", "; here it is --validation_file, a file or a folder of its own"),
        ("pretrain", "template", ""),
        ("pretrain", "group_by_length", ""),
        ("grpo", "max_seq_length", "; here it is --max_source_length and --max_completion_length"),
        ("dpo", "pref_beta", " (did you mean --beta?)"),
        ("sft", "pref_beta", ""),
        ("predict", "torch_dtype", " (did you mean --dtype?)"),
        ("predict", "max_tokens", " (did you mean --max_new_tokens?)"),
        ("sft", "adapter", "; here it is --use_lora, or --peft_path for one that was trained before"),
        ("predict", "max_seq_length", "; here it is --max_source_length, of a prompt"),
        ("evaluate", "dataset", "; here it is --eval_files, each as name=path"),
        ("train_tokenizer", "val_size", ""),  # no misspelt vocab_size
        ("predict", "learning_rate", ""),
        ("predict", "lr", ""),
    ],
)
def test_only_what_the_script_has_is_named(unknown, script, name, text):
    assert unknown(script, name) == text


def test_a_name_of_another_toolkit_comes_before_what_is_missing():
    with pytest.raises(UserError) as raised:
        parser_of("sft").parse(["--model", "m", "--dataset", "t"])
    assert str(raised.value) == "unknown flag --model (did you mean --model_name_or_path?)"


def test_every_name_of_another_toolkit_leads_to_settings_of_every_stage():
    for stage in STAGES:
        parser = parser_of(stage)
        for name in {name for others in OTHER_NAMES.values() for name in others.split()} - set(parser.fields):
            for setting in re.findall(r"--(\w+)", parser._meant(name, "--")):
                assert setting in parser.fields
