"""An evaluation as one page that needs no other file: tables, pictures, and answers side by side, the worst first."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.files import write_text
from hf_recipes.evaluation.method import Method, Record
from hf_recipes.evaluation.reports import tables as report
from hf_recipes.metrics.intervals import Paired

if TYPE_CHECKING:
    from hf_recipes.evaluation.method import Outcome

ROWS = 50  # of records shown for each evaluation
SHOWN = ("question", "reference", "answer", "prediction", "letters", "chosen", "rejected")
STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", sans-serif; margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem; color: #1c1c1c; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1.5rem; }
th, td { border: 1px solid #d5d5d5; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; }
th { background: #f3f4f6; } tr.sure td { background: #f0f7f0; } tr.worse td { background: #fbf0ef; }
div.table { overflow-x: auto; } img { max-width: 100%; } figure { margin: 0.5rem 0; }
pre { background: #f6f6f6; padding: 0.8rem; overflow: auto; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, parts: Iterable[str], style: str = "", script: str = "") -> str:
    """A whole page that fits a telephone too and fetches nothing; `parts` are its body, as HTML."""
    head = (
        f'<!doctype html><html lang="zh"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}{style}</style>'
    )
    script = f"<script>{script}</script>" if script else ""
    return f"{head}<body>{''.join(parts)}{script}</body></html>\n"


def cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def line(cells: Iterable[str], kind: str = "") -> str:
    """A row of a table, of `cell`s."""
    return f"<tr{f' class={kind}' if kind else ''}>{''.join(cells)}</tr>"


def table(head: Iterable[str], lines: Iterable[str]) -> str:
    """A table of `line`s."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f'<div class="table"><table><tr>{titles}</tr>{"".join(lines)}</table></div>'


def figure(png: bytes, caption: str) -> str:
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def write_report(
    path: Path,
    settings: Mapping[str, Any],
    methods: Mapping[str, Method],
    outcomes: "Mapping[str, Outcome]",
    changes: Mapping[str, Paired],
    pictures: Mapping[str, Sequence[Path]],
) -> None:
    """Write the page; see `evaluating.write_results`."""
    from hf_recipes.evaluation.method import worst_first

    names = list(reversed(outcomes))  # what it is compared with before it, as in the terminal
    model = settings["model"]
    heading = model["peft_path"] or model["model_name_or_path"]
    parts = [f"<h1>{escape(str(heading))}</h1>"]
    for name, method in methods.items():
        parts.append(f'<h2 id="{escape(name)}">{escape(name)}</h2>')
        parts.append(_metrics_table(name, [outcomes[who].metrics[name] for who in names], names, changes))
        if note := getattr(method, "note", None):
            parts.append(f"<p>{escape(note)}</p>")
        for picture in pictures.get(name, ()):
            parts.append(figure(picture.read_bytes(), picture.stem))
            legend = picture.with_suffix(".txt")
            if legend.is_file():
                parts.append(f"<pre>{escape(legend.read_text(encoding='utf-8'))}</pre>")
        rows = worst_first(method, [outcome.records[name] for outcome in outcomes.values()])
        order = ", the worst first" if rows and rows[0][0] is not None else ""
        parts.append(f"<h3>{min(ROWS, len(rows)):,} of {len(rows):,} rows{order}</h3>")
        parts.append(_rows_table([(value, own[::-1]) for value, own in rows[:ROWS]], names))
    text = json.dumps(settings, ensure_ascii=False, indent=2)
    parts.append(f"<details><summary>Settings</summary><pre>{escape(text)}</pre></details>")
    write_text(path, page(str(heading), parts))


def _metrics_table(
    name: str, found: Sequence[Mapping[str, float]], names: Sequence[str], changes: Mapping[str, Paired]
) -> str:
    head = ["metric", *names, *(["change (95 %)", "p"] if len(names) > 1 else [])]
    lines = []
    for key in dict.fromkeys(key for metrics in found for key in metrics):
        cells = [report.as_text(key, metrics.get(key)) for metrics in found]
        kind = ""
        if len(names) > 1:
            change = changes.get(f"{name}_{key}")
            if change:
                cells += [report.change_text(key, change), f"{change.p_value:.3f}"]
                kind = "sure" if change.low > 0 else "worse" if change.high < 0 else ""
            else:
                cells += ["", ""]
        lines.append(line([cell(report.title(key)), *(cell(text, "number") for text in cells)], kind))
    return table(head, lines)


def _rows_table(rows: Sequence[tuple[float | None, list[Record]]], names: Sequence[str]) -> str:
    if not rows:
        return ""
    first = rows[0][1][0]
    same = [key for key in ("question", "reference", "answer") if key in first]
    own = [key for key in SHOWN if key in first and key not in same]
    if not own:  # a likelihood's records
        own = [key for key, value in first.items() if isinstance(value, (int, float))]
    titles = [
        "location",
        *same,
        *(f"{key} ({who})" if len(names) > 1 else key for key in own for who in names),
        "value",
    ]
    lines = []
    for value, records in rows:
        texts = [records[0].get("location", ""), *(records[0][key] for key in same)]
        texts += [record[key] for key in own for record in records]
        cells = [cell(_plain(text), "text") for text in texts]
        lines.append(line([*cells, cell("" if value is None else f"{value:.3f}", "number")]))
    return table(titles, lines)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key} {_plain(part)}" for key, part in value.items())
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
