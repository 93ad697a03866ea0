"""A report as one page that needs no other file."""

import io
from collections.abc import Iterator
from html import escape
from itertools import pairwise

from hf_recipes.core.files import write_text, writing
from hf_recipes.evaluation.reports import html
from hf_recipes.inspection.report import Example, Examples, Histogram, Report, Table, as_text

STYLE = """
header { position: sticky; top: 0; background: #fff; padding: 0.5rem 0; border-bottom: 1px solid #d5d5d5; }
header input { font: inherit; width: 16rem; max-width: 60%; padding: 0.2rem 0.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; } dd { margin: 0; overflow-wrap: anywhere; }
.warning { color: #b00020; font-weight: bold; white-space: pre-wrap; overflow-wrap: anywhere; }
h1, h3 { overflow-wrap: anywhere; } figure { display: inline-block; max-width: 100%; }
td.text { overflow-wrap: break-word; min-width: 5rem; }
article { border-left: 3px solid #d5d5d5; padding-left: 0.8rem; margin: 1rem 0; }
article p { margin: 0.2rem 0; } article .fact { color: #666; white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; margin: 0; }
.tokens i, .tokens b { font-style: normal; font-weight: normal; padding: 0.1rem 0; }
.tokens i:nth-child(even) { background: #eee; } .tokens b { background: #9be29b; }
.tokens b:nth-child(even) { background: #6fcf6f; } .tokens u { color: #666; }
.boundary { border-top: 2px dashed #0a7ea4; color: #0a7ea4; font-size: 0.85em; margin: 0.4rem 0 0; }
"""
SCRIPT = """
const field = document.querySelector("#search"), hits = document.querySelector("#hits");
const rows = [...document.querySelectorAll("tr:has(td), article")];
const texts = rows.map(row => row.textContent.toLowerCase());
field.addEventListener("input", () => {
  const wanted = field.value.trim().toLowerCase();
  let found = 0;
  rows.forEach((row, index) => { row.hidden = !texts[index].includes(wanted); found += !row.hidden; });
  hits.textContent = wanted ? `${found.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows` : "";
});
"""
BLUE = "#3b6ea5"


def write_page(report: Report, path: str) -> None:
    """Write the page; it is there whole or not at all."""
    with writing(f"--html {path}"):
        write_text(path, html.page(report.title, _parts(report), STYLE, SCRIPT))


def _parts(report: Report) -> Iterator[str]:
    yield f"<h1>{escape(report.title)}</h1>"
    yield '<header><input id="search" type="search" placeholder="search" aria-label="search"> <span id="hits"></span>'
    yield "</header><dl>"
    yield from (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.facts)
    yield "</dl>"
    yield from (f'<p class="warning">{escape(warning)}</p>' for warning in report.warnings)
    for section in report.sections:
        yield f"<h2>{escape(section.title)}</h2>"
        for block in section.blocks:
            if isinstance(block, Table):
                yield _table(block)
            elif isinstance(block, Histogram):
                yield html.figure(draw(block), block.title)
            else:
                yield from _examples(block)


def _table(table: Table) -> str:
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    if not table.rows:
        return f"<h3>{escape(table.title)}: none</h3>{note}"
    lines = [
        html.line(html.cell(as_text(value), "number" if isinstance(value, int) else "text") for value in row)
        for row in table.rows
    ]
    return f"<h3>{escape(table.title)}</h3>{html.table(table.head, lines)}{note}"


def draw(histogram: Histogram) -> bytes:
    """The histogram as a PNG, tokens on a logarithmic scale; what is right of a line is over that budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    edges, counts = histogram.edges, histogram.counts
    figure, panel = plt.subplots(figsize=(5.2, 2.6), dpi=110)
    widths = [b - a for a, b in pairwise(edges)]
    panel.bar(edges[:-1], counts, widths, align="edge", color=BLUE)
    for name, tokens in histogram.marks.items():
        panel.axvline(tokens + 1, color="tab:red", linestyle="--", label=name)
    if histogram.marks:
        panel.legend(fontsize=8)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(LogLocator(base=2))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set(xlabel="tokens", ylabel="rows")
    panel.grid(alpha=0.3)
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png")
    plt.close(figure)
    return image.getvalue()


def _examples(examples: Examples) -> Iterator[str]:
    yield f"<p>{escape(examples.note)}</p>"
    for example in examples.rows:
        yield f"<article>{''.join(_example(example))}</article>"


def _example(example: Example) -> Iterator[str]:
    yield f"<p><strong>{escape(example.location)}</strong> ({escape(example.status)})</p>"
    yield from (f'<p class="fact">{escape(fact)}</p>' for fact in example.facts)
    for strip in example.strips:
        if strip.name:
            yield f"<h4>{escape(strip.name)}</h4>"
        for number, segment in enumerate(strip.segments):
            if number or (segment.location and len(strip.segments) > 1):
                yield f'<p class="boundary">{escape(segment.location) or "&nbsp;"}</p>'
            yield '<p class="tokens">'
            for piece in segment.pieces:
                tag = "u" if piece.labelled is None else "b" if piece.labelled else "i"
                yield f"<{tag}>{escape(piece.text).replace(chr(10), '↵' + chr(10))}</{tag}>"
            yield "</p>"
