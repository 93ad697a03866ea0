"""What an answer is worth: a trained reward model, rules, functions of the user's own, or a weighted sum of them."""

import importlib.util
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.settings import nearest
from hf_recipes.data.chat.prompts import Prompt

# One number for each answer; None where a rule says nothing of it.
Values = list[float | None]
Function = Callable[[Sequence[Prompt], Sequence[str]], Values]
MODEL = "model"
NEEDS_REFERENCE = ("choice", "rouge")


@dataclass
class RewardArguments:
    """What answers are worth."""

    rewards: list[str] | None = field(
        default=None,
        metadata={
            "help": "NAME, NAME:SETTING or NAME=WEIGHT, each added to the sum: choice, rouge, length:MIN-MAX, "
            "format:REGEX, repetition, chinese, model, or file.py:function."
        },
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "A model or adapter of scripts/reward.py, whose score is the reward `model`."}
    )
    reward_base: str | None = field(
        default=None, metadata={"help": "The reward adapter's base, where it is no longer where it was trained."}
    )

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
        found = [read_spec(text) for text in self.rewards or ()]
        named = any(spec.name == MODEL for spec in found)
        return found if named or not self.reward_model else [Spec(MODEL, MODEL), *found]


@dataclass(frozen=True)
class Spec:
    """One part of the sum: `name` as it is logged, `kind` and `setting` as they were given."""

    name: str
    kind: str
    setting: str = ""
    weight: float = 1.0


def read_spec(text: str) -> Spec:
    """``NAME[:SETTING][=WEIGHT]`` as a `Spec`.

    Raises:
        ValueError: an unknown name, a setting that does not fit it, or a weight that is no number or 0.
    """
    body, sign, last = text.rpartition("=")
    try:
        weight = float(last) if sign else 1.0
    except ValueError:
        body, weight = text, 1.0
    body = body if sign and body else text
    if not math.isfinite(weight) or weight == 0:
        raise ValueError(f"--rewards {text}: expected a weight other than 0")
    kind, _, setting = body.partition(":")
    if kind.endswith(".py"):
        return Spec(setting or Path(kind).stem, kind, setting or "reward", weight)
    if kind != MODEL and kind not in RULES:
        known = [*RULES, MODEL, "file.py:function"]
        raise ValueError(f"--rewards {text}: expected one of {', '.join(known)}{nearest(kind, known)}")
    if kind == MODEL or not RULES[kind].takes:
        if setting:
            raise ValueError(f"--rewards {text}: {kind} takes no setting")
    else:
        try:
            RULES[kind].make(setting)
        except (ValueError, re.error) as error:
            raise ValueError(f"--rewards {text}: {RULES[kind].takes} ({error})") from None
    return Spec(kind, kind, setting, weight)


# Rules: a number for one answer, from 0 to 1 where nothing else is said


@dataclass(frozen=True)
class Rule:
    """`make(setting)` gives the function of one prompt and answer; `takes` says what the setting is."""

    make: Callable[[str], Callable[[Prompt, str], float | None]]
    takes: str = ""


def _choice(setting: str):
    from hf_recipes.metrics.text import exact_matches, without_thoughts

    def rule(prompt: Prompt, answer: str) -> float | None:
        if prompt.reference is None:
            return None
        return float(exact_matches([without_thoughts(answer)], [without_thoughts(prompt.reference)])[0])

    return rule


def _rouge(setting: str):
    from hf_recipes.metrics.text import rouge_pairs, without_thoughts

    def rule(prompt: Prompt, answer: str) -> float | None:
        if prompt.reference is None:
            return None
        return rouge_pairs([without_thoughts(answer)], [without_thoughts(prompt.reference)])[0]["rougeL"]

    return rule


def _length(setting: str):
    found = re.fullmatch(r"(\d+)-(\d+)", setting)
    if not found or not 0 < int(found[1]) <= int(found[2]):
        raise ValueError("for instance length:20-200")
    least, most = int(found[1]), int(found[2])

    def rule(prompt: Prompt, answer: str) -> float:
        size = len(answer.strip())
        return size / least if size < least else max(0.0, 1 - (size - most) / most) if size > most else 1.0

    return rule


def _format(setting: str):
    if not setting:
        raise ValueError("for instance format:答案：.+")
    pattern = re.compile(setting, re.DOTALL)
    return lambda prompt, answer: float(bool(pattern.fullmatch(answer)))


