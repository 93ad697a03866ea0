"""Tables of metrics and sample answers, as text."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_recipes.metrics.intervals import Paired

SHOWN = ("accuracy", "promptcblue", "promptcblue_lenient", "rouge1", "rouge2", "rougeL", "bleu4")
SHOWN += ("loss", "perplexity", "bits_per_character")
SHOWN += ("difference_mean", "difference_std", "reward", "rewards/model_positive")
SHOWN += ("rewards/accuracies", "rewards/margins")
TITLES = {
    "promptcblue": "PromptCBLUE",
    "promptcblue_lenient": "PromptCBLUE, read leniently",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu4": "BLEU-4",
    "macro_f1": "macro F1",
    "chrf": "chrF",
    "distinct1": "distinct-1",
    "distinct2": "distinct-2",
    "rewards/model_positive": "scored above 0",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
}
GAINS = ("reward", "rewards/margins")  # in the picture of the curves, where a stage logs one
PLAIN = ("loss", "perplexity", "bits_per_character", "difference_mean", "difference_std", *GAINS)  # not shares

PERCENT = "Metrics in %"  # what a page calls the unit of shares
SHARES = (
    "accuracy",
    "macro_f1",
    "rouge1",
    "rouge2",
    "rougeL",
    "bleu4",
    "chrf",
    "exact_match",
    "distinct1",
    "distinct2",
)
SHARES += ("promptcblue", "promptcblue_lenient", "finished", "chance", "mass", "token_accuracy")
OTHER_SHARES = ("rewards/model_positive", "rewards/accuracies")
UNITS = {"bits_per_character": "Metrics in bits a character", "new_tokens": "Metrics in tokens"}


def shown(key: str) -> tuple[str, str] | None:
    """The file's name (empty for the validation rows) and the metric, if `key` is among the `SHOWN` metrics."""
    if key.endswith("token_accuracy"):
        return None
    for metric in SHOWN:
        if key == metric or key.endswith(f"_{metric}"):
            return key.removesuffix(metric).rstrip("_"), metric
    return None


def title(key: str) -> str:
    name, metric = shown(key) or ("", key)
    return f"{name} {TITLES.get(metric, metric.replace('_', ' '))}".strip()


def _ordered(keys: Iterable[str]) -> list[str]:
    """The keys of `SHOWN` metrics: those of the validation rows first, then file by file."""
    parts = {key: shown(key) for key in keys if shown(key)}
    names = list(dict.fromkeys(["", *(name for name, _ in parts.values())]))
    return sorted(parts, key=lambda key: (names.index(parts[key][0]), SHOWN.index(parts[key][1])))


def _number(value: Any) -> Any:
    """`value`, or None for NaN and infinities, which JSON files hold as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluations(log_history: Sequence[Mapping]) -> dict[int, dict[str, float | None]]:
    """The evaluation metrics of a trainer's log, by step, without the ``eval_`` prefix; None for NaN."""
    by_step: dict[int, dict[str, float | None]] = {}
    for entry in log_history:
        metrics = {key[5:]: _number(value) for key, value in entry.items() if key.startswith("eval_")}
        if metrics:
            by_step.setdefault(entry["step"], {}).update(metrics)
    return by_step


def mean_loss(log_history: Sequence[Mapping]) -> float | None:
    """Mean training loss of all steps; each logged loss is the mean of the steps since the last one."""
    total = count = last = 0
    for entry in log_history:
        if "loss" in entry:
            steps, last = entry["step"] - last, entry["step"]
            if _number(entry["loss"]) is not None:  # NaN where no update was finite
                total, count = total + steps * entry["loss"], count + steps
    return total / count if count else None


def _is_share(key: str) -> bool:
    known = shown(key)
    return known is not None and known[1] not in PLAIN


def as_text(key: str, value: float | None) -> str:
    """A share in percent, any other metric as it is."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value * 100:.1f} %" if _is_share(key) else f"{value:.4f}"


def unit(key: str, value: float) -> str:
    """What a page calls the unit of a metric."""
    name = key.partition("/")[0]
    if isinstance(value, int):
        return "Counts"
    if key in OTHER_SHARES or name in SHARES or name.startswith(("share_", "answers_", "accuracy_")):
        return PERCENT
    scores = name.startswith(("difference_", "score_", "reward"))
    return "Metrics in nats" if name == "loss" else "Scores" if scores else UNITS.get(name, "Metrics without a unit")


def in_unit(unit: str, value: float | None) -> str:
    if value is None or isinstance(value, int):
        return as_text("", value)
    return f"{value * 100:.1f} %" if unit == PERCENT else f"{value:.4f}"


def change_text(key: str, change: "Paired") -> str:
    """A difference and its 95 % interval, of shares in points."""
    scale, digits = (1, 4) if shown(key) and not _is_share(key) else (100, 1)
    values = (f"{value * scale:+.{digits}f}" for value in (change.mean, change.low, change.high))
    return "{} [{}, {}]".format(*values)


def comparison(
    before: Mapping[str, float] | None,
    after: Mapping[str, float],
    changes: "Mapping[str, Paired] | None" = None,
    names: Sequence[str] = ("base", "adapted"),
) -> str:
    """A table of the `SHOWN` metrics; shares in percent, their changes in points. `before` may be missing.

    Args:
        changes: differences with intervals, by metric.
        names: of the two columns.
    """
    rows = [("", *names, "change" + " [95 %]" * bool(changes)) if before else ("", names[-1])]
    for key in _ordered({**after, **(before or {})}):
        row, new = [title(key)], after.get(key)
        if before:
            old = before.get(key)
            row += [as_text(key, old), as_text(key, new)]
            if changes and key in changes:
                row.append(change_text(key, changes[key]))
            elif old is None or new is None:
                row.append("–")
            else:
                row.append(f"{(new - old) * 100:+.1f}" if _is_share(key) else f"{new - old:+.4f}")
        else:
            row.append(as_text(key, new))
        rows.append(tuple(row))
    widths = [max(len(cell) + 1 for cell in column) for column in zip(*rows, strict=True)]
    widths = [max(10, widths[0]), *(max(11, width) for width in widths[1:])]
    lines = ("".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
    return "\n".join(lines)


def read_predictions(path: str | os.PathLike) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _clip(text: str, width: int) -> str:
    """`text` on one line of at most `width` columns, of which a Chinese character takes two."""
    from rich.cells import chop_cells

    line, *rest = chop_cells(" ".join(text.split()), width) or [""]
    return line + "…" * bool(rest)


def samples(before: Sequence[dict] | None, after: Sequence[dict], count: int = 3, width: int = 84) -> str:
    """`count` questions with the reference, if there is one, and the answers before and after training."""
    lines = []
    for index in range(min(count, len(after))):
        row = after[index]
        lines.append(f"question   {_clip(row['question'], width)}")
        if row.get("reference") is not None:
            lines.append(f"reference  {_clip(row['reference'], width)}")
        if before and index < len(before):
            lines.append(f"base       {_clip(before[index]['prediction'], width) or '(nothing)'}")
        lines.append(f"adapted    {_clip(row['prediction'], width) or '(nothing)'}\n")
    return "\n".join(lines)
