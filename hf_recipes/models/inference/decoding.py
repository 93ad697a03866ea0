"""How the next token is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from hf_recipes.core.settings import NonNegativeInt, PositiveFloat, PositiveInt, at, check_limits, setting

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Decoding:
    """How texts are continued: greedily unless `do_sample` or `num_beams` says otherwise.

    Raises:
        ValueError: a value outside its range, or one that has no effect beside the others.
    """

    max_new_tokens: PositiveInt = setting("Tokens to generate at the most.", 256)
    do_sample: bool = setting("Draw each token instead of taking the likeliest.", False)
    temperature: Annotated[float, at(gt=0, text="more than 0; leave --do_sample out for the likeliest token")] = (
        setting("Divides the logits before a token is drawn.", 1.0)
    )
    top_p: Annotated[float, at(gt=0, le=1)] = setting(
        "Draw from the likeliest tokens that together have this probability.", 1.0
    )
    top_k: NonNegativeInt = setting("Draw from so many of the likeliest tokens; 0 for all.", 0)
    repetition_penalty: PositiveFloat = setting(
        "Over 1 makes tokens that were there before, the prompt's too, less likely.", 1.0
    )
    num_beams: PositiveInt = setting("Beams of a beam search; 1 for none.", 1)
    seed: NonNegativeInt = setting("Of the draws.", 42)

    def __post_init__(self):
        check_limits(self)
        if self.do_sample and self.num_beams > 1:
            raise ValueError("--do_sample and --num_beams: choose one")
        for name, default in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 0)):
            if not self.do_sample and getattr(self, name) != default:
                raise ValueError(f"--{name} {getattr(self, name):g} has no effect without --do_sample")

    def processors(self, mask: "torch.Tensor", keys: Sequence[int]) -> list:
        """What is done to the logits of one batch; the token is then the likeliest.

        Args:
            mask: (B, T), 0 where a prompt is padded.
            keys: B numbers; which numbers a row is drawn with depends on `seed` and its key alone.
        """
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        steps: list = []
        if self.repetition_penalty != 1:
            steps.append(_RepetitionPenalty(self.repetition_penalty, mask))
        if self.do_sample:
            steps += [TemperatureLogitsWarper(self.temperature)] if self.temperature != 1 else []
            steps += [TopKLogitsWarper(self.top_k)] if self.top_k else []
            steps += [TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []
            steps.append(_Draw(self.seed, keys))
        return steps


class _RepetitionPenalty:
    """transformers' own takes padding for tokens that were there before, so that a text would depend on its batch."""

    def __init__(self, penalty: float, mask: "torch.Tensor"):
        from transformers import RepetitionPenaltyLogitsProcessor

        self._apply, self._mask = RepetitionPenaltyLogitsProcessor(penalty), mask.bool()

    def __call__(self, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        ids = ids.clone()
        mask = self._mask.repeat_interleave(len(ids) // len(self._mask), 0)  # a row for each beam
        width = mask.shape[1]
        ids[:, :width] = ids[:, :width].where(mask, ids[:, width - 1 : width])
        return self._apply(ids, scores)


class _Draw:
    """Leaves of each row the one token at which its next random number falls, by inversion of the distribution.

    Each row has its own stream of numbers, so that neither the batch it is in nor torch's random state matters.
    """

    def __init__(self, seed: int, keys: Sequence[int]):
        import numpy as np

        self._streams = [np.random.default_rng([seed, key]) for key in keys]

    def __call__(self, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        import torch

        wide = torch.float32 if scores.device.type == "mps" else torch.float64
        sums = scores.softmax(-1, dtype=torch.float32).to(wide).cumsum(-1)
        # 24 random bits: a number so near to 1 that it rounds to the sum of all would fall behind the last token.
        numbers = [stream.integers(1 << 24) / (1 << 24) for stream in self._streams]
        locations = torch.tensor(numbers, dtype=wide, device=scores.device)[:, None] * sums[:, -1:]
        tokens = torch.searchsorted(sums, locations, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens, 0.0)
