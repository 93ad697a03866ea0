"""Settings that stages inherit from transformers and TRL and that do nothing here, or not what they say."""

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from hf_recipes.models.devices import has_accelerator

Needs = dict[str, tuple[str, Callable[[Any], Any]]]

INERT = "has no effect here; "
# Inherited settings that no stage can use, and what to do instead. `RunArguments.unusable` has those of one stage.
UNUSABLE = {
    # Of TRL's preparation of the data, which ours replaces.
    "assistant_only_loss": f"{INERT}use --train_on",
    "chat_template_path": f"{INERT}use --chat_template",
    "completion_only_loss": f"{INERT}use --train_on",
    "dataset_kwargs": f"{INERT}use --schema and the column flags",
    "dataset_num_proc": f"{INERT}use --preprocessing_num_workers",
    "dataset_text_field": f"{INERT}use --prompt_column",
    "eval_packing": f"{INERT}evaluation rows are never packed",
    "length_column_name": f"{INERT}the lengths are counted",
    "model_init_kwargs": f"{INERT}use --dtype, --attn_implementation and --model_revision",
    "pad_token": f"{INERT}use a tokenizer that has one",
    "remove_unused_columns": f"{INERT}columns that are not read are named in the ledger",
    "reward_weights": f"{INERT}use --rewards NAME=WEIGHT",
    "truncation_mode": f"{INERT}use --truncation_side",
    # Of transformers' evaluation, which the methods of --eval_methods replace.
    "batch_eval_metrics": f"{INERT}use --eval_methods",
    "bf16_full_eval": "is not for evaluations here, which compute as the training does; use --bf16",
    "eval_accumulation_steps": f"{INERT}evaluations keep no logits",
    "eval_do_concat_batches": f"{INERT}evaluations keep no logits",
    "eval_use_gather_object": f"{INERT}evaluations keep no logits",
    "fp16_full_eval": "is not for evaluations here, which compute as the training does; use --fp16",
    "include_for_metrics": f"{INERT}use --eval_methods",
    "label_names": f"{INERT}use the column flags",
    "prediction_loss_only": f"{INERT}evaluations keep no logits",
    # What would break a promise: the same update, each row once an epoch, the same result when resumed.
    "accelerator_config": "is not for this script, which spreads the rows over the processes itself; leave it out",
    "auto_find_batch_size": "would change the update in the middle of a run; --dry_run estimates the memory",
    "dataloader_drop_last": "would leave rows out of each epoch; leave it out",
    "dataloader_in_order": "would leave the order of the rows to chance, which no resumed run repeats; leave it out",
    "ignore_data_skip": "would repeat rows when a run is resumed; leave it out",
    "save_on_each_node": "would have all nodes write the same files, as they share the run's folder; leave it out",
    # What the run does anyway, or has no use for.
    "do_eval": f"{INERT}give --validation_file or --eval_files, and --eval_steps",
    "do_predict": f"{INERT}use scripts/predict.py",
    "do_train": f"{INERT}a training script trains",
    "enable_jit_checkpoint": f"{INERT}SIGTERM and Ctrl-C end a run with a checkpoint anyway",
    "include_num_input_tokens_seen": f"{INERT}tokens without padding are counted anyway: num_tokens in the log",
    "parallelism_config": f"{INERT}use --deepspeed or --fsdp",
    "restore_callback_states_from_checkpoint": f"{INERT}no callback has a state",
    "use_cache": f"{INERT}training keeps no cache, and answers are always written with one",
}
# Reasons that several stages have.
NO_SHIFTED_LABELS = f"{INERT}it is for losses over the vocabulary"
NO_TOKEN_MEAN = f"{INERT}a loss is the mean over all rows of an update"
WITHOUT_SYNC = f"{INERT}the reference stays as it was at the start"
WITH_REFERENCE = {
    "average_tokens_across_devices": NO_TOKEN_MEAN,
    "label_smoothing_factor": NO_SHIFTED_LABELS,
    "neftune_noise_alpha": "would be measured as a difference from the reference; leave it out",
    "ref_model_mixup_alpha": WITHOUT_SYNC,
    "ref_model_sync_steps": WITHOUT_SYNC,
    "sync_ref_model": "would leave a run that is resumed without the reference as it was; leave it out",
}
_OPTIM_WITH_BETAS = ("adam", "ademamix", "lion")
_OPTIM_WITH_ARGS = ("anyprecision", "4bit", "torch_8bit", "ademamix", "sgd", "adagrad", "rmsprop", "galore", "grok")
_OPTIM_WITH_ARGS += ("schedule_free", "apollo", "stable")


