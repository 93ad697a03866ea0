"""What a user may set, beside the fields of TRL's and transformers' own configurations."""

import os
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal

from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import is_torch_bf16_gpu_available
from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig, RLOOConfig, SFTConfig

from hf_recipes.core.distributed import be_one_process, compile_kernels, private_shared_memory, rendezvous_after_restart
from hf_recipes.core.settings import PositiveFloat, PositiveInt, Share, at, check_limits, nearest, setting
from hf_recipes.data.arguments import DataArguments, SourceArguments, UnpairedArguments
from hf_recipes.hub.clients import Target, check_destination, keep_token
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.devices import cpu_computes_bf16, has_accelerator
from hf_recipes.run.inherited import INERT, Needs, refuse_unusable

__all__ = [
    "DPOArguments",
    "DataArguments",
    "GRPOArguments",
    "KTOArguments",
    "ModelArguments",
    "PretrainArguments",
    "RewardArguments",
    "SFTArguments",
    "SourceArguments",
    "UnpairedArguments",
]


# Of numbers that all stages inherit.
LIMITS = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), at(ge=1)
    ),
    "ddp_timeout": at(ge=1, text="at least 1 second"),
    "seed": at(ge=0, le=2**32 - 1),
}
TRACKERS = ("swanlab", "tensorboard", "wandb", "mlflow", "trackio")  # packages of the tracker's own name


@dataclass
class RunArguments:
    """What every stage adds to the training arguments that it is put before in the bases."""

    # Of the stage, as `inherited` has them for all.
    unusable: ClassVar[dict[str, str]] = {}
    needs: ClassVar[Needs] = {}
    limits: ClassVar[dict[str, at]] = {}  # of inherited numbers
    # Whether the loss calls the output embeddings, so that an adapter on them is trained, or reads their weight.
    calls_head: ClassVar[bool] = False

    output_dir: str | None = setting("Folder of the run.")
    dry_run: bool = setting("Print what the run would do and need, and stop before any weight is loaded.", False)
    overwrite_output_dir: bool = setting("Start over in an earlier run's folder: what it wrote is deleted.", False)
    bf16: bool | None = setting("Compute in bfloat16; by default where the device does.")
    gradient_checkpointing: bool | None = setting("Recompute activations to save memory; by default not on a CPU.")
    include_num_input_tokens_seen: str = setting("Has no effect: tokens are counted anyway, without padding.", "no")
    max_nonfinite_steps: PositiveInt = setting(
        "Stop after so many updates in a row without a finite loss and gradient.", 3
    )
    inexact_resume: bool = setting("Resume what another number of processes wrote: same rows, other dropout.", False)
    trust_remote_code: bool = setting("Run the code that a model's repository brings.", False)
    trust_checkpoint: bool = setting("Resume from files that can run code; only if you know who wrote them.", False)
    max_new_tokens: PositiveInt | None = setting(
        "Tokens to generate in evaluations; by default max_target_length, or 256."
    )
    eval_temperature: PositiveFloat | None = setting(
        "Draw the answers of evaluations; by default the likeliest is taken."
    )
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
        check_limits(self, **LIMITS, **self.limits)

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("--output_dir is missing: where the run's results go")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise ValueError(f"--num_train_epochs {self.num_train_epochs:g}: expected more than 0")
        if self.resume_from_checkpoint and self.resume_from_checkpoint.lower() == "false":
            self.resume_from_checkpoint = None
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise ValueError("--overwrite_output_dir and --resume_from_checkpoint contradict each other; give one")
        if self.push_to_hub:
            check_destination(self.hub_model_id, self.hub_target)
        elif self.hub_model_id:
            raise ValueError("--hub_model_id has no effect without --push_to_hub")
        keep_token(self.hub_token, self.hub_target)
        self.hub_token = None  # else transformers pickles it into training_args.bin
        self.report_to = self.report_to or "none"
        if isinstance(self.report_to, str):
            self.report_to = [name.strip() for name in self.report_to.split(",")]
        if len(self.report_to) > 1 and (alone := {"none", "all"} & set(self.report_to)):
            raise ValueError(
                f"--report_to {','.join(self.report_to)}: {alone.pop()} stands alone; leave it or the rest out"
            )
        for name in self.report_to:
            if name not in ("none", "all", *INTEGRATION_TO_CALLBACK):
                raise ValueError(f"--report_to {name}: no such tracker{nearest(name, INTEGRATION_TO_CALLBACK)}")
            if name in TRACKERS and find_spec(name) is None:
                raise ValueError(f"--report_to {name}: not installed; pip install {name}, or --report_to none")
        if self.eval_steps is not None and self.eval_strategy == "no":
            self.eval_strategy = "steps"
        self.use_cpu = self.use_cpu or not has_accelerator()
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
            be_one_process()
        rendezvous_after_restart(self.ddp_timeout)
        if not self.deepspeed and os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
            super().__post_init__()
            return
        compile_kernels(["ShareMemCommBuilder"])
        with private_shared_memory():
            super().__post_init__()
            _ready_deepspeed(self)


