"""A finished model on files: metrics with intervals, beside another model's on the same rows, and what is written."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import write_json, write_jsonl, writing
from hf_recipes.core.folders import OutputFolder
from hf_recipes.core.settings import PositiveInt, Share, check_limits, setting
from hf_recipes.evaluation.method import Method, Outcome, run_method, versions
from hf_recipes.metrics.intervals import Paired, paired_bootstrap
from hf_recipes.models.inference.batch_options import Compute
from hf_recipes.models.inference.generate import not_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_recipes.evaluation.registry import EvaluationArguments
    from hf_recipes.models.arguments import ModelArguments
    from hf_recipes.models.inference.decoding import Decoding

METRICS, REPORT = "metrics.json", "report.html"


@dataclass
class EvaluateArguments:
    """Where the results go, and what they are compared with."""

    output_dir: str = field(metadata={"help": "Folder of metrics.json, report.html, pictures and predictions."})
    compare: str | None = field(
        default=None, metadata={"help": "base: the model without its adapter; or another model."}
    )
    batch_size: PositiveInt = setting("Sequences in a forward pass.", 8)
    max_drop_ratio: Share = setting("Stop where more rows cannot be used.", 0.01)
    chat_template: str | None = field(default=None, metadata={"help": "A bundled template or a jinja file."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write over an earlier evaluation's files."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are cached."})

    def __post_init__(self):
        check_limits(self)
        path = Path(self.output_dir)
        if path.exists() and not path.is_dir():
            raise ValueError(f"--output_dir {path}: this is a file")


def open_folder(args: EvaluateArguments) -> OutputFolder:
    """The folder of the results.

    Raises:
        UserError: it is a run's, or has results that are not to be written over.
    """
    folder = OutputFolder(args.output_dir, "evaluation")
    if folder.record and not folder.is_mine:
        raise UserError(f"--output_dir {folder.path}: the folder of a training run; name another, or one in it")
    check_results(folder, (), ())
    if METRICS in folder.own() and not args.overwrite_output_dir:
        raise UserError(f"--output_dir {folder.path}: has results; name another, or add --overwrite_output_dir")
    return folder


def check_results(folder: OutputFolder, evaluations: Iterable[str], models: Iterable[str]) -> list[str]:
    """Patterns of the files that are going to be written.

    Args:
        evaluations: their names.
        models: what the models are called, whose records they are.

    Raises:
        UserError: such a file is there, and no evaluation made it; or a link is where one did.
    """
    names = [f"{name}.png" for name in evaluations] + [REPORT, METRICS]
    names += [f"{name}_{who}.{ending}" for name in evaluations for who in models for ending in ("jsonl", "png")]
    claims = list(map(re.escape, names))
    if others := folder.others(claims):
        raise UserError(
            f"--output_dir {folder.path}: no evaluation recorded {others[0]} as its own, and this one would write "
            "there; name another folder"
        )
    folder.check_links()
    return claims


def evaluate(model: "PreTrainedModel", methods: Mapping[str, Method], batch_size: int, what: str) -> Outcome:
    """Every method on the model; what it is doing is printed.

    Raises:
        UserError: what the model gives for some row is not a number.
    """
    found = Outcome({}, {})
    for name, method in methods.items():
        say(f"{what}: {name}")
        found.records[name], found.metrics[name] = run_method(method, model, Compute(batch_size))
        for record in found.records[name]:
            numbers = [value for value in record.values() if isinstance(value, float)]
            if not all(map(math.isfinite, numbers)) or not record.get("is_finite", True):
                raise not_numbers(record["location"])
    return found


def compare(methods: Mapping[str, Method], one: Outcome, other: Outcome) -> dict[str, Paired]:
    """`one` less `other` for each metric that single records have, with 95 % intervals over the rows that both have
    it for."""
    found = {}
    for name, method in methods.items():
        locations = [[record["location"] for record in outcome.records[name]] for outcome in (one, other)]
        if locations[0] != locations[1]:
            say(f"{name}: the two models could not use the same rows, so there are no intervals")
            continue
        ours, theirs = method.values(one.records[name]), method.values(other.records[name])
        for key in dict.fromkeys([*ours, *theirs]):
            pairs = list(zip(*(own.get(key, [None] * len(locations[0])) for own in (ours, theirs)), strict=True))
            changes = [a - b for a, b in pairs if a is not None and b is not None]
            if len(changes) < len(pairs):
                say(f"{name} {key}: {len(changes):,} of {len(pairs):,} rows have a value for both models")
            if changes:
                found[f"{name}_{key}"] = paired_bootstrap(changes)
    return found


def settings_of(
    model_args: "ModelArguments",
    args: EvaluateArguments,
    evaluation: "EvaluationArguments",
    decoding: "Decoding",
    template: str | None,
) -> dict[str, Any]:
    """What has to be the same for the same numbers: versions, model, template, files and decoding."""
    from hf_recipes.data.files.sources import find_sources

    sources = {
        name: {s.path: s.digest for s in find_sources([p], "test")} for name, p in evaluation.named_files().items()
    }
    return {
        "versions": versions(),
        "model": {key: value for key, value in asdict(model_args).items() if key not in ("use_lora", "lora_config")},
        "compare": args.compare,
        "batch_size": args.batch_size,
        "chat_template": template,
        "eval_methods": evaluation.eval_methods,
        "eval_files": sources,
        "few_shot": few_shot_of(evaluation.few_shot_file, evaluation.few_shot),
        "nll_prefix_token": evaluation.nll_prefix_token,
        "decoding": asdict(decoding),
    }


def few_shot_of(path: str | None, count: int) -> dict[str, Any] | None:
    """The file of examples by its name and digest, and how many of them are shown."""
    if path is None:
        return None
    return {"count": count, "file": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def write_results(
    folder: OutputFolder,
    settings: Mapping[str, Any],
    methods: Mapping[str, Method],
    outcomes: Mapping[str, Outcome],
    changes: Mapping[str, Paired],
) -> None:
    """metrics.json (the last, so that it stands for all), report.html, and a jsonl of records for each evaluation.

    Args:
        folder: the results of a former evaluation in it are deleted.
        outcomes: by name; the first is the model's, the second that which it is compared with.

    Raises:
        UserError: the folder cannot be written to.
    """
    from hf_recipes.evaluation.reports.html import write_report

    claims, path = check_results(folder, methods, outcomes), folder.path
    with writing(f"--output_dir {path}"):
        folder.clear()
        folder.claim(claims)
        for who, outcome in outcomes.items():
            for name, records in outcome.records.items():
                write_jsonl(path / f"{name}_{who}.jsonl", records)
        drawn = {name: method.draw(path, name, outcomes) for name, method in methods.items()}
        write_report(path / REPORT, settings, methods, outcomes, changes, drawn)
        results = {who: outcome.metrics for who, outcome in outcomes.items()}
        results["change"] = {name: change._asdict() for name, change in changes.items()}
        write_json(path / METRICS, {**results, "settings": settings})
        folder.settle()
