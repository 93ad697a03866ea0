"""What each checkpoint records of its run's settings and data, and which of these may change when it is resumed.

All others are refused: a setting that would have no effect, because the optimizer's state and the schedule keep theirs,
or by which rows would be lost or seen twice.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import to_json
from hf_recipes.data.files.sources import is_data
from hf_recipes.data.files.specs import matches, parse_spec
from hf_recipes.models.weight_files import digest, file_digest
from hf_recipes.run.optimization import schedule
from hf_recipes.trainer.checkpoints.whole import BEGUN_WITH

if TYPE_CHECKING:
    from hf_recipes.core.arguments.settings import Parser
    from hf_recipes.run.arguments import RunArguments


def _names(*groups: str) -> set[str]:
    return {name for group in groups for name in group.split()}


EVALUATED_DATA = {"validation_file", "eval_files", "few_shot_file"}
# Compared by contents, whatever the path: folders of models, files of settings, rows to evaluate on.
CONTENTS = EVALUATED_DATA | _names(
    """model_name_or_path peft_path tokenizer_name config_name lora_config bnb_config chat_template deepspeed
    fsdp_config accelerator_config mixture reward_model reward_base rewards add_special_tokens"""
)
EVALUATED = _names(
    """validation_file max_eval_samples eval_files eval_methods few_shot_file few_shot max_new_tokens
    max_thinking_tokens eval_temperature num_generations_eval save_scores eval_packing"""
)
REWARDS = {"rewards", "reward_model", "reward_base"}  # of other stages than GRPO, evaluations'
MAY_CHANGE = EVALUATED | _names(
    # logging and trackers
    """logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_level log_level_replica
    log_on_each_node disable_tqdm include_num_input_tokens_seen report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id swanlab_mode log_completions log_multimodal num_completions_to_print
    log_unique_prompts log_completions_hub_repo skip_memory_metrics""",
    # when there are checkpoints and evaluations, and where things go
    """save_strategy save_steps save_total_limit save_only_model enable_jit_checkpoint
    restore_callback_states_from_checkpoint eval_strategy eval_steps eval_delay eval_on_start
    per_device_eval_batch_size eval_accumulation_steps eval_do_concat_batches eval_use_gather_object
    include_for_metrics batch_eval_metrics prediction_loss_only bf16_full_eval fp16_full_eval push_to_hub hub_model_id
    hub_strategy hub_private_repo hub_always_push hub_revision hub_target output_dir cache_dir""",
    # how it is computed, with the same result
    """gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs
    activation_offloading torch_empty_cache_steps dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
    preprocessing_num_workers precompute_ref_batch_size use_cpu ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout vllm_mode vllm_server_base_url vllm_server_host
    vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_tensor_parallel_size
    vllm_enable_sleep_mode""",
    # when it gives up, and what it is allowed
    """early_stopping_patience early_stopping_threshold max_nonfinite_steps max_drop_ratio trust_remote_code debug
    do_train do_eval do_predict""",
)
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
LENGTH = ("max_steps", "num_train_epochs")
# Compared in another way: the rows of an update, the learning rates, the data.
DATA = ("train_file", "dataset", "dataset_dir")
OTHERWISE = {*BATCH, *LENGTH, *DATA}


def begun_with(parser: "Parser", args: "RunArguments") -> dict[str, Any]:
    """Settings, the contents of the files that they name, and the number of processes, as plain values."""
    settings = {"stage": type(args).__name__.removesuffix("Arguments"), **parser.recorded()}
    settings |= {name: getattr(args, name) for name in ("bf16", "use_vllm") if name in settings}  # as the machine is
    contents = {name: _content(settings[name], name in EVALUATED_DATA) for name in CONTENTS if settings.get(name)}
    record = {"settings": settings, "contents": contents, "processes": args.world_size}
    return json.loads(to_json(record, default=str))


def _content(value: Any, as_data: bool = False) -> Any:
    """What a path leads to: the object in a JSON file, else a digest; of anything else the value.

    Args:
        as_data: it names files of rows, as `parse_spec` reads it.
    """
    if isinstance(value, list):
        return [_content(item, as_data) for item in value]
    if not isinstance(value, str):
        return value
    if as_data:
        return _data_content(value)
    path, colon, rest = (value, "", "") if os.path.exists(value) else value.partition(":")  # file.py:function
    try:
        if os.path.isdir(path):
            return digest(path)
        data = Path(path).read_bytes()
    except OSError:  # a name
        return value
    try:
        return json.loads(data)
    except ValueError:
        return hashlib.sha256(data).hexdigest() + colon + rest


def _data_content(text: str) -> str | list:
    """The digests of the data files that an argument names, and the rows to draw of them; of a hub's, the argument."""
    try:
        spec = parse_spec(text)
    except UserError:  # raised again where it is read
        return text
    if os.path.isdir(spec.path):
        files = sorted(filter(is_data, Path(spec.path).rglob("*")))
    else:
        files = [spec.path] if os.path.isfile(spec.path) else matches(spec.path)
    return text if spec.hub else [spec.amount, spec.entry, *map(file_digest, files)]


def read_begun_with(checkpoint: str | os.PathLike) -> dict[str, Any] | None:
    """What `checkpoint` was written with; None, which is reported, where it does not say."""
    try:
        record = json.loads(Path(checkpoint, BEGUN_WITH).read_text(encoding="utf-8"))
        data = [record["data"][name] for name in ("what", "rows", "tokens", "digest")]
        is_whole = record["settings"].keys() >= {"stage", *BATCH, *LENGTH} and record["contents"].keys() <= CONTENTS
        if is_whole and all([*data, record["processes"], record["steps"]]):
            return record
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    say(f"{checkpoint} does not say with which settings and data it was written, so nothing can be compared")
    return None


