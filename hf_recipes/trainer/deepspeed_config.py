"""DeepSpeed's file of settings: what is wrong in it, before the model is read, and what the flags fill in."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.distributed import compile_kernels
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import read_mapping

SECTIONS = ("optimizer", "scheduler", "params", "fp16", "bf16", "zero_optimization")
SECTIONS += ("offload_optimizer", "offload_param", "activation_checkpointing", "aio")
# The names at the top that DeepSpeed 0.19 looks for; it reads no other, and says nothing of them.
KNOWN = """
    activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type
    compile compression_training csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last
    datastates_ckpt disable_allgather disable_python_gc dump_state eigenvalue elasticity expert_parallel flops_profiler
    fp16 gradient_accumulation_steps gradient_allreduce_op gradient_clipping gradient_predivide_factor graph_harvesting
    hybrid_engine log_level managed_gradient_accumulation memory_breakdown nebula optimizer pipeline
    prescale_gradients progressive_layer_drop quantize_training scheduler seq_parallel_communication_data_type
    sequence_parallel_size sparse_attention sparse_gradients steps_per_print tensor_parallel tensorboard timers
    torch_autocast train_batch_size train_micro_batch_size_per_gpu use_data_before_expert_parallelism vocabulary_size
    wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer
    zero_optimization
"""
# The flags in whose place a section is taken, and those of their values that say the same as one of its types.
REPLACES = {"optimizer": ("optim", "optim_args"), "scheduler": ("lr_scheduler_type", "lr_scheduler_kwargs")}
ALIKE = {
    "adam": ("adamw_torch", "adamw_torch_fused"),
    "adamw": ("adamw_torch", "adamw_torch_fused"),
    "adagrad": ("adagrad",),
    "warmuplr": ("constant_with_warmup",),
    "warmupdecaylr": ("linear",),
    "warmupcosinelr": ("cosine",),
}
FLAGS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def read_deepspeed(path: str | dict) -> dict[str, Any]:
    """A configuration; one that DeepSpeed's own reader would end in a traceback for is refused."""
    config = path if isinstance(path, dict) else read_mapping(path, "--deepspeed")
    sections = [config]
    for section in sections:
        for key, value in section.items():
            if key in SECTIONS and not isinstance(value, dict | None):
                raise UserError(f"--deepspeed {path}: {key} is {json.dumps(value)}; expected a JSON object")
            sections += [value] if isinstance(value, dict) else []
    known = KNOWN.split()
    for key in config.keys() - known:
        if near := nearest(key, known, cutoff=0.8):
            raise UserError(f"--deepspeed {path}: {key}: DeepSpeed reads no such key{near}")
    zero = config.get("zero_optimization") or {}
    if type(zero.get("stage")) is not int or zero["stage"] not in range(4):
        raise UserError(
            f'--deepspeed {path}: expected "zero_optimization": {{"stage": 1, 2 or 3}} in it; see configs/deepspeed'
        )
    follow_flags(config)
    return config


def follow_flags(config: dict[str, Any]) -> None:
    """Fill in what is left out: DeepSpeed would clip no gradient, compute in float32 and know no batch size."""
    for key in FLAGS:
        config.setdefault(key, "auto")
    if "bfloat16" in config:  # an older name, which transformers does not compare with the flags
        config.setdefault("bf16", config.pop("bfloat16"))
    for precision in ("bf16", "fp16"):
        config[precision] = {"enabled": "auto"} | (config.get(precision) or {})


def check_agrees(name: str, config: HfTrainerDeepSpeedConfig) -> None:
    """Refuse a file that sets what the flags set otherwise."""
    texts = [re.fullmatch(r"- ds (\S+)=(.*) vs hf .+?=(.*)", line).groups() for line in config.mismatches]
    differing = [f"{key} is {theirs}, and {ours} by the flags" for key, theirs, ours in texts]
    if differing:
        raise UserError(f'{name}: {"; ".join(differing)}: set it to "auto" in the file, or give the same')


