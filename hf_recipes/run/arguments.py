"""What a user may set in every stage, in addition to the fields of TRL's and transformers' configurations."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from accelerate.utils import DynamoBackend
from torch.utils.checkpoint import checkpoint
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import is_torch_bf16_gpu_available

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.arguments.limits import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    at,
    check_limits,
)
from hf_recipes.core.arguments.settings import JSON_HELP, setting
from hf_recipes.core.distributed import (
    compile_kernels,
    private_shared_memory,
    rendezvous_after_restart,
    set_single_process_env,
)
from hf_recipes.core.files import read_mapping
from hf_recipes.hub.clients import Target, check_destination, export_token
from hf_recipes.models.devices import cpu_computes_bf16, has_accelerator
from hf_recipes.models.inference.decoding import MAX_THINKING_TOKENS
from hf_recipes.run.inherited import Needs, refuse_unusable
from hf_recipes.trainer.deepspeed_config import deepspeed_learning_rate, prepare_deepspeed, read_deepspeed

# What transformers reads of --fsdp_config, each also with fsdp_ before it; it says nothing of other keys.
FSDP_KEYS = """
    activation_checkpointing auto_wrap_policy backward_prefetch cpu_offload cpu_ram_efficient_loading forward_prefetch
    limit_all_gathers min_num_params reshard_after_forward state_dict_type sync_module_states
    transformer_layer_cls_to_wrap use_orig_params version xla xla_fsdp_grad_ckpt xla_fsdp_settings xla_fsdp_v2
