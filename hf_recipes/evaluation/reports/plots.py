"""Pictures: curves of a run, confusion, letters chosen, differences of pairs."""

import gc
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_recipes.core.files import new_file
from hf_recipes.evaluation.reports.tables import GAINS, PLAIN, _ordered, evaluations, shown, title

if TYPE_CHECKING:
    import numpy as np

    from hf_recipes.evaluation.reports.report import Histogram

FIGURES_KEPT = 10
BLUE = "#3b6ea5"

_figures = itertools.count(1)


def png_of(figure) -> bytes:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png")
    plt.close(figure)
    # A figure is a cycle of objects of 1 to 3 MB, which Python by itself frees after hundreds of them; a pass takes
    # 0.6 s.
    if next(_figures) % FIGURES_KEPT == 0:
        gc.collect()
    return image.getvalue()


def save_figure(figure, path: str | os.PathLike) -> None:
    """As a PNG, which is there whole or not at all."""
    image = png_of(figure)
    with new_file(path) as partial:
        partial.write_bytes(image)


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
        panel.bar([index + number * width for index in range(len(letters))], shares, width, label=name)
    panel.set_xticks([index + 0.4 - width / 2 for index in range(len(letters))], letters)
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


def draw_histogram(
    differences: Sequence[Sequence[float]], path: str | os.PathLike, labels: Sequence[str], bins: int = 40
) -> None:
    """One or two sets of differences in the same bins, as a PNG; written beside and renamed, so never half there.

    Args:
        differences: the sets; each is drawn as shares of its own pairs, so that sets of unlike size can be compared.
        labels: one for each set.
    """
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    edges = np.histogram_bin_edges(np.concatenate([np.asarray(own, dtype=float) for own in differences]), bins)
    figure, panel = plt.subplots(figsize=(7, 4), dpi=120)
    for own, label in zip(differences, labels, strict=True):
        right = f"{label}: {50 * (1 + np.sign(own).mean()):.1f} % right"  # equal scores count half
        panel.hist(own, edges, weights=np.full(len(own), 1 / len(own)), alpha=0.55, label=right)
    panel.axvline(0, color="black", linewidth=1)
    panel.set(title="Preference for the chosen answer", xlabel="score of chosen - rejected", ylabel="share of pairs")
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel.legend()
    panel.grid(alpha=0.3)
    save_figure(figure, path)


def length_histogram(histogram: "Histogram") -> bytes:
    """Lengths in tokens on a logarithmic scale, as a PNG; what is right of a line is over that budget."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, panel = plt.subplots(figsize=(5.2, 2.6), dpi=110)
    panel.bar(histogram.edges[:-1], histogram.counts, np.diff(histogram.edges), align="edge", color=BLUE)
    for name, tokens in histogram.budgets.items():
        panel.axvline(tokens + 1, color="tab:red", linestyle="--", label=name)
    if histogram.budgets:
        panel.legend(fontsize=8)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(LogLocator(base=2))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set(xlabel="tokens", ylabel="rows")
    panel.grid(alpha=0.3)
    return png_of(figure)
