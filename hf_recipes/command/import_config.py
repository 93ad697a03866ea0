"""LLaMA-Factory's settings of a training (0.9.5) as ours.

Its keys and defaults are those of https://llamafactory.readthedocs.io and of its `hparams`.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from hf_recipes.command.flags import flags_of
from hf_recipes.core.arguments.other_names import name_here
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import read_mapping

STAGES = {"sft": "sft", "pt": "pretrain", "rm": "reward", "dpo": "dpo", "kto": "kto"}
DEFAULTS = {"cutoff_len": 2048, "learning_rate": 5e-5, "lora_rank": 8, "lora_dropout": 0, "lora_target": "all"}
LOSSES = ("sigmoid", "hinge", "ipo")  # of its pref_loss, those that DPO has here
# Settings of no training, and the command that they are for here.
OTHER_COMMANDS = {
    "export_dir": "merge --model_name_or_path … --peft_path … --output_dir …",
    "infer_backend": "chat --model_name_or_path … --peft_path …",
}
# What is so here without a setting, or what it is measured by is made anyway.
ANYWAY = {"do_train", "do_eval", "plot_loss", "overwrite_cache", "use_fast_tokenizer", "preprocessing_batch_size"}
RENAMED = {
    "adapter_name_or_path": "peft_path",
    "dataset": "dataset",
    "dataset_dir": "dataset_dir",
    "default_system": "system_prompt",
    "early_stopping_steps": "early_stopping_patience",
    "enable_liger_kernel": "use_liger_kernel",
    "kto_chosen_weight": "desirable_weight",
    "kto_rejected_weight": "undesirable_weight",
    "max_samples": "max_train_samples",
    "pref_beta": "beta",
    "warmup_ratio": "warmup_steps",
}
LORA = {
    "lora_rank": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target": "lora_target_modules",
    "additional_target": "modules_to_save",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
}
ATTENTION = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "sdpa": "sdpa", "disabled": "eager"}


def import_config(path: str) -> str:
    """YAML for ``hf-recipes STAGE --config``, with a comment for each key that could not be carried over.

    Raises:
        UserError: a file that is none of a training, or a stage that is not here.
    """
    theirs = read_mapping(path, "import-config", as_yaml=True, as_text=False)
    theirs = {key: value for key, value in theirs.items() if value is not None}
    for key, line in OTHER_COMMANDS.items():
        if key in theirs and not {"stage", "dataset"} & theirs.keys():
            raise UserError(f"{path}: {key} belongs to no training; the command for it is hf-recipes {line}")
    loss = theirs.pop("pref_loss", "sigmoid")
    stage = theirs.pop("stage", "sft")
    if stage not in STAGES:
        raise UserError(f"{path}: stage {stage}: here are {', '.join(STAGES)}; in place of ppo, GRPO (hf-recipes grpo)")
    command = "orpo" if stage == "dpo" and loss == "orpo" else STAGES[stage]
    ours, notes = _translate(theirs, command)
    if command == "dpo" and loss not in LOSSES:
        notes.append(f"pref_loss: {loss}: left out, which makes it sigmoid; hf-recipes dpo has {', '.join(LOSSES)}")
    elif command == "dpo" and loss != "sigmoid":
        ours["loss_type"] = [loss]
    text = yaml.safe_dump(ours, allow_unicode=True, sort_keys=False)
    return "".join([f"# hf-recipes {command} --config FILE\n", *(f"# {note}\n" for note in notes), text])


def _translate(theirs: Mapping[str, Any], command: str) -> tuple[dict[str, Any], list[str]]:
    known, notes = {*flags_of(command)}, []
    ours: dict[str, Any] = {}
    rest = DEFAULTS | dict(theirs)
    lora = {LORA[key]: rest.pop(key) for key in LORA if key in rest}
    if rest.pop("pissa_init", False):
        lora["init_lora_weights"] = "pissa"
    kind = rest.pop("finetuning_type", "lora")
    if kind not in ("lora", "full"):
        notes.append(f"finetuning_type: {kind}: here are lora and full; this is a LoRA")
    # Those that say more than a name last: use_swanlab counts there whatever report_to is.
    for key, value in sorted(rest.items(), key=lambda item: item[0] in SPECIAL):
        if key in ANYWAY:
            continue
        translated = SPECIAL[key](value, rest, command) if key in SPECIAL else {RENAMED.get(key, key): value}
        if translated.keys() <= known:
            ours |= translated
        else:
            notes.append(f"{key}: {value}: left out{name_here(key, known) or '; there is nothing like it'}")
    if "template" in theirs:
        notes.append("template: left out; the tokenizer's own is trained, a base model needs chat_template")
    if "dataset" in ours:
        ours.setdefault("dataset_dir", "data")
    if "max_train_samples" in ours and len(_names(theirs.get("dataset", ""))) > 1:
        notes.append("max_samples: of each data set there, and of all together here (max_train_samples)")
    if kind == "full":
        return {**ours, "use_lora": False}, notes
    lora.setdefault("lora_alpha", 2 * lora["lora_r"])
    lora["lora_target_modules"] = "all-linear" if lora["lora_target_modules"] == "all" else lora["lora_target_modules"]
    if "modules_to_save" in lora:
        lora["modules_to_save"] = _names(lora["modules_to_save"])
    return {**ours, "lora_config": lora}, notes


def _held_out(value: float, rest: Mapping[str, Any], command: str) -> dict[str, Any]:
    name = "validation_split_percentage" if value < 1 else "val_size"  # a number of rows is not to be had here
    return {name: round(100 * value, 6)} if value else {}


def _evaluated(value: Any, rest: Mapping[str, Any], command: str) -> dict[str, Any]:
    folder = rest.get("dataset_dir", "data")
    return {"validation_file": [f"{folder}/dataset_info.json:{name}" for name in _names(value)]}


def _names(value: Any) -> list[str]:
    return value if isinstance(value, list) else [name.strip() for name in str(value).split(",")]


# Keys whose values change too.
SPECIAL = {
    "template": lambda value, rest, command: {},
    "cutoff_len": lambda value, rest, command: {"block_size" if command == "pretrain" else "max_length": value},
    "disable_gradient_checkpointing": lambda value, rest, command: {"gradient_checkpointing": not value},
    "enable_thinking": lambda value, rest, command: {"thinking": "on" if value else "off"},
    "eval_dataset": _evaluated,
    "flash_attn": lambda value, rest, command: {"attn_implementation": ATTENTION[value]} if value in ATTENTION else {},
    "mask_history": lambda value, rest, command: {"train_on": "last"} if value else {},
    "neat_packing": lambda value, rest, command: {"packing": bool(value)},
    "quantization_bit": lambda value, rest, command: {f"load_in_{int(value)}bit": True},
    "use_swanlab": lambda value, rest, command: {"report_to": "swanlab"} if value else {},
    "val_size": _held_out,
}
