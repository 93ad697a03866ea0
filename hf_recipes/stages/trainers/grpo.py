"""The trainers of GRPO and RLOO: TRL's, over prompts that are ids already, with our rewards and checkpoints."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather, gather_object
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer, RLOOTrainer
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.utils import add_fused_lm_head

from hf_recipes.core.errors import say
from hf_recipes.core.files import write_jsonl
from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.data.chat.templates.template import thought_marks
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.forward import evaluating
from hf_recipes.models.inference.generate import continue_batches
from hf_recipes.models.inference.thinking import opens_thoughts, split_ids
from hf_recipes.rewards.weighted_sum import Rewards
from hf_recipes.trainer.base import RunMixin
from hf_recipes.trainer.losses.reference_adapter import freeze_reference_adapter
from hf_recipes.trainer.reports.progress import warn_on_write_error
from hf_recipes.trainer.sampler import GroupSampler

if TYPE_CHECKING:
    from hf_recipes.stages.grpo import GRPOArguments

SAMPLES = "samples"  # folder of answers with their rewards


class RewardedMixin(RunMixin):
    """Put it before TRL's trainer that learns from its own answers; its data set has `prompt` (ids) and `row`.

    The ids are answered as they are, so that a prompt is the same in training, evaluation and prediction. Each reward
    is logged as ``rewards/NAME/mean``, and at each log the newest answers go to ``samples/step-N.jsonl`` with their
    rewards. Of a mixture, the mean reward of each source's answers is logged as ``reward/SOURCE``.

    Args:
        prompts: `row` is an index into them.
        reference: that of a model without an adapter; see `build_reference`.
        continues_adapter: the model's adapter was trained before, and is then what KL is measured from.
    """

    source_prefix = "reward/"

    def __init__(
        self,
        *,
        args: "GRPOArguments",
        prompts: Sequence[Prompt],
        rewards: Rewards,
        reference: PreTrainedModel | None = None,
        continues_adapter: bool = False,
        **kwargs,
    ):
        self.prompts, self.rewards, self.marks = prompts, rewards, thought_marks(kwargs["processing_class"])
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
        if self._buffered_inputs is None:  # at the beginning, and where a run is resumed
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        return super()._prepare_inputs(generation_batch)

    def _generate_single_turn(self, prompt_ids, *more, **options):
        if self.use_vllm or self.use_transformers_continuous_batching:
            return super()._generate_single_turn(prompt_ids, *more, **options)
        # The random numbers of an answer depend on the seed and on the answer's index in the whole run, so that they
        # do not depend on the number of processes, and a resumed run samples the same answers.
        args = self.args
        generation = self._step // (args.steps_per_generation * args.num_iterations)
        first = generation * args.generation_batch_size + args.process_index * len(prompt_ids)
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
            kwargs = {"stop_ids": self.eos_token_ids, "keys": range(first, first + len(batch))}
            kwargs["synced"] = is_deepspeed_zero3_enabled() and not args.ds3_gather_for_generation
            generated = continue_batches(model, self.processing_class, prompt_ids, [batch], decoding, **kwargs)
            [(_, continuations)] = list(generated)
        ids = [continuation.ids for continuation in continuations]
        return (ids, None) if isinstance(self, GRPOTrainer) else ids  # GRPO's has the log-probabilities of a server too

    def _generate_and_score_completions(self, inputs):
        self.begin_work(f"{len(inputs)} answers of up to {self.max_completion_length:,} tokens being written")
        seen = self.state.num_input_tokens_seen
        batch = super()._generate_and_score_completions(inputs)
        self.state.num_input_tokens_seen = seen  # TRL counts them too
        self._metrics["train"].pop("num_tokens", None)
        self._new_tokens += int(batch["prompt_mask"].sum() + batch["completion_mask"].sum())
        newest = list(self._logs["advantages"])[-len(self._samples) :]
        for sample, advantage in zip(self._samples, newest, strict=True):
            sample["advantage"] = advantage
        return batch

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        # Of the reference, and of the policy that wrote the answers: neither has the dropout of training.
        with evaluating(self.accelerator.unwrap_model(self.model)):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        prompts = [self.prompts[example["row"]] for example in inputs]
        thoughts, answers, are_cut = [], [], []
        for prompt, text, ids in zip(prompts, completions, completion_ids_list, strict=True):
            thought, is_cut = "", False
            if self.marks and prompt.is_chat:
                opened = opens_thoughts(self.processing_class, self.marks, prompt.ids)
                thought, text, start = split_ids(self.processing_class, self.marks, ids, opened)
                is_cut = start is None and ids[-1:] not in [[token] for token in self.eos_token_ids]
            thoughts.append(thought)
            answers.append(prompt.trim(text))
            are_cut.append(is_cut)
        rewards = list(zip(*self.rewards(prompts, answers, thoughts), strict=True))
        samples = [
            {
                "step": self.state.global_step + 1,
                "location": prompt.location,
                "question": prompt.question,
                "reference": prompt.reference,
                "prediction": answer,
                **({"reasoning_content": thought, "cut_while_thinking": is_cut} if thought or is_cut else {}),
                "rewards": dict(zip(self.rewards.names, values, strict=True)),
                "reward": self.rewards.total(values),
            }
            for prompt, thought, answer, is_cut, values in zip(
                prompts, thoughts, answers, are_cut, rewards, strict=True
            )
        ]
        args = self.args
        if self._step % (args.steps_per_generation * args.num_iterations) == 0:  # else written again, by a resumed run
            totals = [math.nan if sample["reward"] is None else sample["reward"] for sample in samples]
            rows = torch.tensor([example["row"] for example in inputs], device=args.device)
            self.add_row_losses(rows, torch.tensor(totals, device=args.device))
        self._samples = gather_object(samples)
        if any("cut_while_thinking" in sample for sample in self._samples):
            cut = sum(sample.get("cut_while_thinking", False) for sample in self._samples)
            self._metrics["train"]["completions/cut_while_thinking"].append(cut / len(self._samples))
        numbers = [[math.nan if value is None else value for value in values] for values in rewards]
        return gather(torch.tensor(numbers, dtype=torch.float32, device=self.args.device))

    def log(self, logs, start_time=None):
        if "loss" in logs:
            self._write_samples()
        super().log(logs, start_time)  # which adds the metrics of the answers
        if "loss" in logs and len(reasons := self._reasons()) == 1 and reasons[0]:
            say(f"step {self.state.global_step}: nothing is learned: {reasons[0]}")

    def training_metrics(self):
        if (reasons := self._reasons()) and all(reasons):
            say(f"nothing was learned in any step: {reasons[-1]}")
        return super().training_metrics()

    def _reasons(self) -> list[str | None]:
        return [self._without_signal(entry) for entry in self.state.log_history if "loss" in entry]

    def _without_signal(self, logs: dict[str, float]) -> str | None:
        """Why the answers of the logged steps taught nothing; None where they may have."""
        are_cut, are_equal = logs.get("completions/clipped_ratio") == 1, logs.get("frac_reward_zero_std") == 1
        cut = f"every answer is cut at --max_completion_length {self.max_completion_length}; raise it"
        if are_cut and self.mask_truncated_completions:
            return f"{cut}, or leave --mask_truncated_completions out, by which cut answers have no loss"
        if are_equal:
            return f"all answers to each question have the same reward{f', and {cut}' if are_cut else ''}"
        return None

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
        outputs = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._entropies = outputs[1]  # (B, T)
        return outputs

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
