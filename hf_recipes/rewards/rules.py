"""Rules: a number for an answer, from 0 to 1 unless documented otherwise. Each function makes one from its setting."""

import re
from collections.abc import Callable, Sequence

from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.metrics.text import exact_matches, rouge_pairs
from hf_recipes.rewards.interface import Reward


def _of_answer(rule: Callable[[str], float]) -> Reward:
    return lambda prompts, answers, thoughts: [rule(answer) for answer in answers]


def _of_reference(score: Callable[[list[str], list[str]], list[float]]) -> Reward:
    """A score of answers against references; None where there is no reference."""

    def reward(prompts: Sequence[Prompt], answers: Sequence[str], thoughts: Sequence[str]) -> list[float | None]:
        rows = [index for index, prompt in enumerate(prompts) if prompt.reference is not None]
        texts = ([answers[index] for index in rows], [prompts[index].reference for index in rows])
        values = dict(zip(rows, score(*texts), strict=True))
        return [values.get(index) for index in range(len(prompts))]

    return reward


def choice(setting: str) -> Reward:
    return _of_reference(lambda answers, references: list(map(float, exact_matches(answers, references))))


def rouge(setting: str) -> Reward:
    return _of_reference(lambda answers, references: [pair["rougeL"] for pair in rouge_pairs(answers, references)])


def length(setting: str) -> Reward:
    bounds = re.fullmatch(r"(\d+)-(\d+)", setting)
    if not bounds or not 0 < int(bounds[1]) <= int(bounds[2]):
        raise ValueError("for instance length:20-200")
    least, most = int(bounds[1]), int(bounds[2])

    def rule(answer: str) -> float:
        size = len(answer.strip())
        return size / least if size < least else max(0.0, 1 - (size - most) / most) if size > most else 1.0

    return _of_answer(rule)


def full_match(setting: str) -> Reward:
    if not setting:
        raise ValueError("for instance format:答案：.+")
    if "think>" in setting:
        raise ValueError("answers are without thoughts; a function, file.py:name, gets them as reasoning_content")
    pattern = re.compile(setting, re.DOTALL)
    return _of_answer(lambda answer: float(bool(pattern.fullmatch(answer))))


def repetition(setting: str) -> Reward:
    """Minus the share of n-grams of characters that occurred before: -1 to 0."""
    size = int(setting or 4)
    if size < 1:
        raise ValueError("at least 1")

    def rule(answer: str) -> float:
        text = "".join(answer.split())
        grams = [text[start : start + size] for start in range(len(text) - size + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

    return _of_answer(rule)


def chinese(setting: str) -> Reward:
    """The share of letters that are Chinese characters."""
    from hf_recipes.corpus.cleaning import CHINESE

    def rule(answer: str) -> float:
        letters = sum(character.isalpha() for character in answer)
        return len(CHINESE.findall(answer)) / letters if letters else 0.0

    return _of_answer(rule)


RULES: dict[str, Callable[[str], Reward]] = {
    "choice": choice,
    "rouge": rouge,
    "length": length,
    "format": full_match,
    "repetition": repetition,
    "chinese": chinese,
}
NEEDS_REFERENCE = ("choice", "rouge")
SETTINGS = {  # of the rules that take one
    "length": "expected the least and the most characters",
    "format": "expected a regular expression that matches the whole answer",
    "repetition": "expected the length of the n-grams, in characters",
}
