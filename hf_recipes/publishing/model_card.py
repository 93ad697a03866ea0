"""The model card: what a model is, how it is loaded, and how it came about, in English and Chinese."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_recipes.core.arguments.settings import DEFAULTS
from hf_recipes.evaluation.reports import tables as report
from hf_recipes.publishing.redact import public_ledger, public_name, public_settings
from hf_recipes.publishing.usage_code import TEMPLATES, Does, Usage


@dataclass(frozen=True)
class CardWords:
    """What a stage's models are tagged with, what their rows are called in English and Chinese, and what they do."""

    tag: str = "sft"
    rows: tuple[str, str] = ("rows", "条数据")
    does: Does = "answers"


@dataclass(frozen=True)
class Training:
    """What a card says of a training.

    Args:
        settings: as the parser has them.
        names: `hub_names`.
        ledgers: `Ledger.to_dict` by data set.
        log_history: the trainer's; the card has the last evaluation, and the one before training if there was one.
        steps: of the weights.
        best: `step`, `of` how many, and the `metric` whose `value` was the best, where these are not the last weights.
    """

    settings: Mapping[str, Any]
    names: Mapping[str, str]
    ledgers: Mapping[str, Mapping]
    log_history: Sequence[Mapping]
    steps: int
    words: CardWords
    best: Mapping[str, Any] | None = None


def model_card(
    folder: str | os.PathLike,
    training: Training | None = None,
    merge: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> str:
    """README.md of a run's model, of one of its checkpoints (with `training`) or of a merged model (with `merge`, its
    `merge.json`), with nothing in it that may not be published.

    Args:
        folder: what the weights are in. A run's `run_config.yaml` is in it or, for a checkpoint, in the folder above.
        title: by default the name of the folder, of a checkpoint that of the run.
    """
    folder, values = Path(folder), {}
    home = folder
    if training:
        home = folder if (folder / "run_config.yaml").is_file() else folder.parent
        base = training.settings["model_name_or_path"]
        base = base and public_name(base, training.names)
        usage = Usage.of(folder, training.words.does, base, training.settings)
        relation, tags = "adapter" if usage.base else "finetune", ["lora"] if usage.base else []
        tags = [training.settings.get("algorithm", training.words.tag), *tags]
        values["training"] = _training_values(training, home / "run_config.yaml")
    else:
        base, usage = merge["base"]["name"], Usage.of(folder, _merged_does(folder), None, {})
        relation, tags = "merge" if len(merge["adapters"]) > 1 else "finetune", ["merge", "lora"]
        values["merge"] = _merge_values(merge)
    is_on_hub = bool(base and "/" in base)  # the hubs take nothing but an id in the header
    header = ModelCardData(
        library_name="peft" if usage.base else "transformers",
        language=["zh", "en"],
        base_model=base if is_on_hub else None,
        base_model_relation=relation if is_on_hub else None,
        pipeline_tag="text-classification" if usage.does == "scores" else "text-generation",
        tags=["hf_recipes", *tags],
    )
    values |= {"header": header.to_yaml(), "title": title or home.resolve().name, "base": base, "usage": usage}
    return TEMPLATES.get_template("README.md.jinja").render(values).rstrip() + "\n"


def _training_values(training: Training, config: Path) -> dict[str, Any]:
    ledgers, log, best = public_ledger(training.ledgers, training.names), training.log_history, training.best
    by_step = {step: metrics for step, metrics in report.evaluations(log).items() if step <= training.steps}
    evaluation = None
    if training.steps and by_step:
        last = max(by_step)
        rows = ledgers.get("validation", {}).get("total", {}).get("kept")
        table = report.comparison(by_step.get(0) if last else None, by_step[last])
        evaluation = {"step": last, "rows": rows, "table": table}
    if best:
        value = report.as_text(best["metric"], best["value"])
        best = {**best, "metric": report.title(best["metric"]), "value": value}
    losses = [entry["loss"] for entry in log if entry.get("loss") is not None]
    settings = public_settings(config.read_text(encoding="utf-8-sig"), training.names)
    changed, _, defaults = settings.partition(DEFAULTS)
    shape = training.settings.get("config_name")
    return {
        "steps": training.steps,
        "rows": training.words.rows,
        "shape": shape and public_name(shape, training.names),
        "best": best,
        "ledgers": ledgers,
        "counted": {column for ledger in ledgers.values() for column, count in ledger["total"].items() if count},
        "has_reasons": any(ledger["reasons"] for ledger in ledgers.values()),
        "evaluation": evaluation,
        "rewards": [entry for entry in log if entry.get("reward") is not None],  # the loss is then about 0 throughout
        "mean_loss": report.mean_loss(log),
        "last_loss": losses[-1] if losses else None,
        "changed": changed.strip(),
        "defaults": defaults.strip(),
    }


def _merge_values(record: Mapping[str, Any]) -> dict[str, Any]:
    parity = record.get("parity") or {}
    return {
        "adapters": [f"`{one['name']}`" + f" × {one['weight']:g}" * (one["weight"] != 1) for one in record["adapters"]],
        "quantized_in_training": record.get("quantized_in_training"),
        "dtype": record.get("dtype"),
        "logits": f"{parity['logits']:.2g}" if "logits" in parity else None,
        "greedy_tokens": parity.get("greedy_tokens") or {},
    }


def _merged_does(folder: Path) -> Does:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    if any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        return "scores"
    tokenizer = folder / "tokenizer_config.json"
    has_template = (folder / "chat_template.jinja").is_file() or (
        tokenizer.is_file() and "chat_template" in json.loads(tokenizer.read_text(encoding="utf-8-sig"))
    )
    return "answers" if has_template else "continues"


def with_header(card: str, **values: str | None) -> str:
    """`card` with `values` in its YAML header, but for those that are None."""
    values = {key: value for key, value in values.items() if value is not None}
    if not values:
        return card
    parsed = ModelCard(card if card.startswith("---\n") else f"---\n\n---\n{card}")
    for key, value in values.items():
        parsed.data[key] = value
    return str(parsed)
