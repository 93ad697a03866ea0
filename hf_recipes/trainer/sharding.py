"""How weights, gradients and optimizer are spread over the processes of a run."""

import os
from dataclasses import dataclass


@dataclass
class Sharding:
    """How far ZeRO or FSDP spreads the parts over `processes`, and what it keeps off the device."""

    stage: int = 0
    processes: int = 1
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    half: bool = False  # DeepSpeed's bf16 or fp16: half-width weights and gradients, with float32 masters

    @classmethod
    def of(cls, args) -> "Sharding":
        """As the training arguments or the configuration of ``accelerate launch`` say."""
        sharding = cls(processes=args.world_size)
        if args.deepspeed_plugin is not None:
            zero = args.deepspeed_plugin.deepspeed_config.get("zero_optimization") or {}
            sharding.stage = int(zero.get("stage", 0))
            sharding.offloads_optimizer = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
            sharding.offloads_weights = (zero.get("offload_param") or {}).get("device", "none") != "none"
            sharding.half = bool(args.bf16 or args.fp16)
        elif args.use_cpu:  # accelerate leaves FSDP out there
            pass
        elif args.fsdp:
            sharding.stage = 3 if args.fsdp_config.get("reshard_after_forward", True) else 2
            sharding.offloads_optimizer = sharding.offloads_weights = bool(args.fsdp_config.get("cpu_offload"))
        elif _says("ACCELERATE_USE_FSDP", "false"):
            sharding.stage = 3 if _says("FSDP_RESHARD_AFTER_FORWARD", "true") else 2
            sharding.offloads_optimizer = sharding.offloads_weights = _says("FSDP_OFFLOAD_PARAMS", "false")
        return sharding


def _says(name: str, default: str) -> bool:
    return os.environ.get(name, default).lower() in ("1", "true", "yes", "full_shard")