NO_SHIFTED_LABELS = f"{INERT}it is for losses over the vocabulary"
NO_TOKEN_MEAN = f"{INERT}a loss is the mean over all rows of an update"
NO_NOISE = "would be measured as a difference from the reference; leave it out"
TOKEN_LOSSES = ("nll", "dft")
TRAINED = at(ge=1, text="at least 1; with {} there is no token to learn from")


@dataclass
class SFTArguments(RunArguments, SFTConfig):
    """TRL's `SFTConfig` with token budgets and the choices that it leaves to the user's hardware made by default."""

    needs: ClassVar = {
        "label_smoothing_factor": ("--loss_type nll", lambda args: args.loss_type == "nll"),
        **dict.fromkeys(("packing_strategy", "shuffle_dataset"), ("--packing", lambda args: args.packing)),
    }

    chat_template: str | None = setting("A bundled template (chatml, llama2, vicuna, …) or a jinja file.")
    train_on: Literal["all", "last"] = setting("Assistant turns that carry loss.", "all")
    max_source_length: Annotated[int | None, TRAINED] = setting("Tokens of the prompt at the most.")
    max_target_length: Annotated[int | None, TRAINED] = setting("Tokens of the answer at the most.")
    max_length: Annotated[int | None, TRAINED] = setting(
        "Tokens in all; by default both budgets together (1024 for one not given) or 1024."
    )
    truncation_side: Literal["left", "right"] = setting("Side on which an over-long question is cut.", "left")

    def __post_init__(self):
        self.check_fields()
        if self.loss_type not in TOKEN_LOSSES:
            raise ValueError(f"--loss_type {self.loss_type}: no such loss; there are {' and '.join(TOKEN_LOSSES)}")
        if self.max_length is None:
            budgets = (self.max_source_length, self.max_target_length)
            self.max_length = sum(budget or 1024 for budget in budgets) if any(budgets) else 1024
        if self.packing and self.packing_strategy != "bfd":
            raise ValueError(f"--packing_strategy {self.packing_strategy}: rows would leak into each other; use bfd")
        if self.label_smoothing_factor and self.router_aux_loss_coef:
            raise ValueError("--router_aux_loss_coef has no effect with --label_smoothing_factor; leave one out")
        super().__post_init__()


@dataclass
class RewardArguments(RunArguments, RewardConfig):
    """TRL's `RewardConfig` with the head's first weights, and scores kept for looking at the data."""

    limits: ClassVar = {"center_rewards_coefficient": at(ge=0)}
    unusable: ClassVar = {
        "average_tokens_across_devices": NO_TOKEN_MEAN,
        "eval_temperature": f"{INERT}a reward model writes nothing",
        "label_smoothing_factor": NO_SHIFTED_LABELS,
        "max_new_tokens": f"{INERT}a reward model writes nothing",
    }

    chat_template: str | None = setting("A bundled template (chatml, llama2, vicuna, …) or a jinja file.")
    max_length: PositiveInt | None = setting(
        "Tokens of a side; pairs with a longer one are left out, which is counted.", 1024
    )
    initializer_range: PositiveFloat = setting("Standard deviation of a new score head's first weights.", 0.01)
    save_scores: bool = setting("Score the training pairs too at each evaluation: predictions/train.", False)

    def __post_init__(self):
        self.check_fields()
        super().__post_init__()


