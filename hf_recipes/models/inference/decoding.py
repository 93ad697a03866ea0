"""Decoding: greedy, sampling that does not depend on the batch, beam search, and the repetition penalty."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from hf_recipes.core.arguments.limits import NonNegativeInt, PositiveFloat, PositiveInt, at, check_limits
from hf_recipes.core.arguments.settings import setting

if TYPE_CHECKING:
    import torch

MAX_THINKING_TOKENS = 1024


@dataclass(frozen=True)
class Decoding:
    """How texts are continued: greedily unless `do_sample` or `num_beams` says otherwise.

    With a `max_thinking_tokens` of None, thoughts and answer share `max_new_tokens`.
    """

    max_new_tokens: PositiveInt = setting(
        "Tokens to generate at the most, after the thoughts of a model that has some.", 256
    )
    do_sample: bool = setting("Sample each token instead of taking the likeliest.", False)
    temperature: Annotated[float, at(gt=0, text="more than 0; leave --do_sample out for the likeliest token")] = (
        setting("Divides the logits before a token is sampled.", 1.0)
    )
    top_p: Annotated[float, at(gt=0, le=1)] = setting(
        "Sample from the likeliest tokens that together have this probability.", 1.0
    )
    top_k: NonNegativeInt = setting("Sample from so many of the likeliest tokens; 0 for all.", 0)
    repetition_penalty: PositiveFloat = setting(
        "Over 1 makes tokens that were there before, the prompt's too, less likely.", 1.0
    )
    num_beams: PositiveInt = setting("Beams of a beam search; 1 for none.", 1)
    seed: NonNegativeInt = setting("Of the sampling.", 42)
    max_thinking_tokens: NonNegativeInt | None = setting(
        "Tokens of thoughts before an answer at the most; longer ones are closed, the answer follows, and the row is "
        "counted as cut while thinking.",
        MAX_THINKING_TOKENS,
    )

    def __post_init__(self):
        check_limits(self)
        if self.do_sample and self.num_beams > 1:
            raise ValueError("--do_sample and --num_beams: choose one")
        for name, default in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 0)):
            if not self.do_sample and getattr(self, name) != default:
                raise ValueError(f"--{name} {getattr(self, name):g} has no effect without --do_sample")

    def processors(self, mask: "torch.Tensor", keys: Sequence[int], sampled: Sequence[int] | None = None) -> list:
        """Logits processors for one batch, after which the likeliest token is the one to take.

        Args:
            mask: (B, T), 0 where a prompt is padded.
            keys: B numbers; a row's random numbers depend only on `seed` and its key.
            sampled: how many tokens of each row were sampled before.
        """
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        steps: list = []
        if self.repetition_penalty != 1:
            steps.append(_RepetitionPenalty(self.repetition_penalty, mask))
        if self.do_sample:
            steps += [TemperatureLogitsWarper(self.temperature)] if self.temperature != 1 else []
            steps += [TopKLogitsWarper(self.top_k)] if self.top_k else []
            steps += [TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []
            steps.append(_Sample(self.seed, keys, sampled))
        return steps


def batch_processors(
    decodings: Sequence[Decoding], mask: "torch.Tensor", keys: Sequence[int], sampled: Sequence[int]
) -> list:
    """`Decoding.processors` of a batch whose rows may each have another decoding."""
    if all(decoding == decodings[0] for decoding in decodings):
        return decodings[0].processors(mask, keys, sampled)
    rows = [slice(number, number + 1) for number in range(len(decodings))]
    steps = [one.processors(mask[row], keys[row], sampled[row]) for one, row in zip(decodings, rows, strict=True)]
    return [_ByRow(steps)]


class _ByRow:
    def __init__(self, steps: list[list]):
        self._steps = steps

    def __call__(self, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        import torch

        rows = list(scores.split(1))
        for number, steps in enumerate(self._steps):
            for step in steps:
                rows[number] = step(ids[number : number + 1], rows[number])
        return torch.cat(rows)


class _RepetitionPenalty:
    """transformers' penalty with padding taken for the prompt's last token, so that no text depends on its batch."""

    def __init__(self, penalty: float, mask: "torch.Tensor"):
        from transformers import RepetitionPenaltyLogitsProcessor

        self._apply, self._mask = RepetitionPenaltyLogitsProcessor(penalty), mask.bool()

    def __call__(self, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        ids = ids.clone()
        mask = self._mask.repeat_interleave(len(ids) // len(self._mask), 0)  # a row for each beam
        width = mask.shape[1]
        ids[:, :width] = ids[:, :width].where(mask, ids[:, width - 1 : width])
        return self._apply(ids, scores)


class _Sample:
    """Samples a token for each row by inversion of the distribution, and masks all others.

    Each row has its own random generator, so that neither its batch nor torch's random state matters.
    """

    def __init__(self, seed: int, keys: Sequence[int], sampled: Sequence[int] | None):
        import numpy as np

        self._generators = [np.random.default_rng([seed, key]) for key in keys]
        for generator, count in zip(self._generators, sampled or (), strict=bool(sampled)):
            generator.integers(1 << 24, size=count)

    def __call__(self, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        import torch

        wide = torch.float32 if scores.device.type == "mps" else torch.float64
        sums = scores.softmax(-1, dtype=torch.float32).to(wide).cumsum(-1)
        # 24 random bits: a number so close to 1 that it rounds to the sum of all would be past the last token.
        numbers = [generator.integers(1 << 24) / (1 << 24) for generator in self._generators]
        targets = torch.tensor(numbers, dtype=wide, device=scores.device)[:, None] * sums[:, -1:]
        tokens = torch.searchsorted(sums, targets, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens, 0.0)