def compare_settings(checkpoint: str, was: Mapping[str, Any], now: Mapping[str, Any], args: "RunArguments") -> None:
    """Report settings that differ from those of the run that wrote `checkpoint`; refuse those that may not."""
    stages = [record["settings"]["stage"] for record in (was, now)]
    if stages[0] != stages[1]:
        raise _refusal(checkpoint, f"is of a run of {stages[0]}, and this is one of {stages[1]}")
    free = MAY_CHANGE if "num_generations" in now["settings"] else MAY_CHANGE | REWARDS
    if args.metric_for_best_model or args.load_best_model_at_end:
        free = free - EVALUATED - REWARDS  # figures of two evaluations would be compared
    refused, changed = [], []
    for name, before in was["settings"].items():
        if name in OTHERWISE or name not in now["settings"]:
            continue
        after, contents = now["settings"][name], [record["contents"].get(name) for record in (was, now)]
        if name in CONTENTS and None not in contents:
            if contents[0] != contents[1]:
                (changed if name in free else refused).append(_difference(name, before, after, *contents))
            elif before != after:
                changed.append(f"--{name} {after} (the same contents), was {before}")
        elif before != after:
            (changed if name in free else refused).append(f"--{name} {after}, was {before}")
    if (update := _updates(was)) != (other := _updates(now)):
        is_wider = was["processes"] != now["processes"] and "block_size" in now["settings"]
        is_free = args.inexact_resume and (is_wider or update[0] == other[0])
        hint = "" if is_free or update[0] != other[0] else " (--inexact_resume allows that)"
        (changed if is_free else refused).append(f"{other[1]}, was {update[1]}{hint}")
    if refused:
        raise _refusal(checkpoint, f"was written with other settings: {'; '.join(refused)}")
    changed = [text for text in changed if not text.startswith("--output_dir")]
    if changed:
        say(f"changed since step {_step(checkpoint):,}: {'; '.join(changed)}")


def _difference(name: str, before: Any, after: Any, was: Any, now: Any) -> str:
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
        return f"--{name} {after}: " + ", ".join(f"{key} {now.get(key)}, was {was.get(key)}" for key in keys)
    return f"--{name} {after}, " + ("whose contents were others" if before == after else f"was {before}")


def _updates(record: Mapping[str, Any]) -> tuple[int, str]:
    """The rows of an update, and the product that they are."""
    batch, accumulated = (record["settings"][name] for name in BATCH)
    product = f"--per_device_train_batch_size {batch} × --gradient_accumulation_steps {accumulated}"
    processes = record["processes"]
    return batch * accumulated * processes, f"{product} × {processes} process{'es' * (processes > 1)}"


def compare_data(checkpoint: str, was: Mapping[str, Any], now: Mapping[str, Any], args: "RunArguments") -> None:
    """Report other files of the same training data and another number of steps; refuse other data, and steps by which
    the learning rate would jump."""
    before, after = was["data"], now["data"]
    files = [_files(record["settings"]) for record in (was, now)]
    moved = f"{files[1]}, was {files[0].removeprefix('--train_file ')}" if files[0] != files[1] else files[1]
    if before["digest"] != after["digest"]:
        counts = [f"{data['rows']:,} {data['what']} with {data['tokens']:,} tokens" for data in (before, after)]
        numbers = f"{counts[1]}, was {counts[0]}" if counts[0] != counts[1] else f"again {counts[0]}, but others"
        raise _refusal(checkpoint, f"was written with other training data ({moved}): {numbers}")
    changed = [f"{moved} (the same {before['what']})"] if files[0] != files[1] else []
    total, former, step = now["steps"], was["steps"], _step(checkpoint)
    if total != former and was["processes"] == now["processes"]:
        changed.append(f"{total:,} steps, was {former:,}")
        if total > step and _rates(args, total, step) != _rates(args, former, step):
            name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
            lengths = ", ".join(
                f"--{name} {now['settings'][name]}, was {was['settings'][name]}"
                for name in LENGTH
                if now["settings"][name] != was["settings"][name]
            )
            raise _refusal(
                checkpoint,
                f"is of a run of {former:,} steps, and this one has {total:,} ({lengths}): the learning rate of "
                f"--lr_scheduler_type {name} follows their number and would jump",
            )
    if changed:
        say(f"changed since step {step:,}: {'; '.join(changed)}")


def _files(settings: Mapping[str, Any]) -> str:
    given = {name: settings.get(name) for name in DATA if settings.get(name)}
    return " ".join(f"--{name} {value if isinstance(value, str) else ' '.join(value)}" for name, value in given.items())


def _rates(args: "RunArguments", total: int, step: int) -> list[float] | None:
    """The learning rate, as a factor, at up to 1000 of the first `step` steps of `total`; None where it has no plan."""
    import numpy as np

    factors = getattr(schedule(args, total), "lr_lambdas", None)
    if factors is None:
        return None
    return [factors[0](int(at)) for at in np.unique(np.linspace(0, step, 1000).astype(int))]


def _step(checkpoint: str) -> int:
    return json.loads(Path(checkpoint, "trainer_state.json").read_text(encoding="utf-8"))["global_step"]


def _refusal(checkpoint: str, reason: str) -> UserError:
    flag = "--peft_path" if Path(checkpoint, "adapter_config.json").is_file() else "--model_name_or_path"
    return UserError(
        f"{checkpoint} {reason}. Resume with what it was written with, or start a new run from its weights with {flag} "
        f"{checkpoint} and another --output_dir"
    )