def _repetition(setting: str):
    size = int(setting or 4)
    if size < 1:
        raise ValueError("at least 1")

    def rule(prompt: Prompt, answer: str) -> float:
        text = "".join(answer.split())
        grams = [text[start : start + size] for start in range(len(text) - size + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

    return rule


def _chinese(setting: str):
    from hf_recipes.corpus.cleaning import CHINESE

    def rule(prompt: Prompt, answer: str) -> float:
        letters = sum(character.isalpha() for character in answer)
        return len(CHINESE.findall(answer)) / letters if letters else 0.0

    return rule


RULES = {
    "choice": Rule(_choice),
    "rouge": Rule(_rouge),
    "length": Rule(_length, "expected the least and the most characters"),
    "format": Rule(_format, "expected a regular expression that the whole answer fits"),
    "repetition": Rule(_repetition, "expected the length of the pieces that repeat, in characters"),
    "chinese": Rule(_chinese),
}


class Rewards:
    """The rewards of `arguments`; of a reward model, the weights are read when the first answer is scored.

    Raises:
        UserError: a file that cannot be run, or as `ScoringModel`.
    """

    def __init__(self, arguments: RewardArguments, trust_remote_code: bool = False, cache_dir: str | None = None):
        self.specs = arguments.specs
        self._functions: dict[str, Function] = {}
        self._columns: set[str] = set()
        for spec in self.specs:
            if spec.kind in RULES:
                self._functions[spec.name] = _over(RULES[spec.kind].make(spec.setting))
            elif spec.kind != MODEL:
                self._functions[spec.name] = _user_function(spec, self._columns)
            else:
                from hf_recipes.rewards.reward_model import ScoringModel

                paths = arguments.reward_model, arguments.reward_base
                self._functions[MODEL] = ScoringModel(*paths, trust_remote_code, cache_dir).score

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Take note of the columns of `prompts`, and say which of them a reward has nothing to compare with.

        Raises:
            UserError: it has nothing for any of them.
        """
        self._columns.update(*(prompt.row for prompt in prompts if prompt.row))
        for kind in sorted({spec.kind for spec in self.specs} & {*NEEDS_REFERENCE}):
            _check_references(kind, prompts)

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    @property
    def weights(self) -> list[float]:
        return [spec.weight for spec in self.specs]

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Values]:
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

    def _values(self, spec: Spec, prompts: Sequence[Prompt], answers: Sequence[str]) -> Values:
        function = self._functions[spec.name]
        try:
            given = function(prompts, answers)
        except UserError:
            raise
        except Exception as failure:
            for prompt, answer in zip(prompts, answers, strict=True):
                try:
                    function([prompt], [answer])
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
    return UserError(f"--rewards {spec.name}: failed on {prompt.place} ({why}); the answer was {shown!r}")


def _over(rule: Callable[[Prompt, str], float | None]) -> Function:
    return lambda prompts, answers: [rule(*pair) for pair in zip(prompts, answers, strict=True)]


def _check_references(kind: str, prompts: Sequence[Prompt]) -> None:
    lacking = [prompt for prompt in prompts if prompt.reference is None]
    if lacking and len(lacking) == len(prompts):
        raise UserError(f"--rewards {kind}: {lacking[0].place} has no answer to compare with, nor has any other row")
    if lacking:
        say(f"{kind} says nothing of {len(lacking):,} rows without an answer to compare with ({lacking[0].place} …)")


def _user_function(spec: Spec, columns: Collection[str]) -> Function:
    """The function of a python file, called as TRL calls reward functions.

    It gets, one of each for each answer: `prompts` (lists of messages, or texts), `completions` (texts), `reference`
    and `place`, and all other `columns` of the rows (None where a row does not have it).
    """
    path = Path(spec.kind)
    if not path.is_file():
        raise UserError(f"--rewards {spec.kind}: no such file")
    module_spec = importlib.util.spec_from_file_location(f"rewards_of_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        line = _line_in(error, path)
        raise UserError(f"--rewards {path}{line}: {type(error).__name__}: {error}") from error
    function = getattr(module, spec.setting, None)
    if not callable(function):
        raise UserError(f"--rewards {spec.kind}: no function {spec.setting} in it; name one as {spec.kind}:name")

    def call(prompts: Sequence[Prompt], answers: Sequence[str]) -> Values:
        given = {name: [(prompt.row or {}).get(name) for prompt in prompts] for name in sorted(columns)}
        given["prompts"] = [prompt.messages if prompt.is_chat else prompt.question for prompt in prompts]
        given["completions"] = list(answers)
        given |= {"reference": [p.reference for p in prompts], "place": [p.place for p in prompts]}
        return function(**given)

    return call


def _line_in(error: Exception, path: Path) -> str:
    """``:line`` of `path` where `error` came from."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line
