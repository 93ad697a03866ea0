"""The settings --rewards, --reward_model and --reward_base."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.arguments.settings import setting
from hf_recipes.rewards.rules import RULES, SETTINGS

MODEL = "model"


@dataclass
class RewardArguments:
    """The rewards of answers."""

    rewards: list[str] | None = setting(
        "NAME, NAME:SETTING, NAME=WEIGHT or NAME=WEIGHT:SETTING, each added to the sum: choice, rouge, length:MIN-MAX, "
        "format:REGEX, repetition, chinese, model, or file.py:function."
    )
    reward_model: str | None = setting("A model or adapter of scripts/reward.py, whose score is the reward `model`.")
    reward_base: str | None = setting("The reward adapter's base, where its folder is another one than in training.")

    def __post_init__(self):
        specs = [read_spec(text) for text in self.rewards or ()]
        for spec in specs:
            if [other.name for other in specs].count(spec.name) > 1:
                raise ValueError(f"--rewards {spec.name}: given twice")
        if any(spec.name == MODEL for spec in specs) and not self.reward_model:
            raise ValueError("--rewards model: which one? Name it with --reward_model")
        if self.reward_base and not self.reward_model:
            raise ValueError("--reward_base has no effect without --reward_model")

    @property
    def specs(self) -> "list[Spec]":
        specs = [read_spec(text) for text in self.rewards or ()]
        if self.reward_model and not any(spec.name == MODEL for spec in specs):
            specs.insert(0, Spec(MODEL, MODEL))
        return specs


@dataclass(frozen=True)
class Spec:
    """One reward of the sum: `name` as it is logged, `kind` and `setting` as they were given."""

    name: str
    kind: str
    setting: str = ""
    weight: float = 1.0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_spec(text: str) -> Spec:
    """``NAME[=WEIGHT][:SETTING]`` or ``NAME[:SETTING][=WEIGHT]`` as a `Spec`; ValueError for one that is wrong.

    A setting that ends with ``=NUMBER`` itself needs its weight: ``format:x=5=1``, or ``format=1:x=5``.
    """
    head, _, value = text.partition(":")
    kind, sign, last = head.partition("=")
    if not sign or head.endswith(".py"):
        body, sign, last = text.rpartition("=")
        if _number(last) is None:
            body, sign = text, ""
        kind, _, value = (body or text).partition(":")
        if kind == "format" and sign and _number(value.rpartition("=")[2]) is None:
            raise ValueError(
                f"--rewards {text}: is {last} the weight, or the end of the expression? Write {kind}={last}:{value}, "
                f"or {kind}=1:{value}={last}"
            )
    weight = _number(last) if sign else 1.0
    if weight is None or not math.isfinite(weight) or weight == 0:
        raise ValueError(f"--rewards {text}: expected a weight other than 0")
    if kind.endswith(".py"):
        return Spec(value or Path(kind).stem, kind, value or "reward", weight)
    if kind != MODEL and kind not in RULES:
        known = [*RULES, MODEL, "file.py:function"]
        raise ValueError(f"--rewards {text}: expected one of {', '.join(known)}{nearest(kind, known)}")
    if kind not in SETTINGS and value:
        raise ValueError(f"--rewards {text}: {kind} takes no setting")
    if kind in SETTINGS:
        try:
            RULES[kind](value)
        except (ValueError, re.error) as error:
            raise ValueError(f"--rewards {text}: {SETTINGS[kind]} ({error})") from None
    return Spec(kind, kind, value, weight)
