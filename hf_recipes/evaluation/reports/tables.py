"""What a run found, for people: the table of metrics, sample answers, and the curves."""

import gc
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

from hf_recipes.core.files import new_file

if TYPE_CHECKING:
    import numpy as np

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
FIGURES_KEPT = 10


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


_figures = itertools.count(1)


def save_figure(figure, path: str | os.PathLike) -> None:
    """As a PNG; written beside and renamed, so never half there."""
    from matplotlib import pyplot as plt

    figure.tight_layout()
    with new_file(path) as partial:
        figure.savefig(partial, format="png")
    plt.close(figure)
    # A figure is a circle of 1 to 3 MB, which Python by itself takes up after hundreds of them; a pass takes 0.6 s.
    if next(_figures) % FIGURES_KEPT == 0:
        gc.collect()


def draw_curves(log_history: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Loss and evaluation scores over optimizer steps as a PNG; written beside and renamed, so never half there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    train = _points("loss", log_history)
    by_step = evaluations(log_history)
    keys = _ordered(dict.fromkeys(key for metrics in by_step.values() for key in metrics))
    scores = [key for key in keys if shown(key)[1] not in PLAIN]
    gain = next((key for key in GAINS if any(key in entry for entry in log_history)), None)
    count = 1 + bool(gain) + bool(scores)
    figure, panels = plt.subplots(1, count, figsize=(1 + 5 * count, 4), squeeze=False, dpi=120)
    left = panels[0][0]
    if train[0]:
        left.plot(*train, color="black", label="training")
    for name in dict.fromkeys(key for entry in log_history for key in entry if key.startswith("loss_")):
        left.plot(*_points(name, log_history), linewidth=0.8, label=name.removeprefix("loss_"))
    losses = [key for key in keys if shown(key)[1] == "loss"]
    for key in losses:
        left.plot(*_scores(key, by_step), "o-", label=shown(key)[0] or "evaluation")
    if train[0] or losses:
        _legend(left)
    if gain:
        left.set(title="Loss", xlabel="optimizer step")
    else:
        left.set(title="Loss (mean over the scored tokens)", xlabel="optimizer step", ylabel="cross-entropy, nats")
    if gain:
        _draw_gain(panels[0][1], gain, log_history, by_step)
    if scores:
        right = panels[0][-1]
        for key in scores:
            right.plot(*_scores(key, by_step), "o-", label=title(key))
        right.set(title="Evaluation", xlabel="optimizer step", ylim=(0, 1))
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        _legend(right)
    for panel in panels[0]:
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, path)


def _draw_gain(panel, gain: str, log_history: Sequence[Mapping], by_step: Mapping[int, Mapping]) -> None:
    """What a preference or reinforcement stage raises, and beside it how far it went from its start."""
    panel.plot(*_points(gain, log_history), color="black", label="training")
    for key in dict.fromkeys(key for metrics in by_step.values() for key in metrics if key.endswith(gain)):
        panel.plot(*_scores(key, by_step), "o-", label=key.removesuffix(gain).rstrip("_") or "evaluation")
    panel.set(title=f"{gain.replace('/', ' ')} (mean)", xlabel="optimizer step")
    _legend(panel)
    if any("kl" in entry for entry in log_history):
        beside = panel.twinx()
        beside.plot(*_points("kl", log_history), color="tab:red", linewidth=0.8)
        beside.set_ylabel("KL from the start, nats", color="tab:red")


def _points(key: str, log_history: Sequence[Mapping]) -> tuple[list[int], list[float]]:
    found = [(entry["step"], entry[key]) for entry in log_history if entry.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _scores(key: str, by_step: Mapping[int, Mapping]) -> tuple[list[int], list[float]]:
    return _points(key, [{**metrics, "step": step} for step, metrics in by_step.items()])


def _font(text: str) -> str | None:
    """The path of an installed font with all characters of `text`, matplotlib's own first; None where there is none."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    needed = {ord(character) for character in text if not character.isspace()}
    # The last-resort font draws boxes for all of Unicode.
    fonts = [font for font in fontManager.ttflist if not font.name.startswith("Last Resort")]
    fonts.sort(key=lambda font: (font.style != "normal", font.weight != 400))
    paths = [findfont(FontProperties()), *(font.fname for font in fonts)]
    return next((path for path in dict.fromkeys(paths) if needed <= get_font(path).get_charmap().keys()), None)


def _legend(panel) -> None:
    """The panel's legend; where no font has the characters of a label, it is a number."""
    from matplotlib.font_manager import FontProperties

    handles, labels = panel.get_legend_handles_labels()
    font = _font("".join(labels))
    if font is None:
        labels = [label if label.isascii() else f"line {number}" for number, label in enumerate(labels, 1)]
    panel.legend(handles, labels, loc="best", prop=FontProperties(fname=font) if font else None)


def draw_letters(found: Mapping[str, Mapping[str, float]], path: str | os.PathLike) -> None:
    """Each letter's share of the right answers beside its share of each model's, as a PNG: the letter bias.

    Args:
        found: by model, the metrics of `SingleChoice`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    first = next(iter(found.values()))
    letters = [key.removeprefix("answers_") for key in first if key.startswith("answers_")]
    bars = {"right answers": [first[f"answers_{letter}"] for letter in letters]}
    bars |= {name: [metrics[f"share_{letter}"] for letter in letters] for name, metrics in found.items()}
    figure, panel = plt.subplots(figsize=(7, 4), dpi=120)
    width = 0.8 / len(bars)
    for number, (name, shares) in enumerate(bars.items()):
        panel.bar([place + number * width for place in range(len(letters))], shares, width, label=name)
    panel.set_xticks([place + 0.4 - width / 2 for place in range(len(letters))], letters)
    panel.set(title="Letters", ylabel="share of the questions")
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel.grid(alpha=0.3, axis="y")
    panel.legend()
    figure.tight_layout()
    save_figure(figure, path)


def draw_confusion(matrix: "np.ndarray", labels: Sequence[str], path: str | os.PathLike) -> str | None:
    """The matrix of `metrics.confusion` as a PNG: shares of a row as colour, rows as numbers.

    Where no font has the labels' characters, their numbers stand in the picture, and what they mean is written beside
    it, with the ending .txt, and returned.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.font_manager import FontProperties

    path, legend = Path(path), None
    font = _font("".join(labels) + "other")
    names = list(labels) if font else [str(number) for number in range(1, len(labels) + 1)]
    if font is None:
        legend = "".join(f"{number}\t{label}\n" for number, label in zip(names, labels, strict=True))
        path.with_suffix(".txt").write_text(legend, encoding="utf-8")
    size = 2.5 + 0.4 * len(labels)
    figure, panel = plt.subplots(figsize=(size + 1, size), dpi=120)
    image = panel.imshow(matrix / matrix.sum(axis=1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=panel, label="share of the reference's rows")
    ticks = {"fontproperties": FontProperties(fname=font) if font else None}
    panel.set_xticks(range(len(names) + 1), [*names, "other"], rotation=45, ha="right", rotation_mode="anchor", **ticks)
    panel.set_yticks(range(len(names)), names, **ticks)
    panel.set(xlabel="prediction", ylabel="reference")
    for row, column in zip(*matrix.nonzero(), strict=True):
        share = matrix[row, column] / matrix[row].sum()
        panel.text(
            column, row, matrix[row, column], ha="center", va="center", color="white" if share > 0.5 else "black"
        )
    save_figure(figure, path)
    return legend
