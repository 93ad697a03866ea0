"""The model card, and a run's files as others may see them: without rows, local paths or secrets."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from hf_recipes.evaluation import report
from hf_recipes.hub import source_of

# What concerns the machine rather than the model; a token is in no settings file to begin with.
_LEFT_OUT = {"cache_dir", "hub_token", "logging_dir", "output_dir"}
_PATHS = re.compile(r"(^|_)(files?|path|dir|config|config_name|tokenizer_name|deepspeed|chat_template|mixture)$")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_SPLITS = {"train_file": "train", "validation_file": "validation"}  # read where none is named
# What a reason quotes, as `repr` writes it. A quote that does not end takes the rest; a long number may be a row's.
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|['"].*)|\d{5,}""", re.DOTALL)
# A setting that no other stage has, and what the stage's models are tagged with; what it learns from.
_STAGES = {"center_rewards_coefficient": "reward-model", "f_divergence_type": "dpo", "desirable_weight": "kto"}
_ROWS = {"reward-model": "pairs", "dpo": "pairs", "kto": "rated answers", "grpo": "questions", "rloo": "questions"}
NAMES = ".public_names.json"  # in a run's folder


def hub_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """The values of `settings`, and sources of their data, that name something on a hub → the name to show.

    Only a run itself can tell an id from a path, because only there a path leads to something.
    """
    names = {}
    for key in ("model_name_or_path", "tokenizer_name", "peft_path", *_SPLITS):
        given = settings.get(key) or ()
        for value in (given,) if isinstance(given, str) else given:
            name, _, split = value.partition(":")
            if os.path.exists(value):
                _, name = source_of(value) or ("", "")
                if _HUB_ID.fullmatch(name) and key not in _SPLITS:
                    names[value] = name
            elif _HUB_ID.fullmatch(name):
                names[value] = value
                if key in _SPLITS:
                    source = f"{name}/{split or _SPLITS[key]}"  # as the ledger has it
                    names[source] = source
    return names


def public_name(value: str, names: Mapping[str, str]) -> str:
    """What `names` says, and of anything else the last part of its path."""
    return names.get(value) or PureWindowsPath(value).name  # knows both kinds of slash