# Losses of DPO of the difference between the sides' scores, which any divergence can make, and all of TRL's.
DIFFERENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
SORTING_LOSSES = ("aot", "aot_unpaired")
PAIR_LOSSES = (*DIFFERENCE_LOSSES, "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", *SORTING_LOSSES)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
SYNCED = "would leave a run that is resumed without the reference as it was; leave it out"
WITHOUT_SYNC = f"{INERT}the reference stays as it was at the start"
WITH_REFERENCE = {
    "average_tokens_across_devices": NO_TOKEN_MEAN,
    "label_smoothing_factor": NO_SHIFTED_LABELS,
    "neftune_noise_alpha": NO_NOISE,
    "ref_model_mixup_alpha": WITHOUT_SYNC,
    "ref_model_sync_steps": WITHOUT_SYNC,
    "sync_ref_model": SYNCED,
}
PRECOMPUTES = {"precompute_ref_batch_size": ("--precompute_ref_log_probs", lambda args: args.precompute_ref_log_probs)}
SMOOTHED_LOSSES = ("exo_pair", "robust", *SORTING_LOSSES)
UNPAIRED_LOSSES = ("kto", "apo_zero_unpaired")
REFERENCE_METRICS = {
    **dict.fromkeys(("rewards/chosen", "rewards/margins", "logps/chosen"), True),
    **dict.fromkeys(("loss", "rewards/rejected", "logps/rejected"), False),
}


def _check_reference(args: "DPOArguments | KTOArguments", losses: tuple[str, ...]) -> None:
    args.check_fields()
    for name in [args.loss_type] if isinstance(args.loss_type, str) else args.loss_type:
        if name not in losses:
            raise ValueError(f"--loss_type {name}: no such loss{nearest(name, losses)}; there are {', '.join(losses)}")


@dataclass
class DPOArguments(RunArguments, DPOConfig):
    """TRL's `DPOConfig`, with what it would refuse after loading named before."""

    unusable: ClassVar = {
        **WITH_REFERENCE,
        "padding_free": f"{INERT}TRL's DPO pads",
        "truncation_mode": f"{INERT}use --max_length",
    }
    limits: ClassVar = {"beta": at(gt=0), "label_smoothing": at(ge=0, lt=0.5), "ld_alpha": at(ge=0, le=1)}
    needs: ClassVar = {
        **PRECOMPUTES,
        "discopop_tau": ("--loss_type discopop", lambda args: "discopop" in args.loss_type),
        "f_alpha_divergence_coef": (
            "--f_divergence_type alpha_divergence",
            lambda args: args.f_divergence_type == "alpha_divergence",
        ),
        "label_smoothing": (
            f"a --loss_type that has it ({', '.join(SMOOTHED_LOSSES)})",
            lambda args: any(name in args.loss_type for name in SMOOTHED_LOSSES),
        ),
    }

    chat_template: str | None = setting("A bundled template (chatml, llama2, vicuna, …) or a jinja file.")
    max_length: PositiveInt | None = setting(
        "Tokens of a side; pairs with a longer one are left out, which is counted.", 1024
    )

    def __post_init__(self):
        _check_reference(self, PAIR_LOSSES)
        self.loss_type = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"--loss_weights: {len(self.loss_weights)} of them for {len(self.loss_type)} --loss_type")
        if self.f_divergence_type not in DIVERGENCES:
            known = nearest(self.f_divergence_type, DIVERGENCES)
            raise ValueError(f"--f_divergence_type {self.f_divergence_type}: no such divergence{known}")
        others = [name for name in self.loss_type if name not in DIFFERENCE_LOSSES]
        if others and self.f_divergence_type != "reverse_kl":
            raise ValueError(
                f"--f_divergence_type {self.f_divergence_type} goes with {', '.join(DIFFERENCE_LOSSES)}, not with "
                f"--loss_type {others[0]}"
            )
        if self.use_weighting and (sorts := [name for name in self.loss_type if name in SORTING_LOSSES]):
            raise ValueError(f"--use_weighting does not go with --loss_type {sorts[0]}, which sorts the pairs")
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("--loss_type exo_pair needs --label_smoothing above 0; its paper (2402.00856) takes 1e-3")
        super().__post_init__()


