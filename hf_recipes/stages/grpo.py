"""Learning from rewards: TRL's GRPO and RLOO over our prompts, rewards and checkpoints."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, RLOOConfig

from hf_recipes.core.arguments.limits import NonNegativeInt, PositiveInt, at
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import to_json
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.arguments import DataArguments, columns_of
from hf_recipes.data.chat.prompts import Prompt, PromptReader, read_prompts
from hf_recipes.dry_run.data_stats import DataStats
from hf_recipes.dry_run.simulate import Batch
from hf_recipes.evaluation.method import Method
from hf_recipes.models.devices import has_accelerator
from hf_recipes.models.templates.options import TemplateArguments
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.rewards.weighted_sum import Rewards
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.data import limited_rows, mixed_files
from hf_recipes.run.evaluate_callback import build_evaluations
from hf_recipes.run.inherited import INERT, WITH_REFERENCE
from hf_recipes.stages.base import Context, Data, Stage
from hf_recipes.stages.trainers.grpo import GRPO, RLOO, RewardedMixin
from hf_recipes.trainer.sampler import GroupSampler

UNCLIPPED = ("sapo", "vespo")  # losses that weigh the importance ratios in place of clipping them


@dataclass
class GRPOArguments(TemplateArguments, RunArguments, GRPOConfig):
    """TRL's `GRPOConfig`, and what its `RLOOConfig` has beside it."""

    adapter_learning_rate: ClassVar = 1e-5
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
        "epsilon": ("a --loss_type that clips, as dapo", lambda args: args.loss_type not in (*UNCLIPPED, "cispo")),
        "epsilon_high": ("a --loss_type that clips, as dapo", lambda args: args.loss_type not in UNCLIPPED),
        "delta": ("a --loss_type that clips, as dapo", lambda args: args.loss_type not in (*UNCLIPPED, "cispo")),
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
        **dict.fromkeys(("max_completion_length", "num_iterations", "steps_per_generation"), at(ge=1)),
        **dict.fromkeys(("epsilon", "epsilon_high", "top_k"), at(ge=0)),
        **dict.fromkeys(("delta", "repetition_penalty"), at(gt=0)),
        **dict.fromkeys(("top_p", "top_entropy_quantile"), at(gt=0, le=1, text="more than 0, at most 1")),
        "temperature": at(gt=0, text="more than 0; answers have to differ"),
    }

    learning_rate: float = setting("The highest learning rate; with an adapter 1e-5 by default.", 1e-6)
    algorithm: Literal["grpo", "rloo"] = setting(
        "How rewards become advantages, by the group's mean and deviation or the mean of the others.", "grpo"
    )
    text_as: Literal["continuation", "question"] = setting("What rows of bare text are.", "continuation")
    max_source_length: PositiveInt | None = setting("Tokens of a prompt at the most; the oldest turns go first.", 512)
    beta: Annotated[float, at(ge=0)] = setting(
        "Weight of the KL divergence from the start of the run; 0 for none.", 0.04
    )
    disable_dropout: bool = setting("Train without dropout, as the answers are written.", True)
    max_thinking_tokens: NonNegativeInt | None = setting(
        "Tokens of thoughts in evaluations; by default thoughts and answer share --max_new_tokens, as in training they "
        "share --max_completion_length.",
    )
    use_vllm: bool | None = setting("Answer with vLLM; by default where it is installed and there is a GPU.")
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = setting(
        "What the loss is the mean over, and what limits it.", "dapo"
    )
    scale_rewards: Literal["group", "batch", "none"] = setting(
        "What advantages are divided by the standard deviation of: a prompt's answers, a batch's, or nothing.", "group"
    )
    importance_sampling_level: Literal["token", "sequence"] = setting("What has an importance ratio.", "token")
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = setting(
        "Whether several rewards are summed before or after they are normalized.", "sum_then_normalize"
    )
    num_generations_eval: int | None = setting("No effect: evaluations answer each prompt once.", 1)
    normalize_advantages: bool = setting("Of rloo: to mean 0 and standard deviation 1 over a step's answers.", False)
    reward_clip_range: list[float] | None = setting("Of rloo: the least and the largest reward.")

    def __post_init__(self):
        if self.algorithm == "rloo":
            of_rloo = {f.name for f in fields(RLOOConfig)}
            for other in fields(GRPOConfig):
                if other.name not in of_rloo and getattr(self, other.name) != other.default:
                    raise ValueError(f"--{other.name} has no effect with --algorithm rloo")
        elif self.normalize_advantages or self.reward_clip_range:
            raise ValueError("--normalize_advantages and --reward_clip_range are of --algorithm rloo")
        if self.reward_clip_range and len(self.reward_clip_range) != 2:
            raise ValueError("--reward_clip_range: expected the least and the largest reward")
        self.check_fields()
        self._check_groups()
        if self.use_vllm is None:
            self.use_vllm = find_spec("vllm") is not None and has_accelerator() and not self.use_cpu
        elif self.use_vllm and find_spec("vllm") is None:
            raise ValueError("--use_vllm: not installed; the docs' page on serving says how, or leave it out")
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


@dataclass
class PromptData(Data):
    """Prompts, what scores the answers to them, and the tokens that end one."""

    rewards: Rewards
    stop_ids: list[int]


