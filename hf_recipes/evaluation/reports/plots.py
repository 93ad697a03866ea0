"""Pictures: curves of a run, confusion, option letters, differences of pairs, lengths."""

import gc
import io
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_recipes.core.errors import say
from hf_recipes.core.files import new_file
from hf_recipes.core.language import Language
from hf_recipes.evaluation.reports.phrases import Phrase, translated
from hf_recipes.evaluation.reports.tables import GAINS, PLAIN, _ordered, evaluations, shown, title

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

    from hf_recipes.evaluation.reports.report import Histogram

FIGURES_PER_COLLECTION = 10
NO_FONT = Phrase(
    "No font of this machine writes Chinese, so that pictures have numbers or English instead. Install one "
    "(fonts-noto-cjk on Debian and Ubuntu, google-noto-sans-cjk-fonts on Fedora) and run the command again."
)
BLUE = "#3b6ea5"

_figures = itertools.count(1)


def _subplots(*args, **kwargs):
    """A figure and its panels; matplotlib takes a second to import, so that it is imported for pictures alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(*args, **kwargs)


def png_of(figure) -> bytes:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png")
    plt.close(figure)
    # A figure is a cycle of objects of 1 to 3 MB, which Python by itself frees after hundreds of them; a pass takes
    # 0.6 s.
    if next(_figures) % FIGURES_PER_COLLECTION == 0:
        gc.collect()
    return image.getvalue()


def save_figure(figure, path: str | os.PathLike) -> None:
    """As a PNG, which is there whole or not at all."""
    image = png_of(figure)
    with new_file(path) as partial:
        partial.write_bytes(image)


def draw_curves(log_history: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Loss and evaluation scores over optimizer steps, as a PNG."""
    train = _points("loss", log_history)
    by_step = evaluations(log_history)
    keys = _ordered(dict.fromkeys(key for metrics in by_step.values() for key in metrics))
    scores = [key for key in keys if shown(key)[1] not in PLAIN]
    gain = next((key for key in GAINS if any(key in entry for entry in log_history)), None)
    count = 1 + bool(gain) + bool(scores)
    figure, panels = _subplots(1, count, figsize=(1 + 5 * count, 4), squeeze=False, dpi=120)
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
    left.set(title="Loss (mean over the scored tokens)", xlabel="optimizer step", ylabel="cross-entropy, nats")
    if gain:
        left.set(title="Loss", ylabel="")
        _draw_gain(panels[0][1], gain, log_history, by_step)
    if scores:
        right = panels[0][-1]
        for key in scores:
            right.plot(*_scores(key, by_step), "o-", label=title(key))
        right.set(title="Evaluation", xlabel="optimizer step", ylim=(0, 1))
        right.yaxis.set_major_formatter("{x:.0%}")
        _legend(right)
    for panel in panels[0]:
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, path)


def _draw_gain(panel, gain: str, log_history: Sequence[Mapping], by_step: Mapping[int, Mapping]) -> None:
    """The reward or margin that a stage maximises, and the KL divergence from its start."""
    panel.plot(*_points(gain, log_history), color="black", label="training")
    for name in dict.fromkeys(key for entry in log_history for key in entry if key.startswith(f"{gain}/")):
        panel.plot(*_points(name, log_history), linewidth=0.8, label=name.removeprefix(f"{gain}/"))
    for key in dict.fromkeys(key for metrics in by_step.values() for key in metrics if key.endswith(gain)):
        panel.plot(*_scores(key, by_step), "o-", label=key.removesuffix(gain).rstrip("_") or "evaluation")
    panel.set(title=f"{gain.replace('/', ' ')} (mean)", xlabel="optimizer step")
    _legend(panel)
    if any("kl" in entry for entry in log_history):
        right = panel.twinx()
        right.plot(*_points("kl", log_history), color="tab:red", linewidth=0.8)
        right.set_ylabel("KL from the start, nats", color="tab:red")


