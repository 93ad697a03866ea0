"""Whether two models say the same: logits and greedy tokens on a few prompts, computed in float32."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_recipes.models.generation_settings import complete_generation_config

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
# In units of eps times the largest logit. Where logits reach 40, adding up in another order was seen to change them by
# 7e-5 (16 of float32's), and rounding the weights to bfloat16 by 0.37 (1.2 of its).
SUMMING, ROUNDING = 256, 4
NEW_TOKENS = 16  # of those that the base lacks, at the most


@dataclass(frozen=True)
class Answers:
    """What a model makes of prompts.

    Attributes:
        tokens: of each prompt, the ids of the greedy continuation; none of a reward model.
        logits: of each prompt and what follows it, on the CPU: (T, V) of a language model, (1, 1) of a reward model.
    """

    tokens: list[list[int]]
    logits: list[torch.Tensor]

    @property
    def is_finite(self) -> bool:
        return all(bool(logits.isfinite().all()) for logits in self.logits)


@dataclass(frozen=True)
class Difference:
    """How far one model's answers are from another's.

    Attributes:
        logits: the largest difference of two logits; NaN where one is not a number.
        same: how many greedy tokens, of all, come before the first other one of their prompt, or are it not.
        gap: the largest difference between the first model's two logits where the second's tokens leave the first's; 0
            where they never do. A difference of `logits` explains a gap of twice that and no more.
    """

    logits: float
    same: int
    tokens: int
    gap: float

    def within(self, tolerance: float) -> bool:
        return self.logits <= tolerance and self.gap <= 2 * tolerance


def parity_prompts(tokenizer: "PreTrainedTokenizerBase", new_tokens: Sequence[int] = ()) -> list[list[int]]:
    """Token ids of a few prompts: Chinese conversations through the chat template (as plain text where there is none),
    Chinese, English and code, and some of `new_tokens`, where there are any."""
    prompts = []
    for chat in CHATS:
        if tokenizer.chat_template is None:
            ids = tokenizer("\n".join(turn["content"] for turn in chat))["input_ids"]
        else:
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        prompts.append(ids)
    prompts += [tokenizer(text)["input_ids"] for text in TEXTS]
    return [*prompts, list(new_tokens[-NEW_TOKENS:])] if new_tokens else prompts


@torch.no_grad()
def answer(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], follow: Sequence[Sequence[int]] | None = None
) -> Answers:
    """The greedy continuations of `prompts`, and the logits of prompts and continuations.

    Args:
        model: a causal language model, or one that gives a sequence one score.
        follow: continuations of which to take the logits; by default those found here.
    """
    scores = not model.can_generate()
    tokens = [[] for _ in prompts] if scores else _greedy(model, prompts)
    logits = []
    for prompt, rest in zip(prompts, follow or tokens, strict=True):
        ids = torch.tensor([[*prompt, *rest]], device=model.device)
        logits.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().cpu().reshape(-1, 1))
        if not scores:
            logits[-1] = logits[-1].view(ids.shape[1], -1)
    return Answers(tokens, logits)


def _greedy(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    config = complete_generation_config(do_sample=False, max_new_tokens=GREEDY_TOKENS, pad_token_id=0)
    return model.generate(ids, attention_mask=mask, generation_config=config)[:, width:].tolist()


def compare(one: Answers, other: Answers) -> Difference:
    """`other`'s logits are those of `one`'s continuations (`answer`'s `follow`), its tokens its own."""
    logits = max(float((a - b).abs().max()) for a, b in zip(one.logits, other.logits, strict=True))
    if not (one.is_finite and other.is_finite):
        logits = float("nan")
    same, gap = 0, 0.0
    for ours, theirs, rows in zip(one.tokens, other.tokens, one.logits, strict=True):
        first = next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), None)
        same += len(ours) if first is None else first
        if first is not None:
            row = rows[len(rows) - len(ours) - 1 + first]
            gap = max(gap, float(row[ours[first]] - row[theirs[first]]))
    return Difference(logits, same, sum(map(len, one.tokens)), gap)


def default_tolerance(rounding: float, answers: Answers) -> float:
    """The largest difference of logits that is put down to adding up in float32 and to rounded weights.

    Args:
        rounding: the distance from 1 to the next number that the weights' format has; 0 where nothing is rounded.
    """
    largest = max(1.0, *(float(logits.abs().max()) for logits in answers.logits))
    return (SUMMING * torch.finfo(torch.float32).eps + ROUNDING * rounding) * largest