def prepare_prompts(context: Context) -> PromptData:
    """Read the prompts, and check that the rewards can be given for them."""
    if not context.evaluation.specs:
        raise UserError(
            "nothing says what an answer is worth: give --rewards (docs/en/grpo.md has them) or --reward_model"
        )
    data, args = context.data_args, context.args
    if args.cast_lm_head_to_fp32 and context.config.get_text_config().tie_word_embeddings:
        raise UserError(
            "--cast_lm_head_to_fp32: this model's head is its embeddings, which TRL cannot cast; leave it out, or take "
            "--dtype float32"
        )
    rewards = Rewards(context.evaluation, args.trust_remote_code, data.cache_dir)
    prompts, ledgers, stop_ids = read_prompt_sets(data, args, context.tokenizer)
    rewards.check(prompts["train"])
    return PromptData(prompts["train"], prompts.get("validation"), ledgers, rewards, stop_ids)


def read_prompt_sets(
    data: DataArguments, args: GRPOArguments, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, list[Prompt]], dict[str, Ledger], list[int]]:
    """The prompts called ``train`` and, where there are any, ``validation``; the rest as `prepare_prompts`."""
    ledgers: dict[str, Ledger] = {}
    prompts: dict[str, list[Prompt]] = {}
    stop_ids: set[int] = set()
    for name, specs in (("train", mixed_files(data)), ("validation", data.validation_file)):
        if specs:
            kwargs = {"text_as": args.text_as, "max_source_length": args.max_source_length}
            kwargs |= {"cache_dir": data.cache_dir, "encoding": data.encoding, "seed": args.seed}
            reader = PromptReader(specs, tokenizer, columns_of(data), split=name, **kwargs)
            prompts[name], ledgers[name] = read_prompts(reader, data.max_drop_ratio)
            stop_ids |= set(reader.stop_ids)
    if data.validation_split_percentage:
        from hf_recipes.data.examples import held_out_rows

        locations = [prompt.location for prompt in prompts["train"]]
        kept, held = held_out_rows(locations, data.validation_split_percentage, args.seed)
        prompts["validation"] = [prompts["train"][row] for row in held]
        prompts["train"] = [prompts["train"][row] for row in kept]
        say(f"held out {len(held):,} of {len(kept) + len(held):,} rows for evaluation")
    for name, rows in prompts.items():
        if chosen := limited_rows(data, args, name, len(rows)):
            prompts[name] = [rows[row] for row in chosen]
    if not prompts["train"]:
        raise UserError("there is no row left to train on")
    return prompts, ledgers, sorted(stop_ids)


def evaluations(context: Context, data: PromptData) -> dict[str, Method]:
    """The validation prompts are answered, and the answers rewarded."""
    settings = context.evaluation, context.args, context.data_args, context.config, context.tokenizer
    return build_evaluations(*settings, data.validation, data.stop_ids, data.rewards)


def answer_stats(context: Context, data: PromptData) -> DataStats:
    """The sizes of the answers of an epoch, each as long as it may be."""
    prompts, args = data.train, context.args
    answers = args.num_generations * args.num_iterations
    lengths = np.array([len(prompt.ids) for prompt in prompts])
    longest = int(lengths.max()) + args.max_completion_length
    size = args.per_device_train_batch_size
    batch = Batch(size, longest, positions=size * args.max_completion_length, fused_head=True)
    tokens = int((lengths + args.max_completion_length).sum()) * answers
    count = GroupSampler(
        len(prompts),
        group=answers,
        prompts=args.generation_batch_size // args.num_generations,
        repeats=1,
        seed=0,
    )
    flags = {"what": "answers", "lengthen": "--max_completion_length"}
    return DataStats(len(count), tokens, None, longest, batch, _prompts_digest(prompts), **flags)


def _prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Of what is answered, and of all that a reward can see."""
    digest = hashlib.sha256()
    for prompt in prompts:
        seen = [prompt.ids.tolist(), prompt.question, prompt.reference, prompt.meta, prompt.messages, prompt.row]
        digest.update(to_json(seen, default=str).encode())
    return digest.hexdigest()


def build_trainer(
    context: Context,
    data: PromptData,
    model: PreTrainedModel,
    methods: Mapping[str, Method],
    reference: PreTrainedModel | None = None,
) -> RewardedMixin:
    prompts, args = data.train, context.args
    if args.use_vllm:  # which knows the model's ends by itself, and not the template's
        args.generation_kwargs = {"stop_token_ids": data.stop_ids, **(args.generation_kwargs or {})}
    rows = {"prompt": [prompt.ids.tolist() for prompt in prompts], "row": list(range(len(prompts)))}
    kind = RLOO if args.algorithm == "rloo" else GRPO
    trainer = kind(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict(rows),
        eval_dataset={} if methods else None,
        processing_class=context.tokenizer,
        prompts=prompts,
        rewards=data.rewards,
        reference=reference,
        continues_adapter=context.continues_adapter,
    )
    trainer.set_sources(Dataset.from_dict({"source": [prompt.source for prompt in prompts]}))
    return trainer


STAGE = Stage(
    "grpo",
    GRPOArguments,
    forms=("prompt", "messages", "preference", "unpaired", "text"),
    tokenizer={"needs_template": False},
    read=prepare_prompts,
    data_stats=answer_stats,
    evaluations=evaluations,
    trainer=build_trainer,
    card=CardWords("grpo", ("questions", "个问题")),
    legend="No token here carries loss: the model answers these itself, and its answers are scored.",
)