def check_replaced(name: str, config: Mapping[str, Any], args: TrainingArguments) -> None:
    """Refuse an optimizer or a schedule of the flags where the file has its own, which is taken."""
    for section, flags in REPLACES.items():
        alike = ALIKE.get(str((config.get(section) or {}).get("type")).lower(), ())
        for flag in flags if section in config else ():
            value = getattr(args, flag)
            if value != type(args).__dataclass_fields__[flag].default and value not in alike:
                raise UserError(f"--{flag} has no effect with the {section} in {name}; leave one of them out")


def deepspeed_learning_rate(config: str | dict | None) -> float | None:
    """The optimizer's, where DeepSpeed's settings or accelerate's file of them have a number."""
    config = config or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    try:
        if isinstance(config, str):
            config = json.loads(config if config.startswith("{") else Path(config).read_text(encoding="utf-8-sig"))
        rate = config["optimizer"]["params"]["lr"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return float(rate) if isinstance(rate, (int, float)) else None


def check_deepspeed_values(name: str, config: Mapping[str, Any]) -> None:
    """Refuse what DeepSpeed would when it has the model: of ZeRO, and names of optimizers and schedulers."""
    from deepspeed.runtime import lr_schedules
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from torch import optim

    try:
        DeepSpeedZeroConfig(**_without_auto(config["zero_optimization"]))
    except ValueError as error:  # pydantic's
        first = error.errors()[0]
        key = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise UserError(f"{name}: {key} is {json.dumps(first['input'])}: {first['msg']}") from None
    for section, known, modules in (
        ("optimizer", DEEPSPEED_OPTIMIZERS, [optim]),
        ("scheduler", (), [lr_schedules, optim.lr_scheduler]),
    ):
        kind = (config.get(section) or {}).get("type")
        is_known = isinstance(kind, str) and any(isinstance(getattr(module, kind, None), type) for module in modules)
        if section in config and not is_known and str(kind).lower() not in known:
            raise UserError(f"{name}: {section}.type is {json.dumps(kind)}, which DeepSpeed has not; see its manual")


def _without_auto(section: Mapping[str, Any]) -> dict[str, Any]:
    """What is set in a section, at any depth: accelerate fills in the rest."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if value != "auto"
    }


def prepare_deepspeed(args: TrainingArguments) -> None:
    import deepspeed

    if args.fp16 and not deepspeed.get_accelerator().is_fp16_supported():
        raise ValueError("--fp16: this device does not compute in float16 under DeepSpeed; leave --fp16 out")
    if args.use_cpu and args.device is not None:  # accelerate has started gloo, of which DeepSpeed does not know yet
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    name = f"--deepspeed {args.deepspeed}" if args.deepspeed else "accelerate's settings of DeepSpeed"
    config = args.deepspeed_plugin.deepspeed_config
    if args.deepspeed:
        check_agrees(name, args.hf_deepspeed_config)
    else:
        follow_flags(config)
        filled = HfTrainerDeepSpeedConfig(config)  # as the Trainer will fill it
        filled.trainer_config_process(args)
        check_agrees(name, filled)
    zero = config["zero_optimization"]
    if args.deepspeed_plugin.zero_stage == 0:
        raise ValueError("--deepspeed: ZeRO stage 0 spreads nothing; leave --deepspeed out, or see configs/deepspeed")
    check_deepspeed_values(name, config)
    check_replaced(name, config, args)
    # Without these an update that is not finite would reach the weights.
    config["bf16"]["check_grad_overflow"] = True
    zero.pop("compute_grad_norm", None)
    if (zero.get("offload_optimizer") or {}).get("device", "none") != "none":
        compile_kernels(["CPUAdamBuilder"])
    if args.deepspeed_plugin.zero_stage == 3:
        # Otherwise only DeepSpeed's own shards are saved, which nothing but DeepSpeed reads.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
