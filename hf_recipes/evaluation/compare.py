"""A model evaluated on files and compared with another one on the same rows; the files of the results."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_recipes.core.arguments.limits import PositiveInt, Share, check_limits
from hf_recipes.core.arguments.settings import JSON_HELP, setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import write_json, write_jsonl, writing
from hf_recipes.core.folders import OutputFolder
from hf_recipes.core.language import Language, locale_language
from hf_recipes.data.chat.templates.dates import printed_date
from hf_recipes.data.files.sources import find_sources
from hf_recipes.evaluation.method import Method, Outcome, first_not_finite, run_method, versions
from hf_recipes.evaluation.methods.generation import GenerationMethod
from hf_recipes.evaluation.reports.page import write_page
from hf_recipes.evaluation.reports.report import report_values
from hf_recipes.evaluation.reports.results import evaluation_report
from hf_recipes.metrics.intervals import Paired, paired_bootstrap
from hf_recipes.models.inference.batch_options import BatchOptions
from hf_recipes.models.inference.generate import not_numbers
from hf_recipes.models.inference.vllm_model import AnswerArguments, check_vllm
from hf_recipes.models.templates.options import thinking_templates

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_recipes.evaluation.registry import EvaluationArguments
    from hf_recipes.evaluation.run_record import EvaluatedRows
    from hf_recipes.models.arguments import ModelArguments
    from hf_recipes.models.inference.decoding import Decoding

METRICS, REPORT = "metrics.json", "report.html"


@dataclass
class EvaluateArguments(AnswerArguments):
    """Where the results are written, and what they are compared with."""

    output_dir: str = field(metadata={"help": "Folder of metrics.json, report.html, pictures and predictions."})
    compare: str | None = setting("base: the model without its adapter; or another model.")
    compare_thinking: Literal["on", "off"] | None = setting(
        "Thinking of the base with --compare base, where its chat template can switch it; by default both ways, "
        "which takes twice the time, and the better one is compared."
    )
    json: bool = setting(JSON_HELP, False)
    batch_size: PositiveInt = setting("Sequences in a forward pass.", 8)
    max_drop_ratio: Share = setting("Stop where more rows cannot be used.", 0.01)
    language: Language | None = setting("Language of report.html and its pictures; by default the locale's.")
    overwrite_output_dir: bool = setting("Write over an earlier evaluation's files.", False)
    trust_remote_code: bool = setting("Run code that comes with the model.", False)
    cache_dir: str | None = setting("Where downloads are cached.")

    def __post_init__(self):
        super().__post_init__()
        check_limits(self)
        self.language = self.language or locale_language()
        if self.compare_thinking and self.compare != "base":
            raise ValueError(f"--compare_thinking {self.compare_thinking}: has an effect with --compare base alone")
        path = Path(self.output_dir)
        if path.exists() and not path.is_dir():
            raise ValueError(f"--output_dir {path}: this is a file")

    @property
    def source(self) -> dict[str, Any]:
        """Keywords of whatever reads a model."""
        return {"trust_remote_code": self.trust_remote_code, "cache_dir": self.cache_dir}


def open_folder(args: EvaluateArguments) -> OutputFolder:
    """The folder of the results, which is no run's, and has no results without --overwrite_output_dir."""
    folder = OutputFolder(args.output_dir, "evaluation")
    if folder.record and not folder.is_mine:
        raise UserError(f"--output_dir {folder.path}: the folder of a training run; name another, or one in it")
    check_results(folder, (), ())
    if METRICS in folder.recorded_files() and not args.overwrite_output_dir:
        raise UserError(f"--output_dir {folder.path}: has results; name another, or add --overwrite_output_dir")
    return folder