def _points(key: str, log_history: Sequence[Mapping]) -> tuple[list[int], list[float]]:
    entries = [entry for entry in log_history if entry.get(key) is not None]
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]


def _scores(key: str, by_step: Mapping[int, Mapping]) -> tuple[list[int], list[float]]:
    return _points(key, [{**metrics, "step": step} for step, metrics in by_step.items()])


def _font(text: str) -> str | None:
    """The path of an installed font with all characters of `text`, matplotlib's default first; None without any."""
    from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font

    needed = {ord(character) for character in text if not character.isspace()}

    def first(paths: Iterable[str]) -> str | None:
        return next((path for path in dict.fromkeys(paths) if needed <= get_font(path).get_charmap().keys()), None)

    # The last-resort font has a box for every character of Unicode.
    fonts = [font for font in fontManager.ttflist if not font.name.startswith("Last Resort")]
    fonts.sort(key=lambda font: (font.style != "normal", font.weight != 400, "Serif" in font.name))
    if path := first([findfont(FontProperties()), *(font.fname for font in fonts)]):
        return path
    # matplotlib lists fonts once and for all: those that were installed since are in no list.
    if path := first(sorted(set(findSystemFonts()) - {font.fname for font in fontManager.ttflist})):
        fontManager.addfont(path)
        return path
    _say_once(str(NO_FONT))
    return None


def _properties(font: str | None) -> "FontProperties | None":
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=font) if font else None


_say_once = cache(say)


def _words(language: Language) -> Callable[[str], str]:
    """What a picture says, in a language; in English where no font writes Chinese."""
    from matplotlib import rcParams
    from matplotlib.font_manager import get_font

    if language == "en" or (path := _font("中文")) is None:
        return str
    rcParams["font.family"] = ["DejaVu Sans", get_font(path).family_name]
    return lambda text: translated(Phrase(text), language)


def _legend(panel) -> None:
    """The panel's legend; labels that no font can write become numbers."""
    handles, labels = panel.get_legend_handles_labels()
    font = _font("".join(labels))
    if font is None:
        labels = [label if label.isascii() else f"line {number}" for number, label in enumerate(labels, 1)]
    panel.legend(handles, labels, loc="best", prop=_properties(font))


def draw_letters(
    metrics: Mapping[str, Mapping[str, float]], path: str | os.PathLike, language: Language = "en"
) -> None:
    """Each letter's share of the right answers and of each model's answers, as a PNG: the letter bias.

    Args:
        metrics: of `SingleChoice`, by model.
    """
    first = next(iter(metrics.values()))
    letters = [key.removeprefix("answers_") for key in first if key.startswith("answers_")]
    words = _words(language)
    bars = {words("right answers"): [first[f"answers_{letter}"] for letter in letters]}
    for name, of_model in metrics.items():
        bars[words(name)] = [of_model[f"share_{letter}"] for letter in letters]
    figure, panel = _subplots(figsize=(7, 4), dpi=120)
    width = 0.8 / len(bars)
    for number, (name, shares) in enumerate(bars.items()):
        panel.bar([index + number * width for index in range(len(letters))], shares, width, label=name)
    panel.set_xticks([index + 0.4 - width / 2 for index in range(len(letters))], letters)
    panel.set(title=words("Letters"), ylabel=words("share of the questions"))
    panel.yaxis.set_major_formatter("{x:.0%}")
    panel.grid(alpha=0.3, axis="y")
    panel.legend()
    save_figure(figure, path)


