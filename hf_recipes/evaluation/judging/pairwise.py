"""Two models' answers to the same prompts, judged in both orders."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import to_json
from hf_recipes.evaluation.compare import EvaluateArguments
from hf_recipes.evaluation.judging.arguments import JudgeArguments, JudgePrompt
from hf_recipes.evaluation.judging.judges import Judge, open_judge
from hf_recipes.evaluation.method import Method, Outcome
from hf_recipes.evaluation.methods.generation import GenerationMethod
from hf_recipes.evaluation.reports.tables import read_predictions
from hf_recipes.evaluation.resumable_output import Results
from hf_recipes.metrics.intervals import paired_bootstrap

VERDICTS = "verdicts.jsonl"
_VERDICT = re.compile(r"[\[［【]{1,2}\s*([ABCＡＢＣ])\s*[\]］】]{1,2}", re.I)
_LETTERS = str.maketrans("ＡＢＣ", "ABC")


class Pair(NamedTuple):
    """A prompt and the answers of two models."""

    evaluation: str
    location: str
    question: str
    answers: tuple[str, str]
    reference: str


def letter_of(reply: str) -> str | None:
    """The last verdict [[A]], [[B]] or [[C]] of a reply, or a reply of such a letter alone; None without any."""
    letters = _VERDICT.findall(reply) or re.findall(r"\A\s*([ABC])\W*\Z", reply)
    return letters[-1].upper().translate(_LETTERS) if letters else None


def verdict_of(letters: Sequence[str | None], models: Sequence[str]) -> str:
    """The model that both orders prefer, ``tie``, ``contradictory`` or ``unparsable``.

    Args:
        letters: of the order in which the first model is A, and of the one in which it is B.
    """
    if None in letters:
        return "unparsable"
    one, other = models
    preferred = [{"A": one, "B": other, "C": "tie"}[letters[0]], {"A": other, "B": one, "C": "tie"}[letters[1]]]
    return preferred[0] if preferred[0] == preferred[1] else "contradictory"


def summarise(verdicts: Sequence[str], models: Sequence[str]) -> dict[str, Any]:
    """Counts, and the first model's win rate with its 95 % interval and the p-value of no preference.

    A tie, equal answers and contradictory verdicts count as half a win; rows without a verdict do not count. The share
    of contradictory verdicts is of the rows that were judged.
    """
    counts, (one, other) = Counter(verdicts), models
    judged = len(verdicts) - counts["unparsable"] - counts["identical"]
    summary = {"rows": len(verdicts), "wins": counts[one], "losses": counts[other], "ties": counts["tie"]}
    summary |= {name: counts[name] for name in ("identical", "contradictory", "unparsable")}
    summary["contradictory_share"] = counts["contradictory"] / judged if judged else None
    values = [{one: 0.5, other: -0.5}.get(verdict, 0.0) for verdict in verdicts if verdict != "unparsable"]
    if not values:
        return summary | dict.fromkeys(("win_rate", "low", "high", "p_value"))
    change = paired_bootstrap(values)
    rates = {"win_rate": change.mean + 0.5, "low": change.low + 0.5, "high": change.high + 0.5}
    return summary | rates | {"p_value": change.p_value}


def described(name: str, summary: Mapping[str, Any], models: Sequence[str]) -> str:
    """One line for people."""
    counts = "{wins:,} wins, {ties:,} ties, {losses:,} losses, {contradictory:,} contradictory".format(**summary)
    rest = [f"{summary[key]:,} {key}" for key in ("identical", "unparsable") if summary[key]]
    counts = ", ".join([counts, *rest])
    if summary["win_rate"] is None:
        return f"{name}: no verdict could be read ({counts})"
    rate, low, high = (f"{summary[key] * 100:.1f}" for key in ("win_rate", "low", "high"))
    share = summary["contradictory_share"]
    share = "" if share is None else f"; the two orders contradict each other in {share * 100:.1f} % of the judged rows"
    return f"{name}: {models[0]} against {models[1]}: win rate {rate} % [{low}, {high}] ({counts}){share}"


def pair_judge(
    judging: JudgeArguments, args: EvaluateArguments, methods: Mapping[str, Method], **source: Any
) -> "PairJudge | None":
    """The judge of an evaluation, None without --judge; `source` is of loading its model."""
    if not judging.judge:
        return None
    if not args.compare:
        raise UserError("--judge compares the answers of two models: name the other one with --compare")
    return PairJudge(judging, open_judge(judging, args.batch_size, **source), methods, args)


class PairJudge:
    """Judges the generated answers of two models; verdicts are written as they come, and continued.

    Raises:
        UserError: none of `methods` generates answers.
    """

    def __init__(self, arguments: JudgeArguments, judge: Judge, methods: Mapping[str, Method], args: EvaluateArguments):
        self.judge, self.batch_size, self.overwrite = judge, args.batch_size, args.overwrite_output_dir
        self.files = [VERDICTS]  # names of those in the folder
        self.methods = {name: method for name, method in methods.items() if isinstance(method, GenerationMethod)}
        if not self.methods:
            raise UserError("--judge: none of --eval_files is evaluated by generated answers, which it compares")
        questions = [prompt.question for method in self.methods.values() for prompt in method.prompts]
        self.prompt = JudgePrompt(arguments, "pairwise", questions)

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.judge.settings, **self.prompt.settings}

    def __call__(self, folder: Path, outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, Any]]:
        """The summary of each evaluation; the first model's records get a `verdict`."""
        models = list(outcomes)
        pairs = list(self._pairs(list(outcomes.values())))
        self._judge(pairs, models, folder / VERDICTS)
        verdicts = {(row["evaluation"], row["location"]): row["verdict"] for row in read_predictions(folder / VERDICTS)}
        summaries = {}
        for name in self.methods:
            for record in outcomes[models[0]].records[name]:
                record["verdict"] = verdicts.get((name, record["location"]))
            of_evaluation = [verdict for (evaluation, _), verdict in verdicts.items() if evaluation == name]
            summaries[name] = summarise(of_evaluation, models)
            say(described(name, summaries[name], models))
        return summaries

    def _pairs(self, outcomes: Sequence[Outcome]) -> Iterator[Pair]:
        """The rows that both models could use."""
        for name, method in self.methods.items():
            others = {record["location"]: record["prediction"] for record in outcomes[1].records[name]}
            for prompt, record in zip(method.prompts, outcomes[0].records[name], strict=True):
                if prompt.location in others:
                    question = self.prompt.conversation(prompt.messages) if prompt.messages else prompt.question
                    answers = record["prediction"], others[prompt.location]
                    yield Pair(name, prompt.location, question, answers, prompt.reference or "")

    def _judge(self, pairs: Sequence[Pair], models: Sequence[str], path: Path) -> None:
        texts = hashlib.sha256(to_json(pairs).encode()).hexdigest()
        settings = {**self.settings, "models": models, "texts": texts}
        flags = ("--output_dir", "--overwrite_output_dir")
        with Results(path, settings, {}, self.overwrite, flags) as results:
            self.files = [VERDICTS, results.sidecar.name]
            left = pairs[results.count :]
            if results.count:
                say(f"{path}: {results.count:,} of {len(pairs):,} verdicts are there")
            different = sum(pair.answers[0] != pair.answers[1] for pair in left)
            if different:
                self._announce(different)
                self.judge.load()
            rows = iter(left)
            while batch := list(islice(rows, self.batch_size)):
                results.append(self._verdicts(batch, models))

    def _announce(self, rows: int) -> None:
        fields, count = ", ".join(self.prompt.fields), f"{rows:,} rows in both orders"
        where = self.judge.destination
        if where:
            say(f"--judge: {count} ({2 * rows:,} requests) are sent to {where}: {fields}, and nothing else")
        else:
            say(f"--judge: {count} are judged on this machine: {fields}")

    def _verdicts(self, pairs: Sequence[Pair], models: Sequence[str]) -> list[dict[str, Any]]:
        prompts = [
            self.prompt.fill(question=pair.question, answer_a=first, answer_b=second, reference=pair.reference)
            for pair in pairs
            if pair.answers[0] != pair.answers[1]
            for first, second in (pair.answers, pair.answers[::-1])
        ]
        replies = iter(self.judge.replies(prompts) if prompts else ())
        rows = []
        for pair in pairs:
            row: dict[str, Any] = {"evaluation": pair.evaluation, "location": pair.location}
            if pair.answers[0] == pair.answers[1]:
                rows.append({**row, "verdict": "identical", "replies": []})
            else:
                both = [next(replies), next(replies)]
                verdict = verdict_of(list(map(letter_of, both)), models)
                rows.append({**row, "verdict": verdict, "replies": both})
        return rows