def check_engine(
    model_args: "ModelArguments",
    args: EvaluateArguments,
    methods: Mapping[str, Method],
    decoding: "Decoding",
    tokenizer: "PreTrainedTokenizerBase",
    config: "PretrainedConfig",
    is_reward: bool,
) -> None:
    """A UserError where the model cannot give in --engine what is asked for."""
    name = model_args.model_name_or_path
    if is_reward and args.compare == "base":
        raise UserError("--compare base: without its adapter the base has no head that scores; name another model")
    for method in methods.values():
        if is_reward and not method.scores_reward_models:
            raise UserError(f"{name}: a reward model, which gives no {method.name}")
        if args.engine == "vllm" and not answers(method):
            raise UserError(
                f"--engine vllm writes answers, and gives no {method.name}; choose --eval_methods, or omit the flag"
            )
    if args.engine == "vllm":
        check_vllm(model_args, tokenizer, config, decoding, args.vllm_args)


def check_results(folder: OutputFolder, evaluations: Iterable[str], models: Iterable[str]) -> list[str]:
    """Patterns of the files that are going to be written, for evaluations and models of these names.

    A file of such a name that no evaluation wrote is a UserError, and so is a link.
    """
    names = [f"{name}.png" for name in evaluations] + [REPORT, METRICS]
    names += [f"{name}_{model}.{ending}" for name in evaluations for model in models for ending in ("jsonl", "png")]
    claims = list(map(re.escape, names))
    if others := folder.others(claims):
        raise UserError(
            f"--output_dir {folder.path}: {others[0]} was not written by an evaluation, and this one would replace it; "
            "name another folder"
        )
    folder.check_links()
    return claims


def evaluate(model: "PreTrainedModel", methods: Mapping[str, Method], batch_size: int, what: str) -> Outcome:
    """Every method on the model, which is called `what` in messages; outputs that are not finite are a UserError."""
    outcome = Outcome({}, {})
    for name, method in methods.items():
        say(f"{what}: {name}")
        outcome.records[name], outcome.metrics[name] = run_method(method, model, BatchOptions(batch_size))
        if location := first_not_finite(outcome.records[name]):
            raise not_numbers(location)
    return outcome


def base_templates(
    args: EvaluateArguments, tokenizer: "PreTrainedTokenizerBase", methods: Mapping[str, Method]
) -> dict[str, str]:
    """The templates by which the base answers, by the setting of thinking; empty where there is nothing to choose."""
    if args.compare != "base" or not tokenizer.chat_template or not any(map(answers, methods.values())):
        return {}
    templates = thinking_templates(tokenizer)
    if args.compare_thinking and not templates:
        raise UserError(f"--compare_thinking {args.compare_thinking}: the chat template cannot switch")
    return {args.compare_thinking: templates[args.compare_thinking]} if args.compare_thinking else templates


def evaluate_base(
    model: "PreTrainedModel", methods: Mapping[str, Mapping[str, Method]], batch_size: int
) -> tuple[Outcome, dict[str, Any] | None]:
    """The better outcome of the base, and what was chosen; None where there was no choice.

    Args:
        methods: by the setting of thinking, which is empty where the template has no switch.
    """
    outcomes = {
        setting: evaluate(model, of_setting, batch_size, f"base, thinking {setting}" if setting else "base")
        for setting, of_setting in methods.items()
    }
    if not any(outcomes):
        return outcomes[""], None
    scores = {setting: main_score(methods[setting], outcome) for setting, outcome in outcomes.items()}
    best = max(scores, key=lambda setting: -math.inf if scores[setting] is None else scores[setting])
    listed = ", ".join(f"{name} {'–' if score is None else format(score, '.4f')}" for name, score in scores.items())
    say(f"base: compared with thinking {best} (main score of its answers, thinking {listed})")
    return outcomes[best], {"compared": best, "main_score": scores}


def main_score(methods: Mapping[str, Method], outcome: Outcome) -> float | None:
    """The mean of the generated answers' first metric that each row has, over the evaluations; None without any."""
    means = []
    for name, method in methods.items():
        values = next(iter(method.values(outcome.records[name]).values()), []) if answers(method) else []
        known = [value for value in values if value is not None]
        means += [math.fsum(known) / len(known)] if known else []
    return math.fsum(means) / len(means) if means else None


def answers(method: Method) -> bool:
    return isinstance(method, GenerationMethod)