@dataclass
class KTOArguments(RunArguments, KTOConfig):
    """TRL's `KTOConfig`, with what it would refuse after loading named before."""

    unusable: ClassVar = WITH_REFERENCE
    needs: ClassVar = PRECOMPUTES
    limits: ClassVar = {"beta": at(gt=0), "desirable_weight": at(ge=0), "undesirable_weight": at(ge=0)}

    chat_template: str | None = setting("A bundled template (chatml, llama2, vicuna, …) or a jinja file.")
    max_length: PositiveInt | None = setting("Tokens of a row; longer ones are left out, which is counted.", 1024)

    def __post_init__(self):
        _check_reference(self, UNPAIRED_LOSSES)
        if self.loss_type != "apo_zero_unpaired":
            if self.per_device_train_batch_size == 1:
                raise ValueError(
                    f"--per_device_train_batch_size 1: the loss {self.loss_type} estimates the KL divergence over the "
                    "batch; take at least 2, or --loss_type apo_zero_unpaired, which needs none"
                )
            if self.train_sampling_strategy != "sequential":
                raise ValueError(
                    f"--train_sampling_strategy {self.train_sampling_strategy}: --loss_type {self.loss_type} needs "
                    "sequential; the rows are shuffled once, by --seed"
                )
        super().__post_init__()