def draw_confusion(
    matrix: np.ndarray, labels: Sequence[str], path: str | os.PathLike, language: Language = "en"
) -> None:
    """The matrix of `metrics.confusion` as a PNG: counts as numbers, their shares of a row as colour.

    Labels that no font can write are numbered in the picture; their list is written next to it, with the ending .txt.
    """
    words = _words(language)
    other = words("other")
    font = _font("".join(labels) + other)
    names = list(labels) if font else [str(number) for number in range(1, len(labels) + 1)]
    if font is None:
        legend = "".join(f"{number}\t{label}\n" for number, label in zip(names, labels, strict=True))
        Path(path).with_suffix(".txt").write_text(legend, encoding="utf-8")
    size = 2.5 + 0.4 * len(labels)
    figure, panel = _subplots(figsize=(size + 1, size), dpi=120)
    image = panel.imshow(matrix / matrix.sum(axis=1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    share = words("share of the reference's rows")
    figure.colorbar(image, ax=panel, label=share, format="{x:.0%}", fraction=0.046, pad=0.04)  # as high as the matrix
    ticks = {"fontproperties": _properties(font)}
    panel.set_xticks(range(len(names) + 1), [*names, other], rotation=45, ha="right", rotation_mode="anchor", **ticks)
    panel.set_yticks(range(len(names)), names, **ticks)
    panel.set(xlabel=words("prediction"), ylabel=words("reference"))
    for row, column in zip(*matrix.nonzero(), strict=True):
        share = matrix[row, column] / matrix[row].sum()
        colour = "white" if share > 0.5 else "black"
        panel.text(column, row, matrix[row, column], ha="center", va="center", color=colour)
    save_figure(figure, path)


def draw_histogram(
    differences: Sequence[Sequence[float]],
    path: str | os.PathLike,
    labels: Sequence[str],
    language: Language = "en",
) -> None:
    """One or two sets of differences in the same bins, as a PNG.

    Args:
        differences: the sets, shown as shares of their pairs, so that sets of unlike size can be compared.
        labels: one for each set.
    """
    words, edges = _words(language), np.histogram_bin_edges(np.concatenate(differences), 40)
    figure, panel = _subplots(figsize=(7, 4), dpi=120)
    for values, label in zip(differences, labels, strict=True):
        share = 50 * (1 + np.sign(values).mean())  # equal scores count half
        right = words(Phrase("{model}: {share:.1f} % right", model=Phrase(label), share=share))
        panel.hist(values, edges, weights=np.full(len(values), 1 / len(values)), alpha=0.55, label=right)
    panel.axvline(0, color="black", linewidth=1)
    panel.set(title=words("Preference for the chosen answer"))
    panel.set(xlabel=words("score of chosen - rejected"), ylabel=words("share of pairs"))
    panel.yaxis.set_major_formatter("{x:.0%}")
    panel.legend()
    panel.grid(alpha=0.3)
    save_figure(figure, path)


def draw_bars(groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> bytes:
    """Characters a token: a bar of each series for each group, side by side, with its value, as a PNG."""
    figure, panel = _subplots(figsize=(max(4.5, 1.6 * len(groups)), 3.2), dpi=110)
    width = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        positions = np.arange(len(groups)) + (index - (len(series) - 1) / 2) * width
        bars = panel.bar(positions, values, width, label=label, color=BLUE if index else "#b8b8b8")
        panel.bar_label(bars, fmt="%.2f", fontsize=8)
    panel.set_xticks(range(len(groups)), groups, fontproperties=_properties(_font("".join(groups))))
    panel.set(ylabel="characters a token")
    panel.margins(y=0.15)
    if len(series) > 1:
        panel.legend(fontsize=8)
    panel.grid(axis="y", alpha=0.3)
    return png_of(figure)


def length_histogram(histogram: "Histogram", language: Language = "en") -> bytes:
    """Lengths in tokens on a logarithmic scale, as a PNG; what is right of a line is over that budget."""
    words = _words(language)
    figure, panel = _subplots(figsize=(5.2, 2.6), dpi=110)
    panel.bar(histogram.edges[:-1], histogram.counts, np.diff(histogram.edges), align="edge", color=BLUE)
    for name, tokens in histogram.budgets.items():
        panel.axvline(tokens + 1, color="tab:red", linestyle="--", label=name)
    if histogram.budgets:
        panel.legend(fontsize=8)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.xaxis.set_minor_formatter("")
    panel.set(xlabel=words("tokens"), ylabel=words("rows"))
    panel.grid(alpha=0.3)
    return png_of(figure)
