"""What an answer is worth: the weighted sum of the rewards that were asked for."""

import math
from collections.abc import Sequence
from typing import Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.rewards.interface import Reward
from hf_recipes.rewards.rules import NEEDS_REFERENCE, RULES
from hf_recipes.rewards.settings import MODEL, RewardArguments, Spec
from hf_recipes.rewards.user_function import user_function


class Rewards:
    """The rewards of `arguments`; of a reward model, the weights are read when the first answer is scored.

    Raises:
        UserError: a file that cannot be run, or as `ScoringModel`.
    """

    def __init__(self, arguments: RewardArguments, trust_remote_code: bool = False, cache_dir: str | None = None):
        self.specs = arguments.specs
        self._columns: set[str] = set()
        self._rewards: dict[str, Reward] = {}
        for spec in self.specs:
            if spec.kind in RULES:
                self._rewards[spec.name] = RULES[spec.kind](spec.setting)
            elif spec.kind != MODEL:
                self._rewards[spec.name] = user_function(spec.kind, spec.setting, self._columns)
            else:
                from hf_recipes.rewards.reward_model import ScoringModel

                paths = arguments.reward_model, arguments.reward_base
                self._rewards[MODEL] = ScoringModel(*paths, trust_remote_code, cache_dir)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Take note of the columns of `prompts`, and say which of them a reward has nothing to compare with.

        Raises:
            UserError: it has nothing for any of them.
        """
        self._columns.update(*(prompt.row for prompt in prompts if prompt.row))
        for kind in sorted({spec.kind for spec in self.specs} & {*NEEDS_REFERENCE}):
            lacking = [prompt.location for prompt in prompts if prompt.reference is None]
            if lacking and len(lacking) == len(prompts):
                raise UserError(f"--rewards {kind}: {lacking[0]} has no answer to compare with, nor has any other row")
            if lacking:
                say(f"{kind} says nothing of {len(lacking):,} rows without an answer to compare with ({lacking[0]} …)")

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    @property
    def weights(self) -> list[float]:
        return [spec.weight for spec in self.specs]

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[list[float | None]]:
        """For each reward, in the order of `names`, one value for each answer.

        Raises:
            UserError: a reward that raises, or that gives something other than a finite number (Python's, numpy's or
                torch's, or a bool) or None: the row is named.
        """
        return [self._values(spec, prompts, answers) for spec in self.specs]

    def total(self, values: Sequence[float | None]) -> float | None:
        """The weighted sum of one answer's values, without those that are None; None where all are."""
        parts = [spec.weight * value for spec, value in zip(self.specs, values, strict=True) if value is not None]
        return math.fsum(parts) if parts else None

    def directions(self) -> dict[str, bool]:
        """As `Method.directions`, of `summarise_rewards`: a reward with a negative weight is better the smaller."""
        found = {f"rewards/{spec.name}": spec.weight >= 0 for spec in self.specs}
        more = {f"rewards/{MODEL}_positive": found[f"rewards/{MODEL}"]} if MODEL in self.names else {}
        return {"reward": True, **found, **more}

    def _values(self, spec: Spec, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | None]:
        reward = self._rewards[spec.name]
        try:
            given = reward(prompts, answers)
        except UserError:
            raise
        except Exception as failure:
            for prompt, answer in zip(prompts, answers, strict=True):
                try:
                    reward([prompt], [answer])
                except Exception as error:
                    raise _failed(spec, prompt, answer, f"{type(error).__name__}: {error}") from error
            why = f"{type(failure).__name__}: {failure}"
            raise _failed(spec, prompts[0], answers[0], f"{why}, with {len(answers)} answers at once") from failure
        try:
            values = list(given)
        except TypeError:  # None, or a number
            raise UserError(f"--rewards {spec.name}: {given!r} for {len(answers)} answers; give a list") from None
        if len(values) != len(answers):
            raise UserError(
                f"--rewards {spec.name}: {len(values)} values for {len(answers)} answers; give one for each"
            )
        numbers = [_number(value) for value in values]
        for prompt, answer, value, number in zip(prompts, answers, values, numbers, strict=True):
            if number is not None and not math.isfinite(number):
                raise _failed(spec, prompt, answer, f"it gave {value!r}, which is no finite number")
        return numbers


def _number(value: Any) -> float | None:
    """A number of Python, numpy or torch (an array or tensor of one element, too) as a float; NaN for anything else."""
    if value is None:
        return None
    try:
        value = value.item() if hasattr(value, "item") else value
        return math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def summarise_rewards(names: Sequence[str], records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the records: `reward` (the weighted sum) and ``rewards/NAME``; of a reward model also the share of
    scores above 0, ``rewards/model_positive``, which tells something where its training centred them
    (--center_rewards_coefficient).
    """
    columns = {"reward": [record["reward"] for record in records]}
    columns |= {f"rewards/{name}": [record["rewards"][name] for record in records] for name in names}
    if MODEL in names:
        scores = columns[f"rewards/{MODEL}"]
        columns[f"rewards/{MODEL}_positive"] = [None if score is None else float(score > 0) for score in scores]
    known = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {name: math.fsum(values) / len(values) for name, values in known.items() if values}


def _failed(spec: Spec, prompt: Prompt, answer: str, why: str) -> UserError:
    shown = answer if len(answer) <= 60 else answer[:60] + "…"
    return UserError(f"--rewards {spec.name}: failed on {prompt.location} ({why}); the answer was {shown!r}")