@dataclass
class GRPOArguments(RunArguments, GRPOConfig):
    """TRL's `GRPOConfig`, and what its `RLOOConfig` has beside it."""

    unusable: ClassVar = {
        **WITH_REFERENCE,
        "average_tokens_across_devices": f"{INERT}--loss_type says what a loss is the mean over",
        "log_multimodal": f"{INERT}prompts are text",
        "max_tool_calling_iterations": f"{INERT}answers call no tools",
        "num_generations_eval": f"{INERT}evaluations answer each prompt once",
        "train_sampling_strategy": f"{INERT}use --shuffle_dataset",
    }
    needs: ClassVar = {
        **dict.fromkeys(
            ("log_completions_hub_repo", "log_unique_prompts", "num_completions_to_print"),
            ("--log_completions", lambda args: args.log_completions),
        ),
        **dict.fromkeys(
            ("sapo_temperature_neg", "sapo_temperature_pos"),
            ("--loss_type sapo", lambda args: args.loss_type == "sapo"),
        ),
        **dict.fromkeys(
            ("vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos"),
            ("--loss_type vespo", lambda args: args.loss_type == "vespo"),
        ),
        **dict.fromkeys(
            ("entropy_coef_delta", "entropy_coef_max", "entropy_coef_min", "entropy_target"),
            ("--use_adaptive_entropy", lambda args: args.use_adaptive_entropy),
        ),
        "transformers_continuous_batching_config": (
            "--use_transformers_continuous_batching",
            lambda args: args.use_transformers_continuous_batching or args.use_transformers_paged,
        ),
        "use_bias_correction_kl": ("--beta above 0", lambda args: args.beta),
    }

    limits: ClassVar = {
        **dict.fromkeys(("max_completion_length", "num_iterations"), at(ge=1)),
        "temperature": at(gt=0, text="more than 0; answers have to differ"),
    }

    algorithm: Literal["grpo", "rloo"] = setting("How rewards become advantages; see the README.", "grpo")
    chat_template: str | None = setting("A bundled template (chatml, llama2, vicuna, …) or a jinja file.")
    text_as: Literal["continuation", "question"] = setting("What rows of bare text are.", "continuation")
    max_source_length: PositiveInt | None = setting("Tokens of a prompt at the most; the oldest turns go first.", 512)
    beta: Annotated[float, at(ge=0)] = setting(
        "Weight of the KL divergence from the start of the run; 0 for none.", 0.04
    )
    use_vllm: bool | None = setting("Answer with vLLM; by default where it is installed and there is a GPU.")
    num_generations_eval: int | None = setting("No effect: evaluations answer each prompt once.", 1)
    normalize_advantages: bool = setting("Of rloo: to mean 0 and standard deviation 1 over a step's answers.", False)
    reward_clip_range: list[float] | None = setting("Of rloo: the least and the largest reward.")

    def __post_init__(self):
        self.check_fields()
        if self.algorithm == "rloo":
            own = {f.name for f in fields(RLOOConfig)}
            for other in fields(GRPOConfig):
                if other.name not in own and getattr(self, other.name) != other.default:
                    raise ValueError(f"--{other.name} has no effect with --algorithm rloo")
        elif self.normalize_advantages or self.reward_clip_range:
            raise ValueError("--normalize_advantages and --reward_clip_range are of --algorithm rloo")
        if self.reward_clip_range and len(self.reward_clip_range) != 2:
            raise ValueError("--reward_clip_range: expected the least and the largest reward")
        self._check_groups()
        if self.use_vllm is None:
            self.use_vllm = find_spec("vllm") is not None and has_accelerator() and not self.use_cpu
        elif self.use_vllm and find_spec("vllm") is None:
            raise ValueError("--use_vllm: not installed; pip install vllm, or leave it out")
        for one in fields(GRPOConfig):
            of_vllm = one.name.startswith("vllm_") or one.name in ("min_p", "generation_kwargs", "cache_implementation")
            if of_vllm and not self.use_vllm and getattr(self, one.name) != one.default:
                raise ValueError(f"--{one.name} has an effect with --use_vllm alone")
        self.max_new_tokens = self.max_new_tokens or self.max_completion_length
        self.eval_temperature = self.eval_temperature or self.temperature
        super().__post_init__()
        self._check_updates()

    def _check_updates(self) -> None:
        """Refuse what would make the loss of an update depend on the batches that it comes in."""
        accumulated, processes = self.gradient_accumulation_steps, int(os.environ.get("WORLD_SIZE", 1))
        if self.loss_type == "bnpo" and accumulated * processes > 1:
            raise ValueError(
                f"--loss_type bnpo divides by the tokens of each batch, of which an update has "
                f"{accumulated * processes}; dapo divides by those of all, and is the same where there is one"
            )
        if self.top_entropy_quantile < 1 and accumulated > 1:
            raise ValueError(
                f"--top_entropy_quantile {self.top_entropy_quantile:g} picks the tokens of each batch by itself; raise "
                f"--per_device_train_batch_size to {self.per_device_train_batch_size * accumulated} and leave "
                "--gradient_accumulation_steps out"
            )
        if (self.entropy_coef or self.use_adaptive_entropy) and self.steps_per_generation % accumulated:
            raise ValueError(
                f"--steps_per_generation {self.steps_per_generation}: --entropy_coef needs a multiple of "
                f"--gradient_accumulation_steps {accumulated}"
            )

    def _check_groups(self) -> None:
        if self.num_generations < 2:
            raise ValueError(f"--num_generations {self.num_generations}: at least 2 answers are needed to compare")
        processes = int(os.environ.get("WORLD_SIZE", 1))
        accumulated = self.steps_per_generation or self.gradient_accumulation_steps
        batch = self.generation_batch_size or self.per_device_train_batch_size * accumulated * processes
        if batch % self.num_generations:
            parts = f"{self.per_device_train_batch_size} a device × {accumulated} accumulated × {processes} processes"
            fitting = [size for size in range(2, batch + 1) if batch % size == 0]
            best = min(fitting, key=lambda size: abs(size - self.num_generations), default=None)
            hint = f"; {best} does" if best else "; raise --per_device_train_batch_size"
            raise ValueError(
                f"--num_generations {self.num_generations} does not divide the {batch} answers that are written "
                f"together ({parts}){hint}"
            )


# Schedules of transformers that pretraining uses, and the argument of each that --min_lr_ratio sets.
FLOORED = "cosine_with_min_lr"
FLOORS = {FLOORED: "min_lr_rate", "warmup_stable_decay": "min_lr_ratio"}