"""
TRACKERS = ("swanlab", "tensorboard", "wandb", "mlflow", "trackio")  # packages of the tracker's own name


@dataclass
class RunArguments:
    """What every stage adds to the training arguments that it is put before in the bases."""

    # Of the stage, as `inherited` has them for all.
    unusable: ClassVar[dict[str, str]] = {}
    needs: ClassVar[Needs] = {}
    limits: ClassVar[dict[str, at]] = {  # of inherited numbers
        **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), at(ge=1)),
        **dict.fromkeys(("gradient_accumulation_steps", "dataloader_prefetch_factor", "ddp_bucket_cap_mb"), at(ge=1)),
        **dict.fromkeys(("dataloader_num_workers", "warmup_steps", "eval_delay", "save_total_limit"), at(ge=0)),
        **dict.fromkeys(("max_grad_norm", "neftune_noise_alpha", "weight_decay"), at(ge=0)),
        **dict.fromkeys(("learning_rate", "adam_epsilon"), at(ge=0)),
        **dict.fromkeys(("adam_beta1", "adam_beta2"), at(ge=0, lt=1)),
        **dict.fromkeys(("num_train_epochs", "torch_empty_cache_steps"), at(gt=0)),
        **dict.fromkeys(("logging_steps", "save_steps", "eval_steps"), at(gt=0)),
        "label_smoothing_factor": at(ge=0, lt=1),
        "ddp_timeout": at(ge=1, text="at least 1 second"),
        **dict.fromkeys(("seed", "data_seed"), at(ge=0, le=2**32 - 1)),
    }
    # Whether the loss calls the output embeddings, so that an adapter on them is trained, or reads their weight.
    calls_head: ClassVar[bool] = False
    adapter_learning_rate: ClassVar[float | None] = None  # the default with an adapter, where it is another

    output_dir: str | None = setting("Folder of the run.")
    add_special_tokens: str | None = setting("File of special tokens to add (configs/special_tokens).")
    eos_token: str | None = setting("The tokenizer's end token, where it has none or another is meant.")
    dry_run: bool = setting("Print what the run would do and need, and stop before any weight is loaded.", False)
    json: bool = setting(JSON_HELP, False)
    overwrite_output_dir: bool = setting("Start over in an earlier run's folder: what it wrote is deleted.", False)
    resume_from_checkpoint: str | None = setting("true for the run's newest checkpoint, or a checkpoint's folder.")
    bf16: bool | None = setting("Compute in bfloat16; by default where the device does.")
    gradient_checkpointing: bool | None = setting("Recompute activations to save memory; by default not on a CPU.")
    include_num_input_tokens_seen: str = setting("Has no effect: tokens are counted anyway, without padding.", "no")
    max_nonfinite_steps: PositiveInt = setting(
        "Stop after so many updates in a row without a finite loss and gradient.", 3
    )
    early_stopping_patience: PositiveInt | None = setting(
        "Stop after so many evaluations in a row without a better --metric_for_best_model, by default the loss."
    )
    early_stopping_threshold: NonNegativeFloat = setting(
        "What a metric has to improve by to be better: more than this.", 0.0
    )
    inexact_resume: bool = setting("Resume what another number of processes wrote: same rows, other dropout.", False)
    trust_remote_code: bool = setting("Run the code that a model's repository brings.", False)
    trust_checkpoint: bool = setting("Resume from files that can run code; only if you know who wrote them.", False)
    max_new_tokens: PositiveInt | None = setting(
        "Tokens to generate in evaluations; by default max_target_length, or 256."
    )
    max_thinking_tokens: NonNegativeInt | None = setting(
        "Tokens of thoughts before an answer of an evaluation at the most; longer ones are closed and counted as cut.",
        MAX_THINKING_TOKENS,
    )
    eval_temperature: PositiveFloat | None = setting(
        "Draw the answers of evaluations; by default the likeliest is taken."
    )
    push_to_hub: bool = setting("Publish the run on a hub at its end; --hub_strategy says when else.", False)
    hub_target: Target = setting("Where --push_to_hub pushes to.", "hf")
    hub_private_repo: bool | None = setting("Whether a repository that --push_to_hub creates is private.", True)
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = setting(
        "Push at the end, or at every save too, with the last or every checkpoint's optimizer state.", "end"
    )
    # In this order: HfArgumentParser understands no other.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="swanlab",
        metadata={"help": "Trackers, with commas between: swanlab (local files), tensorboard, wandb, none."},
    )
    swanlab_mode: Literal["cloud", "local", "offline", "disabled"] | None = setting(
        "Where swanlab's runs go; by default SWANLAB_MODE, or local files."
    )

    @classmethod
    def dependent_defaults(cls, values: Mapping[str, Any]) -> dict[str, float]:
        """A learning rate by default: DeepSpeed's, or an adapter's."""
        with_adapter = cls.adapter_learning_rate if values.get("use_lora") else None
        rate = deepspeed_learning_rate(values["deepspeed"]) or with_adapter
        return {"learning_rate": rate} if rate else {}

    def learning_rate_by_default(self, use_lora: bool) -> str:
        """In words, for a run that names none."""
        if deepspeed_learning_rate(self.deepspeed):
            return f"learning rate {self.learning_rate:g}, as DeepSpeed's file says"
        trained = "with an adapter" if use_lora else "where all weights are trained"
        return f"learning rate {self.learning_rate:g}, the default {trained}; --learning_rate for another"

    @property
    def has_reference(self) -> bool:
        """Whether the loss is measured from the model as it was at the start."""
        return bool(getattr(self, "beta", 0))

    def check_fields(self) -> None:
        """Refuse what one setting cannot be by itself; to be called before all else."""
        if str(self.include_num_input_tokens_seen).lower() == "false":
            self.include_num_input_tokens_seen = "no"
        refuse_unusable(self, self.unusable, self.needs)
        if self.use_liger_kernel and find_spec("liger_kernel") is None:
            raise ValueError("--use_liger_kernel: not installed; pip install liger-kernel, or leave it out")
        kwargs = {*inspect.signature(checkpoint).parameters, "preserve_rng_state"} - {"function", "args", "kwargs"}
        for name, known in (
            ("activation_checkpointing_kwargs", kwargs),
            ("gradient_checkpointing_kwargs", kwargs),
            ("lr_scheduler_kwargs", None),  # of the chosen scheduler
            ("fsdp_config", {*FSDP_KEYS.split()}),
        ):
            given = getattr(self, name) or {}
            given = read_mapping(given, f"--{name}") if isinstance(given, str) else given
            setattr(self, name, given or None)
            unknown = sorted(key for key in given if known and key.removeprefix("fsdp_") not in known)
            if unknown:
                raise ValueError(f"--{name}: unknown key {unknown[0]!r}{nearest(unknown[0], known)}")
        backend = self.torch_compile_backend
        if backend and backend.upper() not in DynamoBackend.__members__:
            known = [name.lower() for name in DynamoBackend.__members__]
            raise ValueError(f"--torch_compile_backend {backend}: no such backend{nearest(backend, known)}")
        check_limits(self)

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("--output_dir is missing: where the run's results go")
        if self.resume_from_checkpoint and self.resume_from_checkpoint.lower() == "false":
            self.resume_from_checkpoint = None
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise ValueError("--overwrite_output_dir and --resume_from_checkpoint contradict each other; give one")
        if self.push_to_hub:
            check_destination(self.hub_model_id, self.hub_target)
        elif self.hub_model_id:
            raise ValueError("--hub_model_id has no effect without --push_to_hub")
        export_token(self.hub_token, self.hub_target)
        self.hub_token = None  # else transformers pickles it into training_args.bin
        self.report_to = _trackers(self.report_to)
        if self.eval_steps is not None and self.eval_strategy == "no":
            self.eval_strategy = "steps"
        scheduler = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        if scheduler in ("reduce_lr_on_plateau", "greedy") and self.eval_strategy == "no":
            raise ValueError(f"--lr_scheduler_type {scheduler} follows the evaluations: give --eval_steps")
        if self.early_stopping_patience and not self.metric_for_best_model:
            self.metric_for_best_model = "loss"
        self.use_cpu = self.use_cpu or not has_accelerator()
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" also where its file says nothing
        if launched != "no" and self.bf16 is None and not self.fp16:
            self.bf16, self.fp16 = launched == "bf16", launched == "fp16"
        if launched != "no" and not {"bf16": self.bf16, "fp16": self.fp16}.get(launched):
            raise ValueError(f"accelerate's mixed_precision is {launched}, and the flags say otherwise: give the same")
        if self.bf16 is None:
            computes = cpu_computes_bf16() if self.use_cpu else is_torch_bf16_gpu_available()
            self.bf16 = not self.fp16 and computes
        if self.activation_checkpointing is not None:
            if self.gradient_checkpointing not in (None, self.activation_checkpointing):
                raise ValueError(
                    "--gradient_checkpointing and --activation_checkpointing contradict each other; give one"
                )
            self.gradient_checkpointing = self.activation_checkpointing
        if self.gradient_checkpointing is None:
            self.gradient_checkpointing = not self.use_cpu
        if self.deepspeed:
            if isinstance(self.deepspeed, str) and not os.path.isfile(self.deepspeed):
                raise ValueError(f"--deepspeed {self.deepspeed}: no such file; see configs/deepspeed")
            if find_spec("deepspeed") is None:
                raise ValueError("--deepspeed: not installed; pip install deepspeed")
            file, self.deepspeed = self.deepspeed, read_deepspeed(self.deepspeed)
            set_single_process_env()
        rendezvous_after_restart(self.ddp_timeout)
        if not self.deepspeed and os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
            super().__post_init__()
            return
        compile_kernels(["ShareMemCommBuilder"])
        with private_shared_memory():
            super().__post_init__()
            if self.deepspeed:
                self.deepspeed = file
            prepare_deepspeed(self)


def _trackers(report_to: str | list[str] | None) -> list[str]:
    """The names in `report_to`, each of a tracker that is installed."""
    names = report_to or "none"
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    if len(names) > 1 and (alone := {"none", "all"} & set(names)):
        raise ValueError(f"--report_to {','.join(names)}: {alone.pop()} stands alone; leave it or the rest out")
    for name in names:
        if name not in ("none", "all", *INTEGRATION_TO_CALLBACK):
            raise ValueError(f"--report_to {name}: no such tracker{nearest(name, INTEGRATION_TO_CALLBACK)}")
        if name in TRACKERS and find_spec(name) is None:
            raise ValueError(f"--report_to {name}: not installed; pip install {name}, or --report_to none")
    return names
