"""The rewards of a run, and their weighted sum."""

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.rewards.interface import Reward
from hf_recipes.rewards.rules import NEEDS_REFERENCE, RULES
from hf_recipes.rewards.settings import MODEL, RewardArguments, Spec
from hf_recipes.rewards.user_function import user_function


class Rewards:
    """The rewards of `arguments`. A reward model's weights are read when the first answer is scored."""

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
        """Collect the columns of `prompts` for user functions, and report prompts without a reference answer that a
        reward needs; refuse them where none has one."""
        self._columns.update(*(prompt.row for prompt in prompts if prompt.row))
        for kind in sorted({spec.kind for spec in self.specs} & {*NEEDS_REFERENCE}):
            lacking = [prompt.location for prompt in prompts if prompt.reference is None]
            if lacking and len(lacking) == len(prompts):
                raise UserError(f"--rewards {kind}: {lacking[0]} has no answer to compare with, nor has any other row")
            if lacking:
                say(f"{kind} is not computed for {len(lacking):,} rows without a reference answer ({lacking[0]} …)")

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    @property
    def weights(self) -> list[float]:
        return [spec.weight for spec in self.specs]

    def __call__(
        self, prompts: Sequence[Prompt], answers: Sequence[str], thoughts: Sequence[str] | None = None
    ) -> list[list[float | None]]:
        """For each reward, in the order of `names`, one value for each answer; `thoughts` are those before it.

        A reward that raises, or returns anything but finite numbers (of Python, numpy or torch, or bools) and None, is
        a `UserError` that names the row.
        """
        thoughts = [""] * len(answers) if thoughts is None else thoughts
        return [self._values(spec, prompts, answers, thoughts) for spec in self.specs]

    def total(self, values: Sequence[float | None]) -> float | None:
        """The weighted sum of one answer's values, without those that are None; None where all are."""
        terms = [spec.weight * value for spec, value in zip(self.specs, values, strict=True) if value is not None]
        return math.fsum(terms) if terms else None

    def directions(self) -> dict[str, bool]:
        """`Method.directions` of `summarise_rewards`: smaller is better for a reward with a negative weight."""
        directions = {"reward": True} | {f"rewards/{spec.name}": spec.weight >= 0 for spec in self.specs}
        if MODEL in self.names:
            directions[f"rewards/{MODEL}_positive"] = directions[f"rewards/{MODEL}"]
        return directions

    def _values(
        self, spec: Spec, prompts: Sequence[Prompt], answers: Sequence[str], thoughts: Sequence[str]
    ) -> list[float | None]:
        reward = self._rewards[spec.name]
        try:
            given = reward(prompts, answers, thoughts)
        except UserError:
            raise
        except Exception as failure:
            for prompt, answer, thought in zip(prompts, answers, thoughts, strict=True):
                try:
                    reward([prompt], [answer], [thought])
                except Exception as error:
                    raise _failed(spec, prompt, answer, f"{type(error).__name__}: {error}") from error
            why = f"{type(failure).__name__}: {failure}"
            raise _failed(spec, prompts[0], answers[0], f"{why}, with {len(answers)} answers at once") from failure
        try:
            values = list(given)
        except TypeError:  # None, or a number
            values = None
        if values is None or isinstance(given, Mapping | Set):  # of which these would be the keys, in some order
            raise UserError(f"--rewards {spec.name}: {given!r} for {len(answers)} answers; give a list")
        if len(values) != len(answers):
            raise UserError(
                f"--rewards {spec.name}: {len(values)} values for {len(answers)} answers; give one for each"
            )
        numbers = [_number(value) for value in values]
        for prompt, answer, value, number in zip(prompts, answers, values, numbers, strict=True):
            if number is not None and not math.isfinite(number):
                raise _failed(spec, prompt, answer, f"it gave {value!r}, which is not a finite number")
        return numbers


def _number(value: Any) -> float | None:
    """A number of Python, numpy or torch (or an array or tensor of one element) as a float; NaN for anything else."""
    if value is None:
        return None
    try:
        value = value.item() if hasattr(value, "item") else value
        return math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def summarise_rewards(names: Sequence[str], records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the records: `reward` (the weighted sum) and ``rewards/NAME``; of a reward model also the share of
    scores above 0, ``rewards/model_positive``, which means something where its training centred the scores
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
    answer = answer if len(answer) <= 60 else answer[:60] + "…"
    return UserError(f"--rewards {spec.name}: failed on {prompt.location} ({why}); the answer was {answer!r}")