def _has_workers(args: Any) -> bool:
    return args.dataloader_num_workers > 0


def _tracks(args: Any, name: str) -> bool:
    return any(tracker in str(args.report_to) for tracker in (name, "all"))


def _checkpoints_activations(args: Any) -> bool:
    chosen = [value for value in (args.activation_checkpointing, args.gradient_checkpointing) if value is not None]
    return chosen[0] if chosen else not args.use_cpu and has_accelerator()


def _word(value: Any) -> str:
    """Of a choice, which the parser gives as a text and a program may give as an enum."""
    return str(getattr(value, "value", value))


def _is_optim(args: Any, names: tuple[str, ...]) -> bool:
    return any(name in _word(args.optim) for name in names)


def _has_warmup(args: Any) -> bool:
    without = ("constant", "reduce_lr_on_plateau", "greedy")
    return not args.warmup_steps or _word(args.lr_scheduler_type) not in without


# Settings that need another, what that is, and whether it is there. `RunArguments.needs` has those of one stage.
NEEDS: Needs = {
    **dict.fromkeys(
        ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
        ("--gradient_checkpointing True", _checkpoints_activations),
    ),
    **dict.fromkeys(
        ("dataloader_multiprocessing_context", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
        ("--dataloader_num_workers", _has_workers),
    ),
    "eval_delay": (
        "--eval_steps or --eval_strategy",
        lambda args: args.eval_steps is not None or _word(args.eval_strategy) != "no",
    ),
    "early_stopping_threshold": ("--early_stopping_patience", lambda args: args.early_stopping_patience),
    "fsdp_config": ("--fsdp", lambda args: args.fsdp),
    "greater_is_better": (
        "--metric_for_best_model",
        lambda args: args.metric_for_best_model or args.load_best_model_at_end or args.early_stopping_patience,
    ),
    **dict.fromkeys(
        ("adam_beta1", "adam_beta2", "adam_epsilon"),
        ("an --optim that has them, as Adam", lambda args: _is_optim(args, _OPTIM_WITH_BETAS)),
    ),
    **dict.fromkeys(
        ("hub_always_push", "hub_private_repo", "hub_revision", "hub_strategy", "hub_target"),
        ("--push_to_hub", lambda args: args.push_to_hub),
    ),
    "liger_kernel_config": ("--use_liger_kernel", lambda args: args.use_liger_kernel),
    "optim_args": ("an --optim that takes some", lambda args: _is_optim(args, _OPTIM_WITH_ARGS)),
    "optim_target_modules": (
        "an --optim of GaLore or APOLLO",
        lambda args: _is_optim(args, ("galore", "apollo")),
    ),
    **dict.fromkeys(
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        ("--report_to trackio", lambda args: _tracks(args, "trackio")),
    ),
    "ddp_backend": ("a launcher of several processes, as torchrun", lambda args: "LOCAL_RANK" in os.environ),
    "swanlab_mode": ("--report_to swanlab", lambda args: _tracks(args, "swanlab")),
    "warmup_steps": ("a --lr_scheduler_type that has a warm-up, such as constant_with_warmup", _has_warmup),
}


def refuse_unusable(args: Any, unusable: Mapping[str, str], needs: Needs) -> None:
    """Name a setting that would be recorded and have no effect.

    Args:
        args: a dataclass as it was parsed.
        unusable, needs: of its stage, beside `UNUSABLE` and `NEEDS`.
    """
    unusable, needs = UNUSABLE | unusable, NEEDS | needs
    for one in fields(args):
        if getattr(args, one.name) == (one.default if one.default_factory is MISSING else one.default_factory()):
            continue
        if one.name in unusable:
            raise ValueError(f"--{one.name} {unusable[one.name]}")
        if one.name in needs and not needs[one.name][1](args):
            raise ValueError(f"--{one.name} has no effect without {needs[one.name][0]}")


def unused_steps(args: Any) -> list[str]:
    """A number of steps beside a strategy that has none; no mistake, as a recipe may bring the one or the other."""
    defaults = {one.name: one.default for one in fields(args)}
    strategies = {what: _word(getattr(args, f"{what}_strategy")) for what in ("logging", "save", "eval")}
    return [
        f"--{what}_steps has no effect with --{what}_strategy {strategy}"
        for what, strategy in strategies.items()
        if strategy in ("epoch", "best") and getattr(args, f"{what}_steps") != defaults[f"{what}_steps"]
    ]
