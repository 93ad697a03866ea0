"""How much two models differ: logits and greedy tokens on a few prompts, computed in float32."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_recipes.core.bounds import TEMPLATE, bounded
from hf_recipes.models.inference.generation_settings import complete_generation_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GREEDY_TOKENS = 32
CHATS = (
    [{"role": "user", "content": "你好，请用一句话介绍你自己。"}],
    [
        {"role": "user", "content": "北京有哪些值得去的地方？"},
        {"role": "assistant", "content": "故宫、颐和园和长城。"},
        {"role": "user", "content": "第一个在哪里？"},
    ],
)
TEXTS = ("今天天气很好，我们", "The capital of France is", "def add(a, b):\n    return")
# In units of eps times the largest logit. With logits up to 40, another order of summation changed them by 7e-5 (16 eps
# of float32), and rounding the weights to bfloat16 by 0.37 (1.2 eps of bfloat16).
SUMMING, ROUNDING = 256, 4
NEW_TOKENS = 16  # at most, of those that the base does not have


@dataclass(frozen=True)
class ModelOutputs:
    """A model's outputs for some prompts.

    Attributes:
        tokens: of each prompt, the ids of the greedy continuation; empty for a reward model.
        logits: of each prompt with its continuation, on the CPU: (T, V) of a language model, (1, 1) of a reward model.
    """

    tokens: list[list[int]]
    logits: list[torch.Tensor]

    @property
    def is_finite(self) -> bool:
        return all(bool(logits.isfinite().all()) for logits in self.logits)


@dataclass(frozen=True)
class Difference:
    """How far one model's outputs are from another's.

    Attributes:
        logits: the largest difference of two logits; NaN where one is not a number.
        same: number of greedy tokens before the first mismatch, summed over prompts.
        tokens: number of all greedy tokens.
        gap: at the first mismatch, the first model's logit of its token minus its logit of the other's token; the
            largest of all prompts, 0 without a mismatch. With logits off by ε it is at most 2 ε.
    """

    logits: float
    same: int
    tokens: int
    gap: float

    def within(self, tolerance: float) -> bool:
        return self.logits <= tolerance and self.gap <= 2 * tolerance


def parity_prompts(tokenizer: "PreTrainedTokenizerBase", new_tokens: Sequence[int] = ()) -> list[list[int]]:
    """Token ids of a few prompts: Chinese conversations in the chat template (as plain text without one), Chinese and
    English text, code, and some of `new_tokens`."""
    prompts = []
    for chat in CHATS:
        if tokenizer.chat_template is None:
            ids = tokenizer("\n".join(turn["content"] for turn in chat))["input_ids"]
        else:
            with bounded(TEMPLATE):
                ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        prompts.append(ids)
    prompts += [tokenizer(text)["input_ids"] for text in TEXTS]
    return [*prompts, list(new_tokens[-NEW_TOKENS:])] if new_tokens else prompts


@torch.no_grad()
def answer(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], follow: Sequence[Sequence[int]] | None = None
) -> ModelOutputs:
    """The greedy continuations of `prompts`, and the logits of prompts with continuations.

    Args:
        model: a causal language model or a reward model.
        follow: the continuations for the logits; by default the model's.
    """
    scores = not model.can_generate()
    tokens = [[] for _ in prompts] if scores else _greedy(model, prompts)
    logits = []
    for prompt, rest in zip(prompts, follow or tokens, strict=True):
        ids = torch.tensor([[*prompt, *rest]], device=model.device)
        logits.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().cpu().reshape(-1, 1))
        if not scores:
            logits[-1] = logits[-1].view(ids.shape[1], -1)
    return ModelOutputs(tokens, logits)


def _greedy(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    config = complete_generation_config(do_sample=False, max_new_tokens=GREEDY_TOKENS, pad_token_id=0)
    return model.generate(ids, attention_mask=mask, generation_config=config)[:, width:].tolist()


def compare(one: ModelOutputs, other: ModelOutputs) -> Difference:
    """`other`'s logits must be those of `one`'s continuations (`follow` of `answer`)."""
    logits = max(float((a - b).abs().max()) for a, b in zip(one.logits, other.logits, strict=True))
    if not (one.is_finite and other.is_finite):
        logits = float("nan")
    same, gap = 0, 0.0
    for ours, theirs, rows in zip(one.tokens, other.tokens, one.logits, strict=True):
        mismatch = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
        same += len(ours) if mismatch is None else mismatch
        if mismatch is not None:
            row = rows[len(rows) - len(ours) - 1 + mismatch]
            gap = max(gap, float(row[ours[mismatch]] - row[theirs[mismatch]]))
    return Difference(logits, same, sum(map(len, one.tokens)), gap)


def default_tolerance(rounding: float, answers: ModelOutputs) -> float:
    """The largest difference of logits that float32 summation and rounded weights explain.

    Args:
        rounding: eps of the weights' format: the distance from 1 to the next number; 0 where nothing is rounded.
    """
    largest = max(1.0, *(float(logits.abs().max()) for logits in answers.logits))
    return (SUMMING * torch.finfo(torch.float32).eps + ROUNDING * rounding) * largest