def public_values(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A settings or configuration mapping with `public_name` in place of each path."""

    def shown(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return public_values(value, names)
        if isinstance(value, list):
            return [shown(key, item) for item in value]
        if not isinstance(value, str) or "\n" in value or "{" in value:  # a template's text is no path
            return value
        absolute = PureWindowsPath(value).anchor != "" or value.startswith("~")
        names_one = _PATHS.search(key) or key.endswith("name_or_path") or key == "best_model_checkpoint"
        return public_name(value, names) if names_one or absolute else value

    return {key: shown(key, value) for key, value in values.items() if key not in _LEFT_OUT}


def public_settings(text: str, names: Mapping[str, str]) -> str:
    """`run_config.yaml` as it may be published: its comments, then the settings that were given, then the defaults."""
    given, mark, defaults = text.partition("# Defaults\n")
    parts = []
    for part in (given, defaults):
        values = public_values(yaml.safe_load(part) or {}, names)
        parts.append(yaml.safe_dump(values, allow_unicode=True, sort_keys=False) if values else "")
    comments = "".join(line for line in given.splitlines(keepends=True) if line.startswith("#"))
    return f"{comments}\n{parts[0]}\n{mark}{parts[1]}"


def public_ledger(ledgers: Mapping[str, Mapping], names: Mapping[str, str]) -> dict[str, dict]:
    """`data_ledger.json` as it may be published: counts and reasons by file name, without places or quoted values."""
    public = {}
    for name, ledger in ledgers.items():
        sources: dict[str, Counter] = {}
        for source, counts in ledger["sources"].items():
            sources.setdefault(public_name(source, names), Counter()).update(counts)
        reasons: Counter = Counter()
        for entry in ledger["reasons"]:
            reason = _QUOTED.sub("…", entry["fate"])
            reason = ": ".join(reason.split(": ")[:2])  # a third part is another program's message
            reasons[public_name(entry["source"], names), reason] += entry["count"]
        public[name] = {
            "total": dict(ledger["total"]),
            "sources": {source: dict(counts) for source, counts in sources.items()},
            "reasons": [{"source": s, "fate": fate, "count": count} for (s, fate), count in reasons.items()],
        }
    return public


def _ledger_table(ledgers: Mapping[str, Mapping]) -> list[str]:
    columns = ["read", "kept", "truncated", "split", "repaired", "dropped"]
    columns = columns[:2] + [c for c in columns[2:] if any(ledger["total"].get(c) for ledger in ledgers.values())]
    lines = [f"| rows | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, ledger in ledgers.items():
        for label, counts in ((f"**{name}**", ledger["total"]), *ledger["sources"].items()):
            lines.append(f"| {label} | {' | '.join(f'{counts.get(c, 0):,}' for c in columns)} |")
    reasons = [f"- {name}: {r['count']:,} {r['fate']}" for name, part in ledgers.items() for r in part["reasons"]]
    return [*lines, "", *reasons, ""] if reasons else [*lines, ""]


def _course(log_history: Sequence[Mapping]) -> list[str]:
    """How the training went: where rewards are learned from, by these; the loss is then about 0 throughout."""
    if any("reward" in entry for entry in log_history):
        train = [entry for entry in log_history if entry.get("reward") is not None]
        kl = f"; KL from the start {train[-1]['kl']:.4f}" if "kl" in train[-1] else ""
        return [
            f"Mean reward of the answers: {train[0]['reward']:.4f} at first, {train[-1]['reward']:.4f} at last{kl}\n"
        ]
    values = [entry["loss"] for entry in log_history if "loss" in entry]
    found = (("Mean", report.mean_loss(log_history)), ("Last", values[-1] if values else None))
    return [f"{title} training loss: {value:.4f}\n" for title, value in found if value is not None]


def model_card(
    folder: str | os.PathLike,
    settings: Mapping[str, Any],
    names: Mapping[str, str],
    ledgers: Mapping[str, Mapping],
    log_history: Sequence[Mapping],
    steps: int,
) -> str:
    """README.md: base model, data, metrics and settings, with nothing in it that may not be published.

    Args:
        folder: what the weights are in; with `run_config.yaml` in it or in the folder above (of a checkpoint).
        settings: as the parser has them.
        names: `hub_names`.
        ledgers: `Ledger.to_dict` by data set.
        log_history: the trainer's; the last evaluation is shown, against the one before training if there was one.
        steps: of the weights.
    """
    folder = Path(folder)
    home = folder if (folder / "run_config.yaml").is_file() else folder.parent
    base = settings["model_name_or_path"] and public_name(settings["model_name_or_path"], names)
    is_adapter = (folder / "adapter_config.json").is_file()
    learns_text, scores = "block_size" in settings, "center_rewards_coefficient" in settings
    kind = "lora" if is_adapter else "pretraining" if learns_text else "sft"
    stage = settings.get("algorithm") or next((name for key, name in _STAGES.items() if key in settings), None)
    kind = f"{stage}{', lora' * is_adapter}" if stage else kind
    what = "LoRA adapter of" if is_adapter else "Pretrained further from" if learns_text else "Fine-tuned from"
    what = f"Reward model: {what[0].lower() if not is_adapter else what[0]}{what[1:]}" if scores else what
    what = f"{what} `{base}`" if base else f"Pretrained as a new model ({public_name(settings['config_name'], names)})"
    rows = "documents" if learns_text else _ROWS.get(stage, "rows")
    public = public_ledger(ledgers, names)
    header = ["---", "library_name: " + ("peft" if is_adapter else "transformers"), "language: zh"]
    header += [f"base_model: {base}"] if base and "/" in base else []  # the Hub takes nothing but an id here
    task = "text-classification" if scores else "text-generation"
    header += [f"pipeline_tag: {task}", f"tags: [hf_recipes, {kind}]", "---"]
    name = f"Auto{'Peft' * is_adapter}ModelFor{'SequenceClassification' if scores else 'CausalLM'}"
    load = f"from peft import {name}\nfrom transformers import AutoTokenizer\n"
    load = load if is_adapter else f"from transformers import {name}, AutoTokenizer\n"
    more = ", num_labels=1, pad_token_id=tokenizer.pad_token_id" if scores and is_adapter else ""
    lines = [
        *header,
        f"\n# {home.resolve().name}\n",
        f"{what}, trained with hf_recipes: {steps} steps on {public['train']['total'].get('kept', 0):,} "
        f"{rows} of {', '.join(public['train']['sources'])}.\n",
        "```python",
        load,
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'model = {name}.from_pretrained("FOLDER"{more})',
        "```\n",
        "## Data\n",
        *_ledger_table(public),
        "## Metrics\n",
    ]
    by_step = report.evaluations(log_history)
    if steps and by_step:
        before, after = by_step.get(0), by_step[max(by_step)]
        count = public.get("validation", {}).get("total", {}).get("kept")
        lines += [f"On {count:,} held-out {rows} after step {max(by_step)}:\n" if count else "Evaluation:\n"]
        lines += ["```", report.comparison(before if max(by_step) else None, after), "```\n"]
    lines += _course(log_history)
    config = public_settings((home / "run_config.yaml").read_text(encoding="utf-8"), names)
    lines += ["## Settings\n", "<details>\n", "```yaml", config.strip(), "```\n", "</details>"]
    return "\n".join(lines) + "\n"