@dataclass
class PretrainArguments(RunArguments, TrainingArguments):
    """transformers' `TrainingArguments` with how documents become blocks, and defaults for learning from text."""

    calls_head: ClassVar = True
    unusable: ClassVar = {
        "data_seed": f"{INERT}use --seed",
        "dataloader_in_order": f"{INERT}blocks come in their order",
        "dataloader_multiprocessing_context": f"{INERT}leave it out",
        "dataloader_persistent_workers": f"{INERT}a run is one pass over the blocks",
        "label_smoothing_factor": f"{INERT}leave it out",
        "train_sampling_strategy": f"{INERT}use --shuffle",
    }

    inexact_resume: bool = setting("Resume what another number of processes wrote: every document is seen once.", True)
    block_size: Annotated[int, at(ge=2)] = setting("Tokens of a block, which is what a row of a batch is.", 2048)
    document_end_token: str | None = setting("Token after each document; by default the tokenizer's end token.")
    document_attention: bool = setting("Whether tokens attend within their document only.", True)
    sequence_sample_mode: Literal["none", "truncate", "sample", "split"] = setting(
        "Documents longer than a block: run on into the next, keep the beginning, keep a random window, or part.",
        "none",
    )
    drop_last: bool = setting("Leave out the last, shorter block of each source.", False)
    mixture: str | None = setting("Policy file (configs/mixtures): the share of each source.")
    streaming: bool = setting("Tokenize while training; nothing is written. Needs --max_steps.", False)
    shuffle: bool = setting("Draw the order of the blocks anew in each epoch.", True)
    train_only: Literal["embeddings"] | None = setting("Train input and output embeddings alone.")
    freeze_layers: str | None = setting("Layers that stay as they are, counted from 0: 0-11, or 0,2,4.")
    min_lr_ratio: Share = setting("The learning rate's floor, as a share of --learning_rate.", 0.1)
    decay_ratio: Share = setting("Share of the steps in which warmup_stable_decay lowers the rate at the end.", 0.1)
    learning_rate: float = setting("The highest learning rate.", 3e-4)
    lr_scheduler_type: str = setting("cosine_with_min_lr, warmup_stable_decay, or any of transformers'.", FLOORED)
    warmup_steps: float = setting("Steps in which the learning rate rises, or below 1 their share.", 0.01)
    weight_decay: float = setting("Of matrices; norms and biases have none.", 0.1)
    adam_beta2: float = setting("AdamW's second beta.", 0.95)
    logging_steps: float = setting("Log every so many steps.", 10)
    num_train_epochs: float = setting("How often the data is gone through.", 1.0)

    def __post_init__(self):
        self.check_fields()
        if self.streaming and self.max_steps <= 0:
            raise ValueError("--streaming needs --max_steps: how long a stream is is known only at its end")
        if self.train_only and self.freeze_layers:
            raise ValueError("--train_only embeddings freezes all layers; leave --freeze_layers out")
        floor = FLOORS.get(str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)))
        if floor and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {floor: self.min_lr_ratio}
        super().__post_init__()


def _ready_deepspeed(args: TrainingArguments) -> None:
    import deepspeed

    if args.fp16 and not deepspeed.get_accelerator().is_fp16_supported():
        raise ValueError("--fp16: this device does not compute in float16 under DeepSpeed; leave --fp16 out")
    if args.use_cpu and args.device is not None:  # accelerate has started gloo, of which DeepSpeed does not know yet
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    config = args.deepspeed_plugin.deepspeed_config
    zero = config["zero_optimization"]
    if args.deepspeed_plugin.zero_stage == 0:
        raise ValueError("--deepspeed: ZeRO stage 0 spreads nothing; leave --deepspeed out, or see configs/deepspeed")
    # Without these an update that is not finite would reach the weights.
    config.setdefault("bf16", {})["check_grad_overflow"] = True
    zero.pop("compute_grad_norm", None)
    if (zero.get("offload_optimizer") or {}).get("device", "none") != "none":
        compile_kernels(["CPUAdamBuilder"])
    if args.deepspeed_plugin.zero_stage == 3:
        # Otherwise only DeepSpeed's own shards are saved, which nothing but DeepSpeed reads.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
