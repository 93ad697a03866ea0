"""What every reward is: rules, functions of the user's own and a trained reward model alike."""

from collections.abc import Sequence
from typing import Protocol

from hf_recipes.data.chat.prompts import Prompt


class Reward(Protocol):
    """What answers are worth: one number for each, None where the reward says nothing of an answer."""

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | None]: ...
