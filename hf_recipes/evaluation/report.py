"""What a run found, for people: the table of metrics, sample answers, and the curves."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

if TYPE_CHECKING:
    import numpy as np

SHOWN = ("accuracy", "rouge1", "rouge2", "rougeL", "bleu4", "loss")
TITLES = {"accuracy": "accuracy", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "bleu4": "BLEU-4"}


def evaluations(log_history: Sequence[Mapping]) -> dict[int, dict[str, float]]:
    """The evaluation metrics of a trainer's log, by step, without their ``eval_`` prefix."""
    found: dict[int, dict[str, float]] = {}
    for entry in log_history:
        metrics = {key[5:]: value for key, value in entry.items() if key.startswith("eval_")}
        if metrics:
            found.setdefault(entry["step"], {}).update(metrics)
    return found


def mean_loss(log_history: Sequence[Mapping]) -> float | None:
    """The trainer's own mean of the training loss, or that of the losses it logged (each for the steps since the one
    before); None without any.
    """
    total = count = last = 0
    for entry in log_history:
        if "train_loss" in entry:
            return entry["train_loss"]
        if "loss" in entry:
            steps, last = entry["step"] - last, entry["step"]
            if entry["loss"] == entry["loss"]:  # not a number where no update was finite
                total, count = total + steps * entry["loss"], count + steps
    return total / count if count else None


def comparison(before: Mapping[str, float] | None, after: Mapping[str, float]) -> str:
    """A table of `SHOWN` metrics; all but the loss in percent, their change in points; `before` may be missing."""
    rows = [("", "base", "adapted", "change") if before else ("", "adapted")]
    for name in SHOWN:
        if name not in after:
            continue
        percent = name != "loss"

        def text(value: float | None, percent: bool = percent) -> str:
            return "–" if value is None else f"{value * 100:.1f} %" if percent else f"{value:.4f}"

        row = [TITLES.get(name, name)]
        if before:
            old = before.get(name)
            change = 0.0 if old is None else after[name] - old
            row += [text(old), text(after[name])]
            row.append("–" if old is None else f"{change * 100:+.1f}" if percent else f"{change:+.4f}")
        else:
            row.append(text(after[name]))
        rows.append(tuple(row))
    return "\n".join("".join([row[0].ljust(10), *(cell.rjust(11) for cell in row[1:])]) for row in rows)


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
    """`count` questions with the reference and the answers before and after training."""
    lines = []
    for index in range(min(count, len(after))):
        row = after[index]
        lines.append(f"question   {_clip(row['question'], width)}")
        lines.append(f"reference  {_clip(row['reference'], width)}")
        if before and index < len(before):
            lines.append(f"base       {_clip(before[index]['prediction'], width) or '(nothing)'}")
        lines.append(f"adapted    {_clip(row['prediction'], width) or '(nothing)'}\n")
    return "\n".join(lines)


def _save(figure, path: str | os.PathLike) -> None:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    partial = Path(f"{path}.partial")
    figure.savefig(partial, format="png")
    plt.close(figure)
    os.replace(partial, path)


def draw_curves(log_history: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Loss and evaluation scores over optimizer steps as a PNG; written beside and renamed, so never half there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    train = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    by_step = evaluations(log_history)
    scores = [name for name in SHOWN if name != "loss" and any(name in metrics for metrics in by_step.values())]
    figure, panels = plt.subplots(1, 2 if scores else 1, figsize=(11 if scores else 6, 4), squeeze=False, dpi=120)
    left = panels[0][0]
    if train:
        left.plot(*zip(*train, strict=True), color="tab:blue", label="training")
    held_out = [(step, metrics["loss"]) for step, metrics in by_step.items() if "loss" in metrics]
    if held_out:
        left.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", label="evaluation")
    if train or held_out:
        left.legend()
    left.set(title="Loss (mean over answer tokens)", xlabel="optimizer step", ylabel="cross-entropy, nats")
    if scores:
        right = panels[0][1]
        for name in scores:
            points = [(step, metrics[name]) for step, metrics in by_step.items() if name in metrics]
            right.plot(*zip(*points, strict=True), "o-", label=TITLES[name])
        right.set(title="Generated answers", xlabel="optimizer step", ylim=(0, 1))
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.legend(loc="best")
    for panel in panels[0]:
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def _font(text: str) -> str | None:
    """The path of an installed font with all characters of `text`, matplotlib's own first; None where there is none."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    needed = {ord(character) for character in text if not character.isspace()}
    # The last-resort font draws boxes for all of Unicode.
    fonts = [font for font in fontManager.ttflist if not font.name.startswith("Last Resort")]
    fonts.sort(key=lambda font: (font.style != "normal", font.weight != 400))
    paths = [findfont(FontProperties()), *(font.fname for font in fonts)]
    return next((path for path in dict.fromkeys(paths) if needed <= get_font(path).get_charmap().keys()), None)


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
    _save(figure, path)
    return legend
