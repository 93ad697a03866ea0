"""Learning from rewards: TRL's GRPO and RLOO over our prompts, rewards and checkpoints."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather, gather_object
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer, RLOOTrainer
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.utils import add_fused_lm_head

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import to_json, write_jsonl
from hf_recipes.core.ledger import Ledger
from hf_recipes.data.arguments import DataArguments
from hf_recipes.data.chat.prompts import Prompt, PromptReader, read_prompts
from hf_recipes.dry_run.memory import Batch
from hf_recipes.dry_run.plan import DataStats
from hf_recipes.evaluation.method import Method
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.rewards.weighted_sum import Rewards
from hf_recipes.run.arguments import GRPOArguments
from hf_recipes.run.data import check_evaluation_rows, columns_of
from hf_recipes.run.evaluate_callback import add_callbacks, build_evaluations
from hf_recipes.stages.base import Context, Data, Stage
from hf_recipes.trainer.base import RunMixin
from hf_recipes.trainer.progress import warn_on_write_error
from hf_recipes.trainer.reference import freeze_reference_adapter

SAMPLES = "samples"  # folder of answers with their rewards


class GroupSampler(Sampler[int]):
    """The order of the prompts: each `group` times in a row, and each batch of `prompts` of them `repeats` times.

    It depends on `seed` and the epoch alone. The last batch of an epoch is filled up with prompts from its beginning.

    Example:
        Three prompts, `group` 2, `prompts` 2, one repeat: 2 2 0 0, then 1 1 2 2.
    """

    def __init__(self, count: int, *, group: int, prompts: int, repeats: int, seed: int, shuffle: bool = True):
        self.count, self.group, self.prompts, self.repeats = count, group, prompts, repeats
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // self.prompts) * self.prompts * self.group * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self.count)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        order = np.resize(order, -(-self.count // self.prompts) * self.prompts).reshape(-1, self.prompts)
        for batch in order:
            for _ in range(self.repeats):
                yield from np.repeat(batch, self.group).tolist()


class RewardedMixin(RunMixin):
    """Put it before TRL's trainer that learns from its own answers; its data set has `prompt` (ids) and `row`.

    What is answered are the ids as they are, so that a prompt is the same in training, evaluation and prediction. Each
    reward is logged as ``rewards/NAME/mean``, and at each log the newest answers go to ``samples/step-N.jsonl`` with
    all that they are worth.

    Args:
        prompts: what `row` counts.
        rewards: of answers.
        reference: that of a model without an adapter; see `build_reference`.
        goes_on: the model's adapter was trained before, and is then what KL is measured from.
    """

    def __init__(
        self,
        *,
        args: GRPOArguments,
        prompts: Sequence[Prompt],
        rewards: Rewards,
        reference: PreTrainedModel | None = None,
        continues_adapter: bool = False,
        **kwargs,
    ):
        self.prompts, self.rewards = prompts, rewards
        self._samples: list[dict[str, Any]] = []
        beta = args.beta
        args.beta = 0.0 if reference is not None else beta  # TRL would load another from the model's path
        args.reward_weights = rewards.weights
        super().__init__(args=args, reward_funcs=[_in_calculate_rewards] * len(rewards.names), **kwargs)
        self.reward_func_names = rewards.names
        freeze_reference_adapter(self.model, continues_adapter)
        if reference is not None:
            args.beta = self.beta = beta
            add_fused_lm_head(reference, temperature=self.temperature)
            prepare = prepare_deepspeed if self.is_deepspeed_enabled else _prepared
            self.ref_model = prepare(reference, self.accelerator)

    def in_order(self, dataset, batch_size):
        args = self.args
        return dataset, GroupSampler(
            len(dataset),
            group=self.num_generations,
            prompts=args.generation_batch_size // self.num_generations,
            repeats=args.num_iterations * args.steps_per_generation,
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffle=args.shuffle_dataset,
        )

    def describe(self, inputs):
        return f"a training batch of {self.args.per_device_train_batch_size} answers"

    def tokens_in(self, inputs):
        return 0  # counted when they are written

    def locations_of(self, batches):
        return sorted({self.prompts[example["row"]].location for batch in batches for example in batch})

    def _tokenize_prompts(self, prompts):
        return prompts, None, {}

    def _prepare_inputs(self, generation_batch):
        if self._buffered_inputs is None:  # at the beginning, and where a run goes on
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        return super()._prepare_inputs(generation_batch)

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if self.use_vllm or self.use_transformers_continuous_batching:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        # What is drawn for an answer depends on the seed, the step and its place among the answers of the step, which
        # is the same at any number of processes; and a run that goes on draws what it would have drawn.
        args = self.args
        turn = self._step // (args.steps_per_generation * args.num_iterations)
        first = turn * args.generation_batch_size + args.process_index * len(prompt_ids)
        decoding = Decoding(
            max_new_tokens=self.max_completion_length,
            do_sample=True,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            seed=args.seed,
        )
        whole = unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        )
        with whole as model, self._dist.summon_full_params(self.model_wrapped, recurse=False):
            batch = list(range(len(prompt_ids)))
            how = {"stop_ids": self.eos_token_ids, "keys": range(first, first + len(batch))}
            how["synced"] = is_deepspeed_zero3_enabled() and not args.ds3_gather_for_generation
            written = continue_batches(model, self.processing_class, prompt_ids, [batch], decoding, **how)
            [(_, found)] = list(written)
        ids = [continuation.ids for continuation in found]
        return (ids, None) if isinstance(self, GRPOTrainer) else ids  # GRPO's has the log-probabilities of a server too

    def _generate_and_score_completions(self, inputs):
        self.note_work(f"{len(inputs)} answers of up to {self.max_completion_length:,} tokens being written")
        seen = self.state.num_input_tokens_seen
        batch = super()._generate_and_score_completions(inputs)
        self.state.num_input_tokens_seen = seen  # TRL counts them too
        self._metrics["train"].pop("num_tokens", None)
        self._new_tokens += int(batch["prompt_mask"].sum() + batch["completion_mask"].sum())
        newest = list(self._logs["advantages"])[-len(self._samples) :]
        for sample, advantage in zip(self._samples, newest, strict=True):
            sample["advantage"] = advantage
        return batch

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        asked = [self.prompts[example["row"]] for example in inputs]
        answers = [prompt.trim(text) for prompt, text in zip(asked, completions, strict=True)]
        values = list(zip(*self.rewards(asked, answers), strict=True))
        own = [
            {
                "step": self.state.global_step + 1,
                "location": prompt.location,
                "question": prompt.question,
                "reference": prompt.reference,
                "prediction": answer,
                "rewards": dict(zip(self.rewards.names, found, strict=True)),
                "reward": self.rewards.total(found),
            }
            for prompt, answer, found in zip(asked, answers, values, strict=True)
        ]
        self._samples = gather_object(own)
        numbers = [[math.nan if value is None else value for value in found] for found in values]
        return gather(torch.tensor(numbers, dtype=torch.float32, device=self.args.device))

    def log(self, logs, start_time=None):
        if "loss" in logs:
            self._write_samples()
        super().log(logs, start_time)

    def _write_samples(self) -> None:
        if not self.is_world_process_zero() or not self._samples:
            return
        path = Path(self.args.output_dir, SAMPLES, f"step-{self.state.global_step}.jsonl")
        with warn_on_write_error(str(path)):
            path.parent.mkdir(exist_ok=True)
            write_jsonl(path, self._samples)


class GRPO(RewardedMixin, GRPOTrainer):
    """Advantages from the rewards of a prompt's group of answers (DeepSeekMath, arXiv 2402.03300).

    With `entropy_coef`, the entropy in the loss is the mean over the tokens of the update; TRL's is the mean of those
    of its batches.
    """

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._entropies = found[1]  # (B, T)
        return found

    def _compute_loss(self, model, inputs):
        adapts, target = self.use_adaptive_entropy, self.args.entropy_target
        weight = 0.0 if adapts and self._last_world_entropy > target else self.entropy_coef  # TRL changes them below
        loss = super()._compute_loss(model, inputs)
        if not weight or not self.model.training:
            return loss
        mask, steps = inputs["completion_mask"], self.current_gradient_accumulation_steps
        if self.top_entropy_quantile < 1:
            mask = mask * self.get_high_entropy_mask(self._entropies, mask, 1 - self.top_entropy_quantile)
        batches = [mask]
        if steps > 1:
            first = self._step % self.args.steps_per_generation // steps * steps
            batches = [batch["completion_mask"] for batch in self._buffered_inputs[first : first + steps]]
        tokens = self.accelerator.reduce(torch.stack([batch.sum() for batch in batches]).sum(), "sum").clamp(min=1)
        total = (self._entropies * mask).sum()
        of_batch = total / mask.sum().clamp(min=1) / steps
        return loss + weight * (of_batch - total / tokens * self.accelerator.num_processes)


class RLOO(RewardedMixin, RLOOTrainer):
    """Each answer's reward less the mean of its group's others, by REINFORCE (arXiv 2402.14740)."""


def _prepared(reference: PreTrainedModel, accelerator: Accelerator) -> PreTrainedModel:
    return accelerator.prepare_model(reference, evaluation_mode=True)


def _in_calculate_rewards(**columns):
    raise AssertionError("rewards are computed in _calculate_rewards")


@dataclass
class PromptData(Data):
    """Prompts, what scores the answers to them, and the tokens that end one."""

    rewards: Rewards
    stop_ids: list[int]


def prepare_prompts(context: Context) -> PromptData:
    """Read prompts that the rewards can be given for.

    Raises:
        UserError: no reward, data that cannot be read, more rows lost than `max_drop_ratio` allows, or rows that a
            reward cannot be given for.
    """
    if not context.evaluation.specs:
        raise UserError("nothing says what an answer is worth: give --rewards (see the README) or --reward_model")
    data, args = context.data_args, context.args
    rewards = Rewards(context.evaluation, args.trust_remote_code, data.cache_dir)
    check_evaluation_rows(data, args, context.evaluates_files)
    found, ledgers, stop_ids = read_prompt_sets(data, args, context.tokenizer)
    rewards.check(found["train"])
    return PromptData(found["train"], found.get("validation"), ledgers, rewards, stop_ids)


def read_prompt_sets(
    data: DataArguments, args: GRPOArguments, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, list[Prompt]], dict[str, Ledger], list[int]]:
    """The prompts called ``train`` and, where there are any, ``validation``; the rest as `prepare_prompts`."""
    ledgers: dict[str, Ledger] = {}
    found: dict[str, list[Prompt]] = {}
    stop_ids: set[int] = set()
    for name, specs in (("train", data.train_file), ("validation", data.validation_file)):
        if specs:
            how = {"text_as": args.text_as, "max_source_length": args.max_source_length, "cache_dir": data.cache_dir}
            reader = PromptReader(specs, tokenizer, columns_of(data), split=name, **how)
            found[name], ledgers[name] = read_prompts(reader, data.max_drop_ratio)
            stop_ids |= set(reader.stop_ids)
    if data.validation_split_percentage:
        from hf_recipes.data.examples import held_out_rows

        kept, held = held_out_rows(len(found["train"]), data.validation_split_percentage, args.seed)
        found["validation"] = [found["train"][row] for row in held]
        found["train"] = [found["train"][row] for row in kept]
        say(f"held out {len(held):,} of {len(kept) + len(held):,} rows for evaluation")
    for name, limit in (("train", data.max_train_samples), ("validation", data.max_eval_samples)):
        if name in found and limit is not None and limit < len(found[name]):
            say(f"{name}: the first {limit:,} of {len(found[name]):,} rows")
            found[name] = found[name][:limit]
    if not found["train"]:
        raise UserError("there is no row left to train on")
    return found, ledgers, sorted(stop_ids)


def evaluations(context: Context, data: PromptData) -> dict[str, Method]:
    """The validation prompts are answered, and the answers rewarded."""
    settings = context.evaluation, context.args, context.data_args, context.config, context.tokenizer
    return build_evaluations(*settings, data.validation, data.stop_ids, data.rewards)


def answer_figures(context: Context, data: PromptData) -> DataStats:
    """The figures of the answers of an epoch, each as long as it may be."""
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
    own, prompts = model.generation_config.eos_token_id, data.train
    own = own if isinstance(own, list) else [own]
    model.generation_config.eos_token_id = sorted({*data.stop_ids, *own} - {None})
    rows = {"prompt": [prompt.ids.tolist() for prompt in prompts], "row": list(range(len(prompts)))}
    kind = RLOO if context.args.algorithm == "rloo" else GRPO
    trainer = kind(
        model=model,
        args=context.args,
        train_dataset=Dataset.from_dict(rows),
        eval_dataset={} if methods else None,
        processing_class=context.tokenizer,
        prompts=prompts,
        rewards=data.rewards,
        reference=reference,
        continues_adapter=context.continues_adapter,
    )
    add_callbacks(trainer, methods)
    return trainer


STAGE = Stage(
    "grpo",
    GRPOArguments,
    forms=("prompt", "messages", "preference", "unpaired", "text"),
    tokenizer={"needs_template": False},
    read=prepare_prompts,
    figures=answer_figures,
    evaluations=evaluations,
    trainer=build_trainer,
    card=CardWords("grpo", ("questions", "个问题")),
    legend="No token here carries loss: the model writes answers of its own to these, and they are scored.",
)
