"""What a run found, for people: the table of metrics, sample answers, and the curves."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

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
    "rewards/model_positive": "scored above 0",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
}
GAINS = ("reward", "rewards/margins")  # drawn beside the loss where a stage logs one
PLAIN = ("loss", "perplexity", "bits_per_character", "difference_mean", "difference_std", *GAINS)  # no shares


def shown(key: str) -> tuple[str, str] | None:
    """The file's name (empty for the validation rows) and the metric, where `key` is one of those that tell most."""
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
    """The keys that are shown: those of the validation rows first, then file by file."""
    found = [key for key in keys if shown(key)]
    names = list(dict.fromkeys(["", *(shown(key)[0] for key in found)]))
    return sorted(found, key=lambda key: (names.index(shown(key)[0]), SHOWN.index(shown(key)[1])))


def _number(value: Any) -> Any:
    """None for NaN and infinities, as a checkpoint's log has them when it is read back."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluations(log_history: Sequence[Mapping]) -> dict[int, dict[str, float | None]]:
    """The evaluation metrics of a trainer's log, by step, without the ``eval_`` prefix; None for what is no number."""
    found: dict[int, dict[str, float | None]] = {}
    for entry in log_history:
        metrics = {key[5:]: _number(value) for key, value in entry.items() if key.startswith("eval_")}
        if metrics:
            found.setdefault(entry["step"], {}).update(metrics)
    return found


def mean_loss(log_history: Sequence[Mapping]) -> float | None:
    """Mean training loss of all steps, from the losses that were logged, each for the steps since the one before."""
    total = count = last = 0
    for entry in log_history:
        if "loss" in entry:
            steps, last = entry["step"] - last, entry["step"]
            if _number(entry["loss"]) is not None:  # as where no update was finite
                total, count = total + steps * entry["loss"], count + steps
    return total / count if count else None


def as_text(key: str, value: float | None) -> str:
    """A share in percent, any other metric as it is."""
    if value is None:
        return "–"
    found = shown(key)
    return f"{value:.4f}" if found is None or found[1] in PLAIN else f"{value * 100:.1f} %"


def change_text(key: str, change: "Paired") -> str:
    """A difference and its 95 % interval, of shares in points."""
    found = shown(key)
    scale, digits = (1, 4) if found and found[1] in PLAIN else (100, 1)
    values = (f"{value * scale:+.{digits}f}" for value in (change.mean, change.low, change.high))
    return "{} [{}, {}]".format(*values)


def comparison(
    before: Mapping[str, float] | None,
    after: Mapping[str, float],
    changes: "Mapping[str, Paired] | None" = None,
    names: Sequence[str] = ("base", "adapted"),
) -> str:
    """A table of the `shown` metrics; shares in percent, their change in points; `before` may be missing.

    Args:
        changes: by metric, with intervals, in place of bare differences.
        names: of the two columns.
    """
    rows = [("", *names, "change" + " [95 %]" * bool(changes)) if before else ("", names[-1])]
    for key in _ordered({**after, **(before or {})}):
        row, new = [title(key)], after.get(key)
        if before:
            old = before.get(key)
            known = old is not None and new is not None
            change = new - old if known else 0.0
            row += [as_text(key, old), as_text(key, new)]
            plain = shown(key)[1] in PLAIN
            if changes and key in changes:
                row.append(change_text(key, changes[key]))
            else:
                row.append("–" if not known else f"{change:+.4f}" if plain else f"{change * 100:+.1f}")
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
    """`text` on one line of at most `width` columns, a Chinese character being two."""
    line, used = "", 0
    for character in " ".join(text.split()):
        used += 2 if east_asian_width(character) in "WF" else 1
        if used > width:
            return line + "…"
        line += character
    return line


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
