"""What the mixture viewer shows of a plan: pies, figures and a table. Names are data: shown, never read as markup."""

from collections.abc import Sequence
from html import escape

import altair as alt
import pandas as pd
import streamlit as st

from hf_recipes.apps.mixture.sizes import Part
from hf_recipes.apps.mixture.texts import Texts

MOST_EPOCHS = 4  # Muennighoff et al. 2023, arXiv:2305.16264
# Tableau 10 and its light twin, the strong colours first.
STRONG = "#4c78a8 #f58518 #54a24b #e45756 #72b7b2 #eeca3b #b279a2 #9d755d #ff9da6 #79706e"
LIGHT = "#9ecae9 #ffbf79 #88d27a #ff9d98 #83bcb6 #f2cf5b #d6a5c9 #d8b5a5 #fcbfd2 #bab0ac"
COLOURS = f"{STRONG} {LIGHT}".split()
REST = "#d0d0d0"
STYLE = """<style>
[data-testid="stMainBlockContainer"] { padding-top: 3rem; padding-bottom: 3rem; }
.mix-row { display: flex; justify-content: space-between; gap: 0.5rem; font-size: 0.9rem; }
.mix-sliders { padding-bottom: 0.8rem; }
.mix-row b { font-weight: 600; overflow-wrap: anywhere; }
.mix-row span, .mix-figures span, .mix-table th { opacity: 0.75; }
.mix-row span { white-space: nowrap; }
.mix-off { background: rgba(255, 180, 0, 0.3); border-radius: 0.3rem; padding: 0 0.4rem; opacity: 1 !important; }
.mix-dot { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; margin-right: 0.4em; }
.mix-title { text-align: center; font-weight: 600; }
.mix-figures { display: flex; flex-wrap: wrap; gap: 0.5rem 2.5rem; }
.mix-figures span { display: block; font-size: 0.85rem; } .mix-figures b { font-size: 1.5rem; font-weight: 500; }
.mix-table { overflow-x: auto; }
.mix-table table { border-collapse: collapse; width: 100%; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
.mix-table th, .mix-table td { border: 0; border-bottom: 1px solid rgba(128, 128, 128, 0.25); padding: 0.3rem 0.4rem;
  text-align: right; white-space: nowrap; }
.mix-table th:first-child, .mix-table td:first-child { text-align: left; white-space: normal; min-width: 6.5rem;
  overflow-wrap: anywhere; }
@media (max-width: 640px) { .mix-table th, .mix-table td { padding: 0.3rem 0.15rem; font-size: 0.8rem; } }
</style>"""


def code(text: str) -> str:
    """`text` as Markdown that shows it and nothing else: neither HTML nor links nor Streamlit's directives."""
    text = " ".join(text.split())
    fence = "`" * (max(map(len, "".join(c if c == "`" else " " for c in text).split()), default=0) + 1)
    pad = " " if "`" in text[:1] + text[-1:] else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def dotted(number: int, name: str) -> str:
    return f'<i class="mix-dot" style="background: {colour(number)}"></i>{escape(name)}'


def left_over(parts: Sequence[Part]) -> float:
    """1 less the sum of all shares, without what floating point adds to nothing."""
    rest = 1 - sum(part.share for part in parts)
    return 0.0 if abs(rest) < 1e-9 else rest


def left_cell(texts: Texts, rest: float, unit: str, budget: float) -> tuple[str, str]:
    return texts("left" if rest >= 0 else "over"), f"{abs(rest):.2%} · {texts.amount(abs(rest) * budget, unit)}"


def pie(names: Sequence[str], shares: Sequence[float], colours: Sequence[str]) -> alt.LayerChart:
    rows = pd.DataFrame({"name": names, "share": shares, "place": range(len(names))})
    ink = "white" if st.context.theme.type == "dark" else "black"
    rows["label"] = [f"{share:.0%}" if share >= 0.04 else "" for share in shares]
    base = alt.Chart(rows).encode(theta=alt.Theta("share:Q", stack=True), order=alt.Order("place:O"))
    arcs = base.mark_arc(outerRadius=82, stroke="white", strokeWidth=1).encode(
        color=alt.Color("place:O", scale=alt.Scale(domain=list(rows["place"]), range=list(colours)), legend=None),
        tooltip=[alt.Tooltip("name:N", title=" "), alt.Tooltip("share:Q", format=".2%", title="%")],
    )
    return (arcs + base.mark_text(radius=98, fontSize=13, color=ink).encode(text="label:N")).properties(height=240)


def show_pies(texts: Texts, parts: Sequence[Part]) -> None:
    names, colours = [part.name for part in parts], [colour(number) for number in range(len(parts))]
    over = max(sum(part.share for part in parts), 1)
    rest = [left_over(parts)] if left_over(parts) > 0 else []
    shares = [part.share / over for part in parts] + rest
    charts = {
        "before": pie(names, [part.natural for part in parts], colours),
        "after": pie(names + [texts("left")] * len(rest), shares, colours + [REST] * len(rest)),
    }
    for place, (key, chart) in zip(st.columns(2), charts.items(), strict=True):
        place.html(f'<div class="mix-title">{escape(texts(key))}</div>')
        place.altair_chart(chart, width="stretch", key=key)


def show_figures(texts: Texts, parts: Sequence[Part], unit: str, budget: float) -> None:
    figures = [
        (texts("all sizes"), texts.amount(sum(part.size for part in parts), unit)),
        (texts("total"), texts.amount(budget, unit)),
        left_cell(texts, left_over(parts), unit, budget),
    ]
    cells = "".join(f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in figures)
    st.html(f'<div class="mix-figures">{cells}</div>')
    repeated = [part for part in parts if part.epochs > MOST_EPOCHS * (1 + 1e-9)]
    if repeated:
        st.warning(texts("repeated", names=", ".join(code(part.name) for part in repeated)))
    head = ["source", "size", "natural share", "share", "sampled", "epochs"]
    lines = ["<tr>", *(f"<th>{escape(texts(title))}</th>" for title in head), "</tr>"]
    for number, part in enumerate(parts):
        cells = [texts.amount(part.size, unit), f"{part.natural:.1%}", f"{part.share:.1%}"]
        cells += [texts.amount(part.sampled, unit), f"{part.epochs:.3g}"]
        marks = [""] * 4 + [' class="mix-off"' if part in repeated else ""]
        row = "".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in zip(marks, cells, strict=True))
        lines.append(f"<tr><td>{dotted(number, part.name)}</td>{row}</tr>")
    st.html(f'<div class="mix-table"><table>{"".join(lines)}</table></div>')
