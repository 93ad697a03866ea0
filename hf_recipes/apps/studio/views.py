"""What the commands report, as HTML."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

from hf_recipes.apps.jobs.jobs import Job
from hf_recipes.apps.studio.texts import Texts
from hf_recipes.core.files import in_units
from hf_recipes.evaluation.reports.report import as_text
from hf_recipes.evaluation.reports.tables import shown, title

COLOURS = ("#0f766e", "#c2410c", "#4338ca", "#a16207", "#be185d", "#475569")
WIDTH, HEIGHT = 320, 150  # of a curve
OPEN = 2  # tables of a section that are unfolded
PANELS = ("loss", "eval_loss", "learning_rate", "tokens_per_second", "memory")


def card(title: str, *parts: str) -> str:
    return f"<section class='card'><h3>{escape(title)}</h3>{''.join(filter(None, parts))}</section>"


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    cells = (f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in pairs)
    return f"<dl class='facts'>{''.join(cells)}</dl>"


def note(text: str, tone: str = "") -> str:
    return f"<p class='note {tone}'>{escape(text)}</p>" if text else ""


def command(lines: Sequence[str], texts: Texts) -> str:
    """Command lines with a button to copy them."""
    text = escape("\n".join(lines))
    return f"<div class='command'><code>{text}</code><button data-copy>{escape(texts('copy'))}</button></div>"


def job_state(job: Job | None, texts: Texts, running: str = "") -> str:
    """How a job stands that has no result yet, or that failed, with its command."""
    if job is None:
        return ""
    # A check of a model counts the page's own row, and a page that is served takes no keys here.
    status, lines = job.status, [] if job.kind == "model" or job.address else job.log()
    what = note(texts(status), status) if status != "finished" else ""
    if status == "failed":
        what = note(texts.failure(job.kind, job.error.removeprefix("error: ")), "bad")
    last = f"<pre class='log'>{escape(lines[-1])}</pre>" if lines and status == "running" else ""
    return what + (note(running) if status == "running" else "") + last + command(job.command_lines(), texts)


def links(pairs: Iterable[tuple[str, str]], options: str = "target='_blank' rel='noopener'") -> str:
    parts = "".join(f"<a href='{escape(url)}' {options}>{escape(text)}</a>" for url, text in pairs)
    return f"<p class='links'>{parts}</p>" if parts else ""


def downloads(paths: Iterable[Path]) -> str:
    pairs = ((f"gradio_api/file={path}", f"{path.name} {in_units(path.stat().st_size)}") for path in paths)
    return links(pairs, "download")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], tones: Sequence[str] = ()) -> str:
    numeric = [" class='number'" if _is_numeric(cell) else "" for cell in (rows[0] if rows else header)]

    def cells(row: Sequence[Any], tag: str) -> str:
        pairs = zip(row, numeric, strict=False)
        return "".join(f"<{tag}{style}>{escape(as_text(cell))}</{tag}>" for cell, style in pairs)

    marked = zip(rows, tones or [""] * len(rows), strict=True)
    lines = (f"<tr class='{tone}'>{cells(row, 'td')}</tr>" for row, tone in marked)
    return f"<div class='table'><table><tr>{cells(header, 'th')}</tr>{''.join(lines)}</table></div>"


def _is_numeric(cell: Any) -> bool:
    return isinstance(cell, int | float) or (isinstance(cell, str) and cell[:1].isdigit() and len(cell) < 12)


def report(data: Mapping[str, Any], texts: Texts) -> str:
    """The verdict of a report, its warnings and its tables; what is long can be unfolded."""
    parts = [note(data["verdict"], data["tone"] or "strong"), *(note(text, "bad") for text in data["warnings"])]
    for block in blocks_of(data, "table"):
        parts += [note(text, "" if block["verdicts"] else "warn") for text in block["findings"]]
    for section in data["sections"]:
        tables = [block for block in blocks_of({"sections": [section]}, "table") if block["rows"]]
        parts.append(f"<h4>{escape(section['title'])}</h4>" if tables and data["sections"][1:] else "")
        for index, block in enumerate(tables):
            inner = table(block["header"], block["rows"], block["verdicts"]) + note(block["note"])
            head = f"<details{' open' * (index < OPEN)}><summary>{escape(block['title'])}</summary>"
            parts.append(f"{head}{inner}</details>")
    return card(texts("report"), *parts)


def conversations(title: str, rows: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> str:
    """Rows as named texts, such as the turns of a conversation, under where they are from."""
    articles = (
        f"<article><small>{escape(head)}</small>"
        + "".join(f"<p class='turn {escape(name)}'><b>{escape(name)}</b>{escape(text)}</p>" for name, text in texts)
        + "</article>"
        for head, texts in rows
    )
    body = "".join(articles)
    return card(title, f"<div class='rows'>{body}</div>") if body else ""


def tokens(examples: Mapping[str, Any], texts: Texts) -> str:
    """Rows token by token; those that carry loss are in colour."""
    tags = {None: "u", True: "b", False: "i"}
    rows = []
    for row, sequence in ((one, sequence) for one in examples["rows"] for sequence in one["sequences"]):
        spans = [span for document in sequence["documents"] for span in document["spans"]]
        marked = (f"<{tags[one['labelled']]}>{escape(one['text'])}</{tags[one['labelled']]}>" for one in spans)
        head = f"<small>{escape(row['location'])} {escape(sequence['name'])}</small>"
        rows.append(f"<p class='tokens'>{head}{''.join(marked)}</p>")
    return card(texts("tokens"), note(examples["note"]), *rows)


def blocks_of(data: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return [block for section in data.get("sections", ()) for block in section["blocks"] if block["kind"] == kind]


def lengths(histogram: Mapping[str, Any], budget: int, texts: Texts) -> str:
    """How many rows are longer than a budget, and where it lies among them."""
    pairs, edges, counts = histogram["lengths"], histogram["edges"], histogram["counts"]
    rows, over = sum(count for _, count in pairs), sum(count for length, count in pairs if length > budget)
    most, low, high = max(counts), edges[0], max(edges[-1], edges[0] + 1)
    at = [WIDTH * 2 * (edge - low) / (high - low) for edge in edges]
    bars = "".join(
        f"<rect x='{left:.1f}' y='{100 - 90 * count / most:.1f}' width='{max(0.5, right - left - 0.5):.1f}' "
        f"height='{90 * count / most:.1f}' class='{'over' if edge > budget else ''}'/>"
        for left, right, edge, count in zip(at, at[1:], edges, counts, strict=False)
    )
    x = min(WIDTH * 2, max(0, WIDTH * 2 * (budget - low) / (high - low)))
    line = f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='100'/>"
    axis = (
        f"<div class='axis'><span>{low:,}</span><span>{texts('tokens axis')}</span><span>{edges[-1] - 1:,}</span></div>"
    )
    picture = f"<svg class='bars' viewBox='0 0 {WIDTH * 2} 100' preserveAspectRatio='none'>{bars}{line}</svg>{axis}"
    text = texts("cut", over=over, rows=rows, budget=budget)
    return card(texts("lengths"), note(text, "warn" if over else "good"), picture)


def curves(logs: Mapping[str, Sequence[Mapping[str, Any]]], texts: Texts) -> str:
    """A picture for each thing that is logged, with a line for each run."""
    scores = {key for log in logs.values() for row in log for key in row if key.startswith("eval_") and shown(key[5:])}
    names = [*PANELS[:2], *sorted(scores - set(PANELS))[:4], *PANELS[2:]]
    pictures = [
        picture
        for name in names
        if (picture := _curve(name, {run: _points(log, name) for run, log in logs.items()}, texts))
    ]
    legend = "".join(
        f"<span><i style='background:{COLOURS[index % len(COLOURS)]}'></i>{escape(run)}</span>"
        for index, run in enumerate(logs)
    )
    legend = f"<p class='legend'>{legend}</p>" if len(logs) > 1 else ""
    return f"{legend}<div class='curves'>{''.join(pictures)}</div>" if pictures else ""


def _points(log: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    values = ((row.get("step", 0), row.get(name)) for row in log)
    return [(step, value) for step, value in values if isinstance(value, int | float) and math.isfinite(value)]


def _curve(name: str, series: Mapping[str, list[tuple[float, float]]], texts: Texts) -> str:
    values = [value for points in series.values() for _, value in points]
    if not values:
        return ""
    last = max(step for points in series.values() for step, _ in points)
    low, high = min(values), max(values)
    span = (high - low) or 1
    top = high if high > low else high + span / 2
    lines = []
    for index, points in enumerate(series.values()):
        across, down = (WIDTH - 16) / max(1, last), (HEIGHT - 16) / span
        at = [(f"{8 + across * step:.1f}", f"{8 + down * (top - value):.1f}") for step, value in points]
        colour = COLOURS[index % len(COLOURS)]
        lines.append(f"<polyline points='{' '.join(map(','.join, at))}' stroke='{colour}'/>")
        lines += [f"<circle cx='{x}' cy='{y}' r='2.5' fill='{colour}'/>" for x, y in (at[-1:] if at[9:] else at)]
    show = in_units if name == "memory" else "{:.4g}".format
    axis = f"<div class='axis'><span>{show(low)} – {show(high)}</span><span>{texts('step', step=last)}</span></div>"
    picture = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}'>{''.join(lines)}</svg>"
    caption = texts(name) if name in PANELS else title(name[5:])
    return f"<figure><figcaption>{escape(caption)}</figcaption>{picture}{axis}</figure>"


def samples(steps: Mapping[int, Sequence[Mapping[str, Any]]], texts: Texts) -> str:
    """The first answers of each evaluation, side by side over the steps."""
    chosen = sorted(steps) if len(steps) <= 4 else [*sorted(steps)[:2], *sorted(steps)[-2:]]
    rows = [
        [first["question"][-200:], first.get("reference") or "–"]
        + [steps[step][index].get("prediction", "") or "–" if index < len(steps[step]) else "–" for step in chosen]
        for index, first in enumerate(steps[chosen[0]][:3] if chosen else ())
        if "prediction" in first
    ]
    header = [texts("question"), texts("reference"), *(texts("step", step=step) for step in chosen)]
    return card(texts("samples"), table(header, rows)) if rows else ""


def plan(dry: Mapping[str, Any], texts: Texts) -> str:
    """A dry run: steps, time, memory, disk, and what to know before the start."""
    memory, steps, time = dry["memory"], dry["steps"], dry["seconds"]
    pairs = [(texts("plan rows"), f"{dry['data']['rows']:,}"), (texts("plan tokens"), f"{dry['data']['tokens']:,}")]
    pairs += [(texts("plan steps"), f"{steps['total']:,}"), (texts("plan batch"), f"{dry['batch']['global']:,}")]
    if dry["data"].get("truncated"):
        pairs.append((texts("plan truncated"), f"{dry['data']['truncated']:.1%}"))
    if time:
        pairs.append((texts("plan time"), " – ".join(str(timedelta(seconds=math.ceil(one))) for one in time)))
    if memory:
        needed = " – ".join(dict.fromkeys(map(in_units, (memory["peak"], memory["most"]))))
        pairs += [(texts("plan memory"), f"{needed} / {in_units(dry['free_memory'])}")]
        pairs += [(texts("plan disk"), in_units(memory["checkpoint"]))]
        pairs.append((texts("plan trained"), f"{memory['trained']:,} ({memory['trained'] / memory['total']:.2%})"))
    fits = memory and memory["peak"] <= dry["free_memory"]
    verdict = "" if not memory else note(texts("fits" if fits else "too large"), "good" if fits else "bad")
    return facts(pairs) + verdict + "".join(note(text, "warn") for text in dry["notes"])