def compare(methods: Mapping[str, Method], one: Outcome, other: Outcome) -> dict[str, Paired]:
    """`one` less `other` for each metric of `Method.values`, with 95 % intervals, over the rows with values of both."""
    changes = {}
    for name, method in methods.items():
        locations = [[record["location"] for record in outcome.records[name]] for outcome in (one, other)]
        if locations[0] != locations[1]:
            say(f"{name}: the two models could not use the same rows, so there are no intervals")
            continue
        values = [method.values(outcome.records[name]) for outcome in (one, other)]
        none = [None] * len(locations[0])
        for key in dict.fromkeys(chain(*values)):
            pairs = list(zip(*(of_model.get(key, none) for of_model in values), strict=True))
            differences = [a - b for a, b in pairs if a is not None and b is not None]
            if len(differences) < len(pairs):
                say(f"{name} {key}: {len(differences):,} of {len(pairs):,} rows have a value for both models")
            if differences:
                changes[f"{name}_{key}"] = paired_bootstrap(differences)
    return changes


def settings_of(
    model_args: "ModelArguments",
    args: EvaluateArguments,
    evaluation: "EvaluationArguments",
    rows: "EvaluatedRows",
    decoding: "Decoding",
    tokenizer: "PreTrainedTokenizerBase",
    judge: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that the figures depend on: versions, model, template, files and decoding."""
    sources = {
        name: {s.path: s.digest for s in find_sources([p], "test")} for name, p in evaluation.named_files().items()
    }
    return {
        "versions": versions(),
        "model": {key: value for key, value in asdict(model_args).items() if key not in ("use_lora", "lora_config")},
        "compare": args.compare,
        "compare_thinking": args.compare_thinking,
        "batch_size": args.batch_size,
        "engine": args.engine,
        **({"vllm_args": args.vllm_args} if args.vllm_args else {}),
        "chat_template": tokenizer.chat_template,
        "chat_template_date": printed_date(tokenizer),
        "eval_methods": evaluation.eval_methods,
        "eval_files": sources,
        "rows": asdict(rows),
        "few_shot": few_shot_settings(evaluation.few_shot_file, evaluation.few_shot),
        "nll_prefix_token": evaluation.nll_prefix_token,
        "decoding": asdict(decoding),
        "judge": judge,
    }


def few_shot_settings(path: str | None, count: int) -> dict[str, Any] | None:
    """The file of few-shot examples by its name and digest, and how many of them are used."""
    if path is None:
        return None
    return {"count": count, "file": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def write_results(
    folder: OutputFolder,
    settings: Mapping[str, Any],
    methods: Mapping[str, Method],
    outcomes: Mapping[str, Outcome],
    changes: Mapping[str, Paired],
    judged: Mapping[str, Mapping[str, Any]] | None = None,
    keep: Iterable[str] | None = None,
    language: Language = "en",
) -> dict[str, Any]:
    """Write report.html, a jsonl of records and pictures of each evaluation, and at last metrics.json.

    Returns what metrics.json has, with the report as plain values.

    Args:
        folder: the results of an earlier evaluation in it are deleted.
        outcomes: by the model's name; the first is the model, the second the one that it is compared with.
        judged: summaries of a judge's verdicts, by evaluation.
        keep: names of files that are there already.
    """
    keep = list(keep or ())
    claims, path = check_results(folder, methods, outcomes), folder.path
    with writing(f"--output_dir {path}"):
        folder.clear(keep)
        folder.claim([*claims, *map(re.escape, keep)])
        for model, outcome in outcomes.items():
            for name, records in outcome.records.items():
                write_jsonl(path / f"{name}_{model}.jsonl", records)
        pictures = {name: method.draw(path, name, outcomes, language) for name, method in methods.items()}
        report = evaluation_report(settings, methods, outcomes, changes, pictures, judged or {})
        write_page(report, path / REPORT, language)
        results = {model: outcome.metrics for model, outcome in outcomes.items()}
        results["change"] = {name: change._asdict() for name, change in changes.items()}
        results |= {"judge": judged} if judged else {}
        write_json(path / METRICS, {**results, "settings": settings})
        folder.settle()
    return {**results, "settings": settings, "report": report_values(report, language)}
