"""The interface of rewards: rules, user functions and reward models."""

from collections.abc import Sequence
from typing import Protocol

from hf_recipes.data.chat.prompts import Prompt


class Reward(Protocol):
    """One number for each answer; None where the reward does not apply to an answer.

    Answers are without thoughts, which are `thoughts`: an empty text where an answer has none.
    """

    def __call__(
        self, prompts: Sequence[Prompt], answers: Sequence[str], thoughts: Sequence[str]
    ) -> list[float | None]: ...
